"""Attack: hours of mixed use of one engine, by several people at once; what it holds is looked at each minute."""

import os
import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import (
    PROMPTS,
    REWARD,
    Level,
    Models,
    connect,
    finished,
    leftovers,
    level_of,
    make_models,
    move,
    random_place,
)
from hostile.running_programs import Program, Programs, interruptible, wait_for
from tests.training.runs import tiny_config
from warp_core.errors import WarpError
from warp_core.service.client import HttpEngine
from warp_core.service.documents import RunState
from warp_core.service.protocol import (
    CheckRequest,
    ExportRequest,
    GeometryRequest,
    Granularity,
    Job,
    JobState,
    MeasureRequest,
    Place,
    Selection,
    TrainRequest,
    Vote,
)
from warp_core.training.config import config_to_mapping
from warp_core.workspace.paths import cache_root, workspace_root

SEED = 20260107
MINUTES = 120.0
QUICK_S = 15.0
VARIABLE = "HOSTILE_MIXED_MINUTES"
LOOK_EVERY_S, QUICK_LOOK_S = 60.0, 3.0
SETTLE_S = 5.0  # of libraries, before the first look
ALLOWED_MB_PER_HOUR, ALLOWED_MB = 24.0, 48.0
END_S = 60.0
MOST_ZOMBIES = 2  # children that have just ended
COURSE = 12  # looks that the report shows
TOKEN = "a-token"
GRANULARITIES: tuple[Granularity, ...] = ("layer", "tensor", "model")
# So few that after a while nothing is new, and the store and the fronts stay as large as they are.
GRID = tuple(
    Place(eta=round(0.05 + number / 25, 3), method=method) for number in range(25) for method in ("slerp", "lerp")
)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Use one engine for hours; `HOSTILE_MIXED_MINUTES` says for how long."""
    interruptible()
    minutes = float(os.environ.get(VARIABLE, MINUTES))
    lasts_s, look_every_s = (QUICK_S, QUICK_LOOK_S) if quick else (60 * minutes, min(LOOK_EVERY_S, 6 * minutes))
    models = make_models(place / "models")
    with Programs(place / "programs") as programs:
        program = programs.start("warp_core", "serve", "--port", 0, WARP_ENGINE_TOKEN=TOKEN)
        use = Use(url=program.first_line(), models=models, place=place, trains=not quick)
        with connect(use.url, TOKEN) as engine:
            wait_for(engine.status)
            looks = _used(use, program, lasts_s, look_every_s)
            yield use.outcome(lasts_s)
            yield _rest(engine, program)
        yield _flat(looks, quick=quick)


@dataclass
class Use:
    """Who uses the engine, and what went wrong."""

    url: str
    models: Models
    place: Path
    trains: bool
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(
        default_factory=lambda: Tally(
            "mixed use",
            promise="P3, P13",
            holds="no job fails, cancelled ones stop, votes are kept, a stopped and resumed training ends",
        )
    )

    def check(self, what: str, held: bool, otherwise: str) -> None:
        """Count something that was done."""
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1
            self.tally.check(held, f"{what}: {otherwise}")

    def outcome(self, lasts_s: float) -> Outcome:
        """What was done."""
        done = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return self.tally.outcome(f"{lasts_s / 60:.1f} min: {done}")


class Person:
    """One session after the other, each with some things to do."""

    def __init__(self, use: Use, number: int, does: "tuple[Callable[[Person], None], ...]", pause_s: float) -> None:
        self.use, self.number, self.does, self.pause_s = use, number, does, pause_s
        self.draw = random.Random(SEED + number)
        self.done = 0
        self.engine: HttpEngine = connect(use.url, TOKEN)
        self.session = f"person-{number}-0"

    def live(self) -> None:
        """Do one thing after the other until it is over."""
        try:
            while not self.use.over.wait(self.draw.uniform(0, self.pause_s)):
                does = self.draw.choice(self.does)
                try:
                    does(self)
                except (WarpError, TimeoutError, OSError) as error:
                    self.use.check(does.__name__[1:], False, f"{type(error).__name__}: {error}")
                self.done += 1
                if not self.done % 40:
                    # As a browser does that is closed and opened again.
                    self.engine.close()
                    self.engine, self.session = connect(self.use.url, TOKEN), f"person-{self.number}-{self.done}"
        finally:
            self.engine.close()

    @property
    def selection(self) -> Selection:
        """Full policies or adapters."""
        return self.draw.choice((self.use.models.full, self.use.models.lora))

    def end(self, what: str, job: Job, *, may_stop: bool = False) -> Job:
        """Wait for a job, and count it."""
        job = finished(self.engine, job, within_s=300)
        allowed = (JobState.DONE, JobState.CANCELLED) if may_stop else (JobState.DONE,)
        self.use.check(what, job.state in allowed, f"{job.state}, {job.error}")
        return job


def _move(one: Person) -> None:
    """Move a slider a few times; the last one is waited for."""
    selection, prompt = one.selection, one.draw.choice(PROMPTS)
    for _ in range(one.draw.randint(1, 4)):
        asked = move(selection, random_place(one.draw), session=one.session, prompt=prompt, seed=one.draw.randrange(99))
        job = one.engine.submit(asked)
        time.sleep(one.draw.uniform(0, 0.05))
    one.end("moves", job)


def _measure(one: Person) -> None:
    places = tuple(one.draw.sample(GRID, one.draw.randint(1, 6)))
    samples = one.draw.choice((1, 2))
    job = one.engine.submit(
        MeasureRequest(
            session=one.session,
            selection=one.selection,
            places=places,
            num_prompts=4,
            samples_per_prompt=samples,
            reward=REWARD,
        )
    )
    stops = one.draw.random() < 0.2
    if stops:
        time.sleep(one.draw.uniform(0, 0.3))
        one.engine.cancel(job.id)
    one.end("measurements", job, may_stop=stops)


def _look(one: Person) -> None:
    selection = one.selection
    one.engine.front(selection)
    one.engine.prediction(selection, 1)
    one.engine.geometry(selection, 1)
    one.engine.runs()
    one.use.check("looks", bool(one.engine.jobs(one.session) is not None), "no jobs")


def _compute(one: Person) -> None:
    one.end("checks", one.engine.submit(CheckRequest(session=one.session, selection=one.selection)))
    granularity: Granularity = one.draw.choice(GRANULARITIES)
    wanted = GeometryRequest(session=one.session, selection=one.selection, granularity=granularity)
    one.end("geometries", one.engine.submit(wanted))


def _vote(one: Person) -> None:
    vote = Vote(
        session=one.session,
        prompt=one.draw.choice(PROMPTS),
        first=one.draw.choice(GRID),
        second=one.draw.choice(GRID),
        first_text="a",
        second_text="b",
        score=one.draw.choice((-1.0, 0.0, 1.0)),
    )
    selection = one.use.models.full
    stored = one.engine.vote(selection, vote)
    known = {other.id for other in one.engine.votes(selection)}
    one.engine.undo_vote(selection, stored.id)
    one.use.check("votes", stored.id in known, "a vote is not there")


def _export(one: Person) -> None:
    name = f"{one.session}-{one.done}"
    form: Literal["full", "adapter"] = "full" if one.draw.random() < 0.5 else "adapter"
    job = one.engine.submit(
        ExportRequest(
            session=one.session,
            selection=one.use.models.lora if form == "adapter" else one.selection,
            place=random_place(one.draw).model_copy(update={"method": "slerp"}),
            name=name,
            form=form,
        )
    )
    stops = one.draw.random() < 0.25
    if stops:
        time.sleep(one.draw.uniform(0, 0.3))
        one.engine.cancel(job.id)
    job = one.end("exports", job, may_stop=stops)
    folder = workspace_root() / "exports" / name
    if job.state is JobState.DONE:
        one.use.check("exports read back", bool((job.result or {}).get("verified")), f"{job.result}")
    else:
        one.use.check("exports stopped", not folder.exists(), f"{folder.name} is there")
    shutil.rmtree(folder, ignore_errors=True)


def _train(one: Person) -> None:
    """Train, stop half of them on the way and resume, and remove the run."""
    name = f"{one.session}-{one.done}"
    changes: dict[str, Any] = {"reward": {"terms": ["length"]}, "training": {"steps": 12, "evaluate_every": 6}}
    config = config_to_mapping(tiny_config(one.use.place / "models", one.use.models.init, **changes))
    one.engine.train(TrainRequest(name=name, config=config))

    def state() -> RunState:
        return one.engine.run(name).summary.state if _begun(name) else RunState.RUNNING

    if one.draw.random() < 0.5:
        wait_for(lambda: _begun(name) and one.engine.curves(name), within_s=300, every_s=0.1)
        with suppress(WarpError):  # it may have come to its end
            one.engine.stop(name)
        wait_for(lambda: state() is not RunState.RUNNING, within_s=300, every_s=0.1)
        if state() is not RunState.FINISHED:
            one.engine.train(TrainRequest(name=name))
    wait_for(lambda: state() is not RunState.RUNNING, within_s=300, every_s=0.1)
    one.use.check("trainings", state() is RunState.FINISHED, f"{one.engine.run(name).summary}")
    for folder in (workspace_root() / name, workspace_root() / ".training" / name):
        shutil.rmtree(folder, ignore_errors=True)


def _begun(name: str) -> bool:
    return (workspace_root() / name / "run.json").exists()


def _used(use: Use, program: Program, lasts_s: float, look_every_s: float) -> list[tuple[float, Level]]:
    """Let everybody live, and look at the engine every now and then: (seconds, what it holds)."""
    habits: list[tuple[tuple[Callable[[Person], None], ...], float]] = [
        ((_move, _move, _move, _look), 0.2),
        ((_move, _move, _look, _vote), 0.4),
        ((_measure, _measure, _look, _compute), 0.5),
        ((_export, _compute, _move), 1.0),
        *([((_train,), 30.0)] if use.trains else []),
    ]
    people = [Person(use, number, does, pause_s) for number, (does, pause_s) in enumerate(habits)]
    threads = [threading.Thread(target=one.live, name=one.session) for one in people]
    for thread in threads:
        thread.start()
    looks = []
    began = time.monotonic()
    try:
        time.sleep(min(SETTLE_S, lasts_s / 3))
        while (passed := time.monotonic() - began) < lasts_s and program.process.poll() is None:
            looks.append((passed, level_of(program.process.pid)))
            time.sleep(max(0.0, min(look_every_s, lasts_s - passed)))
    finally:
        use.over.set()
        for thread in threads:
            thread.join()
    with suppress(psutil.Error):
        looks.append((time.monotonic() - began, level_of(program.process.pid)))
    return looks


def _rest(engine: HttpEngine, program: Program) -> Outcome:
    """What is left when everybody has gone."""
    tally = Tally(
        "after mixed use",
        promise="P1, P13",
        holds="the engine lives; no job waits or runs, no child or zombie is left, nothing is half-written, no trace in"
        " its log",
    )
    code = program.process.poll()
    tally.check(code is None, f"the engine ended with {code}: {program.said[-3:]}")
    if code is None:
        try:
            wait_for(lambda: (engine.status().queued, engine.status().running) == (0, 0), within_s=END_S)
            tally.check(True, "")
        except TimeoutError:
            stuck = [(job.kind, job.state, job.message) for job in engine.jobs() if not job.state.is_final]
            tally.check(False, f"stuck: {stuck}")
        tally.check(not (rest := _children(engine, program)), f"children: {rest}")
    rest = leftovers(workspace_root(), cache_root())
    tally.check(not rest, f"left on the disk: {rest}")
    tally.check(not [line for line in program.said if "Traceback" in line], f"{program.said[-5:]}")
    return tally.outcome()


def _children(engine: HttpEngine, program: Program) -> list[str]:
    """What the engine's children are doing after a while; a look at the runs collects those that have ended."""
    until = time.monotonic() + END_S
    while time.monotonic() < until and psutil.Process(program.process.pid).children(recursive=True):
        engine.runs()
        time.sleep(0.2)
    return [one.status() for one in psutil.Process(program.process.pid).children(recursive=True)]


def _flat(looks: list[tuple[float, Level]], *, quick: bool) -> Outcome:
    """Whether it holds as much at the end as at the beginning."""
    tally = Tally(
        "what the engine holds over mixed use",
        promise="",
        holds=f"memory grows by less than {ALLOWED_MB:g} MB and {ALLOWED_MB_PER_HOUR:g} MB an hour; descriptors and"
        " threads come back",
    )
    levels = [level for _, level in looks]
    first, last = levels[0], levels[-1]
    # What libraries and caches take on first use is taken in the first quarter.
    later = looks[len(looks) // 4 :]
    slope = 0.0
    if len(later) > 2 and not quick:
        line = statistics.linear_regression([passed / 3600 for passed, _ in later], [one.memory_mb for _, one in later])
        slope = line.slope
        hours = (later[-1][0] - later[0][0]) / 3600
        tally.check(slope < max(ALLOWED_MB_PER_HOUR, ALLOWED_MB / 4 / hours), f"memory grows by {slope:.1f} MB an hour")
    grown = last.memory_mb - later[0][1].memory_mb
    tally.check(quick or grown < ALLOWED_MB, f"memory {later[0][1].memory_mb:.0f} to {last.memory_mb:.0f} MB")
    tally.check(last.descriptors <= first.descriptors + 12, f"descriptors {first.descriptors} to {last.descriptors}")
    tally.check(last.threads <= first.threads + 6, f"threads {first.threads} to {last.threads}")
    zombies = sum(level.zombies > MOST_ZOMBIES for level in levels)
    tally.check(not zombies, f"more than {MOST_ZOMBIES} zombies at {zombies} looks")
    most = [
        max(getattr(level, name) for level in levels) for name in ("memory_mb", "descriptors", "threads", "zombies")
    ]
    course = " ".join(f"{level.memory_mb:.0f}" for level in levels[:: -(-len(levels) // COURSE)])
    return tally.outcome(
        f"memory {course} MB; first, most, last: memory {first.memory_mb:.0f}, {most[0]:.0f}, {last.memory_mb:.0f} MB"
        f" ({slope:+.1f} MB an hour); descriptors {first.descriptors}, {most[1]}, {last.descriptors}; threads"
        f" {first.threads}, {most[2]}, {last.threads}; zombies at most {most[3]}; {len(looks)} looks"
    )
