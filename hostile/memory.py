"""Attack: the memory runs out at the k-th allocation of a merge, a preview, a measurement, an export, a training."""

import random
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

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
from tests.training.runs import tiny_config
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
from warp_core.training.config import config_to_toml
from warp_core.training.warp import train_warp
from warp_core.workspace.paths import cache_root, workspace_root

SEED = 20260106
TRIES, QUICK_TRIES = 45, 3
TRAIN_TRIES, QUICK_TRAIN_TRIES = 24, 2
KINDS_OF_JOB = ("preview", "measurement", "geometry", "export")
QUICK = {"preview": "full", "measurement": "lora", "export": "lora"}
ROOMS_MB = (0, 1, 4, 16, 64)
LIMITED = {
    "merge": "warp_core.commands.models.merge_to_folder",
    "sample": "warp_core.policy.loading.load_policy",
    "front": "warp_core.evaluation.sweep.measure_together",
    "train": "warp_core.training.reinforce.Learner.step",
}


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Let one allocation after the other fail, and ask for something smaller each time."""
    models = make_models(place / "models")
    with one_thread():
        everything = dict.fromkeys(KINDS_OF_JOB, ("full", "lora"))
        chosen = {kind: (models_of,) for kind, models_of in QUICK.items()} if quick else everything
        yield from _in_the_engine(models, chosen, QUICK_TRIES if quick else TRIES)
        yield from _in_training(place / "training", models, QUICK_TRAIN_TRIES if quick else TRAIN_TRIES, quick=quick)
    if not quick:
        yield from _in_a_small_room(place, models)


@dataclass
class Starved:
    """An engine whose jobs run out of memory when they are told to."""

    engine: LocalEngine = field(default_factory=lambda: LocalEngine(device="cpu"))
    next: Failing | None = None
    _do: Any = None

    def __post_init__(self) -> None:
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
        self.next = mode
        return finished(self.engine, self.engine.submit(request))


@contextmanager
def _engine() -> Iterator[Starved]:
    starved = Starved()
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


def _in_the_engine(models: Models, chosen: Mapping[str, Sequence[str]], tries: int) -> Iterator[Outcome]:
    """Every second try in an engine that holds nothing yet, so that loading fails, too."""
    draw = random.Random(SEED)
    number = 0
    for kind, kinds_of_models in chosen.items():
        tally = Tally(
            f"no memory in a {kind}",
            promise="P13",
            holds="the job says `out of memory`, nothing is half-written, and the next, smaller request is right",
        )
        for models_of in kinds_of_models:
            selection = models.full if models_of == "full" else models.lora
            small = move(selection, Place(eta=0.4), session="small", seed=1)
            with _engine() as whole:
                expected = said_by(whole.job(small))
            number += 1
            with _engine() as cold:
                calls_cold, calls_warm = (_calls(cold, _requests(kind, selection, number + one)) for one in (500, 501))
            with _engine() as kept:
                kept.job(small)
                for one in range(tries):
                    number += 1
                    is_cold = one % 2 == 0
                    at = draw.randint(1, calls_cold if is_cold else calls_warm)
                    name = list(KINDS)[one % len(KINDS)]
                    mode = Failing(at, raises=KINDS[name], lasting=draw.random() < 0.3)
                    label = f"{kind} of {models_of} models, {name} at call {at}"
                    request = _requests(kind, selection, number)
                    if is_cold:
                        with _engine() as fresh:
                            problems = _starve(fresh, request, mode, small, expected)
                    else:
                        problems = _starve(kept, request, mode, small, expected)
                    tally.check(not problems, f"{label}: {'; '.join(problems)}")
        yield tally.outcome()


def _calls(starved: Starved, request: JobRequest) -> int:
    mode = Failing()
    _forget_angles()
    job = starved.job(request, mode)
    if job.state is not JobState.DONE:
        raise RuntimeError(f"{job.kind} with memory: {job.error}")
    return mode.calls


def _starve(starved: Starved, request: JobRequest, mode: Failing, small: JobRequest, expected: object) -> list[str]:
    problems = []
    _forget_angles()
    job = starved.job(request, mode)
    if job.state is JobState.FAILED and job.error != OUT_OF_MEMORY:
        problems.append(f"it says {job.error}")
    if (
        job.state is JobState.DONE
        and mode.failed
        and request.kind == "export"
        and not (job.result or {}).get("verified")
    ):
        problems.append("an export that is not what was seen is called done")
    exports = workspace_root() / "exports"
    if request.kind == "export" and job.state is JobState.FAILED and (exports / request.name).exists():
        whole = (exports / request.name / "model.safetensors").is_file()
        problems += [] if whole else [f"exports/{request.name} is not whole"]
    if rest := leftovers(exports, cache_root()):
        problems.append(f"left: {rest}")
    after = starved.job(small)
    if said_by(after) != expected:
        problems.append(f"the next preview: {after.state} {after.error} {said_by(after)} not {expected}")
    if job.state is JobState.FAILED:
        again = request.model_copy(update={"name": f"{request.name}-again"} if request.kind == "export" else {})
        job = starved.job(again)
        if job.state is not JobState.DONE or (request.kind == "export" and not (job.result or {}).get("verified")):
            problems.append(f"the same again: {job.state}, {job.error}, {(job.result or {}).get('max_difference')}")
    return problems


def _forget_angles() -> None:
    """What is read from the cache allocates nothing."""
    shutil.rmtree(cache_root() / "geometry", ignore_errors=True)


def _in_training(place: Path, models: Models, tries: int, *, quick: bool) -> Iterator[Outcome]:
    tally = Tally(
        "no memory in a training",
        promise="P2, P13",
        holds="it ends with `out of memory`, nothing is half-written, and a resume ends in the same bytes",
    )
    place.mkdir()
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": 2, "evaluate_every": 1},
        "warp": {"policies": 1 if quick else 2, "iterations": 1 if quick else 2},
    }
    config = tiny_config(place, models.init, **changes)
    cpu = [torch.device("cpu")]
    counted = Failing()
    with counted:
        train_warp(config, place / "reference", devices=cpu)
    expected = _bytes_in(place / "reference")
    draw = random.Random(SEED)
    for number in range(tries):
        at, name = draw.randint(1, counted.calls), list(KINDS)[number % len(KINDS)]
        out, problems = place / f"run-{number}", []
        try:
            with Failing(at, raises=KINDS[name]):
                train_warp(config, out, devices=cpu)
        except Exception as error:
            said = explain(error).message
            problems += [] if said == OUT_OF_MEMORY else [f"it says {said}"]
        if rest := leftovers(out):
            problems.append(f"left: {rest}")
        try:
            train_warp(config, out, devices=cpu, resume=(out / "run.json").exists())
            problems += [] if _bytes_in(out) == expected else ["the resume ends in other bytes"]
        except Exception as error:
            problems.append(f"the resume: {type(error).__name__}: {error}")
        tally.check(not problems, f"{name} at call {at} of {counted.calls}: {'; '.join(problems)}")
    yield tally.outcome(f"{counted.calls} calls of torch")


def _bytes_in(run: Path) -> dict[str, str]:
    return {
        str(file.relative_to(run)): sha256(file.read_bytes()).hexdigest() for file in sorted(run.rglob("*.safetensors"))
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
        holds="done, or one line that says `out of memory`; outputs whole or absent; the same works with more room",
    )
    with Programs(place / "programs") as programs, Stages(programs) as stages:
        for name, where in LIMITED.items():
            for room in ROOMS_MB:
                _limited(tally, stages, place / f"{name}-{room}", commands[name], Stop(where, 0, 1, room))
    yield tally.outcome()


def _large(folder: Path, sizes: dict[str, Any]) -> Models:
    init = make_model("llama", folder / "init", **sizes)
    return Models(init=init, policies=tuple(make_policies(init, folder, num=2)), adapters=())


def _limited(tally: Tally, stages: Stages, folder: Path, command: list[object], stop: Stop) -> None:
    folder.mkdir()
    argv = [*command, folder / "out"] if command[-1] == "--out" else command
    environment = {"WARP_CACHE": str(folder / "cache")}
    problems: list[str] = []
    try:
        ended = stages.run(argv, at=[stop], environment=environment)
        problems += _ending(ended)
        if ended.code and (folder / "out").exists() and command[0] == "merge":
            problems.append("the output is there all the same")
        if rest := leftovers(folder):
            problems.append(f"left: {rest}")
        if ended.code:
            begun = command[0] == "train" and (folder / "out" / "run.json").exists()
            after = stages.run([*argv, *(["--resume"] if begun else [])], environment=environment)
            problems += [f"with more room: {after.tail}"] if after.code else []
    except TimeoutError as error:
        problems.append(str(error))
    tally.check(not problems, f"{command[0]}, {stop.room_mb} MB more: {'; '.join(problems)}")


def _ending(ended: Ended) -> list[str]:
    if not ended.reached:
        return ["the stage was never reached"]
    if ended.code == 0:
        return []
    if ended.code == -int(signal.SIGABRT) or ended.code is None:
        return [f"it ended with {ended.code}: {ended.tail}"]
    return [] if ended.err and ended.err[-1] == f"warp-core: {OUT_OF_MEMORY}" else [ended.tail]
