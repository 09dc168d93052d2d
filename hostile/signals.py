"""Attack: Ctrl-C and SIGTERM at every stage of the commands, and a second Ctrl-C while they clear up.

Every call has a workspace and a cache of its own, so that whatever it leaves there is seen: temporaries, the token of
an engine, sockets, pipes, locks that are held, journals of stores. What it has made by then must be whole, and the same
call again must end in what an undisturbed one ends in.
"""

import fcntl
import os
import random
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import Models, connect, leftovers, make_models, random_place
from hostile.running_programs import Program, Programs, interruptible, wait_for
from hostile.running_stages import Ended, Stages, Stop
from hostile.signal_commands import (
    APP,
    APP_UP,
    FRONT_TWICE,
    MERGE,
    MERGE_TWICE,
    SERVE,
    SERVE_UP,
    TRAIN,
    TRAIN_TWICE,
    Command,
    Places,
    Where,
    bytes_in,
    merge_command,
    other_commands,
    train_command,
)
from warp_core.service.protocol import MeasureRequest

SEED = 20260104
CODE = 130  # for both signals: warp_core/cli.py
LAST = "warp-core: interrupted; what was done is kept"
PROGRESS = re.compile(
    r"(iteration |policy |sampling|merging|reading weights|SFT policy|slerp |scale |stopping after this step|judge|"
    r"\w+, seed \d+: |WARP on |done after |starting |the token is in |port )"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
INT = int(signal.SIGINT)
RANDOM_TRIES = 12
END_S = 10.0
# Not the -wal and -shm of a store: whoever reads one leaves them, and whoever opens it next takes them up.
LEFT = (".token", ".pid", ".sock", ".sqlite-journal")

QUICK = {
    "export": "syncing",
    "evaluate": "making the store",
    "sample": "sampling",
    "geometry": "reading",
    "demo": "storing",
}
QUICK_TRAIN = ("in a later step", "in the middle of saving", "merging the next init")
QUICK_SERVE = ("after the token", "before it listens")
QUICK_MERGE = ("merging", "syncing")


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Signal every stage of every command, and go on with what is left."""
    interruptible()
    models = make_models(place / "models")
    with Programs(place / "programs") as programs:
        with Stages(programs) as stages:
            yield from _commands(place, models, stages, quick)
        if not quick:
            yield from _servers(place, programs, models)


def _commands(place: Path, models: Models, stages: Stages, quick: bool) -> Iterator[Outcome]:
    train, merge = train_command(place, models, policies=1 if quick else 2), merge_command(models)
    others = other_commands(place, models, place / "train-expected" / "run")
    if quick:
        yield from _once(place, stages, train, {name: TRAIN[name] for name in QUICK_TRAIN}, SIGNALS[:1])
        yield from _twice(place, stages, train, dict(list(TRAIN_TWICE.items())[:1]))
        yield from _once(place, stages, merge, {name: MERGE[name] for name in QUICK_MERGE}, SIGNALS[1:])
        for number, (name, stage) in enumerate(QUICK.items()):
            command, where = others[name]
            yield from _once(place, stages, command, {stage: where[stage]}, SIGNALS[number % 2 :][:1])
        served = {stage: SERVE[stage] for stage in QUICK_SERVE}
        yield from _endless(place, stages, "serve", served, SIGNALS[1:])
        return
    yield from _once(place, stages, train, TRAIN, SIGNALS)
    yield from _twice(place, stages, train, TRAIN_TWICE)
    yield from _once(place, stages, merge, MERGE, SIGNALS)
    yield from _twice(place, stages, merge, MERGE_TWICE)
    for command, where in others.values():
        yield from _once(place, stages, command, where, SIGNALS)
    yield from _twice(place, stages, others["front"][0], FRONT_TWICE)
    yield from _endless(place, stages, "serve", SERVE, SIGNALS)
    yield from _endless(place, stages, "app", APP, SIGNALS)
    for command in (train, merge, others["front"][0]):
        yield from _at_random(place, stages, command)


def _surroundings(folder: Path) -> dict[str, str]:
    """Where a call keeps what it keeps: nowhere but in its folder. It finds no token of another engine."""
    return {
        "WARP_WORKSPACE": str(folder / "workspace"),
        "WARP_CACHE": str(folder / "cache"),
        "WARP_ENGINE_TOKEN": "",
    }


def _left(folder: Path) -> list[str]:
    """What a call that has ended must not leave behind, whatever made it end."""
    found = leftovers(folder)
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, str(path.relative_to(folder))
        if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or name.endswith(LEFT):
            found.append(name)
        elif stat.S_ISREG(mode) and (path.suffix == ".lock" or path.parent.name == "locks") and _is_held(path):
            found.append(f"{name}, held")
    return found


def _is_held(file: Path) -> bool:
    """Whether a process still holds a lock file; the file itself may stay, by the docs of filelock."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _once(place: Path, stages: Stages, command: Command, chosen: Where, signals: Sequence[int]) -> Iterator[Outcome]:
    _expect(place, stages, command)
    for number in signals:
        name = signal.Signals(number).name
        tally = Tally(
            f"{command.name}, {name} at {len(chosen)} stages",
            promise="P1, P2",
            holds="130, one line, no trace, nothing half-written, no token, socket or lock; the next call ends in the"
            " same bytes",
        )
        for stage, (where, call) in chosen.items():
            folder = place / f"{command.name}-{name}-{stage}".replace(" ", "-")
            _try(tally, f"{name} {stage}", folder, stages, command, [Stop(where, int(number), call)])
        yield tally.outcome()


def _twice(place: Path, stages: Stages, command: Command, chosen: dict[str, Places]) -> Iterator[Outcome]:
    tally = Tally(
        f"{command.name}, Ctrl-C again while it ends",
        promise="P1, P2",
        holds="130, one line, no trace; the next call clears up what is left and ends in the same bytes",
    )
    for stage, places in chosen.items():
        folder = place / f"{command.name}-twice-{stage}".replace(" ", "-")
        stops = [Stop(where, INT, call) for where, call in places]
        _try(tally, stage, folder, stages, command, stops, leaves=True)
    yield tally.outcome()


def _at_random(place: Path, stages: Stages, command: Command) -> Iterator[Outcome]:
    """Signals from outside at moments that nobody has chosen."""
    draw = random.Random(SEED)
    tally = Tally(
        f"{command.name}, SIGINT and SIGTERM at {RANDOM_TRIES} random moments",
        promise="P1, P2",
        holds="130 or done, one line, no trace, nothing half-written; the next call ends in the same bytes",
    )
    began = time.monotonic()
    _run(place / f"{command.name}-timed", stages, command)
    whole_s = time.monotonic() - began
    for number in range(RANDOM_TRIES):
        wait_s, which = draw.uniform(0.0, whole_s), draw.choice(SIGNALS)

        def outside(pid: int, wait_s: float = wait_s, which: int = which) -> None:
            time.sleep(wait_s)
            with suppress(ProcessLookupError):
                os.kill(pid, which)

        folder = place / f"{command.name}-random-{number}"
        label = f"{signal.Signals(which).name} after {wait_s:.2f} s"
        _try(tally, label, folder, stages, command, [], outside=outside)
    yield tally.outcome(f"the whole takes {whole_s:.1f} s")


def _expect(place: Path, stages: Stages, command: Command) -> None:
    """Find out what a call that nobody disturbs ends in."""
    if command.expected is None:
        folder = place / f"{command.name}-expected"
        ended = _run(folder, stages, command)
        if ended.code:
            raise RuntimeError(f"{command.name} undisturbed: {ended.tail}")
        command.expected = command.outcome(folder, ended)


def _run(folder: Path, stages: Stages, command: Command) -> Ended:
    folder.mkdir(parents=True)
    command.prepare(folder)
    return stages.run(command.start(folder), environment=_surroundings(folder))


def _try(
    tally: Tally,
    label: str,
    folder: Path,
    stages: Stages,
    command: Command,
    stops: Sequence[Stop],
    *,
    leaves: bool = False,
    outside: Callable[[int], None] | None = None,
) -> None:
    """Interrupt one call, look at what is left, and go on with it."""
    folder.mkdir(parents=True)
    command.prepare(folder)
    environment = _surroundings(folder)
    try:
        ended = stages.run(command.start(folder), at=stops, outside=outside, environment=environment)
        problems = _problems(ended, may_be_done=outside is not None)
        if not ended.reached:
            problems.append("the stage was never reached")
        if not leaves and (rest := _left(folder)):
            problems.append(f"left: {rest}")
        whole = folder.parent / f"{command.name}-expected"
        problems += [
            f"{name} is not whole"
            for name in command.makes
            if (folder / name).exists() and bytes_in(folder / name) != bytes_in(whole / name)
        ]
        after = stages.run((command.again or command.start)(folder), environment=environment)
        if rest := _left(folder):
            problems.append(f"left at the end: {rest}")
        if after.code:
            problems.append(f"going on: {after.tail}")
        elif command.outcome(folder, after) != command.expected:
            problems.append("going on ended in something else")
    except (TimeoutError, OSError) as error:
        problems = [f"{type(error).__name__}: {error}"]
    tally.check(not problems, f"{label}: {'; '.join(problems)}")


def _problems(ended: Ended, *, may_be_done: bool) -> list[str]:
    if may_be_done and ended.code == 0:
        return []
    if may_be_done and ended.code == -int(signal.SIGTERM) and not ended.has_trace:
        return []  # before the command has begun, or after its last word
    found = []
    if ended.code != CODE:
        found.append(ended.tail)
    if ended.has_trace:
        found.append(f"a trace: {ended.tail}")
    others = [line for line in ended.err if not PROGRESS.match(line)]
    if others != [LAST]:
        found.append(f"it said {others}")
    return found


def _endless(
    place: Path, stages: Stages, name: str, chosen: dict[str, Places], signals: Sequence[int]
) -> Iterator[Outcome]:
    """Signal a command that ends by no other way, and start it again."""
    for number in signals:
        tally = Tally(
            f"{name}, {signal.Signals(number).name} at {len(chosen)} stages",
            promise="P2",
            holds="130, one line, no trace, no process, token or lock; the next call comes up and ends in the same way",
        )
        for stage, places in chosen.items():
            folder = place / f"{name}-{signal.Signals(number).name}-{stage}".replace(" ", "-")
            folder.mkdir()
            # The second call, which nothing of the first may disturb, is ended where it is known to be up.
            up = [SERVE_UP if name == "serve" else APP_UP]
            first, second = ([Stop(where, int(number), call) for where, call in each] for each in (places, up))
            problems = _ended(stages, name, folder, first)
            problems += [f"again: {one}" for one in _ended(stages, name, folder, second)]
            tally.check(not problems, f"{stage}: {'; '.join(problems)}")
        yield tally.outcome()


def _ended(stages: Stages, name: str, folder: Path, stops: Sequence[Stop]) -> list[str]:
    """Start a server that signals itself; what is wrong with how it ended and with what it has left."""
    argv = [name, "--port", 0] if name == "serve" else [name, "--headless"]
    try:
        ended = stages.run(argv, at=stops, environment=_surroundings(folder))
    except TimeoutError as error:
        return [str(error)]
    problems = _problems(ended, may_be_done=False)
    problems += [] if ended.reached else ["the stage was never reached"]
    problems += [f"left: {rest}"] if (rest := _left(folder)) else []
    with suppress(TimeoutError):
        wait_for(lambda: not _children_of(folder), within_s=END_S)
    for one in _children_of(folder):
        problems.append(f"still there: {one}")
        os.kill(one, signal.SIGKILL)
    return problems


def _children_of(folder: Path) -> list[int]:
    """Processes whose cache lies in a folder."""
    mark, found = f"WARP_CACHE={folder / 'cache'}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def _servers(place: Path, programs: Programs, models: Models) -> Iterator[Outcome]:
    tally = Tally(
        "serve and app, SIGINT and SIGTERM",
        promise="P2",
        holds="130 within 10 s, one line, no trace, no process, token file, socket or lock is left",
    )
    number = 0
    for which in SIGNALS:
        for start, moments in ((_serve, ("at once", "idle", "in a job")), (_app, ("at once", "idle"))):
            for moment in moments:
                number += 1
                start(tally, place / f"server-{number}", programs, models, which, moment)
    yield tally.outcome()


def _serve(tally: Tally, folder: Path, programs: Programs, models: Models, which: int, moment: str) -> None:
    label = f"serve, {signal.Signals(which).name} {moment}"
    program = programs.start("warp_core", "serve", "--port", 0, "--json", **_surroundings(folder))  # type: ignore[arg-type]
    announced = program.announced()
    token = Path(announced["token_file"])
    made = token.is_file() and stat.S_IMODE(token.stat().st_mode) == 0o600 and token.is_relative_to(folder)
    tally.check(made, f"{label}: no token of mode 0600 in {token}")
    if moment != "at once":
        with connect(announced["url"], token.read_text(encoding="ascii").strip()) as engine:
            wait_for(engine.status)
            if moment == "in a job":
                draw = random.Random(SEED)
                places = tuple(random_place(draw) for _ in range(200))
                job = engine.submit(MeasureRequest(session="a", selection=models.full, places=places, num_prompts=32))
                wait_for(lambda: engine.job(job.id).progress)
    _signalled(tally, label, folder, programs, program, which)


def _app(tally: Tally, folder: Path, programs: Programs, models: Models, which: int, moment: str) -> None:
    program = programs.start("warp_core", "app", "--headless", **_surroundings(folder))  # type: ignore[arg-type]
    if moment == "idle":
        program.first_line()
    else:
        wait_for(lambda: len(programs.alive()) > 2)
    _signalled(tally, f"app, {signal.Signals(which).name} {moment}", folder, programs, program, which)


def _signalled(tally: Tally, label: str, folder: Path, programs: Programs, program: Program, which: int) -> None:
    program.process.send_signal(which)
    code = program.ended(within_s=END_S)
    said = [line for line in program.said if not PROGRESS.match(line)]
    tally.check(code == CODE and said == [LAST], f"{label}: code {code}, said {said}")
    try:
        wait_for(lambda: not programs.alive(), within_s=END_S)
    except TimeoutError:
        alive = [" ".join(one.cmdline())[-80:] for one in programs.alive()]
        tally.check(False, f"{label}: still there: {alive}")
        for one in programs.alive():
            one.kill()
    rest = _left(folder)
    tally.check(not rest, f"{label}: left: {rest}")
