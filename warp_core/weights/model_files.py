"""Everything in an exported folder beside the weights: config, tokenizer, recipe, model card."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import warp_core
from warp_core.errors import CheckpointError
from warp_core.weights.checkpoints import Checkpoint
from warp_core.weights.coefficients import Coefficients
from warp_core.weights.folders import safe_file
from warp_core.weights.recipes import Recipe

__all__ = ["RECIPE_FILE", "model_name", "write_card", "write_model_files", "write_recipe_file"]

RECIPE_FILE = "warp_recipe.json"
_TOKENIZER = re.compile(
    r"tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)|vocab\.(json|txt)|"
    r"merges\.txt|.*\.model|.*\.tiktoken|(pre)?processor_config\.json"
)
_MODEL = re.compile(r"generation_config\.json|LICEN[CS]E.*|NOTICE.*|COPYING.*|USE_POLICY.*", re.IGNORECASE)
_TEMPLATES = "additional_chat_templates"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_model_files(
    folder: Path, sources: Sequence[Checkpoint], *, dtype: torch.dtype | None, kind: Literal["full", "adapter"]
) -> None:
    """Copy config (its dtype updated), generation config, licence, tokenizer and chat template; never code.

    The tokenizer is that of init, then of its base, then of the first policy that has one. An adapter folder gets the
    tokenizer only.
    """
    init = sources[0]
    origins = [source.path for source in (init, init.full, *sources[1:])]
    origin = next((path for path in origins if _names(path, _TOKENIZER)), init.path)
    for name in _names(origin, _TOKENIZER):
        shutil.copyfile(safe_file(origin, name), folder / name)
    _copy_templates(origin, folder)
    if kind == "adapter":
        return
    for name in _names(init.full.path, _MODEL):
        shutil.copyfile(safe_file(init.full.path, name), folder / name)
    config = dict(init.full.config)
    if dtype is not None:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_recipe_file(folder: Path, recipe: Recipe, coefs: Coefficients, sources: Sequence[Checkpoint]) -> None:
    """warp_recipe.json: the recipe, its coefficients per layer, and SHA-256 of every source weight file."""
    record = {
        "format": 1,
        "warp_core": warp_core.__version__,
        "recipe_id": recipe.id,
        "recipe": recipe.to_json(),
        "coefficients": [
            {"layer": name, "init": init, "policies": row, "towards": towards}
            for name, init, row, towards in zip(
                coefs.layers, coefs.init_L.tolist(), coefs.coef_LM.tolist(), coefs.towards_L.tolist(), strict=True
            )
        ],
        "sources": [{"role": role, **_describe(source)} for role, source in zip(_roles(recipe), sources, strict=True)],
    }
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_card(
    folder: Path,
    recipe: Recipe,
    sources: Sequence[Checkpoint],
    *,
    kind: Literal["full", "adapter"],
    base_name: str | None = None,
) -> None:
    """README.md, the model card: front matter (base_model, licence, tags), recipe, sources and how to load it."""
    base = base_name or model_name(sources[0].full)
    front = ["---", f"base_model: {json.dumps(base)}"]
    licence = _licence(sources[0].full.path)
    front += [f"license: {json.dumps(licence)}"] if licence else []
    front += [f"library_name: {'peft' if kind == 'adapter' else 'transformers'}", "pipeline_tag: text-generation"]
    front += ["tags:", "- warp", "- merge", "- model-merging", *(["- lora"] if kind == "adapter" else []), "---", ""]
    towards = "init" if recipe.towards is None else "the `towards` checkpoint"
    weights = ", ".join(f"{weight:g}" for weight in recipe.weights)
    body = [
        "# Weight averaged rewarded policy",
        "",
        "Made with warp-core by the method of WARP (Rame et al. 2024, arXiv:2406.16768).",
        "",
        f"- merge: `{recipe.method}` per {recipe.granularity}, weights {weights}",
        f"- LITI: eta = {recipe.eta:g} from {towards} (eta = 0) to the merged policies (eta = 1)",
        f"- recipe id: `{recipe.id}`; coefficients and hashes of all inputs are in `{RECIPE_FILE}`",
        "",
        "| role | model | content id |",
        "|---|---|---|",
        *(
            f"| {role} | {_cell(model_name(source))} | `{source.id[:16]}` |"
            for role, source in zip(_roles(recipe), sources, strict=True)
        ),
        "",
    ]
    (folder / "README.md").write_text("\n".join(front + body), encoding="utf-8")


def model_name(checkpoint: Checkpoint) -> str:
    """How a card calls a checkpoint: its Hub name where the folder tells it, else the folder's name (never a path)."""
    folder = checkpoint.path.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    stored = str(checkpoint.config.get("_name_or_path") or "")
    return stored if _HUB_NAME.fullmatch(stored) else folder.name


def _roles(recipe: Recipe) -> list[str]:
    roles = ["init", *(f"policy {m}" for m in range(1, 1 + len(recipe.policies)))]
    return roles if recipe.towards is None else [*roles, "towards"]


def _describe(source: Checkpoint) -> dict[str, Any]:
    files = [{"name": file.name, "sha256": file.sha256} for file in source.files]
    record: dict[str, Any] = {"name": model_name(source), "id": source.id, "kind": source.kind, "files": files}
    if source.base is not None:
        record["base"] = _describe(source.base)
    return record


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file())


def _copy_templates(origin: Path, folder: Path) -> None:
    templates = origin / _TEMPLATES
    if not templates.is_dir() or templates.is_symlink():
        return
    (folder / _TEMPLATES).mkdir()
    for path in sorted(templates.glob("*.jinja")):
        if path.is_symlink():
            raise CheckpointError(f"{path}: a link that leaves the folder; copy the file into the folder")
        shutil.copyfile(path, folder / _TEMPLATES / path.name)


def _licence(folder: Path) -> str | None:
    """The licence that init's own card declares: a merge inherits it."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:\s*[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else None


def _cell(text: str) -> str:
    return re.sub(r"[|<>`\n]", "_", text)
