"""Answers that are kept while the files they were read from do not change."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

__all__ = ["Memo", "stamp_of"]

T = TypeVar("T")
_SETTLED_S = 2.0  # a file that changed this recently may change again without a new time


def stamp_of(files: Sequence[Path]) -> tuple[object, ...]:
    """Return what tells whether files are the same: inode, size and time of each, None for one that is missing.

    A stamp that holds a file which changed in the last seconds equals no other.
    """
    found: list[object] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append(None)
            continue
        found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        if time.time() - status.st_mtime < _SETTLED_S:
            found.append(object())
    return tuple(found)


class Memo:
    """Keeps the latest answers by key. Threads may share it; two that miss at once both compute.

    Args:
        size: how many answers are kept.
    """

    def __init__(self, *, size: int = 64) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: dict[object, tuple[object, object]] = {}

    def get(self, key: object, stamp: Any, make: Callable[[], T]) -> T:
        """Return the answer that was kept under `key` if it has this stamp; otherwise what `make` returns."""
        with self._lock:
            known = self._kept.get(key)
        if known is not None and known[0] == stamp:
            return cast(T, known[1])
        answer = make()
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = (stamp, answer)
            for oldest in list(self._kept)[: -self._size]:
                del self._kept[oldest]
        return answer
