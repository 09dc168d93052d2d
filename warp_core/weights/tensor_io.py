"""Tensors from and to safetensors files in pieces: memory stays at one piece, whatever the size of the model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from warp_core.errors import CheckpointError
from warp_core.weights.headers import FLOAT_DTYPES, TensorEntry

__all__ = ["CHUNK_NUMEL", "ShardWriter", "TensorReader", "row_chunks"]

CHUNK_NUMEL = 1 << 18  # elements per piece: three float64 copies of a piece stay in the cache of a core

_CODES = {dtype: code for code, dtype in FLOAT_DTYPES.items()} | {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}


class TensorReader:
    """Reads pieces of tensors through plain file reads; a context manager that closes its files.

    Files are not mapped: a mapped file that somebody truncates kills the process.
    """

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def read(self, entry: TensorEntry, *, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start..stop of the flattened tensor as a new 1-D tensor of the stored dtype.

        Raises CheckpointError if the file has shrunk or cannot be read.
        """
        stop = entry.numel if stop is None else stop
        raw = torch.empty((stop - start) * entry.dtype.itemsize, dtype=torch.uint8)
        view, filled = _bytes_of(raw), 0
        try:
            file = self._open(entry.file)
            file.seek(entry.start + start * entry.dtype.itemsize)
            while filled < len(view):
                count = file.readinto(view[filled:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError(f"{entry.file}: the file was truncated while it was read; get it again")
                filled += count
        except OSError as err:
            raise CheckpointError(f"{entry.file}: cannot be read ({err.strerror}); check the disk") from err
        return raw.view(entry.dtype)

    def read_whole(self, entry: TensorEntry) -> torch.Tensor:
        """The whole tensor in its shape and stored dtype; for small ones such as adapter factors."""
        return self.read(entry).reshape(entry.shape)

    def _open(self, path: Path) -> BinaryIO:
        if path not in self._files:
            self._files[path] = path.open("rb", buffering=0)  # type: ignore[assignment]
        return self._files[path]


def row_chunks(shape: tuple[int, ...], *, numel: int = CHUNK_NUMEL) -> Iterator[tuple[int, int]]:
    """Split a tensor into (start, stop) of the flattened tensor, at row borders where there are two dimensions.

    A row longer than `numel` is still one piece. An empty tensor gives nothing.
    """
    total = 1
    for extent in shape:
        total *= extent
    if total == 0:
        return
    row = shape[1] if len(shape) == 2 else 1
    step = max(1, numel // row) * row
    for start in range(0, total, step):
        yield start, min(start + step, total)


class ShardWriter:
    """Writes one safetensors file from pieces that arrive in the order of `self.names`; a context manager.

    `tensors` maps names to (dtype, shape). Wide dtypes come first so that every tensor is aligned.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in self.names:
            dtype, shape = tensors[name]
            stop = position + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, stop]}
            position = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._left = position
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, piece: torch.Tensor) -> None:
        """Append the bytes of a contiguous piece."""
        raw = piece.contiguous().reshape(-1).view(torch.uint8)
        self._left -= raw.numel()
        self._file.write(_bytes_of(raw))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        assert kind is not None or self._left == 0, f"{self._left} bytes of {self._file.name} were not written"


def _bytes_of(raw: torch.Tensor) -> memoryview:
    return memoryview(raw.numpy())  # type: ignore[arg-type]
