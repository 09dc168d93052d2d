"""Progress on stderr: whole lines, so that it reads the same in a terminal and in a log."""

import sys
import time
from typing import TYPE_CHECKING

from warp_core.commands.console import say

if TYPE_CHECKING:  # a command that only shows how far it is has no need of them
    from warp_core.evaluation.points import Point
    from warp_core.training.policy_run import PolicyProgress

__all__ = ["Clock", "duration", "say", "show_progress", "show_training"]


def duration(seconds: float) -> str:
    """Return a rough duration in words: 40 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Clock:
    """How long the rest takes, from the mean duration of what has been done of each kind of work.

    Args:
        todo: how many of each kind, e.g. {"step": 48, "measure": 8}.
        guess_s: seconds of one of each kind, as long as none has been done.
    """

    def __init__(self, todo: dict[str, int], *, guess_s: dict[str, float]) -> None:
        self.todo, self.guess_s = dict(todo), guess_s
        self.spent_s = dict.fromkeys(todo, 0.0)
        self.done = dict.fromkeys(todo, 0)
        self.last = time.monotonic()

    def did(self, kind: str) -> None:
        """Count one piece of work that ended now."""
        now = time.monotonic()
        self.spent_s[kind] += now - self.last
        self.done[kind] += 1
        self.todo[kind] = max(0, self.todo[kind] - 1)
        self.last = now

    def left_s(self) -> float:
        """Return the seconds that the rest may take."""
        return sum(
            count * (self.spent_s[kind] / self.done[kind] if self.done[kind] else self.guess_s[kind])
            for kind, count in self.todo.items()
        )


def show_training(progress: "PolicyProgress", *, policies: int, iterations: int, left: str = "") -> None:
    """Write what happened in a run as one line, or two with an evaluation."""
    where = f"policy {progress.policy}/{policies}"
    if iterations > 1:
        where = f"iteration {progress.iteration}/{iterations}, {where}"
    where = f"{where}, step {progress.step}/{progress.steps}"
    record = progress.record
    if record is not None:
        kl = "" if record.kl_anchor is None else f", KL to the anchor {record.kl_anchor:.2f}"
        say(f"{where}: reward {record.reward:+.2f}{kl}, {sum(record.seconds.values()):.1f} s{left}")
    if progress.point is not None:
        say(f"{where}: held-out {describe(progress.point)}")


def describe(point: "Point") -> str:
    """Return reward and KL with their errors."""
    return f"reward {_with_error(point.reward, point.reward_se)}, KL {_with_error(point.kl, point.kl_se)} nats"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.2f}" if error is None else f"{value:.2f} +- {error:.2f}"


def show_progress(what: str, done: int, total: int) -> None:
    """Write a line at each tenth of a long piece of work on a terminal; a log gets none of it."""
    if sys.stderr.isatty() and done < total:
        print(f"\r{what}: {100 * done // max(1, total)} %", end="", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"\r{' ' * (len(what) + 8)}\r", end="", file=sys.stderr, flush=True)
