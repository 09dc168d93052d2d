"""Attack: Ctrl-C and SIGTERM at every stage of the commands, and a second Ctrl-C while they clear up.

Every call has a workspace and a cache of its own, so that whatever it leaves there is seen: temporaries, the token of
an engine, sockets, pipes, locks that are held, journals of stores. What it has made by then must be whole, and the same
call again must end in what an undisturbed one ends in.
"""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import stat
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
from tests.training.runs import metrics, stored_points, tiny_config
from warp_core.service.protocol import MeasureRequest
from warp_core.training.config import WarpConfig, config_to_toml
from warp_core.workspace.store import ResultsStore

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
    "opening the run": ("warp_core.training.warp.reopen", 1),
    "opening the models": ("warp_core.commands.models.make_recipe", 1),
    "reading": ("warp_core.commands.models.compute_geometry", 1),
    "merging": ("warp_core.weights.tensor_io.ShardWriter.write", 5),
    "copying the other files": ("warp_core.weights.streamed.write_model_files", 1),
    "writing the card": ("warp_core.weights.streamed.write_card", 1),
    "syncing": (SYNC, 3),
    "renaming": ("warp_core.workspace.publish._swap_in", 1),
    "after the rename": ("warp_core.workspace.publish._sync_after_rename", 1),
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
    "making a run": ("warp_core.studies.trainings.prepare_run", 1),
    "in a step": (STEP, 2),
    "saving": ("warp_core.training.state.save_file", 1),
    "measuring": ("warp_core.evaluation.sweep.measure_together", 2),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 2),
    "writing": ("warp_core.commands.study.write_study", 1),
}
EVALUATE = {
    "opening": ("warp_core.commands.measure.open_model", 2),
    "loading": ("warp_core.commands.measure.load_checkpoint", 1),
    "loading the anchor": ("warp_core.commands.measure.load_checkpoint", 2),
    "sampling": ("warp_core.evaluation.evaluate.sample", 1),
    "measuring the KL": ("warp_core.evaluation.evaluate.completion_kl", 1),
    "making the store": ("warp_core.workspace.sqlite.Database._switch_to_wal", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 1),
    "shrinking the store": ("warp_core.workspace.sqlite.Database.compact", 1),
}
SAMPLE = {
    "opening": ("warp_core.commands.measure.open_model", 1),
    "loading": ("warp_core.commands.measure.load_checkpoint", 1),
    "sampling": ("warp_core.commands.measure.draw", 1),
    "scoring": ("warp_core.commands.measure.load_reward", 1),
}
GEOMETRY = {
    "opening": ("warp_core.commands.models.open_all", 1),
    "reading": ("warp_core.weights.grams._gram_of_block", 3),
    "keeping the angles": ("warp_core.weights.grams.write_sealed", 1),
    "printing": ("warp_core.commands.models._geometry_table", 1),
}
DEMO = {
    "before the run folder": ("warp_core.commands.demo.require_usable", 1),
    "in a step": (STEP, 2),
    "saving": ("warp_core.training.state.save_file", 1),
    "loading for the front": ("warp_core.evaluation.sweep.load_policy", 1),
    "measuring": ("warp_core.evaluation.sweep.measure_together", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 3),
    "writing the numbers": ("warp_core.commands.demo.write_json_atomic", 1),
    "writing the page": ("warp_core.commands.demo.write_front_html", 1),
}
CHECK = {
    "reading": ("warp_core.weights.check._nonfinite", 1),
    "asking transformers": ("warp_core.weights.check._load_problems", 1),
}
DOCTOR = {"multiplying": ("warp_core.commands.doctor.product_gflops", 2)}
SERVE_UP, APP_UP = ("uvicorn.server.Server.main_loop", 1), ("warp_core.commands.supervise.Supervisor.watch", 1)
SERVE = {
    "before the token": [("warp_core.commands.serve.write_token", 1)],
    "after the token": [("warp_core.commands.serve.say", 1)],
    "before it listens": [("warp_core.commands.serve.create_app", 1)],
    "as it listens": [SERVE_UP],
    "again as it ends": [SERVE_UP, ("warp_core.service.waking.WakingEngine.close", 1)],
}
APP = {
    "before the engine": [("warp_core.commands.supervise._start", 1)],
    "between the two": [("warp_core.commands.supervise._start", 2)],
    "waiting": [("warp_core.commands.supervise.Supervisor.wait_until_ready", 1)],
    "both there": [APP_UP],
    "in a round": [("warp_core.commands.supervise.Supervisor.look_after", 5)],
}
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

Places = list[tuple[str, int]]
Where = dict[str, tuple[str, int]]


@dataclass(kw_only=True)
class Command:
    """A command of which every stage is attacked.

    Attributes:
        name: for people.
        start: its arguments, given the folder that it writes to.
        outcome: what must be the same at the end, given the folder and what was printed.
        again: the arguments that go on with what is there; None: the same ones.
        prepare: makes what it needs in the folder.
        makes: what it publishes in the folder, whole or not at all.
        expected: the outcome of a call that nobody has disturbed, once it is known.
    """

    name: str
    start: Callable[[Path], list[object]]
    outcome: Callable[[Path, Ended], object]
    again: Callable[[Path], list[object]] | None = None
    prepare: Callable[[Path], None] = lambda folder: None
    makes: tuple[str, ...] = ()
    expected: object = field(default=None)


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
    train, merge = _train_command(place, models, policies=1 if quick else 2), _merge_command(models)
    run = place / "train-expected" / "run"
    others = {
        "export": (_export_command(run), EXPORT),
        "evaluate": (_evaluate_command(place, models), EVALUATE),
        "sample": (_sample_command(models), SAMPLE),
        "geometry": (_geometry_command(models), GEOMETRY),
        "front": (_front_command(run), FRONT),
        "demo": (_demo_command(models), DEMO),
        "study": (_study_command(), STUDY),
        "check": (_check_command(models), CHECK),
        "doctor": (_doctor_command(), DOCTOR),
    }
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


def _train_command(place: Path, models: Models, *, policies: int) -> Command:
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": 2, "evaluate_every": 1, "warmup_steps": 0},
        "warp": {"policies": policies, "iterations": 2},
    }
    file, config = place / "run.toml", tiny_config(place, models.init, **changes)
    file.write_text(config_to_toml(config), encoding="utf-8")

    def again(folder: Path) -> list[object]:
        begun = (folder / "run" / "run.json").exists()
        return ["train", file, "--out", folder / "run", *(["--resume"] if begun else [])]

    return Command(
        name="train",
        start=lambda folder: ["train", file, "--out", folder / "run"],
        again=again,
        outcome=lambda folder, ended: _trained(folder / "run", config),
    )


def _trained(run: Path, config: WarpConfig) -> object:
    """Weights, metrics without clocks, points."""
    places = [
        (iteration, policy)
        for iteration in range(1, config.warp.iterations + 1)
        for policy in range(1, config.warp.policies + 1)
    ]
    return _bytes_in(run, "*.safetensors"), [metrics(run, *one) for one in places], stored_points(run)


def _merge_command(models: Models) -> Command:
    return _to_folder(
        "merge",
        lambda folder: [
            "merge", "--init", models.init, "--policies", *models.policies, "--eta", 0.4, "--out", folder / "out",
        ],
    )  # fmt: skip


def _export_command(run: Path) -> Command:
    return _to_folder("export", lambda folder: ["export", run, "--eta", 0.5, "--out", folder / "out"])


def _to_folder(name: str, start: Callable[[Path], list[object]]) -> Command:
    """A command that publishes the folder `out`; a signal after the rename leaves it there, and it must be whole."""
    return Command(
        name=name,
        start=start,
        again=lambda folder: ["check", folder / "out"] if (folder / "out").exists() else start(folder),
        outcome=lambda folder, ended: _bytes_in(folder / "out"),
        makes=("out",),
    )


def _front_command(run: Path) -> Command:
    files = ("front.html", "front.csv")
    return Command(
        name="front",
        start=lambda folder: ["front", folder / "run", "--html", folder / files[0], "--csv", folder / files[1]],
        outcome=lambda folder, ended: (ended.out, [(folder / name).read_bytes() for name in files]),
        prepare=lambda folder: _copied(run, folder / "run"),
        makes=files,
    )


def _study_command() -> Command:
    def outcome(folder: Path, ended: Ended) -> object:
        """Weights and points; runs are called by a hash that holds the place of the model, and some rows are times."""
        studies = folder / "workspace" / "studies"
        weights = sorted(
            (name.partition("/")[2], digest) for name, digest in _bytes_in(studies / "runs", "*.safetensors").items()
        )
        with ResultsStore(studies / "results.sqlite", read_only=True) as store:
            points = [point for point in store.list_points() if "reward" in point]
        numbers = ("kind", "method", "iteration", "n", "reward", "reward_se", "kl", "kl_se", "length")
        return weights, sorted(repr([point.get(name) for name in numbers]) for point in points)

    return Command(
        name="study",
        start=lambda folder: ["study", "slerp", "--scale", "smoke", "--seeds", 1, "--out", folder / "docs"],
        outcome=outcome,
    )


def _evaluate_command(place: Path, models: Models) -> Command:
    prompts = place / "prompts.txt"
    prompts.write_text("it is\nthe plot\n", encoding="ascii")
    options = ["--reward", "length", "--prompts", prompts, "--max-new-tokens", 6]
    return _printing("evaluate", ["evaluate", "--policy", models.policies[0], "--anchor", models.init, *options])


def _sample_command(models: Models) -> Command:
    options = ["--prompt", "it is", "--n", 3, "--reward", "length"]
    return _printing("sample", ["sample", "--policy", models.policies[0], *options])


def _geometry_command(models: Models) -> Command:
    return _printing("geometry", ["geometry", "--init", models.init, "--policies", *models.policies])


def _check_command(models: Models) -> Command:
    return _printing("check", ["check", models.policies[0], "--init", models.init])


def _doctor_command() -> Command:
    """What it measures differs each time; what it found of this machine does not."""
    start: list[object] = ["doctor", "--json"]
    return Command(
        name="doctor",
        start=lambda folder: start,
        outcome=lambda folder, ended: [json.loads(ended.out)[name] for name in ("warp_core", "python", "versions")],
    )


def _printing(name: str, start: list[object]) -> Command:
    """A command that only says something."""
    return Command(name=name, start=lambda folder: start, outcome=lambda folder, ended: ended.out)


def _demo_command(models: Models) -> Command:
    changes = {
        "model.name": f'"{models.init}"',
        "reward.terms": '["length"]',
        "training.steps": 2,
        "training.evaluate_every": 1,
        "training.prompts_per_step": 2,
        "training.completions_per_prompt": 2,
        "training.max_new_tokens": 4,
        "evaluation.prompts": 3,
        "evaluation.etas": "[0.0, 0.5]",
    }
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    files = ("front.csv", "front.html", "front.json")
    return Command(
        name="demo",
        start=lambda folder: ["demo", "--headless", "--out", folder / "run", *settings],
        outcome=lambda folder, ended: (
            _bytes_in(folder / "run", "*.safetensors"),
            {name: (folder / "run" / name).read_bytes() for name in files},
        ),
        makes=tuple(f"run/{name}" for name in files),
    )


def _copied(run: Path, to: Path) -> None:
    shutil.copytree(run, to)


def _bytes_in(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of the files below a folder, by their paths; of a file itself where it is one."""
    files = [folder] if folder.is_file() else sorted(folder.rglob(pattern))
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


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
            if (folder / name).exists() and _bytes_in(folder / name) != _bytes_in(whole / name)
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
