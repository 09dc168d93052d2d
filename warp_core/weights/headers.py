"""Read the header of a safetensors file, strictly: nothing in the file is trusted before it is checked.

Layout: 8 bytes little-endian header length n, n bytes of JSON {name: {"dtype", "shape", "data_offsets"}}, then data.
Disallowed here although common readers let it pass: duplicate keys, more than 8 dimensions, absurd names, gaps.
"""

import json
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch

from warp_core.errors import CheckpointError

__all__ = ["FLOAT_DTYPES", "TensorEntry", "read_header"]

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OTHER_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_QUANTISED = ("F8", "F4", "F6", "U16", "U32", "U64", "I4", "U4", "C64")
_MAX_HEADER_BYTES = 25_000_000  # 100 bytes a tensor; what JSON can make of more does not fit into memory
_MAX_TENSORS = 65_536
_MAX_RANK = 8
_MAX_NAME = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `file`, `start` (bytes from the beginning of the file), dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of data."""
        return self.numel * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the tensor takes part in the arithmetic (masks and position ids do not)."""
        return self.dtype.is_floating_point


def read_header(path: Path) -> dict[str, TensorEntry]:
    """All tensors of one safetensors file, by name, in the order of the data.

    Raises CheckpointError if the file is missing, not a regular file, empty, truncated, or its header is malformed:
    duplicate keys, unknown or quantised dtypes, offsets that overlap, leave gaps or do not match the shape.
    """
    size, text = _read_text(path)
    try:
        # Decoded here: given bytes, json would take UTF-16 and UTF-32 as well.
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_int=_whole)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: the safetensors header is malformed ({err}); get the file again") from None
    if not isinstance(header, dict):
        _fail(path, "the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _fail(path, "__metadata__ is not a JSON object of texts")
    if len(header) > _MAX_TENSORS:
        _fail(path, f"{len(header)} tensors in one file, more than {_MAX_TENSORS}", "save it in several files")
    data_start = 8 + len(text)
    spans = sorted((_span(path, name, fields) for name, fields in header.items()), key=lambda span: span[:2])
    entries, position = {}, 0
    for start, stop, name, dtype, shape in spans:
        if start != position:
            _fail(path, f"tensor {name!r} begins at byte {start} of the data, expected {position}")
        position = stop
        entries[name] = TensorEntry(name=name, dtype=dtype, shape=shape, file=path, start=data_start + start)
    if data_start + position != size:
        state = "truncated" if data_start + position > size else "longer than its header says"
        _fail(path, f"the file is {state} ({size} bytes, the header describes {data_start + position})")
    return entries


def _read_text(path: Path) -> tuple[int, bytes]:
    """Size of the file and the bytes of its header."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would hang
            _fail(path, "not a regular file")
        if status.st_size < 8:
            _fail(path, f"the file is truncated ({status.st_size} bytes)")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES or 8 + length > status.st_size:
                _fail(path, f"the file is truncated or not safetensors (header of {length} bytes)")
            return status.st_size, file.read(length)
    except OSError as err:
        raise CheckpointError(f"{path}: cannot be read ({err.strerror}); check the folder") from None


def _span(path: Path, name: str, fields: Any) -> tuple[int, int, str, torch.dtype, tuple[int, ...]]:
    """Validated (start, stop, name, dtype, shape) of one header record."""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        _fail(path, f"the tensor name {name[:80]!r} is empty, longer than {_MAX_NAME} or not printable")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    # Strides are counted even where a dimension is 0.
    if not _whole_numbers(shape) or len(shape) > _MAX_RANK or prod(max(1, extent) for extent in shape) >= 2**63:
        _fail(path, f"tensor {name!r} has no valid shape (at most {_MAX_RANK} dimensions)")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _fail(path, f"tensor {name!r} has no valid data_offsets")
    kind = _dtype(path, name, dtype)
    if prod(shape) * kind.itemsize != offsets[1] - offsets[0]:
        _fail(path, f"tensor {name!r} of shape {tuple(shape)} and {dtype} does not fit its data_offsets {offsets}")
    return offsets[0], offsets[1], name, kind, tuple(shape)


def _dtype(path: Path, name: str, dtype: Any) -> torch.dtype:
    kind = FLOAT_DTYPES.get(dtype) or _OTHER_DTYPES.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        if isinstance(dtype, str) and dtype.startswith(_QUANTISED):
            _fail(path, f"tensor {name!r} is {dtype}: quantised weights cannot be mixed", "use the unquantised model")
        _fail(path, f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    return kind


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _whole(text: str) -> int:
    if text == "-0":  # safetensors does not take it for a whole number
        raise ValueError("-0 for a number")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return result


def _fail(path: Path, problem: str, remedy: str = "get the file again") -> NoReturn:
    raise CheckpointError(f"{path}: {problem}; {remedy}")
