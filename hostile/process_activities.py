"""What is under way while `processes` kills: begun, looked at before and after, and what it has kept."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import psutil

from hostile.running_engine import REWARD, Models, move
from hostile.running_programs import Programs, wait_for
from tests.training.runs import tiny_config
from warp_core.service.client import HttpEngine
from warp_core.service.documents import RunSummary
from warp_core.service.protocol import (
    ExportRequest,
    MeasureRequest,
    Place,
    TrainRequest,
    Vote,
)
from warp_core.training.config import config_to_mapping
from warp_core.workspace.paths import workspace_root
from warp_core.workspace.results import shared_results_file
from warp_core.workspace.store import ResultsStore

SEED = 20260105
ACTIVITIES = ("sampling", "front", "export", "training")
STEPS = 60
PLACES, EXPORTS, TOKENS = 60, 4, 200
SOON_S = 0.05  # in which no half of a sampling can be done


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Something long that was begun.

    Attributes:
        kind: one of ACTIVITIES.
        name: of its run, or its session.
        jobs: ids, in the order in which they are done.
        before: points that there were beforehand.
    """

    kind: str
    name: str
    jobs: tuple[str, ...] = ()
    before: int = 0


@dataclass
class Site:
    """A running engine with whatever looks after it."""

    engine: HttpEngine
    models: Models
    programs: Programs
    said: Callable[[], str]
    app_url: str | None = None
    supervisor: int = -1
    acknowledged: set[str] = field(default_factory=set)
    points: set[str] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    count: int = 0

    def process(self, word: str) -> psutil.Process:
        """The process whose command line has a word: `serve`, `app` (the web app) or `train`."""
        for one in self.programs.alive(but=[self.supervisor]):
            with suppress(psutil.Error):
                if word in one.cmdline():
                    return one
        raise LookupError(f"no process of {word!r} is running")

    def name(self, what: str) -> str:
        """A name that nothing has yet."""
        self.count += 1
        return f"{what}-{self.count}"


def training(site: Site, name: str) -> TrainRequest:
    """A request for a training that takes some seconds."""
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": STEPS, "evaluate_every": 0},
        "warp": {"policies": 1},
    }
    folder = site.models.init.parent
    return TrainRequest(name=name, config=config_to_mapping(tiny_config(folder, site.models.init, **changes)))


def trained(name: str) -> dict[str, str]:
    """Content of every tensor file of a run."""
    folder = workspace_root() / name
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def run_of(site: Site, name: str) -> RunSummary:
    """A run as the list has it, where it stands before it has a folder, too."""
    return next(run for run in site.engine.runs() if run.name == name)


def begin(site: Site, kind: str) -> Activity:
    """Begin something long, and return when it is in the middle."""
    engine, name = site.engine, site.name(kind)
    draw = random.Random(SEED + site.count)
    match kind:
        case "sampling":
            request = move(site.models.full, Place(eta=0.7), session=name)
            job = engine.submit(request.model_copy(update={"max_new_tokens": TOKENS, "num_completions": 8}))
            wait_for(lambda: any(pane.completions for pane in engine.job(job.id).panes), every_s=0.01)
            return Activity(kind=kind, name=name, jobs=(job.id,))
        case "front":
            places = tuple(Place(eta=round(draw.uniform(0.05, 1.2), 4)) for _ in range(PLACES))
            wanted = MeasureRequest(
                session=name, selection=site.models.lora, places=places, num_prompts=32, reward=REWARD
            )
            before = stored()
            job = engine.submit(wanted)
            wait_for(lambda: stored() > before, every_s=0.02)
            return Activity(kind=kind, name=name, jobs=(job.id,), before=before)
        case "export":
            # As many as it takes for one to be at work.
            jobs = []
            for number in range(EXPORTS):
                place = Place(eta=0.3 + number / 10)
                export = ExportRequest(session=name, selection=site.models.full, place=place, name=f"{name}-{number}")
                jobs.append(engine.submit(export).id)
            wait_for(lambda: engine.job(jobs[0]).progress, every_s=0.005)
            return Activity(kind=kind, name=name, jobs=tuple(jobs))
        case "training":
            engine.train(training(site, name))
            site.runs.append(name)
            wait_for(lambda: steps(name) > 3, every_s=0.02)
            return Activity(kind=kind, name=name)
    raise LookupError(kind)


def steps(name: str) -> int:
    """Steps that a training has written down."""
    metrics = workspace_root() / name / "iteration-1/policy-1/metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0


def not_begun(site: Site, activity: Activity) -> str:
    """Look at an activity right before a kill: why it is not under way; "" where it is."""
    if activity.kind == "training":
        return "" if 0 < steps(activity.name) < STEPS else f"{steps(activity.name)} of {STEPS} steps"
    job = site.engine.job(activity.jobs[-1])
    if job.state.is_final:
        return f"its last job is {job.state}"
    if activity.kind == "sampling":
        drawn = min((one.num_tokens for pane in job.panes for one in pane.completions), default=0)
        return "" if 0 < drawn < TOKENS // 2 else f"{drawn} of {TOKENS} tokens"
    return ""


def was_over(site: Site, activity: Activity, took_s: float, *, engine_lives: bool) -> str:
    """Look right after a kill: why the activity may have been over by then; "" where it was not.

    What is looked at only grows: where it is not whole now, it was not at the kill. Of a sampling nothing is on the
    disk: there the kill must have followed the look at once.
    """
    if engine_lives and activity.jobs:
        state = site.engine.job(activity.jobs[-1]).state
        return f"its last job is {state}" if state.is_final else ""
    match activity.kind:
        case "training":
            return "" if steps(activity.name) < STEPS else "its last step was done"
        case "front":
            found = stored() - activity.before
            return "" if 0 < found < PLACES else f"{found} of {PLACES} points were there"
        case "export":
            folders = [workspace_root() / "exports" / f"{activity.name}-{number}" for number in range(EXPORTS)]
            return "" if not all(one.exists() for one in folders) else "all exports were there"
    return "" if took_s < SOON_S else f"the kill came {took_s:.2f} s after the look"


def stored() -> int:
    """Points of models that belong to no run, as they are on the disk."""
    if not shared_results_file().exists():
        return 0
    with ResultsStore(shared_results_file(), read_only=True) as store:
        return len(store.keys())


def acknowledge(site: Site, name: str) -> None:
    """Vote, and note everything that the engine has shown as kept."""
    vote = Vote(
        session="voter",
        prompt=name,
        first=Place(eta=0.0),
        second=Place(eta=1.0),
        first_text="a",
        second_text="b",
        score=1,
    )
    site.acknowledged.add(site.engine.vote(site.models.full, vote).id)
    site.points |= {point.key for point in site.engine.front(site.models.lora).points}
