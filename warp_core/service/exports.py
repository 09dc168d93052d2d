"""Write the model at a place as a folder, read it back as a stranger would, and compare it with what was seen."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warp_core.errors import WorkspaceError
from warp_core.policy.model import DTYPES, Policy, load_policy
from warp_core.policy.prompts import encode_prompts
from warp_core.service.documents import ExportReport
from warp_core.service.jobs import Cancelled, Context
from warp_core.service.library import Library
from warp_core.service.protocol import ExportRequest
from warp_core.service.snippets import adapter_snippets, model_snippets
from warp_core.training.config import WarpConfig
from warp_core.training.warp import Sources
from warp_core.weights import MergeReport, Recipe, ResidentMerge, compute_geometry, merge_to_folder
from warp_core.weights.shards import parse_dtype, parse_size
from warp_core.workspace.paths import cache_root, run_path
from warp_core.workspace.sources import EMBEDDED

__all__ = ["export"]

EXPORTS = "exports"
CPU = torch.device("cpu")
COMPARED_PROMPTS = 3
COMPARED_TOKENS = 24

Progress = Callable[[int, int], None]
Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The model in memory: its parameters, what it says, and how far PEFT's arithmetic may be from ours."""

    parameters: Parameters
    completions: tuple[str, ...]
    allowed: float


def export(library: Library, request: ExportRequest, context: Context) -> dict[str, Any]:
    """Return an `ExportReport` as JSON; the folder is in the workspace under exports/NAME, whole or not there.

    An export that is cancelled leaves nothing, also where the folder was written and is being read back.

    Raises:
        WorkspaceError: the name is not safe or taken, or the disk refuses.
        RecipeError: the shard size is none, or the weights of the place do not fit.
        CheckpointError: full checkpoints have no adapter form; otherwise as `Library.sources`.
    """
    out = run_path(request.name, root=library.root / EXPORTS)
    if out.exists():
        raise WorkspaceError(f"{out} exists: choose another name")
    parse_size(request.max_shard_size)
    context.say("opening the checkpoints")
    sources = library.sources(request.selection, request.place.iteration)
    recipe = library.recipe(request.selection, request.place)
    config = library.measuring(request.selection)
    prompts = library.prompts(request.selection)
    base_name = _base_name(library, request, sources)
    report = _written(sources, recipe, request, out, base_name, context)
    checked: dict[str, Any] = {}
    if request.verify:
        try:
            checked = _checked(sources, request, report, config, prompts[:COMPARED_PROMPTS], context)
        except Cancelled:
            shutil.rmtree(out)
            raise
    # Our name for the embedded model means nothing to other programs.
    base = base_name if base_name and base_name != EMBEDDED else str(sources.sft.path.resolve())
    transformers, vllm = _snippets(request, out, config, base=base, prompt=prompts[0])
    return ExportReport(
        out=str(out),
        recipe=recipe.to_json(),
        num_params=report.num_params,
        size_bytes=report.size_bytes,
        wall_s=report.wall_s,
        files=tuple(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())),
        rounded=_rounded(sources, request, config),
        snippet_transformers=transformers,
        snippet_vllm=vllm,
        **({"verified": None} | checked),
    ).model_dump(mode="json")


def _written(
    sources: Sources, recipe: Recipe, request: ExportRequest, out: Path, base_name: str | None, context: Context
) -> MergeReport:
    share = 0.5 if request.verify else 1.0
    geometry = compute_geometry(
        sources.init,
        sources.policies,
        granularity=recipe.granularity,
        cache_dir=cache_root() / "geometry",
        progress=_part(context, 0.0, 0.4 * share, "reading weights"),
    )
    return merge_to_folder(
        recipe,
        init=sources.init,
        policies=sources.policies,
        towards=sources.towards if recipe.towards else None,
        geometry=geometry,
        out=out,
        dtype=request.dtype,
        max_shard_size=request.max_shard_size,
        kind=request.form,
        base_name=base_name,
        progress=_part(context, 0.4 * share, share, "writing"),
    )


def _part(context: Context, start: float, end: float, message: str) -> Progress:
    """Report one stage of several as its share of the whole, in thousandths."""

    def progress(done: int, total: int) -> None:
        context.checkpoint()
        context.progress(round(1000 * (start + (end - start) * done / max(1, total))), 1000, message)

    return progress


def _base_name(library: Library, request: ExportRequest, sources: Sources) -> str | None:
    """How the card and an adapter's configuration call the base: a local folder by its absolute path."""
    config, selection = library.config(request.selection), request.selection
    given = selection.base or (selection.init if sources.init.kind == "full" else None)
    name = config.model.name if config else given
    folder = Path(name).expanduser() if name else None
    return str(folder.resolve()) if folder and folder.is_dir() else name


def _checked(
    sources: Sources,
    request: ExportRequest,
    report: MergeReport,
    config: WarpConfig,
    prompts: Sequence[str],
    context: Context,
) -> dict[str, Any]:
    """Load the folder with transformers (an adapter with PEFT) and compare every parameter, and what it says."""
    step = _part(context, 0.5, 1.0, "reading it back")
    chat = config.model.chat_template
    dtype = parse_dtype(request.dtype if request.form == "full" else None) or _common_dtype(sources)
    seen = _in_memory(sources, request, report, dtype, prompts, chat)
    step(1, 2)
    if request.form == "adapter":
        parameters, completions = _adapted(sources, report.out, dtype, prompts, chat)
    else:
        loaded = load_policy(report.out, device=CPU, dtype=dtype)
        parameters, completions = _parameters(loaded.model), _greedy(loaded, prompts, chat)
    difference = _max_difference(seen.parameters, parameters)
    step(2, 2)
    return {
        "verified": difference is not None and difference <= seen.allowed,
        "max_difference": difference,
        "completions": tuple(zip(prompts, seen.completions, completions, strict=True)),
    }


def _rounded(sources: Sources, request: ExportRequest, config: WarpConfig) -> tuple[str, str] | None:
    """The dtype that previews compute in and that of the files, where these hold less; None where nothing is lost."""
    seen = DTYPES[config.model.dtype]
    asked = parse_dtype(request.dtype)
    written = asked or (torch.float32 if request.form == "adapter" else _common_dtype(sources))
    if torch.promote_types(seen, written) == written:
        return None
    return str(seen).removeprefix("torch."), str(written).removeprefix("torch.")


def _common_dtype(sources: Sources) -> torch.dtype:
    """What most weights of the init are in on disk, which is what an export without a dtype keeps."""
    dtypes = [entry.dtype for entry in sources.init.full.tensors.values() if entry.is_float]
    return max(set(dtypes), key=dtypes.count)


def _in_memory(
    sources: Sources,
    request: ExportRequest,
    report: MergeReport,
    dtype: torch.dtype,
    prompts: Sequence[str],
    chat: bool,
) -> _Seen:
    """Make the model as a preview does."""
    policy = load_policy(sources.sft.path, device=CPU, dtype=dtype)
    towards = sources.towards if report.recipe.towards else None
    resident = ResidentMerge(policy.model, init=sources.init, policies=sources.policies, towards=towards)
    resident.move(report.coefficients)
    parameters = _parameters(policy.model)
    allowed = 0.0
    if request.form == "adapter":
        # PEFT multiplies the factors in their dtype and adds in that of the base, where we round once.
        moved = _max_difference(resident.parameters_of(sources.sft), parameters) or 0.0
        largest = max(float(tensor.abs().max()) for tensor in parameters.values())
        factors = torch.finfo(parse_dtype(request.dtype) or torch.float32)
        allowed = 8 * factors.eps * moved + 4 * torch.finfo(dtype).eps * largest
    return _Seen(parameters=parameters, completions=_greedy(policy, prompts, chat), allowed=allowed)


def _adapted(
    sources: Sources, folder: Path, dtype: torch.dtype, prompts: Sequence[str], chat: bool
) -> tuple[Parameters, tuple[str, ...]]:
    """Open an adapter with PEFT: what it says as an adapter, and its parameters folded into the base."""
    import peft

    policy = load_policy(sources.sft.path, device=CPU, dtype=dtype)
    adapted: Any = peft.PeftModel.from_pretrained(policy.model, folder).eval()
    completions = _greedy(dataclasses.replace(policy, model=adapted), prompts, chat)
    return _parameters(adapted.merge_and_unload()), completions


def _parameters(model: torch.nn.Module) -> Parameters:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _max_difference(one: Parameters, other: Parameters) -> float | None:
    """The largest absolute difference; None where a parameter is missing or has another shape."""
    if {name: tensor.shape for name, tensor in one.items()} != {name: tensor.shape for name, tensor in other.items()}:
        return None
    return max(float((tensor.float() - other[name].float()).abs().max()) for name, tensor in one.items())


@torch.no_grad()
def _greedy(policy: Policy, prompts: Sequence[str], chat: bool) -> tuple[str, ...]:
    """What a model says where the likeliest token is taken each time."""
    batch = encode_prompts(prompts, policy.tokenizer, chat_template=chat, device=CPU)
    generating: Any = policy.model
    tokens_BT = generating.generate(
        input_ids=batch.ids_BP, attention_mask=batch.mask_BP, max_new_tokens=COMPARED_TOKENS, do_sample=False
    )[:, batch.ids_BP.shape[1] :]
    return tuple(policy.tokenizer.batch_decode(tokens_BT, skip_special_tokens=True))


def _snippets(request: ExportRequest, out: Path, config: WarpConfig, *, base: str, prompt: str) -> tuple[str, str]:
    how: dict[str, Any] = {
        "prompt": prompt,
        "chat": config.model.chat_template,
        "max_new_tokens": config.training.max_new_tokens,
        "temperature": config.training.temperature,
    }
    if request.form == "full":
        return model_snippets(str(out), **how)
    written = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([written["r"], *written["rank_pattern"].values()])
    return adapter_snippets(str(out), base=base, name=request.name, rank=rank, **how)
