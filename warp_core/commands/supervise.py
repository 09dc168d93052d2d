"""Child processes that are started, waited for, started again when they end, and ended together."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self

from warp_core.errors import ConfigError, WarpError

__all__ = ["Program", "Supervisor"]

DELAYS_S = (0.2, 1.0, 5.0, 15.0)
STEADY_S = 60.0
START_S = 180.0
END_S = 3.0
LOOK_EVERY_S = 0.1
ASK_EVERY_S = 5.0
SILENT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to keep running.

    Attributes:
        name: for people, as in "the engine".
        command: a module and its arguments, as after `python -m`.
        environment: variables beside those of this process.
        answers: whether it can be used already.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    answers: Callable[[], bool]


@dataclass(kw_only=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    asked_s: float = 0.0
    silent_since_s: float | None = None
    failures: int = 0
    due_s: float = field(default=0.0)


class Supervisor:
    """Keeps programs running for as long as it is entered.

    Each is a process of a session of its own, so that Ctrl-C reaches this process alone, and ends when this one does
    (`warp_core.commands.child`). What it says on stdout is dropped; its stderr is ours.

    Args:
        programs: started together.
        say: told in a sentence when a program ended and is started again.
        delays_s: how long to wait before the first, second, ... new start; the last one goes on.
        steady_s: a program that ran so long begins with the first delay again.
        silent_s: a program that has not answered for so long hangs, and is ended and started again.
        ask_every_s: how often it is asked.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        say: Callable[[str], None],
        delays_s: Sequence[float] = DELAYS_S,
        steady_s: float = STEADY_S,
        silent_s: float = SILENT_S,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self._children = [_Child(program=program) for program in programs]
        self._say, self._delays_s, self._steady_s = say, delays_s, steady_s
        self._silent_s, self._ask_every_s = silent_s, ask_every_s

    def __enter__(self) -> Self:
        for child in self._children:
            _start(child)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all programs: ask, wait, kill."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.stdin is not None:
                process.stdin.close()
        until = time.monotonic() + END_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in running:
            process.kill()  # does nothing to one that has ended
            process.wait()

    def wait_until_ready(self, *, within_s: float = START_S) -> None:
        """Return when every program answers.

        Raises:
            WarpError: one of them ended, or the time is up; ConfigError where it says that the user can mend it.
        """
        until = time.monotonic() + within_s
        waiting = list(self._children)
        while waiting:
            for child in waiting:
                code = child.process.poll() if child.process is not None else None
                if code is not None:
                    kind = ConfigError if code == 2 else WarpError
                    raise kind(f"{child.program.name} did not start ({_ending(code)}): the lines above say why")
            if time.monotonic() > until:
                raise WarpError(f"{waiting[0].program.name} does not answer after {within_s:.0f} s: try again")
            waiting = [child for child in waiting if not child.program.answers()]
            if waiting:
                time.sleep(LOOK_EVERY_S)

    def watch(self) -> NoReturn:
        """Start again what ends, until this process is interrupted."""
        while True:
            self.look_after()
            time.sleep(LOOK_EVERY_S)

    def look_after(self) -> None:
        """Start again what has ended, where it is time to."""
        for child in self._children:
            self._look_after(child)

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.due_s:
                _start(child)
            return
        code = child.process.poll()
        if code is None:
            if now - child.started_s > self._steady_s:
                child.failures = 0
            self._end_if_silent(child, child.process)
            return
        delay_s = self._delays_s[min(child.failures, len(self._delays_s) - 1)]
        self._say(f"{child.program.name} ended ({_ending(code)}): it is started again in {delay_s:g} s")
        _close(child.process)
        child.process, child.failures, child.due_s = None, child.failures + 1, now + delay_s

    def _end_if_silent(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        if now - child.asked_s < self._ask_every_s:
            return
        child.asked_s = now
        if child.program.answers():
            child.silent_since_s = None
            return
        # From the first question without an answer: this process may have been asleep itself.
        child.silent_since_s = child.silent_since_s or now
        if now - child.silent_since_s > self._silent_s:
            self._say(f"{child.program.name} has not answered for {now - child.silent_since_s:.0f} s")
            process.kill()
            process.wait()


def _start(child: _Child) -> None:
    child.started_s = child.asked_s = time.monotonic()
    child.silent_since_s = None
    child.process = subprocess.Popen(
        [sys.executable, "-m", "warp_core.commands.child", *child.program.command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | child.program.environment,
        start_new_session=True,
    )


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
