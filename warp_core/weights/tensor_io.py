"""Tensors from and to safetensors files in pieces: memory stays at one piece, whatever the size of the model."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

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
    """Reads pieces of tensors through plain file reads, from any number of threads; a context manager.

    Files are not mapped: a mapped file that somebody truncates kills the process.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, entry: TensorEntry, *, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start..stop of the flattened tensor as a new 1-D tensor of the stored dtype.

        Raises CheckpointError if the file has shrunk or cannot be read.
        """
        stop = entry.numel if stop is None else stop
        return self.read_into(torch.empty(stop - start, dtype=entry.dtype), entry, start=start)

    def read_into(self, out: torch.Tensor, entry: TensorEntry, *, start: int) -> torch.Tensor:
        """Fill `out`, 1-D and of the stored dtype, with the elements from `start` on, and return it.

        Memory that is used again is several times as fast as fresh memory. Raises CheckpointError as `read` does.
        """
        view, filled = _bytes_of(out.view(torch.uint8)), 0
        position = entry.start + start * entry.dtype.itemsize
        try:
            file = self._open(entry.file)
            while filled < len(view):
                count = os.preadv(file, [view[filled:]], position + filled)
                if not count:
                    raise CheckpointError(f"{entry.file}: the file was truncated while it was read; get it again")
                filled += count
        except OSError as err:
            raise CheckpointError(f"{entry.file}: cannot be read ({err.strerror}); check the disk") from err
        return out

    def read_whole(self, entry: TensorEntry) -> torch.Tensor:
        """The whole tensor in its shape and stored dtype; for small ones such as adapter factors."""
        return self.read(entry).reshape(entry.shape)

    def _open(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
    """Writes one safetensors file from pieces in any order and from any number of threads; a context manager.

    `tensors` maps names to (dtype, shape). Wide dtypes come first so that every tensor is aligned. The room is taken at
    once: a full disk shows before any work, and data goes to the disk several times as fast as into a growing file.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        starts: dict[str, int] = {}
        position = 0
        for name in self.names:
            dtype, shape = tensors[name]
            starts[name] = position
            stop = position + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, stop]}
            position = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        self._starts = {name: len(head) + start for name, start in starts.items()}
        self._path, self._left, self._lock = path, position, threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _take_room(self._file, len(head) + position)
            _write_at(self._file, memoryview(head), 0)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, name: str, piece: torch.Tensor, *, start: int = 0) -> None:
        """Put a piece of the flattened tensor `name`, of its dtype, at the element `start`."""
        raw = piece.contiguous().reshape(-1).view(torch.uint8)
        _write_at(self._file, _bytes_of(raw), self._starts[name] + start * piece.element_size())
        with self._lock:
            self._left -= raw.numel()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._file)
        assert kind is not None or self._left == 0, f"{self._left} bytes of {self._path} were not written"


def _take_room(file: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size_bytes)
    else:  # macOS
        os.ftruncate(file, size_bytes)


def _write_at(file: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(file, data, position)
        data, position = data[count:], position + count


def _bytes_of(raw: torch.Tensor) -> memoryview:
    return memoryview(raw.numpy())  # type: ignore[arg-type]
