"""Find the weights and other files of a model folder without leaving it, running code or trusting an index."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from warp_core.errors import CheckpointError
from warp_core.weights.headers import TensorEntry, read_header

__all__ = [
    "read_json_object",
    "read_small",
    "readable",
    "safe_file",
    "shard_names",
    "stray_weight_files",
    "weight_table",
]

MAX_JSON_BYTES = 200_000_000  # tokenizers reach 35 MB
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_SHARD = re.compile(r".*-\d{5,}-of-\d{5,}\.safetensors")


def safe_file(folder: Path, name: str) -> Path:
    """The path of a file directly in `folder`.

    Raises CheckpointError for a name with a separator or "..", and for a link that leaves the folder. The one link that
    may leave it is that of a Hub cache: snapshots/REVISION/name -> blobs/hash of the same repository.
    """
    plain = name not in ("", ".", "..") and PurePosixPath(name).name == name and PureWindowsPath(name).name == name
    if not plain or "\0" in name:
        raise CheckpointError(f"{folder}: the file name {name[:120]!r} leaves the folder; do not use this model")
    if not name.isprintable():
        raise CheckpointError(f"{folder}: the file name {name[:120]!r} is not printable; do not use this model")
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError(f"{folder}: the file {name[:120]!r} is missing; get the model again") from None
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if target.parent not in allowed:
        raise CheckpointError(f"{path}: a link that leaves the folder; copy the file into the folder")
    if not target.is_file():
        raise CheckpointError(f"{path}: not a regular file; get the model again")
    return path


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise CheckpointError where the system does not let us read a model folder, or a file in it."""
    try:
        yield
    except OSError as err:
        raise CheckpointError(f"{err.filename or path}: cannot be read ({err.strerror}); check the folder") from None


def read_small(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file beside the weights. Raises CheckpointError if it is larger than `limit` bytes."""
    if path.stat().st_size > limit:
        raise CheckpointError(f"{path}: larger than {limit} bytes; not a file of a model")
    return path.read_bytes()


def read_json_object(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError if it is missing, huge, malformed or holds NaN."""
    try:
        data = json.loads(read_small(path, limit=limit).decode("utf-8"), parse_constant=_infinity)
    except (OSError, ValueError, RecursionError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable JSON ({err}); get the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: not a JSON object; get the file again")
    return data


def _infinity(name: str) -> float:
    if name == "NaN":  # infinity is in the configs of some models, NaN in none that works
        raise ValueError("NaN")
    return float(name)


def shard_names(folder: Path, *, stem: str = "model") -> tuple[list[str], dict[str, str]]:
    """The names of the weight files, and the index (tensor -> file; empty for a single file).

    Raises CheckpointError for a folder without safetensors (pickle is never opened), with both a single file and an
    index, or with an index whose weight map is not one of names.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a model")
    if index.is_file():
        if single.exists():
            raise CheckpointError(f"{folder}: both {single.name} and {index.name}; remove the one that is stale")
        weight_map = read_json_object(safe_file(folder, index.name)).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index}: weight_map is missing or malformed; get the model again")
        return sorted(set(weight_map.values())), weight_map
    if single.exists() or single.is_symlink():
        return [single.name], {}
    present = sorted(p.name for p in folder.iterdir())
    if any(name.endswith(_PICKLES) for name in present):
        raise CheckpointError(
            f"{folder}: only pickle weights, and opening those can run code; "
            "convert them to model.safetensors where you trust their origin"
        )
    found = [name for name in present if name.endswith((".safetensors", ".gguf"))]
    raise CheckpointError(
        f"{folder}: no {single.name} and no {index.name} (found {found[:4] or 'no weights'}); see --help"
    )


def weight_table(folder: Path, *, stem: str = "model") -> dict[str, TensorEntry]:
    """All tensors of a folder by name, from one file or from the shards of an index.

    Raises CheckpointError naming the file for everything that `safe_file`, `shard_names` and `read_header` refuse, and
    when index and shards disagree.
    """
    names, weight_map = shard_names(folder, stem=stem)
    table: dict[str, TensorEntry] = {}
    for name in names:
        entries = read_header(safe_file(folder, name))
        twice = sorted(entries.keys() & table.keys())
        if twice:
            raise CheckpointError(f"{folder / name}: tensor {twice[0]!r} is in another shard too; get the model again")
        table.update(entries)
    if weight_map:
        _check_index(folder, weight_map, table)
    if not table:
        raise CheckpointError(f"{folder}: no tensors in {', '.join(names)}; get the model again")
    return table


def stray_weight_files(folder: Path, *, stem: str = "model") -> list[str]:
    """Shards in the folder that the index does not name: the remains of an interrupted save."""
    names, _ = shard_names(folder, stem=stem)
    return sorted(p.name for p in folder.iterdir() if _SHARD.fullmatch(p.name) and p.name not in names)


def _check_index(folder: Path, weight_map: Mapping[str, str], table: Mapping[str, TensorEntry]) -> None:
    for name, file in sorted(weight_map.items()):
        if name not in table or table[name].file.name != file:
            raise CheckpointError(
                f"{folder / file}: tensor {name[:120]!r} of the index is missing there; get the model again"
            )
    extra = sorted(table.keys() - weight_map.keys())
    if extra:
        raise CheckpointError(f"{table[extra[0]].file}: tensor {extra[0]!r} is not in the index; get the model again")
