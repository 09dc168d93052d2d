"""Work on tensors side by side: threads of Python that each run torch on one core.

Pieces that fit into the cache of a core are too small to be split further: handing them out by OpenMP costs more than
they do, and on cores that others use as well, every operation would wait for the slowest thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

import torch

__all__ = ["BLOCK_NUMEL", "PIECE_NUMEL", "SUM_NUMEL", "Scratch", "Workers", "blocks_of"]

PIECE_NUMEL = 1 << 17  # elements of a Gram at once, in float64: a few pieces stay in the cache of a core
SUM_NUMEL = 1 << 19  # elements of a sum at once: in the last cache, and Python has little to do between
BLOCK_NUMEL = 1 << 20  # elements that are handed to a worker at once
MAX_WORKERS = 16  # the memory bus of most machines is full before

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """As many workers as torch has threads here; a context manager. With one thread everything runs in the caller's."""

    def __init__(self) -> None:
        self._count = min(MAX_WORKERS, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self._count > 1:
            before, ready = torch.get_num_threads(), threading.Barrier(self._count + 1)

            def alone() -> None:
                torch.get_num_threads()  # a thread takes over the common number when it is first needed, and then
                torch.set_num_threads(1)  # may have one of its own
                with suppress(threading.BrokenBarrierError):
                    ready.wait()

            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="weights")
            started = [self._pool.submit(alone) for _ in range(self._count)]
            ready.wait()
            for one in started:
                one.result()
            # What a thread says counts for it, and for threads that start later: put back for those.
            torch.set_num_threads(before)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of `work` in the order of the items; only a few are begun ahead. Raises what `work` raises."""
        if self._pool is None:
            yield from map(work, items)
            return
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(self._pool.submit(work, item))
            if len(ahead) > 4 * self._count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class Scratch:
    """Memory for pieces that each thread keeps for itself and uses again."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def take(self, name: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D tensor under a name, with whatever it held before."""
        held: dict[str, torch.Tensor] = self._mine.__dict__
        raw = held.get(name)
        if raw is None or raw.numel() < numel * dtype.itemsize:
            raw = held[name] = torch.empty(numel * dtype.itemsize, dtype=torch.uint8)
        return raw[: numel * dtype.itemsize].view(dtype)


def blocks_of(numel: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of a flattened tensor; nothing for an empty one."""
    for start in range(0, numel, BLOCK_NUMEL):
        yield start, min(start + BLOCK_NUMEL, numel)
