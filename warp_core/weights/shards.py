"""Split a model into files of a given size, with the index that Hugging Face folders have."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from warp_core.errors import RecipeError

__all__ = ["Shard", "parse_dtype", "parse_size", "plan_shards", "write_index"]

Spec = tuple[torch.dtype, tuple[int, ...]]
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One weight file: its name and its tensors as (dtype, shape)."""

    file: str
    tensors: Mapping[str, Spec]


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A float dtype from its name ("bfloat16" or "bf16"). Raises RecipeError for anything else."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in _DTYPES:
        raise RecipeError(f"dtype {name!r} is not known; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def parse_size(size: int | str) -> int:
    """Bytes from 5000000000, "5GB", "200MB" or "2GiB". Raises RecipeError for anything else or less than one byte."""
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)", str(size).strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    size_bytes = int(float(match[1]) * factor) if match and factor else 0
    if size_bytes < 1:
        raise RecipeError(f"shard size {size!r} is not a size; give bytes or a text such as 5GB or 200MB")
    return size_bytes


def plan_shards(tensors: Mapping[str, Spec], *, limit: int) -> list[Shard]:
    """Fill files of at most `limit` bytes in the order given; a larger tensor gets a file of its own."""
    groups: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        if groups[-1] and filled + size > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = (dtype, shape)
        filled += size
    if len(groups) == 1:
        return [Shard(file="model.safetensors", tensors=groups[0])]
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    return [Shard(file=name, tensors=group) for name, group in zip(names, groups, strict=True)]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write model.safetensors.index.json; nothing for a single file."""
    if len(shards) == 1:
        return
    specs = [spec for shard in shards for spec in shard.tensors.values()]
    index = {
        "metadata": {
            "total_parameters": sum(torch.Size(shape).numel() for _, shape in specs),
            "total_size": sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in specs),
        },
        "weight_map": {name: shard.file for shard in shards for name in sorted(shard.tensors)},
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
