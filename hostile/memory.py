"""Attack: the memory runs out at the k-th allocation of a merge, a preview, a measurement, an export, a training.

Whatever ends well, at once or when it is asked for again, must be what the same request gives where memory is plenty:
each is done once more beside it, in a workspace and a cache of its own, which also tells how many allocations there
are to refuse. A try in which none was refused has tried nothing: it fails, or is not counted where only the system
decides.
"""

import os
import random
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import (
    REWARD,
    Models,
    finished,
    leftovers,
    make_models,
    move,
    said_by,
)
from hostile.running_failures import KINDS, Failing, one_thread
from hostile.running_programs import Programs, interruptible
from hostile.running_stages import Ended, Stages, Stop
from tests.tiny import make_model, make_policies
from tests.training.runs import metrics, stored_points, tiny_config
from warp_core.service.engine import LocalEngine
from warp_core.service.faults import OUT_OF_MEMORY, explain
from warp_core.service.protocol import (
    ExportRequest,
    GeometryRequest,
    Job,
    JobRequest,
    JobState,
    MeasureRequest,
    Place,
    Selection,
)
from warp_core.training.config import WarpConfig, config_to_toml
from warp_core.training.warp import train_warp

SEED = 20260106
TRIES, QUICK_TRIES = 45, 3
TRAIN_TRIES, QUICK_TRAIN_TRIES = 24, 2
KINDS_OF_JOB = ("preview", "measurement", "geometry", "export")
QUICK = {"preview": "full", "measurement": "lora", "export": "lora"}
ROOMS_MB = (0, 1, 4, 16, 64)
NO_MAPPING = ".sqlite: out of memory, or a disk whose files cannot be mapped"
LIMITED = {
    "merge": "warp_core.commands.models.open_all",
    "sample": "warp_core.policy.loading.load_policy",
    "front": "warp_core.evaluation.sweep.measure_together",
    "train": "warp_core.training.reinforce.Learner.step",
}


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Let one allocation after the other fail, and ask for something smaller each time."""
    models = make_models(place / "models")
    with one_thread(), patch.dict(os.environ):
        everything = dict.fromkeys(KINDS_OF_JOB, ("full", "lora"))
        chosen = {kind: (models_of,) for kind, models_of in QUICK.items()} if quick else everything
        yield from _in_the_engine(place, models, chosen, QUICK_TRIES if quick else TRIES)
        yield from _in_training(place / "training", models, QUICK_TRAIN_TRIES if quick else TRAIN_TRIES, quick=quick)
    if not quick:
        yield from _in_a_small_room(place, models)


@dataclass
class Starved:
    """An engine whose jobs run out of memory when they are told to, with a workspace and a cache of its own."""

    folder: Path
    engine: LocalEngine = field(init=False)
    next: Failing | None = None
    _do: Any = None

    def __post_init__(self) -> None:
        self._enter()
        self.engine = LocalEngine(device="cpu")
        self._do = self.engine._do
        self.engine._do = self._starved  # type: ignore[method-assign]

    def _starved(self, request: JobRequest, context: Any) -> Any:
        mode, self.next = self.next, None
        if mode is None:
            return self._do(request, context)
        with mode:
            return self._do(request, context)

    def job(self, request: JobRequest, mode: Failing | None = None) -> Job:
        """Do a job, in want of memory where a mode is given."""
        self._enter()
        self.next = mode
        return finished(self.engine, self.engine.submit(request))

    def given(self, request: JobRequest, job: Job) -> object:
        """What a job that is done has given, without clocks, paths and names; every file by its bytes."""
        match request.kind:
            case "preview":
                return [pane.model_dump() for pane in job.panes]
            case "measure":
                self._enter()
                keys = set((job.result or {})["keys"])
                points = [one.model_dump() for one in self.engine.front(request.selection).points if one.key in keys]
                samples = {key: self.engine.samples(request.selection, key) for key in keys}
                return points, samples
            case "export":
                result = job.result or {}
                return result["verified"], result["max_difference"], _files_in(Path(result["out"]))
        return job.result

    @property
    def exports(self) -> Path:
        """Where exports go."""
        return self.folder / "workspace" / "exports"

    @property
    def cache(self) -> Path:
        """Where angles and the points of models without a run are kept."""
        return self.folder / "cache"

    def forget_angles(self) -> None:
        """What is read from the cache allocates nothing."""
        shutil.rmtree(self.cache / "geometry", ignore_errors=True)

    def _enter(self) -> None:
        """The engine asks where things are in every job; there is one job at a time."""
        os.environ |= {"WARP_WORKSPACE": str(self.folder / "workspace"), "WARP_CACHE": str(self.cache)}


@contextmanager
def _engine(folder: Path) -> Iterator[Starved]:
    starved = Starved(folder)
    try:
        yield starved
    finally:
        starved.engine.close()


def _requests(kind: str, selection: Selection, number: int) -> JobRequest:
    """A request of a kind that has not been made before."""
    place = Place(eta=0.1 + number / 1000)
    match kind:
        case "preview":
            return move(selection, place, session="starved", seed=number)
        case "measurement":
            return MeasureRequest(session="starved", selection=selection, places=(place,), num_prompts=2, reward=REWARD)
        case "geometry":
            return GeometryRequest(session="starved", selection=selection, granularity="tensor")
    return ExportRequest(session="starved", selection=selection, place=place, name=f"starved-{number}")


def _in_the_engine(place: Path, models: Models, chosen: Mapping[str, Sequence[str]], tries: int) -> Iterator[Outcome]:
    """Every second try in an engine that holds nothing yet, so that loading fails, too."""
    draw = random.Random(SEED)
    number = 0
    for kind, kinds_of_models in chosen.items():
        tally = Tally(
            f"no memory in a {kind}",
            promise="P13",
            holds="an allocation is refused; the job says `out of memory` or gives the bits of an undisturbed one,"
            " nothing is half-written, the next, smaller request is right, and the same again gives those bits",
        )
        for models_of in kinds_of_models:
            selection = models.full if models_of == "full" else models.lora
            small = move(selection, Place(eta=0.4), session="small", seed=1)
            hungry, fed = (place / "engines" / name for name in ("hungry", "fed"))
            with _engine(hungry) as kept, _engine(fed) as plenty:
                expected = said_by(kept.job(small))
                plenty.job(small)
                for one in range(tries):
                    number += 1
                    request, name = _requests(kind, selection, number), list(KINDS)[one % len(KINDS)]
                    if one % 2 == 0:
                        with _engine(fed) as beside:
                            calls, right = _undisturbed(beside, request)
                    else:
                        calls, right = _undisturbed(plenty, request)
                    at = draw.randint(1, calls)
                    mode = Failing(at, raises=KINDS[name], lasting=draw.random() < 0.3)
                    if one % 2 == 0:
                        with _engine(hungry) as fresh:
                            problems = _starve(fresh, request, mode, right, small, expected)
                    else:
                        problems = _starve(kept, request, mode, right, small, expected)
                    label = f"{kind} of {models_of} models, {name} at call {at} of {calls}"
                    tally.check(not problems, f"{label}: {'; '.join(problems)}")
        yield tally.outcome()


def _undisturbed(starved: Starved, request: JobRequest) -> tuple[int, object]:
    """Do a request with memory: how many calls of torch it takes, and what it gives."""
    mode = Failing()
    starved.forget_angles()
    job = starved.job(request, mode)
    if job.state is not JobState.DONE:
        raise RuntimeError(f"{job.kind} with memory: {job.error}")
    return mode.calls, starved.given(request, job)


def _starve(
    starved: Starved, request: JobRequest, mode: Failing, right: object, small: JobRequest, expected: object
) -> list[str]:
    problems = []
    starved.forget_angles()
    job = starved.job(request, mode)
    if not mode.failed:
        problems.append(f"no allocation failed in {mode.calls} calls")
    if job.state is JobState.DONE:
        problems += [] if starved.given(request, job) == right else ["called done, it is not what it is with memory"]
    elif job.state is not JobState.FAILED or job.error != OUT_OF_MEMORY:
        problems.append(f"{job.state}: it says {job.error}")
    if request.kind == "export" and job.state is not JobState.DONE:
        out = starved.exports / request.name
        # What failed when the folder was read back has written all of it.
        whole = not out.exists() or (isinstance(right, tuple) and _files_in(out) == right[-1])
        problems += [] if whole else [f"exports/{request.name} is not whole"]
    if rest := leftovers(starved.exports, starved.cache):
        problems.append(f"left: {rest}")
    after = starved.job(small)
    if said_by(after) != expected:
        problems.append(f"the next preview: {after.state} {after.error} {said_by(after)} not {expected}")
    if job.state is not JobState.DONE:
        again = request.model_copy(update={"name": f"{request.name}-again"} if request.kind == "export" else {})
        job = starved.job(again)
        if job.state is not JobState.DONE:
            problems.append(f"the same again: {job.state}, {job.error}")
        elif starved.given(again, job) != right:
            problems.append("the same again is not what it is with memory")
    return problems


def _in_training(place: Path, models: Models, tries: int, *, quick: bool) -> Iterator[Outcome]:
    tally = Tally(
        "no memory in a training",
        promise="P2, P13",
        holds="an allocation is refused; it ends with `out of memory`, nothing is half-written, and a resume ends in"
        " the same weights, metrics and points, bit for bit",
    )
    place.mkdir()
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": 2, "evaluate_every": 1},
        "warp": {"policies": 1 if quick else 2, "iterations": 1 if quick else 2},
    }
    config = tiny_config(place, models.init, **changes)
    cpu = [torch.device("cpu")]
    train_warp(config, place / "first", devices=cpu)  # some things are made once, and counted by no later training
    counted = Failing()
    with counted:
        train_warp(config, place / "reference", devices=cpu)
    expected = _trained(config, place / "reference")
    draw = random.Random(SEED)
    for number in range(tries):
        at, name = draw.randint(1, counted.calls), list(KINDS)[number % len(KINDS)]
        out, problems = place / f"run-{number}", []
        mode = Failing(at, raises=KINDS[name])
        try:
            with mode:
                train_warp(config, out, devices=cpu)
        except Exception as error:
            said = explain(error).message
            problems += [] if said == OUT_OF_MEMORY else [f"it says {said}"]
        if not mode.failed:
            problems.append(f"no allocation failed in {mode.calls} calls")
        if rest := leftovers(out):
            problems.append(f"left: {rest}")
        try:
            train_warp(config, out, devices=cpu, resume=(out / "run.json").exists())
            found = _trained(config, out)
            wrong = sorted(one for one in expected.keys() | found.keys() if expected.get(one) != found.get(one))
            problems += [f"the resume ends with another {wrong[0]}"] if wrong else []
        except Exception as error:
            problems.append(f"the resume: {type(error).__name__}: {error}")
        tally.check(not problems, f"{name} at call {at} of {counted.calls}: {'; '.join(problems)}")
    yield tally.outcome(f"{counted.calls} calls of torch")


def _trained(config: WarpConfig, run: Path) -> dict[str, object]:
    """What must be the same in two runs: tensors, metrics without clocks, points."""
    places = [
        (iteration, policy)
        for iteration in range(1, config.warp.iterations + 1)
        for policy in range(1, config.warp.policies + 1)
    ]
    rows = {f"row of metrics of {place}": metrics(run, *place) for place in places}
    return dict(_files_in(run, "*.safetensors")) | rows | {"point": stored_points(run)}


def _files_in(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of every file below a folder, by its path."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob(pattern))
        if file.is_file()
    }


def _in_a_small_room(place: Path, models: Models) -> Iterator[Outcome]:
    """Real allocations that the system refuses: the address space of a command is limited on its way."""
    interruptible()
    prompts = place / "prompts.txt"
    prompts.write_text("it is\nthe plot\n", encoding="utf-8")
    config = place / "run.toml"
    training: dict[str, Any] = {"reward": {"terms": ["length"]}, "training": {"steps": 3, "evaluate_every": 0}}
    config.write_text(config_to_toml(tiny_config(place, models.init, **training)), encoding="utf-8")
    # Large enough that what is asked for does not fit into what Python has in store.
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    large = _large(place / "large", wide)
    of_models = ["--init", large.init, "--policies", *large.policies]
    options = ["--reward", "length", "--prompts", prompts, "--num-prompts", 2, "--max-new-tokens", 6]
    commands: dict[str, list[object]] = {
        "merge": ["merge", *of_models, "--out"],
        "sample": ["sample", "--policy", large.init, "--prompt", "it is", "--n", 2],
        "front": ["front", *of_models, "--etas", 0.5, *options],
        "train": ["train", config, "--out"],
    }
    tally = Tally(
        "commands whose address space ends on the way",
        promise="P1, P13",
        holds="one line that says `out of memory`; outputs whole or absent; the same with more room, or where the room"
        " is enough, gives what it gives undisturbed",
    )
    enough: dict[str, list[int]] = {}
    with Programs(place / "programs") as programs, Stages(programs) as stages:
        for name, where in LIMITED.items():
            ended = _run(stages, place / f"{name}-right", commands[name])
            if ended.code:
                raise RuntimeError(f"{name} with memory: {ended.tail}")
            right = _made(place / f"{name}-right", ended)
            for room in ROOMS_MB:
                folder = place / f"{name}-{room}"
                code, problems = _limited(stages, folder, commands[name], Stop(where, 0, 1, room), right)
                if code == 0 and not problems:
                    enough.setdefault(name, []).append(room)
                else:
                    tally.check(not problems, f"{name}, {room} MB more: {'; '.join(problems)}")
            tally.check(enough.get(name) != list(ROOMS_MB), f"{name}: there was room enough each time")
    yield tally.outcome(f"enough, so not counted: {enough} MB")


def _large(folder: Path, sizes: dict[str, Any]) -> Models:
    init = make_model("llama", folder / "init", **sizes)
    return Models(init=init, policies=tuple(make_policies(init, folder, num=2)), adapters=())


def _run(stages: Stages, folder: Path, command: list[object], *, at: Sequence[Stop] = ()) -> Ended:
    """Run a command in a folder; a training that has begun there goes on."""
    begun = command[0] == "train" and (folder / "out" / "run.json").exists()
    argv = [*command, folder / "out", *(["--resume"] if begun else [])] if command[-1] == "--out" else command
    return stages.run(argv, at=at, environment={"WARP_CACHE": str(folder / "cache")})


def _made(folder: Path, ended: Ended) -> object:
    """What must be the same: the weights that a command has written, or what it has said."""
    return _files_in(folder / "out", "*.safetensors") or ended.out


def _limited(
    stages: Stages, folder: Path, command: list[object], stop: Stop, right: object
) -> tuple[int | None, list[str]]:
    """Run a command that meets the limit, and again without it; its exit code and what is wrong."""
    folder.mkdir()
    try:
        ended = _run(stages, folder, command, at=[stop])
        problems = _ending(ended)
        if ended.code and (folder / "out").exists() and command[0] == "merge":
            problems.append("the output is there all the same")
        if rest := leftovers(folder):
            problems.append(f"left: {rest}")
        after = _run(stages, folder, command) if ended.code else ended
        if after.code:
            problems.append(f"with more room: {after.tail}")
        elif _made(folder, after) != right:
            problems.append("it is not what it is with memory")
    except TimeoutError as error:
        return None, [str(error)]
    return ended.code, problems


def _ending(ended: Ended) -> list[str]:
    if not ended.reached:
        return ["the stage was never reached"]
    if ended.code == 0:
        return []
    if ended.code == -int(signal.SIGABRT) or ended.code is None:
        return [f"it ended with {ended.code}: {ended.tail}"]
    said = ended.err[-1] if ended.err else ""
    return [] if said == f"warp-core: {OUT_OF_MEMORY}" or NO_MAPPING in said else [ended.tail]
