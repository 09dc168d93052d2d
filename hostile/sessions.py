"""Attack: several sessions move their sliders on one engine at the same time; none may see another's model.

First as programs that ask the engine themselves, then as pages of a browser (session_pages.py).
"""

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import (
    PROMPTS,
    REWARD,
    Models,
    Said,
    connect,
    engine_here,
    finished,
    make_models,
    move,
    random_place,
    said_by,
)
from hostile.session_pages import pages_at_once
from warp_core.errors import WarpError
from warp_core.service.client import HttpEngine
from warp_core.service.protocol import GeometryRequest, Job, JobState, MeasureRequest, Place, PreviewRequest, Selection

SEED = 20260101
SESSIONS, MOVES = 8, 50
QUICK_SESSIONS, QUICK_MOVES = 3, 6
QUICK_PAGES, QUICK_SLIDES = 2, 4
HURRIED = 0.2  # share of moves that are followed by the next one before the answer is there
ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One move of a slider, and what the page asks with it."""

    selection: Selection
    place: Place
    prompt: str
    seed: int
    hurried: bool
    asks: str

    def request(self, session: str) -> PreviewRequest:
        """The preview of a session."""
        return move(self.selection, self.place, session=session, prompt=self.prompt, seed=self.seed)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Ask everything alone, then all sessions at once in a fresh engine, and compare the answers."""
    sessions, moves = (QUICK_SESSIONS, QUICK_MOVES) if quick else (SESSIONS, MOVES)
    models = make_models(place)
    steps = {f"session-{number}": _steps(number, moves, models) for number in range(sessions)}
    with engine_here() as url, connect(url) as engine:
        _prepare(engine, models)
        expected = {name: [_alone(engine, step) for step in mine] for name, mine in steps.items()}
    with engine_here() as url, connect(url) as engine:
        for selection in (models.full, models.lora):
            # Models of no run have a front once a job has opened them.
            finished(engine, engine.submit(GeometryRequest(session=ALONE, selection=selection)))
        yield from _together(url, steps, expected)
    pages, slides = (QUICK_PAGES, QUICK_SLIDES) if quick else (SESSIONS, MOVES)
    yield from pages_at_once(place / "pages", sessions=pages, moves=slides)


def _steps(number: int, count: int, models: Models) -> list[Step]:
    draw = random.Random(SEED + number)
    selection = models.full if number % 3 == 2 else models.lora
    return [
        Step(
            selection=selection,
            place=random_place(draw),
            prompt=draw.choice(PROMPTS),
            seed=draw.randrange(1000),
            hurried=draw.random() < HURRIED and step < count - 1,
            asks=draw.choice(("nothing", "nothing", "nothing", "prediction", "geometry", "front")),
        )
        for step in range(count)
    ]


def _prepare(engine: HttpEngine, models: Models) -> None:
    """Measure a few points and the geometry, so that there is a prediction to ask for."""
    places = tuple(Place(eta=eta) for eta in (0.0, 0.25, 0.5, 0.75, 1.0))
    for selection in (models.full, models.lora):
        measure = MeasureRequest(session=ALONE, selection=selection, places=places, num_prompts=2, reward=REWARD)
        for request in (measure, GeometryRequest(session=ALONE, selection=selection)):
            job = finished(engine, engine.submit(request))
            if job.state is not JobState.DONE:
                raise RuntimeError(f"{job.kind} before the attack: {job.error}")


def _alone(engine: HttpEngine, step: Step) -> tuple[Any, Any]:
    """What one session that nobody disturbs is answered."""
    job = finished(engine, engine.submit(step.request(ALONE)))
    if job.state is not JobState.DONE:
        raise RuntimeError(f"a preview alone: {job.state}, {job.error}")
    return said_by(job), _asked(engine, step)


def _asked(engine: HttpEngine, step: Step) -> Any:
    match step.asks:
        case "prediction":
            return engine.prediction(step.selection, 1)
        case "geometry":
            return engine.geometry(step.selection, 1)
        case "front":
            return engine.front(step.selection)
    return None


def _together(url: str, steps: dict[str, list[Step]], expected: dict[str, list[tuple[Any, Any]]]) -> Iterator[Outcome]:
    own = Tally(
        "previews of sessions at once",
        promise="P8",
        holds="text, tokens, reward and KL of every pane are those that a session alone is given",
    )
    early = Tally(
        "previews followed by the next one before their answer",
        promise="P8",
        holds="each ends, cancelled or with what a session alone is given; a text that was begun is the beginning of"
        " that",
    )
    other = Tally(
        "predictions, geometry and fronts at once",
        promise="P8",
        holds="every answer is the one that a session alone is given",
    )
    latencies: list[float] = []
    lock = threading.Lock()

    def live(name: str) -> None:
        hurried: list[tuple[str, Job, Said]] = []

        def look_back(engine: HttpEngine) -> None:
            """Soon: the engine does not know jobs for ever."""
            for where, job, said in hurried:
                problem = _unlike_the_beginning(engine, job, said)
                with lock:
                    early.check(not problem, f"{where}: {problem}")
            hurried.clear()

        with connect(url) as engine:
            for number, (step, (said, asked)) in enumerate(zip(steps[name], expected[name], strict=True)):
                where = f"{name}, move {number}"
                try:
                    started = time.monotonic()
                    job = engine.submit(step.request(name))
                    answer = _asked(engine, step)
                    if step.hurried:
                        hurried.append((where, job, said))
                        with lock:
                            other.check(answer == asked, f"{where}: another {step.asks}")
                        continue
                    job = finished(engine, job)
                    with lock:
                        latencies.append(time.monotonic() - started)
                        own.check(said_by(job) == said, f"{where}: {job.state} {job.error} {said_by(job)} not {said}")
                        if step.asks != "nothing":
                            other.check(answer == asked, f"{where}: another {step.asks}")
                    look_back(engine)
                except (WarpError, TimeoutError) as error:
                    with lock:
                        own.check(False, f"{where}: {type(error).__name__}: {error}")
            look_back(engine)

    with ThreadPoolExecutor(len(steps)) as pool:
        for one in [pool.submit(live, name) for name in steps]:
            one.result()
    yield own.outcome(f"{len(steps)} sessions; {_latency(latencies)}")
    yield early.outcome()
    yield other.outcome()


def _unlike_the_beginning(engine: HttpEngine, job: Job, said: Said) -> str:
    """What is wrong with a preview that the next one has replaced; "" where nothing is."""
    try:
        job = finished(engine, job)
    except (WarpError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    found = said_by(job)
    if job.state is JobState.DONE:
        return "" if found == said else f"{found} not {said}"
    if job.state is not JobState.CANCELLED:
        return f"{job.state}, {job.error}"
    texts = [(one.text, whole) for pane, (whole, *_) in zip(job.panes, said, strict=False) for one in pane.completions]
    other = [f"{text!r} does not begin {end!r}" for text, end in texts if not end.startswith(text.rstrip("\ufffd"))]
    return "; ".join(other)


def _latency(seconds: Sequence[float]) -> str:
    """Median and 95th percentile."""
    if len(seconds) < 2:
        return "no latency"
    return f"answer median {statistics.median(seconds):.2f} s, p95 {statistics.quantiles(seconds, n=20)[-1]:.2f} s"
