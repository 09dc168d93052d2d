"""Run a command as a process of its own: how long it took, the most private memory it held, what it printed."""

import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.settings import Settings

__all__ = ["Done", "ProcessError", "private_bytes", "run_measured", "run_peer"]

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.01
LOOKS_PER_SEARCH = 25  # looking for children goes through all processes: seldom, or it slows what is measured


class ProcessError(Exception):
    """A process ended with an error: its command and the end of what it printed."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A process that has ended well.

    Attributes:
        wall_s: from before it was started until it had ended, start-up of Python included.
        private_mb: most anonymous memory that it and its children held at once, in 10^6 bytes; mapped files, which the
            system can drop at any time, do not count.
        out: what it printed on stdout.
    """

    wall_s: float
    private_mb: float
    out: str

    def answer(self) -> Any:
        """Return the last line of stdout as JSON."""
        return json.loads(self.out.strip().splitlines()[-1])


def run_measured(
    command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, timeout_s: float = 600
) -> Done:
    """Run a command in the project's folder and watch its memory (Linux; 0 elsewhere).

    Raises ProcessError if it ends with another code than 0 or takes longer than `timeout_s`.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=dict(environment) if environment is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = _Watch(process.pid)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException as error:
        for one in [*_children(process.pid), process]:
            one.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ProcessError(f"{_named(command)} took longer than {timeout_s:.0f} s") from error
        raise
    finally:
        watch.end()
    wall_s = time.perf_counter() - began
    if process.returncode:
        raise ProcessError(f"{_named(command)} ended with code {process.returncode}: {(err or out).strip()[-2000:]}")
    return Done(wall_s=wall_s, private_mb=watch.most / 1e6, out=out)


def run_peer(settings: Settings, name: str, *arguments: str | Path, timeout_s: float = 600) -> Done:
    """Run bench/peers/NAME.py with the peers' Python. Raises ProcessError, also where there is no such Python."""
    if settings.peer_python is None:
        raise ProcessError("the peers are left out (PEERS=0)")
    command = [settings.peer_python, ROOT / "bench" / "peers" / f"{name}.py", *arguments]
    return run_measured(command, environment=settings.environment(peer=True), timeout_s=timeout_s)


def private_bytes(pid: int) -> int:
    """Return the anonymous resident memory of one process in bytes; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    _, found, rest = status.partition("RssAnon:")
    return 1024 * int(rest.split(maxsplit=1)[0]) if found else 0


class _Watch:
    """A thread that looks at a process every few milliseconds, and for its children four times a second."""

    def __init__(self, pid: int) -> None:
        self.most = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        family, looks = [self._pid], 0
        while not self._over.wait(POLL_S):
            if looks % LOOKS_PER_SEARCH == 0:
                family = [self._pid, *(child.pid for child in _children(self._pid))]
            looks += 1
            self.most = max(self.most, sum(private_bytes(pid) for pid in family))

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _named(command: Sequence[str | Path]) -> str:
    return " ".join(Path(part).name if part == command[0] else str(part) for part in command)[:200]
