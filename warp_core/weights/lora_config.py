"""The settings of a PEFT LoRA adapter: rank and scaling per module; what cannot be merged exactly is refused."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from warp_core.errors import CheckpointError

__all__ = ["LoraSettings", "is_left_out", "read_lora_settings"]

# Fields that say nothing about the update B A itself, or that are read below.
_HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_MAX_WILDCARDS = 3
_MAX_PATTERN = 1200
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What turns stored factors into an update: W + scaling * B A."""

    rank: int
    alpha: float
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_rslora: bool = False
    fan_in_fan_out: bool = False

    def scaling(self, module: str) -> float:
        """alpha / r of a module, or alpha / sqrt(r) with rslora; patterns override the common alpha and r."""
        rank = _lookup(self.rank_pattern, module, self.rank)
        alpha = _lookup(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank_of(self, module: str) -> int:
        """The rank of a module."""
        return int(_lookup(self.rank_pattern, module, self.rank))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, part of the identity of an adapter."""
        return asdict(self)


def read_lora_settings(config: Mapping[str, Any], *, path: Path) -> LoraSettings:
    """Validate adapter_config.json.

    Raises CheckpointError naming the field for anything but plain LoRA: other PEFT types, DoRA, trained biases,
    modules_to_save, initialisations that change the base (PiSSA, OLoRA, ...), and fields this version does not know.
    """
    if config.get("peft_type") != "LORA":
        _refuse(path, "peft_type", config.get("peft_type"), "only LoRA adapters can be merged exactly")
    if config.get("bias", "none") != "none":
        _refuse(path, "bias", config["bias"], "an adapter with biases is not a product of factors")
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        _refuse(path, "init_lora_weights", init, "it changes the base weights; convert it to plain LoRA when saving")
    for name in sorted(config):
        if name not in _HARMLESS and config[name] not in (None, False, {}, [], "none"):
            _refuse(path, name, config[name], "an adapter with it cannot be merged exactly")
    try:
        settings = LoraSettings(
            rank=_positive_int(config["r"]),
            alpha=_finite(config["lora_alpha"]),
            rank_pattern=tuple((str(k), _positive_int(v)) for k, v in (config.get("rank_pattern") or {}).items()),
            alpha_pattern=tuple((str(k), _finite(v)) for k, v in (config.get("alpha_pattern") or {}).items()),
            use_rslora=bool(config.get("use_rslora")),
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        )
        for pattern, _ in settings.rank_pattern + settings.alpha_pattern:
            _check_pattern(pattern)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as err:
        raise CheckpointError(f"{path}: r, lora_alpha or a pattern is missing or malformed ({err})") from None
    return settings


def is_left_out(module: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT passes over the factors of a module: not a target, excluded, or of a layer that is not chosen."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(targets, list) and not _is_among(module, targets):
        return True
    if isinstance(excluded, list) and _is_among(module, excluded):
        return True
    layers = config.get("layers_to_transform")
    layer = next((part for part in module.split(".") if part.isdecimal()), None)
    chosen = layers if isinstance(layers, list) else [layers]
    return bool(layers is not None and chosen and layer is not None and int(layer) not in chosen)


def _is_among(module: str, names: Sequence[Any]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _lookup(patterns: tuple[tuple[str, Any], ...], module: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name, at a dot."""
    for pattern, value in patterns:
        if _compiled(pattern).match(module):
            return float(value)
    return default


@lru_cache(maxsize=10_000)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _check_pattern(pattern: str) -> None:
    re.compile(pattern)
    plain = re.sub(r"\\.", "", pattern)
    if re.search(r"\)[*+{]", plain):  # (a+)+ and the like can take for ever
        raise ValueError(f"the pattern {pattern[:60]!r} repeats a repetition")
    # So can many of them in a row; names of modules need one or two.
    if len(re.findall(r"[*+?{(]", plain)) > _MAX_WILDCARDS or len(pattern) > _MAX_PATTERN:
        raise ValueError(f"the pattern {pattern[:60]!r} is not one for names of modules")


def _positive_int(value: Any) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"{repr(value)[:40]} is not a positive whole number")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{repr(value)[:40]} is not a finite number")
    return float(value)


def _refuse(path: Path, field: str, value: Any, why: str) -> None:
    field = field if field.isprintable() and len(field) <= 80 else repr(field[:80])
    raise CheckpointError(f"{path}: {field} = {str(value)[:80]!r}: {why}; train a plain LoRA adapter or merge it first")
