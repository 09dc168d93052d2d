"""An engine without models, for page tests and for trying the app: deterministic, quick, and as moody as asked.

    FakeEngine()                    jobs get one step further whenever somebody looks at jobs or runs
    FakeEngine(seconds_per_tick=.1) jobs get further with the time, as a user sees it
    fake.advance(5)                 five steps at once
    fake.down = True                every call raises EngineUnreachableError
    fake.hostile = True             all completions are hostile text; so is any of a prompt with the word "hostile"
    eta 1.99                        a job at such a place fails, with an error text

Runs: "demo-run" (M = 3, I = 2, finished) and "training-now" (M = 2, I = 1, running). Policies given by folder or id
have no measured point at first; the name "broken" fails its check.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from warp_core import __version__
from warp_core.errors import ConfigError, EngineUnreachableError, RecipeError, WorkspaceError
from warp_core.service import documents as d
from warp_core.service import protocol as p
from warp_core.service.fake_data import World, prediction_through
from warp_core.service.fake_front import FakeFront
from warp_core.service.fake_jobs import FakeJob, FakeQueue
from warp_core.service.fake_runs import FakeRun, check_name, demo_run, running_run
from warp_core.service.fake_studies import made_up_studies
from warp_core.service.fake_text import PROMPTS
from warp_core.service.fake_work import judge_scores, preview_panes, reports, title_of
from warp_core.service.places import full_weights
from warp_core.service.studies import find_study
from warp_core.training.config import config_from_mapping, config_to_mapping, config_to_toml, json_schema

__all__ = ["FakeEngine"]

FAILING_ETA = 1.99


class FakeEngine:
    """The `Engine` interface over made-up models; see the module for its moods."""

    def __init__(self, *, seconds_per_tick: float | None = None, clock: Callable[[], float] = time.time) -> None:
        self.down = False
        self.hostile = False
        self._pace = seconds_per_tick
        self._clock = clock
        self._started_at = clock()
        self._lock = threading.RLock()
        self._queue = FakeQueue()
        self._runs: dict[str, FakeRun] = {run.name: run for run in (running_run(), demo_run())}
        self._fronts: dict[str, FakeFront] = {}
        self._geometries: set[tuple[str, int]] = {("demo-run", 1), ("demo-run", 2)}
        self._votes: dict[str, list[p.Vote]] = {}
        self._loaded: tuple[str, ...] = ()
        self._count = 0

    def advance(self, ticks: int = 1) -> None:
        """Move all jobs and running runs on by so many steps."""
        with self._lock:
            for _ in range(ticks):
                self._queue.advance(now=self._clock())
                if self._pace is None or self._queue.ticks % TICKS_PER_STEP == 0:
                    for run in self._runs.values():
                        run.advance()

    def status(self) -> d.EngineStatus:
        """See `Engine`."""
        with self._call():
            states = [job.state for job in self._queue.newest_first(None)]
            return d.EngineStatus(
                version=__version__,
                pid=4242,
                started_at=self._started_at,
                workspace="/workspace/runs",
                devices=(d.Device(name="cpu", total_bytes=8 * 2**30, free_bytes=5 * 2**30),),
                loaded=self._loaded,
                memory_bytes=1_240_000_000 if self._loaded else 310_000_000,
                queued=states.count(p.JobState.QUEUED),
                running=states.count(p.JobState.RUNNING),
            )

    def runs(self) -> Sequence[d.RunSummary]:
        """See `Engine`."""
        with self._call(looks=True):
            summaries = [run.summary() for run in self._runs.values()]
            return sorted(summaries, key=lambda run: run.state is not d.RunState.RUNNING)

    def run(self, name: str) -> d.RunDetail:
        """See `Engine`."""
        with self._call():
            return self._run(name).detail()

    def curves(self, name: str) -> Sequence[d.Curve]:
        """See `Engine`."""
        with self._call(looks=True):
            return self._run(name).curves()

    def train(self, request: p.TrainRequest) -> d.RunSummary:
        """See `Engine`."""
        with self._call():
            if request.config is None:
                run = self._run(request.name)
                if run.state is not d.RunState.STOPPED:
                    raise WorkspaceError(f"run {run.name!r} is {run.state}: only a stopped run can be resumed")
                run.state = d.RunState.RUNNING
                return run.summary()
            check_name(request.name, set(self._runs))
            run = FakeRun(request.name, config_from_mapping(request.config), 0, d.RunState.RUNNING)
            run.started_at = self._clock()
            self._runs = {run.name: run} | self._runs
            return run.summary()

    def stop(self, name: str) -> d.RunSummary:
        """See `Engine`."""
        with self._call():
            run = self._run(name)
            if run.state is d.RunState.RUNNING:
                run.state = d.RunState.STOPPED
            return run.summary()

    def config_schema(self) -> dict[str, Any]:
        """See `Engine`."""
        with self._call():
            return json_schema()

    def check_config(self, config: dict[str, Any]) -> d.ConfigCheck:
        """See `Engine`."""
        with self._call():
            try:
                valid = config_from_mapping(config)
            except ConfigError as error:
                return d.ConfigCheck(ok=False, problems=(str(error),), toml="", config=config)
            return d.ConfigCheck(ok=True, problems=(), toml=config_to_toml(valid), config=config_to_mapping(valid))

    def front(self, selection: p.Selection) -> d.FrontDocument:
        """See `Engine`."""
        with self._call():
            return self._front(selection).document()

    def samples(self, selection: p.Selection, key: str) -> Sequence[d.SampleRow]:
        """See `Engine`."""
        with self._call():
            return self._front(selection).samples(key, hostile=self.hostile)

    def geometry(self, selection: p.Selection, iteration: int) -> d.GeometryDocument | None:
        """See `Engine`."""
        with self._call():
            known = (_key(selection), iteration) in self._geometries
            return self._world(selection).geometry(iteration) if known else None

    def prediction(self, selection: p.Selection, iteration: int) -> d.Prediction | None:
        """See `Engine`."""
        with self._call():
            if (_key(selection), iteration) not in self._geometries:
                return None
            points = list(self._front(selection).document().points)
            return prediction_through(self._world(selection), points, iteration)

    def prompts(self, selection: p.Selection) -> Sequence[str]:
        """See `Engine`."""
        with self._call():
            self._world(selection)
            return PROMPTS

    def studies(self) -> Sequence[d.StudySummary]:
        """See `Engine`."""
        with self._call():
            return [study.summary for study in made_up_studies()]

    def study(self, name: str, scale: str) -> d.StudyDocument:
        """See `Engine`."""
        with self._call():
            return find_study(made_up_studies(), name, scale)

    def submit(self, request: p.JobRequest) -> p.Job:
        """See `Engine`."""
        with self._call():
            world = self._world(request.selection)
            for place in _places(request):
                full_weights(place, world.num_policies)
                if place.iteration > world.iterations:
                    raise RecipeError(f"iteration {place.iteration} of {world.iterations}: there is no such iteration")
            self._count += 1
            job = FakeJob(
                id=f"job-{self._count}",
                request=request,
                title=title_of(request),
                ticks=_ticks(request),
                on_tick=self._tick,
                result=self._result,
                created_at=self._clock(),
            )
            self._queue.add(job)
            return self._queue.document(job)

    def job(self, job_id: str) -> p.Job:
        """See `Engine`."""
        with self._call(looks=True):
            return self._queue.document(self._queue.find(job_id))

    def jobs(self, session: str | None = None) -> Sequence[p.Job]:
        """See `Engine`."""
        with self._call(looks=True):
            return [self._queue.document(job) for job in self._queue.newest_first(session)]

    def cancel(self, job_id: str) -> p.Job:
        """See `Engine`."""
        with self._call():
            job = self._queue.find(job_id)
            if not job.state.is_final:
                self._queue.end(job, p.JobState.CANCELLED, now=self._clock())
            return self._queue.document(job)

    def votes(self, selection: p.Selection) -> Sequence[p.Vote]:
        """See `Engine`."""
        with self._call():
            return list(self._votes.get(_key(selection), []))

    def vote(self, selection: p.Selection, vote: p.Vote) -> p.Vote:
        """See `Engine`."""
        with self._call():
            self._count += 1
            stored = vote.model_copy(update={"id": f"vote-{self._count}", "time": self._clock()})
            self._votes.setdefault(_key(selection), []).append(stored)
            return stored

    def undo_vote(self, selection: p.Selection, vote_id: str) -> None:
        """See `Engine`."""
        with self._call():
            votes = self._votes.get(_key(selection), [])
            self._votes[_key(selection)] = [vote for vote in votes if vote.id != vote_id]

    @contextmanager
    def _call(self, *, looks: bool = False) -> Iterator[None]:
        """Every call: refused when down, and time goes by."""
        with self._lock:
            if self.down:
                raise EngineUnreachableError("the engine at fake does not answer: it is not running, or it is starting")
            if self._pace is None:
                self.advance(1 if looks else 0)
            else:
                due = int((self._clock() - self._started_at) / self._pace)
                self.advance(min(max(0, due - self._queue.ticks), 1000))
                self._queue.ticks = due
            yield

    def _run(self, name: str) -> FakeRun:
        if name not in self._runs:
            raise WorkspaceError(
                f"there is no run {name[:60]!r} in /workspace/runs: choose one of {sorted(self._runs)}"
            )
        return self._runs[name]

    def _world(self, selection: p.Selection) -> World:
        if selection.run is not None:
            return self._run(selection.run).world
        if not selection.policies:
            raise WorkspaceError("nothing is selected: choose a run, or an init and its policies")
        return World(len(selection.policies), 1)

    def _front(self, selection: p.Selection) -> FakeFront:
        key = _key(selection)
        if key not in self._fronts:
            run = self._run(selection.run) if selection.run is not None else None
            self._fronts[key] = FakeFront(self._world(selection), run=run)
        return self._fronts[key]

    def _tick(self, job: FakeJob) -> str | None:
        request = job.request
        if any(place.eta == FAILING_ETA for place in _places(request)):
            return (
                "layer 'model.layers.7', policy 2: the task vectors are opposite, so their SLERP is undefined; use lerp"
            )
        if isinstance(request, p.PreviewRequest):
            job.panes = preview_panes(request, self._world(request.selection), job, hostile=self.hostile)
            self._loaded = (_key(request.selection),)
        if isinstance(request, p.PrepareRequest):
            self._loaded = (_key(request.selection),)
            job.message = "opening the checkpoints"
        if isinstance(request, p.MeasureRequest):
            finished, rest = divmod(job.done, TICKS_PER_PLACE)
            job.message = f"point {min(finished + 1, len(request.places))} of {len(request.places)}"
            if rest == 0:
                self._front(request.selection).measure(request.places[finished - 1], request)
        return None

    def _result(self, job: FakeJob) -> dict[str, Any] | None:
        request = job.request
        world = self._world(request.selection)
        if isinstance(request, p.MeasureRequest):
            front = self._front(request.selection)
            return {"keys": [front.measure(place, request) for place in request.places]}
        if isinstance(request, p.GeometryRequest):
            self._geometries.add((_key(request.selection), request.iteration))
            return world.geometry(request.iteration).model_dump(mode="json")
        if isinstance(request, p.JudgeRequest):
            front = self._front(request.selection)
            rows = {key: front.samples(key, hostile=self.hostile) for key in request.keys}
            return judge_scores(request, rows)
        return reports(request, world)


TICKS_PER_PLACE = 6
TICKS_PER_STEP = 100
"""Of a training run, where ticks are of time: a run that trains does so for minutes."""


def _ticks(request: p.JobRequest) -> int:
    if isinstance(request, p.MeasureRequest):
        return TICKS_PER_PLACE * len(request.places)
    return {"preview": 12, "prepare": 4, "check": 2, "geometry": 3, "export": 5, "judge": 4}[request.kind]


def _places(request: p.JobRequest) -> Sequence[p.Place]:
    if isinstance(request, p.PreviewRequest):
        return [pane.place for pane in request.panes]
    if isinstance(request, p.MeasureRequest):
        return request.places
    return [request.place] if isinstance(request, p.ExportRequest) else []


def _key(selection: p.Selection) -> str:
    return selection.run or " ".join([selection.init or "", *selection.policies])
