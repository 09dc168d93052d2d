"""Functions of ours in processes that have torch loaded already: many at once, killed or traced at any moment.

    child = start(command, ["merge", ...], base=place / "one")
    ended = child.ended(within_s=60)

`base` names the files of a child: BASE.err is its stderr, BASE.json how the function ended.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["Child", "Ended", "command", "leftovers", "start"]

PRELOADED = ["tests.training.runs", "hostile.crash_operations", "transformers.models.llama.modeling_llama"]
LIMIT_S = 120.0
TEMPORARY = (".tmp-", ".old-")
# A start looks how all other children are, and of two threads that ask for an exit code at once one gets none (255).
_LOOKING = threading.Lock()


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
    gate: Connection | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        with _LOOKING:
            return self.process.exitcode

    def wait_for_gate(self) -> None:
        """Wait until a traced child has come to its function, and waits there."""
        assert self.gate is not None
        if not self.gate.poll(LIMIT_S):
            raise TimeoutError("a child did not come to its function")
        self.gate.recv_bytes()

    def go(self) -> None:
        """Let it begin."""
        assert self.gate is not None
        self.gate.send_bytes(b"go")
        self.gate.close()

    def ended(self, *, within_s: float = LIMIT_S) -> Ended:
        """Wait for its end; kill it after `within_s`."""
        wait([self.process.sentinel], within_s)
        code = self.code
        self.kill()
        said = self.base.with_suffix(".json")
        found = json.loads(said.read_text(encoding="utf-8")) if code == 0 and said.exists() else {}
        err = self.base.with_suffix(".err")
        text = err.read_text(encoding="utf-8", errors="replace") if err.exists() else ""
        return Ended(code=code, err=text, **found)

    def kill(self) -> None:
        """SIGKILL, and wait for the end of it."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            wait([self.process.sentinel])
        with _LOOKING:
            self.process.join(0)


def start(
    function: Callable[..., Any],
    *arguments: Any,
    base: Path,
    traced: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `function(*arguments)` in a child of the fork server.

    traced: the function waits for `Child.go`, so that a tracer sees its system calls and no others.
    environment: variables beside WARP_CACHE and WARP_WORKSPACE of this process.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    inherited = {name: os.environ[name] for name in ("WARP_CACHE", "WARP_WORKSPACE") if name in os.environ}
    gate, ours = context.Pipe() if traced else (None, None)
    process = context.Process(
        target=_become, args=(function, arguments, base, gate, inherited | dict(environment or {})), daemon=True
    )
    with _LOOKING:
        process.start()
    if gate is not None:
        gate.close()
    return Child(process, base, ours)


def _become(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    base: Path,
    gate: Connection | None,
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
    if gate is not None:
        gate.send_bytes(b"here")
        gate.recv_bytes()
    try:
        found["result"] = function(*arguments)
    except Exception as error:
        fault = explain(error)
        if not fault.is_known:
            traceback.print_exception(error)
        found |= {"error": fault.message or "?", "is_known": fault.is_known}
    base.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")


def command(argv: list[str]) -> int:
    """Run a command of the command line; its exit code."""
    from warp_core.cli import main

    return main(argv)


def leftovers(folder: Path) -> list[str]:
    """What an interrupted write has left below a folder."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob(".*") if any(mark in path.name for mark in TEMPORARY)
    )
