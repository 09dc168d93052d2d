"""Commands of the command line as processes that signal themselves at a chosen place, started in no time.

    with Stages(programs) as stages:
        ended = stages.run(["merge", ...], at=[Stop("warp_core.weights.streamed.write_model_files", signal.SIGINT)])

One process imports everything once and forks a child for each command: `python -m hostile.running_stages`. The child
calls `warp_core.cli.main` as `python -m warp_core` does, joins its threads and runs its exit functions, and has the
signals of a program that was started in a terminal.
"""

import atexit
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from hostile.running_programs import Program, Programs, wait_for
from warp_core.environment import quiet_threads

__all__ = ["Ended", "Stages", "Stop"]

# What the commands import when they are called: torch and transformers take seconds.
PRELOADED = (
    "warp_core.commands.run",
    "warp_core.commands.models",
    "warp_core.commands.front",
    "warp_core.commands.measure",
    "warp_core.commands.study",
    "warp_core.training.policy_run",
    "transformers.models.llama.modeling_llama",
    "tests.training.rewards",
)
LIMIT_S = 120.0


@dataclass(frozen=True)
class Stop:
    """Where a process signals itself: when a function is entered for the `call`-th time.

    Attributes:
        where: the function as it is looked up, "package.module.function" or "package.module.Class.method".
        number: the signal; 0: lower the limit of the address space to what is held and `room_mb` more.
        call: 1-based.
        room_mb: see `number`.
    """

    where: str
    number: int
    call: int = 1
    room_mb: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return vars(self)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: exit code (None: it had to be killed), what it printed, whether every stop was reached."""

    code: int | None
    out: str
    err: tuple[str, ...]
    reached: bool
    seconds: float

    @property
    def has_trace(self) -> bool:
        """Whether a trace of Python was printed."""
        return any("Traceback" in line for line in self.err)

    @property
    def tail(self) -> str:
        """The last lines, for a report."""
        return f"code {self.code}: {' / '.join(self.err[-4:])}"


class Stages:
    """Runs commands, each in a child of one process that has imported everything.

    Args:
        programs: where processes are started and ended.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._server: Program | None = None
        self._count = 0

    def __enter__(self) -> Self:
        self._server = self._programs.start("hostile.running_stages", stdin=subprocess.PIPE)
        self._server.first_line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._server.process.stdin is not None:
            self._server.process.stdin.close()
            self._server.ended(within_s=5)

    def run(
        self,
        argv: Sequence[object],
        *,
        at: Sequence[Stop] = (),
        outside: Callable[[int], None] | None = None,
        environment: Mapping[str, str] | None = None,
        within_s: float = LIMIT_S,
    ) -> Ended:
        """Run `warp-core ARGV` to its end.

        Args:
            argv: the arguments.
            at: where it signals itself; each stop counts calls from the one before it.
            outside: called with the process id while it runs.
            environment: variables beside those of the server.
            within_s: after which it is killed.
        """
        assert self._server is not None
        assert self._server.process.stdin is not None
        self._count += 1
        base = self._programs.folder / f"stage-{self._count}"
        order = {
            "argv": [str(one) for one in argv],
            "at": [stop.to_json() for stop in at],
            "base": str(base),
            "environment": dict(environment or {}),
        }
        started = time.monotonic()
        self._server.process.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.process.stdin.flush()
        pid = int(wait_for(lambda: _text(base.with_suffix(".pid")), within_s=30, every_s=0.01))
        if outside is not None:
            outside(pid)
        code: int | None = None
        try:
            code = int(wait_for(lambda: _text(base.with_suffix(".code")), within_s=within_s, every_s=0.01))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: _text(base.with_suffix(".code")), within_s=30)
        return Ended(
            code=code,
            out=base.with_suffix(".out").read_text(encoding="utf-8", errors="replace"),
            err=tuple(base.with_suffix(".err").read_text(encoding="utf-8", errors="replace").splitlines()),
            reached=not at or base.with_suffix(".reached").exists(),
            seconds=time.monotonic() - started,
        )


def _text(file: Path) -> str:
    """What a file holds once it is whole: its last character is a new line."""
    text = file.read_text(encoding="ascii") if file.exists() else ""
    return text if text.endswith("\n") else ""


def _serve() -> None:
    """Fork a child for each line of standard input."""
    quiet_threads()
    for name in PRELOADED:
        importlib.import_module(name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := sys.stdin.buffer.readline():
        order = json.loads(line)
        base = Path(order["base"])
        pid = os.fork()
        if not pid:
            _become(order, base)
            _end(_called(order["argv"]))
        base.with_suffix(".pid").write_text(f"{pid}\n", encoding="ascii")
        _, status = os.waitpid(pid, 0)
        base.with_suffix(".code").write_text(f"{os.waitstatus_to_exitcode(status)}\n", encoding="ascii")


def _called(argv: list[str]) -> int:
    """What `python -m warp_core` does with arguments, an exception that nobody has caught included."""
    from warp_core.cli import main

    try:
        return main(argv)
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _end(code: int) -> NoReturn:
    """End as Python does, but for the seconds in which it takes all modules of torch apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _become(order: Mapping[str, Any], base: Path) -> None:
    """Give a child its streams, its signals and its stops."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(base.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    os.environ.update(order["environment"])
    stops = [Stop(**one) for one in order["at"]]
    if stops:
        _Trap(stops, base.with_suffix(".reached")).set_up()


class _Trap:
    """Signals this process at one stop after the other."""

    def __init__(self, stops: Sequence[Stop], reached: Path) -> None:
        self._stops, self._reached = list(stops), reached
        self._calls = 0

    def set_up(self) -> None:
        """Put a wrapper in the place of every function that is a stop."""
        for where in {stop.where for stop in self._stops}:
            parent, name = _resolved(where)
            setattr(parent, name, self._wrapped(where, getattr(parent, name)))

    def _wrapped(self, where: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._stops and self._stops[0].where == where:
                self._calls += 1
                if self._calls == self._stops[0].call:
                    stop, self._calls = self._stops.pop(0), 0
                    if not self._stops:
                        self._reached.touch()
                    _hit(stop)
            return function(*args, **kwargs)

        return wrapper


def _hit(stop: Stop) -> None:
    if stop.number:
        os.kill(os.getpid(), stop.number)
        time.sleep(0)  # a bytecode boundary: the handler has run before the function begins
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (stop.room_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _resolved(where: str) -> tuple[Any, str]:
    """The object that holds a function, and its name there."""
    parts = where.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:-1]:
            found = getattr(found, part)
        getattr(found, parts[-1])
        return found, parts[-1]
    raise LookupError(where)


if __name__ == "__main__":
    _serve()
