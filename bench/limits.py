"""What this machine can do at most: memory copies, file reads and writes, matrix products.

The `case` of a row is the name under which `Settings.limits` has it. Each is the best of several tries and of several
ways to do it: a limit that is too low would flatter what is compared with it.
"""

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch.nn import functional

from bench.rows import Row
from bench.settings import Settings
from warp_core.policy.kernels import make_kernel

__all__ = ["PRODUCT_ROWS", "measure"]

GB = 1_000_000_000
PRODUCT_ROWS = (1, 8, 32, 256, 1024)
BLOCK_BYTES = 4 << 20  # of a buffer that stays in a core's cache
# [O, I] of the linear layers of one block of SmolLM2-135M, and its output head
BLOCK_SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD_SHAPE = (49152, 576)


def measure(settings: Settings) -> list[Row]:
    """Return one row per limit."""
    torch.set_num_threads(settings.threads)
    size = 16_000_000 if settings.quick else GB
    tries = 2 if settings.quick else 5
    rows = [*_memory(size, tries, settings.threads), *_files(settings.scratch, size, tries, settings.threads)]
    for dtype in (torch.float32, torch.bfloat16):
        rows += _products(dtype, blocks=1 if settings.quick else 8, tries=tries, quick=settings.quick)
    return rows


def best_s(ways: list[Callable[[], object]], *, tries: int) -> float:
    """Return the seconds of the fastest try of the fastest way."""
    found = []
    for _ in range(tries):
        for way in ways:
            began = time.perf_counter()
            way()
            found.append(time.perf_counter() - began)
    return min(found)


def _row(case: str, quantity: str, value: float, unit: str, note: str = "") -> Row:
    return Row(bench="limits", case=case, quantity=quantity, value=value, unit=unit, note=note)


def _memory(size: int, tries: int, threads: int) -> Iterator[Row]:
    """Copies and sums of buffers that are far larger than any cache."""
    count = size // 4
    source, target = torch.ones(count), torch.zeros(count)

    def copy_parts() -> None:
        _in_parts(size, threads, lambda at, n: ctypes.memmove(target.data_ptr() + at, source.data_ptr() + at, n))

    copy_s = best_s([lambda: target.copy_(source), copy_parts], tries=tries)
    both = f"{size / 1e6:,.0f} MB to another place; read and written bytes count"
    yield _row("copy_gb_s", "memory copy", 2 * size / copy_s / GB, "GB/s", both)
    read_s = best_s([source.sum, source.max], tries=tries)
    yield _row("read_gb_s", "memory read", size / read_s / GB, "GB/s", "sum or maximum of float32")


def _files(scratch: Path, size: int, tries: int, threads: int) -> Iterator[Row]:
    """Reads of a file that is in the system's cache, and writes with and without waiting for the disk."""
    path = scratch / "limits.bin"
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    size = path.stat().st_size
    try:
        with _opened(path, os.O_RDONLY) as file:
            read_s = best_s([lambda: _read(file, size, threads)], tries=tries)
            mapped_s = best_s([lambda: _read_mapped(file, size)], tries=tries)
        best = size / min(read_s, mapped_s) / GB
        yield _row("file_read_gb_s", "file read, cached", best, "GB/s", "the faster of the next two")
        yield _row("file_pread_gb_s", "file read into small buffers, cached", size / read_s / GB, "GB/s")
        yield _row("file_mmap_gb_s", "file mapped anew and summed, cached", size / mapped_s / GB, "GB/s")
        write_s = best_s([lambda: _write(path, size, threads, sync=False)], tries=tries)
        yield _row("file_write_gb_s", "file write, into the system's cache", size / write_s / GB, "GB/s", "a new file")
        sync_s = best_s([lambda: _write(path, size, threads, sync=True)], tries=min(tries, 3))
        yield _row("file_sync_gb_s", "file write and fdatasync", size / sync_s / GB, "GB/s", "varies with the disk")
    finally:
        path.unlink(missing_ok=True)


def _in_parts(size: int, threads: int, work: Callable[[int, int], object]) -> None:
    """Call work(offset, length) for consecutive parts of `size`, one per thread, in threads."""
    part = -(-size // threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: work(at, min(part, size - at)), range(0, size, part)))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _read(file: int, size: int, threads: int) -> None:
    def part(at: int, length: int) -> None:
        buffer = bytearray(BLOCK_BYTES)
        for offset in range(at, at + length, BLOCK_BYTES):
            os.preadv(file, [buffer], offset)

    _in_parts(size, threads, part)


def _read_mapped(file: int, size: int) -> None:
    with closing(mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)) as mapped:
        values = torch.frombuffer(mapped, dtype=torch.int64, count=size // 8)
        values.sum()
        del values  # before the map that it looks into is closed


def _write(path: Path, size: int, threads: int, *, sync: bool) -> None:
    path.unlink(missing_ok=True)
    block = memoryview(os.urandom(BLOCK_BYTES))

    def part(at: int, length: int) -> None:
        for offset in range(at, at + length, BLOCK_BYTES):
            os.pwrite(file, block[: min(BLOCK_BYTES, at + length - offset)], offset)

    with _opened(path, os.O_WRONLY | os.O_CREAT) as file:
        _in_parts(size, threads, part)
        if sync:
            getattr(os, "fdatasync", os.fsync)(file)


def _products(dtype: torch.dtype, *, blocks: int, tries: int, quick: bool) -> Iterator[Row]:
    """Products with the weights of SmolLM2's linear layers, so many that they do not stay in the cache."""
    name = str(dtype).removeprefix("torch.")
    rates: dict[int, float] = {}
    head_OI = torch.empty(HEAD_SHAPE, dtype=dtype).uniform_(-0.1, 0.1)
    weights = [torch.empty(shape, dtype=dtype).uniform_(-0.1, 0.1) for shape in BLOCK_SHAPES * blocks]
    for rows in PRODUCT_ROWS[:2] if quick else PRODUCT_ROWS:
        rates[rows] = _rate(weights, rows, tries)
        note = "the linear layers of SmolLM2's blocks, in the faster of two kernels"
        yield _row(f"matmul_gflops_{name}_{rows}", f"products of {rows} rows", rates[rows], "GFLOP/s", note)
        head = _rate([head_OI], rows, tries)
        yield _row(f"head_gflops_{name}_{rows}", f"output head, {rows} rows", head, "GFLOP/s", "49152 x 576")
    yield _row(f"matmul_gflops_{name}", "products, the best of all rows", max(rates.values()), "GFLOP/s")


@torch.no_grad()
def _rate(weights: list[torch.Tensor], rows: int, tries: int) -> float:
    """GFLOP/s of x W' for all weights in turn, by torch's kernel or by the packed one."""
    inputs = {weight.shape[1]: torch.ones(rows, weight.shape[1], dtype=weight.dtype) for weight in weights}
    packed = [(inputs[weight.shape[1]], make_kernel(weight, None)) for weight in weights]

    def by_torch() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    def by_kernels() -> None:
        for x, kernel in packed:
            kernel(x)

    by_torch()
    by_kernels()
    return 2 * rows * sum(weight.numel() for weight in weights) / best_s([by_torch, by_kernels], tries=tries) / 1e9
