"""Functions of ours in processes that have torch loaded already: many at once, killed or traced at any moment.

    child = start(command, ["merge", ...], base=place / "one")
    ended = child.ended(within_s=60)

`base` names the files of a child: BASE.err is its stderr, BASE.json how the function ended.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["Child", "Ended", "command", "leftovers", "start"]

PRELOADED = ["tests.training.runs", "hostile.crash_operations", "transformers.models.llama.modeling_llama"]
LIMIT_S = 120.0
TEMPORARY = (".tmp-", ".old-")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit code, negative for a signal, None where it had to be killed.
        result: what the function returned, JSON-ready.
        error: the line that a person would read; "" where nothing was raised.
        is_known: whether the error was foreseen; others come with a trace.
        err: stderr.
    """

    code: int | None
    result: Any = None
    error: str = ""
    is_known: bool = True
    err: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the function came to its end."""
        return self.code == 0 and not self.error

    @property
    def fault(self) -> str:
        """What is wrong with this ending of a function that may fail: "" where it was done or failed in one line."""
        if self.code is None:
            return "no end"
        if self.code:
            return f"ended with {self.code}: {self.err[-200:]}"
        if self.error and not self.is_known:
            return f"a trace of ours: {self.error} {self.err[-300:]}"
        return "" if "Traceback" not in self.err else f"a trace on stderr: {self.err[-300:]}"


@dataclass(frozen=True)
class Child:
    """A running child."""

    process: BaseProcess
    base: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def ended(self, *, within_s: float = LIMIT_S) -> Ended:
        """Wait for its end; kill it after `within_s`."""
        self.process.join(within_s)
        code = self.process.exitcode
        self.kill()
        said = self.base.with_suffix(".json")
        found = json.loads(said.read_text(encoding="utf-8")) if code == 0 and said.exists() else {}
        err = self.base.with_suffix(".err")
        text = err.read_text(encoding="utf-8", errors="replace") if err.exists() else ""
        return Ended(code=code, err=text, **found)

    def kill(self) -> None:
        """SIGKILL, and wait for the end of it."""
        self.process.kill()
        self.process.join()


def start(
    function: Callable[..., Any],
    *arguments: Any,
    base: Path,
    traced: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `function(*arguments)` in a child of the fork server.

    traced: the function waits until a tracer has attached itself.
    environment: variables beside WARP_CACHE and WARP_WORKSPACE of this process.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    inherited = {name: os.environ[name] for name in ("WARP_CACHE", "WARP_WORKSPACE") if name in os.environ}
    process = context.Process(
        target=_become, args=(function, arguments, base, traced, inherited | dict(environment or {})), daemon=True
    )
    process.start()
    return Child(process, base)


def _become(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    base: Path,
    traced: bool,
    environment: Mapping[str, str],
) -> None:
    from warp_core.environment import quiet_threads
    from warp_core.service.faults import explain

    os.environ.update(environment)
    quiet_threads()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    file = os.open(base.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    found: dict[str, Any] = {}
    _wait_for_tracer(traced)
    try:
        found["result"] = function(*arguments)
    except Exception as error:
        fault = explain(error)
        if not fault.is_known:
            traceback.print_exception(error)
        found |= {"error": fault.message or "?", "is_known": fault.is_known}
    base.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")


def _wait_for_tracer(traced: bool) -> None:
    until = time.monotonic() + LIMIT_S
    while traced and "TracerPid:\t0\n" in Path("/proc/self/status").read_text(encoding="ascii"):
        if time.monotonic() > until:
            raise TimeoutError("no tracer came")
        time.sleep(0.002)


def command(argv: list[str]) -> int:
    """Run a command of the command line; its exit code."""
    from warp_core.cli import main

    return main(argv)


def leftovers(folder: Path) -> list[str]:
    """What an interrupted write has left below a folder."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob(".*") if any(mark in path.name for mark in TEMPORARY)
    )
