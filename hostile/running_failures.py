"""Allocations that fail: the k-th call of torch in a thread raises what a machine without memory would raise."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["KINDS", "Failing", "one_thread"]


def _of_python() -> None:
    raise MemoryError


def _of_the_cpu() -> None:
    """The error of torch's own allocator, not an imitation of it."""
    torch.empty(1 << 62, dtype=torch.uint8)


def _of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0 bytes free.")


KINDS: Mapping[str, Callable[[], None]] = {
    "MemoryError": _of_python,
    "torch's CPU allocator": _of_the_cpu,
    "OutOfMemoryError": _of_a_gpu,
}


class Failing(TorchFunctionMode):
    """Counts the calls of torch in this thread; the `at`-th fails, and with `lasting` every later one, too.

    Attributes:
        calls: how many there were.
        failed: whether one has failed.
    """

    def __init__(self, at: int = 0, *, raises: Callable[[], None] = _of_python, lasting: bool = False) -> None:
        super().__init__()
        self._at, self._raises, self._lasting = at, raises, lasting
        self.calls = 0
        self.failed = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Fail, or do what was called."""
        # Allocates nothing; if it failed, the thread would go on without gradients.
        if func is torch._C._set_grad_enabled:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        if self._at and (self.calls == self._at or (self._lasting and self.calls > self._at)):
            self.failed = True
            with torch._C.DisableTorchFunction():
                self._raises()
        return func(*args, **(kwargs or {}))


@contextmanager
def one_thread() -> Iterator[None]:
    """Everything that torch does for the caller happens in its own thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
