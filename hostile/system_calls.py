"""Attack: every file system call of a publication, a training, a merge and the results store is killed or fails once.

`strace --inject` hits one call after the other; a dry run has counted those that touch the target. Of an operation with
many, some spread over all of them get every fault, and each of the others one, in turn.
"""

import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile import crash_operations as operations
from hostile.crash_child import Child, Ended, leftovers, start
from hostile.outcomes import Outcome, Tally
from tests.tiny import make_adapter, make_model, make_policies
from tests.training.runs import metrics, stored_points, tiny_config, trained_bytes
from warp_core.training.config import config_to_mapping
from warp_core.workspace.publish import check_manifest
from warp_core.workspace.store import ResultsStore
from warp_core.workspace.votes import VotesStore

CALLS = (
    *("fsync", "fdatasync", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "chmod", "fchmod", "fchmodat"),
    *("unlink", "unlinkat", "rmdir", "open", "openat", "creat", "write", "writev", "pwrite64", "pwritev", "pwritev2"),
    *("sendfile", "copy_file_range", "ftruncate", "truncate", "fallocate", "link", "linkat", "symlink", "close"),
)
FAULTS = {"SIGKILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
AT_ONCE = 3
TRIES = 4  # of a fault that hit another call: threads do not always share their work in the same way
ATTACHED_S = 20.0
KEPT = 22
"""So many calls of an operation get every fault, spread over all that it makes."""
ROWS = 2
_LINE = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_READS = ("open", "openat")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is interrupted in a folder.

    Attributes:
        before: makes the folder as it is before.
        arguments: of the function, after the folder.
        fault: what is wrong with the folder after a fault, or at the end (`at_end`); "" where nothing is.
    """

    name: str
    promise: str
    function: Callable[..., Any]
    before: Callable[[Path], None]
    arguments: Callable[[Path], Sequence[Any]]
    fault: Callable[[Path, bool], str]
    kept: int = KEPT


@dataclass
class Call:
    """A system call that touches the target: its name, and the how-manieth of that name in its thread."""

    name: str
    number: int
    text: str = field(repr=False)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Hit each operation at each call with each fault."""
    for operation in _operations(place / "inputs"):
        yield _interrupted(place / operation.name.replace(" ", "-"), operation, quick=quick)


def _interrupted(place: Path, operation: Operation, *, quick: bool) -> Outcome:
    tally = Tally(
        f"{operation.name}, a fault at each system call",
        promise=operation.promise,
        holds="whole or absent, acknowledged rows are there, one line is said, the next try succeeds, nothing is left",
    )
    place.mkdir(parents=True)
    calls = _counted(place, operation)
    kept = min(len(calls), 2 if quick else operation.kept)
    chosen = {index * len(calls) // kept for index in range(kept)}
    jobs = [
        (number, call, name)
        for number, call in enumerate(calls)
        for order, name in enumerate(FAULTS)
        if (number in chosen and (not quick or (number + order) % 2 == 0))
        or (not quick and number not in chosen and order == number % len(FAULTS))
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda job: _hit(place, operation, *job), jobs))
    for (_, call, name), (_, problems) in zip(jobs, found, strict=True):
        tally.check(not problems, f"{name} at {call.name} {call.number} ({call.text[:80]}): {'; '.join(problems)}")
    missed = sum(not came for came, _ in found)
    tally.check(not missed, f"{missed} faults of {len(jobs)} did not come")
    hit = len({number for number, _, _ in jobs})
    return tally.outcome(f"{len(calls)} calls, {hit} of them hit, {missed} faults did not come")


def _hit(place: Path, operation: Operation, number: int, call: Call, name: str) -> tuple[bool, list[str]]:
    """Hit one call with one fault; whether the fault came there, and what is wrong afterwards."""
    folder = place / f"{number}-{name}"
    for _ in range(TRIES):
        operation.before(folder)
        ended, log = _traced(operation, folder, [call.name], f"inject={call.name}:{FAULTS[name]}:when={call.number}")
        hit = _hit_by(log, killed=name == "SIGKILL")
        came = hit is not None and _alike(hit.replace(str(folder / "target"), "")) == _alike(call.text)
        problems = _problems(operation, folder, ended, killed=name == "SIGKILL") if came else []
        shutil.rmtree(folder, ignore_errors=True)
        if came:
            break
    return came, problems


def _hit_by(log: str, *, killed: bool) -> str | None:
    """The arguments of the call that the fault hit; None where it hit none. One that is killed has no result."""
    lines = [match["rest"] for line in log.splitlines() if (match := _LINE.match(line))]
    mark = re.compile(r"= \?$|<unfinished \.\.\.>$" if killed else r"\(INJECTED\)$")
    return next((rest for rest in reversed(lines) if mark.search(rest)), None)


def _alike(text: str) -> str:
    """The arguments of a call without what changes from one run to the next: random names, numbers, results."""
    arguments = re.split(r"\)? += |\)? +<unfinished|, \[\d+\]", text)[0].rstrip(")")
    # Names of ours, `.out.tmp-123-0123abcd`, and of safetensors, `.tmpAb12Cd`.
    return re.sub(r"\d+", "#", re.sub(r"\d+-[0-9a-f]{8}|\.tmp[A-Za-z0-9]{6}\b", "#", arguments))


def _problems(operation: Operation, folder: Path, ended: Ended, *, killed: bool) -> list[str]:
    problems = []
    if not (killed and ended.code == -9) and ended.fault:
        problems.append(ended.fault)
    if fault := _fault(operation, folder, at_end=ended.is_done):
        problems.append(f"afterwards: {fault}")
    again = start(operation.function, str(folder), *operation.arguments(folder), base=folder / "again").ended()
    if not again.is_done:
        problems.append(f"the next try: {again.code} {again.error} {again.err[-200:]}")
    elif fault := _fault(operation, folder, at_end=True):
        problems.append(f"after the next try: {fault}")
    states = [str(state.relative_to(folder)) for state in folder.rglob("policy-*/state")]
    if rest := [*leftovers(folder), *states]:
        problems.append(f"left: {rest}")
    return problems


def _fault(operation: Operation, folder: Path, *, at_end: bool) -> str:
    """What is wrong with the folder; what cannot even be looked at is."""
    try:
        return operation.fault(folder, at_end)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _counted(place: Path, operation: Operation) -> list[Call]:
    """The calls that touch the target, of an undisturbed run."""
    folder = place / "dry"
    operation.before(folder)
    ended, log = _traced(operation, folder, CALLS, f"trace={','.join(f'?{name}' for name in CALLS)}")
    if not ended.is_done:
        raise RuntimeError(f"{operation.name} without a fault: {ended}")
    seen: dict[tuple[str, str], int] = {}
    calls = []
    for line in log.splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        key = match["pid"], match["name"]
        seen[key] = seen.get(key, 0) + 1
        reads = match["name"] in _READS and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", match["rest"])
        if str(folder / "target") in match["rest"] and not reads:
            text = match["rest"].replace(str(folder / "target"), "")
            calls.append(Call(match["name"], seen[key], text))
    shutil.rmtree(folder)
    if not calls:
        raise RuntimeError(f"{operation.name}: strace saw no call that touches the target")
    return calls


def _traced(operation: Operation, folder: Path, names: Sequence[str], expression: str) -> tuple[Ended, str]:
    """Run an operation under strace."""
    log = folder / "strace.log"
    child = start(
        operation.function,
        str(folder),
        *operation.arguments(folder),
        base=folder / "child",
        traced=True,
    )
    tracer = None
    try:
        child.wait_for_gate()
        traced = ["-e", f"trace={','.join(f'?{name}' for name in names)}", "-e", expression]
        tracer = subprocess.Popen(
            [_strace(), "-f", "-qq", "-y", "-s", "0", *traced, "-o", str(log), "-p", str(child.pid)],
            stderr=subprocess.PIPE,
        )
        _wait_until_attached(tracer, child)
        child.go()
        ended = child.ended()
        with suppress(subprocess.TimeoutExpired):
            tracer.wait(10)
    finally:
        child.kill()
        if tracer is not None:
            tracer.kill()
            tracer.wait()
            assert tracer.stderr is not None
            tracer.stderr.close()
    return ended, log.read_text(encoding="utf-8", errors="replace")


def _wait_until_attached(tracer: "subprocess.Popen[bytes]", child: Child) -> None:
    """Wait until all threads of a child are traced. Raises RuntimeError where strace does not get there."""
    until = time.monotonic() + ATTACHED_S
    while not all(_is_traced(thread) for thread in Path(f"/proc/{child.pid}/task").iterdir()):
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            raise RuntimeError(f"strace cannot trace here: {tracer.stderr.read().decode(errors='replace').strip()}")
        if time.monotonic() > until:
            raise RuntimeError(f"strace has not attached itself after {ATTACHED_S:.0f} s")
        time.sleep(0.002)


def _is_traced(thread: Path) -> bool:
    return "TracerPid:\t0\n" not in (thread / "status").read_text(encoding="ascii")


def _strace() -> str:
    if (found := shutil.which("strace")) is None:
        raise RuntimeError("strace is not installed: `apt-get install strace`")
    return found


def _operations(inputs: Path) -> list[Operation]:
    inputs.mkdir(parents=True)
    init = make_model("llama", inputs / "init")
    policies = [str(path) for path in make_policies(init, inputs, num=2)]
    adapters = [str(make_adapter(init, inputs / f"adapter-{seed}", seed=seed)) for seed in (1, 2)]
    mapping = config_to_mapping(tiny_config(inputs, init, training={"steps": 2, "evaluate_every": 2}))
    return [
        _publication(),
        _state(inputs),
        _training(inputs, mapping),
        _export(inputs, "export of a full model", str(init), policies, "full"),
        _export(inputs, "export of an adapter", str(init), adapters, "adapter"),
        _results(),
        _votes(),
    ]


def _publication() -> Operation:
    def before(folder: Path) -> None:
        operations.publish(str(folder / "target"), "old")

    def fault(folder: Path, at_end: bool) -> str:
        out = folder / "target" / "out"
        if not out.exists():
            return "gone" if at_end else ""
        found = (out / "b").read_text(encoding="utf-8")
        return "; ".join(check_manifest(out)) or ("" if found in (("new",) if at_end else ("old", "new")) else found)

    return Operation(
        name="replacing a folder",
        promise="P1",
        function=_in_target(operations.publish),
        before=before,
        arguments=lambda folder: ["new"],
        fault=fault,
        kept=99,
    )


class _in_target:  # noqa: N801 - a function that can be pickled
    """The function with the folder `target` in the place of the folder."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, folder: str, *arguments: Any) -> Any:
        return self._function(str(Path(folder) / "target"), *arguments)


def _state(inputs: Path) -> Operation:
    whole = {}
    for step in (1, 2):
        operations.save(str(inputs / f"state-{step}"), step)
        whole[step] = operations.digests(inputs / f"state-{step}" / "out")

    def fault(folder: Path, at_end: bool) -> str:
        out = folder / "target" / "out"
        if not out.exists():
            return "gone" if at_end else ""
        return (
            "" if operations.digests(out) in ([whole[2]] if at_end else list(whole.values())) else "neither old nor new"
        )

    return Operation(
        name="saving the state of a training",
        promise="P1",
        function=_in_target(operations.save),
        before=lambda folder: operations.save(str(folder / "target"), 1),
        arguments=lambda folder: [2],
        fault=fault,
    )


def _training(inputs: Path, mapping: dict[str, Any]) -> Operation:
    for name, stop in (("trained", 0), ("begun", 1)):
        ended = start(operations.train, str(inputs / name), mapping, stop, base=inputs / f"{name}-child").ended()
        if not ended.is_done:
            raise RuntimeError(f"training without a fault: {ended}")
    straight = inputs / "trained" / "out"
    expected = _finished(straight), metrics(straight), stored_points(straight)

    def before(folder: Path) -> None:
        shutil.copytree(inputs / "begun", folder / "target")

    def fault(folder: Path, at_end: bool) -> str:
        out = folder / "target" / "out"
        checkpoint = out / "iteration-1" / "policy-1" / "checkpoint" / "adapter_model.safetensors"
        if checkpoint.parent.exists() and checkpoint.read_bytes() != expected[0][str(checkpoint.relative_to(out))]:
            return "the checkpoint differs"
        if at_end and (_finished(out), metrics(out), stored_points(out)) != expected:
            return "weights, metrics or points are not those of an undisturbed run"
        return ""

    return Operation(
        name="a training step and its checkpoint",
        promise="P1, P2",
        function=_in_target(operations.train),
        before=before,
        arguments=lambda folder: [mapping],
        fault=fault,
        kept=12,
    )


def _finished(run: Path) -> dict[str, bytes]:
    """Weights of a run without what it was resumed from, which stays until the next try where it cannot be removed."""
    return {name: data for name, data in trained_bytes(run).items() if not re.search(r"/\.?state\b", name)}


def _export(inputs: Path, name: str, init: str, policies: list[str], kind: str) -> Operation:
    straight = inputs / kind
    ended = start(operations.merge, str(straight), init, policies, kind, base=inputs / f"{kind}-child").ended()
    if not ended.is_done:
        raise RuntimeError(f"{name} without a fault: {ended}")
    expected = operations.digests(straight / "out")

    def fault(folder: Path, at_end: bool) -> str:
        out = folder / "target" / "out"
        if not out.exists():
            return "absent" if at_end else ""
        found = operations.digests(out)
        return "" if found == expected else f"differs in {sorted(dict(found.items() ^ expected.items()))}"

    return Operation(
        name=name,
        promise="P1",
        function=_in_target(_export_again),
        before=lambda folder: (folder / "target").mkdir(parents=True),
        arguments=lambda folder: [init, policies, kind],
        fault=fault,
        kept=12,
    )


def _export_again(folder: str, init: str, policies: list[str], kind: str) -> None:
    """Export, unless that was done."""
    if not (Path(folder) / "out").exists():
        operations.merge(folder, init, policies, kind)


def _results() -> Operation:
    def fault(folder: Path, at_end: bool) -> str:
        file = folder / "target" / "results.sqlite"
        told = folder / "acknowledged"
        promised = {f"w-{line}" for line in told.read_text(encoding="ascii").split()} if told.exists() else set()
        if not file.exists():
            return f"no store, {len(promised)} rows acknowledged" if promised else ""
        with sqlite3.connect(file) as db:
            said = db.execute("PRAGMA integrity_check").fetchall()
        db.close()
        if said != [("ok",)]:
            return f"integrity_check: {said}"
        with ResultsStore(file) as store:
            keys = set(store.keys())
            short = [key for key in keys if len(store.samples(key)) != operations.SAMPLES]
        lost = promised - keys
        missing = at_end and len(keys) != ROWS
        return f"lost {sorted(lost)}, without samples {short}, {len(keys)} rows" if lost or short or missing else ""

    return Operation(
        name="the results store",
        promise="P3",
        function=_in_target(operations.put),
        before=lambda folder: (folder / "target").mkdir(parents=True),
        arguments=lambda folder: [str(folder / "acknowledged"), "w", ROWS],
        fault=fault,
        kept=22,
    )


def _votes() -> Operation:
    def fault(folder: Path, at_end: bool) -> str:
        file = folder / "target" / "votes.sqlite"
        told = folder / "acknowledged"
        promised = set(told.read_text(encoding="ascii").split()) if told.exists() else set()
        if not file.exists():
            return f"no store, {len(promised)} votes acknowledged" if promised else ""
        with VotesStore(file) as store:
            found = {str(vote["id"]) for vote in store.list()}
        lost = promised - found
        missing = at_end and len(found) < ROWS
        return f"lost {sorted(lost)}, {len(found)} votes" if lost or missing else ""

    return Operation(
        name="the store of votes",
        promise="P3",
        function=_in_target(operations.vote),
        before=lambda folder: (folder / "target").mkdir(parents=True),
        arguments=lambda folder: [ROWS, str(folder / "acknowledged")],
        fault=fault,
        kept=22,
    )
