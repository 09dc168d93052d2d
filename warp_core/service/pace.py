"""How long a piece of work still takes, from how fast it has been so far; pauses count for nothing."""

import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """The share that is done and the seconds that are left.

    The rate is measured from the first report on, so that what came before it (loading a model, points that were
    stored already) makes nothing look slow or fast. It starts anew where the work does: another total, or less done
    than before.

    Args:
        clock: seconds from anywhere, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused_s = 0.0
        self._paused_at: float | None = None
        self._first: tuple[int, float] | None = None
        self._done = self._total = 0
        self._reported_at = 0.0

    def pause(self) -> None:
        """Stop the time."""
        self._paused_at = self._clock()

    def resume(self) -> None:
        """Let the time go on."""
        if self._paused_at is not None:
            self._paused_s += self._clock() - self._paused_at
            self._paused_at = None

    def report(self, done: int, total: int) -> None:
        """Note that `done` of `total` equal pieces are done."""
        now = self._active_s()
        if self._first is None or total != self._total or done < self._done:
            self._first = (done, now)
        self._done, self._total, self._reported_at = done, total, now

    @property
    def share(self) -> float | None:
        """What is done, 0 to 1; None before the first report."""
        if self._first is None or self._total <= 0:
            return None
        return min(1.0, max(0.0, self._done / self._total))

    @property
    def seconds_left(self) -> float | None:
        """The rest at the rate so far, less what has passed since the last report; None as long as there is no rate."""
        if self._first is None or self._total <= 0:
            return None
        done_first, at_first = self._first
        if self._done <= done_first or self._reported_at <= at_first:
            return None
        seconds_each = (self._reported_at - at_first) / (self._done - done_first)
        passed = self._active_s() - self._reported_at
        return max(0.0, (self._total - self._done) * seconds_each - passed)

    def _active_s(self) -> float:
        now = self._clock() if self._paused_at is None else self._paused_at
        return now - self._paused_s
