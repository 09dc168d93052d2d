"""Damaged adapters: each case says what is wrong, and what must come of it."""

from typing import Any

import torch

from hostile.input_folders import pickle_that_runs
from hostile.input_scene import Expected, FolderCase, Scene, Tensors
from hostile.input_weights import unchanged

__all__ = ["ADAPTERS", "NAMELESS"]


ADAPTER = "adapter_model.safetensors"


def _settings(line: str, named: str, expected: Expected = "refused", **fields: Any) -> FolderCase:
    """A case that only changes fields of adapter_config.json."""

    def damage(scene: Scene) -> None:
        scene.config("adapter_config.json", **fields)

    damage.__name__ = line
    return FolderCase(damage=damage, expected=expected, named=named)


def half_a_pair(scene: Scene) -> None:
    """A factor without its partner."""
    scene.tensors(lambda tensors: tensors.pop(sorted(tensors)[0]), ADAPTER)


def unknown_module(scene: Scene) -> None:
    """Factors for a module that the base does not have."""

    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if "layers.0.mlp.up_proj" in name]:
            tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)

    scene.tensors(rename, ADAPTER)


def factor_of_other_width(scene: Scene) -> None:
    """Factors of another base: they do not fit the weight."""
    scene.tensors(
        lambda tensors: tensors.update(
            {name: torch.ones(4, 64) for name in tensors if name.endswith("layers.0.mlp.up_proj.lora_A.weight")}
        ),
        ADAPTER,
    )


def nan_factor(scene: Scene) -> None:
    """A factor holds NaN."""
    scene.tensors(lambda tensors: next(iter(tensors.values()))[0].fill_(float("nan")), ADAPTER)


def integer_factor(scene: Scene) -> None:
    """A factor of whole numbers."""
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    scene.tensors(lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}), ADAPTER)


def saved_module(scene: Scene) -> None:
    """A whole module beside the factors (modules_to_save)."""
    name = "base_model.model.lm_head.weight"
    scene.tensors(lambda tensors: tensors.update({name: torch.ones(262, 32)}), ADAPTER)
    scene.config("adapter_config.json", modules_to_save=["lm_head"])


def adapter_as_pickle(scene: Scene) -> None:
    """Factors as a pickle that runs code."""
    (scene.folder / ADAPTER).unlink()
    (scene.folder / "adapter_model.bin").write_bytes(pickle_that_runs(scene.canary))


def adapter_config_is_a_list(scene: Scene) -> None:
    """Settings that are no object."""
    (scene.folder / "adapter_config.json").write_text("[]", encoding="ascii")


def dora_factors(scene: Scene) -> None:
    """The magnitudes of DoRA, which plain factors lack, and settings that keep silent about it."""
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.weight"
    scene.tensors(lambda tensors: tensors.update({name: torch.ones(48)}), ADAPTER)


ADAPTERS = (
    FolderCase(damage=unchanged, expected="loaded"),
    FolderCase(damage=half_a_pair, expected="refused", named="lora"),
    FolderCase(damage=unknown_module, expected="refused", named="layers.7"),
    FolderCase(damage=factor_of_other_width, expected="refused", named="up_proj"),
    FolderCase(damage=nan_factor, expected="refused", named="lora"),
    FolderCase(damage=integer_factor, expected="refused", named="up_proj"),
    FolderCase(damage=saved_module, expected="refused", named="modules_to_save"),
    FolderCase(damage=adapter_as_pickle, expected="refused", named="pickle"),
    FolderCase(damage=adapter_config_is_a_list, expected="refused", named="adapter_config.json"),
    FolderCase(damage=dora_factors, expected="refused", named="lora_magnitude_vector"),
    _settings("rslora", "", expected="loaded", use_rslora=True),
    _settings("rank of 0", "adapter_config.json", r=0),
    _settings("rank that is not that of the factors", "rank", r=3),
    _settings("rank of 10^30", "adapter_config.json", r=10**30),
    _settings("rank as text", "adapter_config.json", r="4"),
    _settings("no rank", "adapter_config.json", r=...),
    _settings("DoRA", "use_dora", use_dora=True),
    _settings("trained biases", "bias", bias="all"),
    _settings("a base that the initialisation changes", "init_lora_weights", init_lora_weights="pissa_niter_4"),
    _settings("another kind of adapter", "peft_type", peft_type="IA3"),
    _settings("a field from the future", "use_bdlora", use_bdlora=True),
    _settings("alpha that is NaN", "adapter_config.json", lora_alpha=float("nan")),
    _settings("alpha that is infinite", "adapter_config.json", lora_alpha=float("inf")),
    _settings("alpha of 400 digits", "adapter_config.json", lora_alpha=10**400),
    _settings("rank by pattern, 400 digits", "adapter_config.json", rank_pattern={"up_proj": 10**400}),
    _settings("a pattern that never ends", "adapter_config.json", rank_pattern={"(a+)+b": 4}),
    _settings("a pattern of many stars", "adapter_config.json", rank_pattern={".*" * 20 + "!": 4}),
    _settings("a pattern of many choices", "adapter_config.json", alpha_pattern={"(.|.)" * 40 + "!": 4}),
    _settings("a pattern that is none", "adapter_config.json", rank_pattern={"(": 4}),
    _settings("targets that are not those of the factors", "target_modules", target_modules=["nothing", "q_proj"]),
    _settings("a layer that is left out", "layers.1", layers_to_transform=[0]),
    _settings("a module that is left out", "up_proj", exclude_modules=["up_proj"]),
    _settings("code for the class", "", expected="loaded", auto_mapping={"base_model_class": "os.system"}),
)
BASES = {
    "the base is a URL": "https://example.org/model",
    "the base is code": "__import__('os').system('true')",
    "the base is nowhere": "/no/such/folder",
    "the base is a long name": "x" * 5000,
    "the base holds a NUL": "a\0b",
    "the base is a stranger's home": "~no-such-user-here/model",
    "the base is a number": 7,
    "the base holds a line break": "a\nb",
}
NAMELESS = tuple(_settings(line, "base_model", "told", base_model_name_or_path=name) for line, name in BASES.items())
