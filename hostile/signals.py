"""Attack: Ctrl-C and SIGTERM at every stage of the commands, and a second Ctrl-C while they clear up."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import Models, connect, leftovers, make_models, random_place
from hostile.running_programs import Program, Programs, interruptible, wait_for
from hostile.running_stages import Ended, Stages, Stop
from tests.training.runs import tiny_config
from warp_core.service.protocol import MeasureRequest
from warp_core.training.config import config_to_toml

SEED = 20260104
CODE = 130  # for both signals: warp_core/cli.py
LAST = "warp-core: interrupted; what was done is kept"
PROGRESS = re.compile(
    r"(iteration |policy |sampling|merging|reading weights|SFT policy|slerp |scale |stopping after this step|judge|"
    r"\w+, seed \d+: )"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
INT = int(signal.SIGINT)
RANDOM_TRIES = 12
END_S = 10.0

STEP = "warp_core.training.reinforce.Learner.step"
SYNC = "warp_core.workspace.publish._sync"
TRAIN = {
    "before the run folder": ("warp_core.commands.run.require_usable", 1),
    "making the run folder": ("warp_core.training.warp.write_prompts", 1),
    "before the first step": ("warp_core.training.policy_run.load_policy", 1),
    "in the first step": ("warp_core.training.reinforce.reinforce_loss", 1),
    "in a later step": (STEP, 3),
    "evaluating": ("warp_core.training.policy_run.measure", 2),
    "storing a point": ("warp_core.training.policy_run.ResultsStore", 2),
    "before saving": ("warp_core.training.policy_run.save_state", 2),
    "in the middle of saving": ("warp_core.training.state.save_file", 2),
    "at the end of saving": (SYNC, 12),
    "publishing a policy": ("warp_core.training.policy_run.write_adapter", 1),
    "angles for the next init": ("warp_core.training.warp.compute_geometry", 1),
    "merging the next init": ("warp_core.weights.streamed.write_adapter", 1),
    "publishing the next init": ("warp_core.weights.streamed.write_card", 1),
    "in the second iteration": (STEP, 6),
}
TRAIN_TWICE = {
    "again before saving": [(STEP, 2), ("warp_core.training.policy_run.save_state", 1)],
    "again in the middle of saving": [(STEP, 2), ("warp_core.training.state.save_file", 1)],
    "again at the end of saving": [(STEP, 2), (SYNC, 3)],
    "again in the same step": [(STEP, 2), ("warp_core.training.reinforce.reinforce_loss", 1)],
    "a third one while clearing up": [(STEP, 2), (SYNC, 3), ("shutil.rmtree", 1)],
    "again while saying so": [(STEP, 2), ("warp_core.cli._fail", 1)],
}
MERGE = {
    "opening": ("warp_core.commands.models.make_recipe", 1),
    "reading": ("warp_core.weights.grams._gram_of_block", 3),
    "merging": ("warp_core.weights.tensor_io.ShardWriter.write", 5),
    "copying the other files": ("warp_core.weights.streamed.write_model_files", 1),
    "syncing": (SYNC, 3),
    "renaming": ("warp_core.workspace.publish._swap_in", 1),
    "after the rename": ("warp_core.workspace.publish._sync_after_rename", 1),
}
MERGE_TWICE = {
    "again while clearing up": [("warp_core.weights.streamed.write_model_files", 1), ("shutil.rmtree", 1)],
    "again while saying so": [("warp_core.weights.streamed.write_model_files", 1), ("warp_core.cli._fail", 1)],
}
EXPORT = {
    "merging": ("warp_core.weights.tensor_io.ShardWriter.write", 5),
    "copying the other files": ("warp_core.weights.streamed.write_model_files", 1),
}
FRONT = {
    "loading": ("warp_core.evaluation.sweep.load_policy", 1),
    "sampling": ("warp_core.evaluation.sweep.measure_together", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 2),
    "shrinking the store": ("warp_core.workspace.sqlite.Database.compact", 1),
    "writing the page": ("warp_core.commands.front.write_front_html", 1),
}
FRONT_TWICE = {
    "again while closing the store": [
        ("warp_core.workspace.store.ResultsStore.put_point", 2),
        ("warp_core.workspace.sqlite.Database.compact", 1),
    ]
}
STUDY = {
    "in a step": (STEP, 2),
    "measuring": ("warp_core.evaluation.sweep.measure_together", 2),
    "writing": ("warp_core.commands.study.write_study", 1),
}
QUICK_TRAIN = ("in a later step", "in the middle of saving", "merging the next init")
QUICK_MERGE = ("merging", "syncing")

Places = list[tuple[str, int]]


@dataclass(kw_only=True)
class Command:
    """A command of which every stage is attacked.

    Attributes:
        name: for people.
        start: its arguments, given the folder that it writes to.
        again: the arguments that go on with what is there.
        outcome: what must be the same at the end, given the folder.
        prepare: makes what it needs in the folder.
    """

    name: str
    start: Callable[[Path], list[object]]
    again: Callable[[Path], list[object]]
    outcome: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None
    environment: Callable[[Path], dict[str, str]] = lambda folder: {}
    expected: object = field(default=None)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Signal every stage of every command, and go on with what is left."""
    interruptible()
    models = make_models(place / "models")
    with Programs(place / "programs") as programs:
        with Stages(programs) as stages:
            yield from _commands(place, models, stages, quick)
        if not quick:
            yield from _servers(programs, models)


def _commands(place: Path, models: Models, stages: Stages, quick: bool) -> Iterator[Outcome]:
    train, merge = _train_command(place, models, policies=1 if quick else 2), _merge_command(models)
    both = SIGNALS[:1] if quick else SIGNALS
    other = SIGNALS[1:] if quick else SIGNALS
    yield from _once(place, stages, train, _chosen(TRAIN, QUICK_TRAIN if quick else None), both)
    yield from _twice(place, stages, train, dict(list(TRAIN_TWICE.items())[: 1 if quick else None]))
    yield from _once(place, stages, merge, _chosen(MERGE, QUICK_MERGE if quick else None), other)
    if quick:
        return
    yield from _twice(place, stages, merge, MERGE_TWICE)
    run = place / "train-expected" / "run"
    front, export = _front_command(run), _export_command(run)
    yield from _once(place, stages, front, FRONT, SIGNALS)
    yield from _twice(place, stages, front, FRONT_TWICE)
    yield from _once(place, stages, export, EXPORT, SIGNALS)
    yield from _once(place, stages, _study_command(), STUDY, SIGNALS[:1])
    for command in (train, merge, front):
        yield from _at_random(place, stages, command)


def _chosen(stages: dict[str, tuple[str, int]], names: Sequence[str] | None) -> dict[str, tuple[str, int]]:
    return stages if names is None else {name: stages[name] for name in names}


def _train_command(place: Path, models: Models, *, policies: int) -> Command:
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": 2, "evaluate_every": 1, "warmup_steps": 0},
        "warp": {"policies": policies, "iterations": 2},
    }
    config = place / "run.toml"
    config.write_text(config_to_toml(tiny_config(place, models.init, **changes)), encoding="utf-8")

    def again(folder: Path) -> list[object]:
        begun = (folder / "run" / "run.json").exists()
        return ["train", config, "--out", folder / "run", *(["--resume"] if begun else [])]

    return Command(
        name="train",
        start=lambda folder: ["train", config, "--out", folder / "run"],
        again=again,
        outcome=lambda folder: _bytes_in(folder / "run"),
    )


def _merge_command(models: Models) -> Command:
    def start(folder: Path) -> list[object]:
        return ["merge", "--init", models.init, "--policies", *models.policies, "--eta", 0.4, "--out", folder / "out"]

    def again(folder: Path) -> list[object]:
        # A signal after the rename leaves the whole folder.
        return ["check", folder / "out"] if (folder / "out").exists() else start(folder)

    return Command(
        name="merge",
        start=start,
        again=again,
        outcome=lambda folder: _bytes_in(folder / "out"),
        # Angles that are in the cache are not computed again.
        environment=lambda folder: {"WARP_CACHE": str(folder / "cache")},
    )


def _front_command(run: Path) -> Command:
    def start(folder: Path) -> list[object]:
        return ["front", folder / "run", "--html", folder / "front.html", "--csv", folder / "front.csv"]

    return Command(
        name="front",
        start=start,
        again=start,
        outcome=lambda folder: [(folder / name).read_bytes() for name in ("front.html", "front.csv")],
        prepare=lambda folder: _copied(run, folder / "run"),
    )


def _export_command(run: Path) -> Command:
    def start(folder: Path) -> list[object]:
        return ["export", run, "--eta", 0.5, "--out", folder / "out"]

    def again(folder: Path) -> list[object]:
        return ["check", folder / "out"] if (folder / "out").exists() else start(folder)

    return Command(name="export", start=start, again=again, outcome=lambda folder: _bytes_in(folder / "out"))


def _study_command() -> Command:
    def start(folder: Path) -> list[object]:
        return ["study", "slerp", "--scale", "smoke", "--seeds", 1, "--out", folder / "docs"]

    return Command(
        name="study",
        start=start,
        again=start,
        outcome=lambda folder: _bytes_in(folder / "workspace"),
        environment=lambda folder: {"WARP_WORKSPACE": str(folder / "workspace")},
    )


def _copied(run: Path, to: Path) -> None:
    shutil.copytree(run, to)


def _bytes_in(folder: Path) -> dict[str, str]:
    """Content of every tensor file in a folder."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def _once(
    place: Path, stages: Stages, command: Command, chosen: dict[str, tuple[str, int]], signals: Sequence[int]
) -> Iterator[Outcome]:
    _expect(place, stages, command)
    for number in signals:
        name = signal.Signals(number).name
        tally = Tally(
            f"{command.name}, {name} at {len(chosen)} stages",
            promise="P1, P2",
            holds="130, one line, no trace, nothing half-written; the next call ends in the same bytes",
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
        command.expected = command.outcome(folder)


def _run(folder: Path, stages: Stages, command: Command) -> Ended:
    folder.mkdir(parents=True)
    command.prepare(folder)
    return stages.run(command.start(folder), environment=command.environment(folder))


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
    environment = command.environment(folder)
    try:
        ended = stages.run(command.start(folder), at=stops, outside=outside, environment=environment)
        problems = _problems(ended, may_be_done=outside is not None)
        if not ended.reached:
            problems.append("the stage was never reached")
        if not leaves and (rest := leftovers(folder)):
            problems.append(f"left: {rest}")
        after = stages.run(command.again(folder), environment=environment)
        if after.code:
            problems.append(f"going on: {after.tail}")
        elif command.outcome(folder) != command.expected:
            problems.append("going on ended in other bytes")
        if rest := leftovers(folder):
            problems.append(f"left at the end: {rest}")
    except (TimeoutError, OSError) as error:
        problems = [f"{type(error).__name__}: {error}"]
    tally.check(not problems, f"{label}: {'; '.join(problems)}")


def _problems(ended: Ended, *, may_be_done: bool) -> list[str]:
    if may_be_done and ended.code == 0:
        return []
    found = []
    if ended.code != CODE:
        found.append(ended.tail)
    if ended.has_trace:
        found.append(f"a trace: {ended.tail}")
    others = [line for line in ended.err if not PROGRESS.match(line)]
    if others != [LAST]:
        found.append(f"it said {others}")
    return found


def _servers(programs: Programs, models: Models) -> Iterator[Outcome]:
    tally = Tally(
        "serve and app, SIGINT and SIGTERM",
        promise="P2",
        holds="130 within 10 s, one line, no trace, no process and no token file is left",
    )
    for which in SIGNALS:
        for moment in ("at once", "idle", "in a job"):
            _serve(tally, programs, models, which, moment)
        for moment in ("at once", "idle"):
            _app(tally, programs, which, moment)
    yield tally.outcome()


def _serve(tally: Tally, programs: Programs, models: Models, which: int, moment: str) -> None:
    program = programs.start("warp_core", "serve", "--port", 0, WARP_ENGINE_TOKEN="a-token")
    url = program.first_line()
    if moment != "at once":
        with connect(url, "a-token") as engine:
            wait_for(engine.status)
            if moment == "in a job":
                draw = random.Random(SEED)
                places = tuple(random_place(draw) for _ in range(200))
                job = engine.submit(MeasureRequest(session="a", selection=models.full, places=places, num_prompts=32))
                wait_for(lambda: engine.job(job.id).progress)
    _signalled(tally, f"serve, {signal.Signals(which).name} {moment}", programs, program, which)


def _app(tally: Tally, programs: Programs, which: int, moment: str) -> None:
    program = programs.start("warp_core", "app", "--headless")
    if moment == "idle":
        program.first_line()
    else:
        wait_for(lambda: len(programs.alive()) > 2)
    _signalled(tally, f"app, {signal.Signals(which).name} {moment}", programs, program, which)


def _signalled(tally: Tally, label: str, programs: Programs, program: Program, which: int) -> None:
    program.process.send_signal(which)
    code = program.ended(within_s=END_S)
    said = [line for line in program.said if not line.startswith(("starting ", "the token is in ", "port "))]
    tally.check(code == CODE and said == [LAST], f"{label}: code {code}, said {said}")
    try:
        wait_for(lambda: not programs.alive(), within_s=END_S)
    except TimeoutError:
        alive = [" ".join(one.cmdline())[-80:] for one in programs.alive()]
        tally.check(False, f"{label}: still there: {alive}")
        for one in programs.alive():
            one.kill()
