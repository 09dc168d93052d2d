"""Programs of this project as real processes, marked so that whatever they leave behind is found and ended."""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from hostile.document import ROOT

__all__ = ["Program", "Programs", "interruptible", "wait_for"]

MARK = "HOSTILE_MARK"
START_S = 120.0
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

T = TypeVar("T")


def interruptible() -> None:
    """Let what is started from here notice Ctrl-C: a shell starts programs in the background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(what: Callable[[], T | None], *, within_s: float = START_S, every_s: float = 0.05) -> T:
    """Return the first value of `what()` that is not false; TimeoutError if there is none in time."""
    until = time.monotonic() + within_s
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError(f"nothing after {within_s:.0f} s")
        time.sleep(every_s)
    return found


@dataclass
class Program:
    """A process of ours; stdout and stderr go to files."""

    process: "subprocess.Popen[bytes]"
    out: Path
    err: Path

    @property
    def said(self) -> list[str]:
        """The lines on stderr so far."""
        return self.err.read_text(encoding="utf-8", errors="replace").splitlines()

    def first_line(self, *, within_s: float = START_S) -> str:
        """Return the first line on stdout; TimeoutError where it does not come."""
        text = wait_for(
            lambda: (
                ((found := self.out.read_text(encoding="utf-8")).endswith("\n") and found)
                or (self.process.poll() is not None and f"ended with {self.process.returncode}: {self.said[-1:]}\n")
            ),
            within_s=within_s,
        )
        return str(text).splitlines()[0]

    def announced(self) -> dict[str, Any]:
        """The JSON document on the first line of stdout."""
        found: dict[str, Any] = json.loads(self.first_line())
        return found

    def ended(self, *, within_s: float) -> int | None:
        """The exit code, or None where it has not ended in time."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None


def _give_up_rights() -> None:
    """What this process becomes by exec may not pass over the modes of files: root without two capabilities."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; refused where there is no such right


@dataclass
class Programs:
    """Starts programs; at the end of the block nothing of them, and nothing that they started, is left.

    Attributes:
        folder: for what they print.
        environment: theirs; changes count for what is started afterwards.
        obey_modes: a file that nobody may read is not read, where this is root, either.
    """

    folder: Path
    obey_modes: bool = False
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    environment: dict[str, str] = field(default_factory=lambda: os.environ | QUIET)

    def __post_init__(self) -> None:
        self.environment = self.environment | {MARK: self.mark}
        self._count = 0
        self._started: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.alive():
            one.kill()
        for program in self._started:
            program.process.kill()
            program.process.wait()
            if program.process.stdin is not None:
                program.process.stdin.close()

    def start(self, module: str, *arguments: object, stdin: int = subprocess.DEVNULL, **changes: str) -> Program:
        """Start `python -m MODULE ARGUMENTS` in a session of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        out, err = (self.folder / f"{self._count}.{name}.txt" for name in ("out", "err"))
        with out.open("wb") as first, err.open("wb") as second:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                cwd=ROOT,
                env=self.environment | changes,
                stdin=stdin,
                stdout=first,
                stderr=second,
                start_new_session=True,
                preexec_fn=_give_up_rights if self.obey_modes else None,
            )
        self._started.append(Program(process=process, out=out, err=err))
        return self._started[-1]

    def alive(self, *, but: Sequence[int] = ()) -> list[psutil.Process]:
        """Every living process that was started here, directly or not; `but`: ids that are not asked for."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid in but or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.mark and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found
