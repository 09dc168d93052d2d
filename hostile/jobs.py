"""Attack: hundreds of jobs queued at once over HTTP by several clients, many of them cancelled."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import (
    PATIENCE_S,
    PROMPTS,
    REWARD,
    Models,
    connect,
    engine_here,
    finished,
    leftovers,
    level_of,
    make_models,
    move,
    random_place,
)
from warp_core.errors import WarpError
from warp_core.service.client import HttpEngine
from warp_core.service.protocol import (
    CheckRequest,
    ExportRequest,
    GeometryRequest,
    Job,
    JobRequest,
    JobState,
    MeasureRequest,
)
from warp_core.workspace.paths import cache_root, workspace_root

SEED = 20260102
JOBS, CLIENTS = 500, 5
QUICK_JOBS, QUICK_CLIENTS = 60, 3
CANCELLED = 0.3
LOOK_EVERY = 10
KINDS = ("preview", "measure", "measure", "check", "geometry", "export")
ALLOWED_MB = 48.0
POOL_THREADS = 40
"""The server answers in a pool of its own, which grows to this with the requests that come at once."""
HEALTHY_S, QUICK_HEALTHY_S = 1.0, 5.0  # where tests run, others may be at work
END_S = 600.0


@dataclass
class Followed:
    """A job as a client has seen it."""

    last: Job
    number: int
    was_cancelled: bool = False
    finals: set[JobState] = field(default_factory=set)
    deepest: int = 0

    def see(self, job: Job) -> None:
        """Take the latest look in."""
        self.last = job
        self.deepest = max(self.deepest, job.position)
        if job.state.is_final:
            self.finals.add(job.state)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Queue everything, cancel at random, and follow every job to its end."""
    count, clients = (QUICK_JOBS, QUICK_CLIENTS) if quick else (JOBS, CLIENTS)
    models = make_models(place)
    with engine_here() as url, connect(url) as engine:
        _warm_up(engine, models)
        before = level_of()
        health = _Health(url, within_s=QUICK_HEALTHY_S if quick else HEALTHY_S)
        started = time.monotonic()
        with health, ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(_client, url, number, count // clients, models) for number in range(clients)]
            followed = [one.result() for one in asked]
        took_s = time.monotonic() - started
        waiting, running = engine.status().queued, engine.status().running
        after = level_of()
    yield _ends(followed, f"{took_s:.0f} s")
    yield _order(followed)
    calm = Tally(
        "what is left of many jobs", promise="", holds="nothing is queued, running or half-written; memory as before"
    )
    calm.check((waiting, running) == (0, 0), f"{waiting} wait and {running} run at the end")
    rest = leftovers(workspace_root(), cache_root())
    calm.check(not rest, f"left on the disk: {rest}")
    calm.check(
        after.memory_mb - before.memory_mb < ALLOWED_MB, f"memory {before.memory_mb:.0f} to {after.memory_mb:.0f} MB"
    )
    calm.check(after.threads <= before.threads + POOL_THREADS, f"threads {before.threads} to {after.threads}")
    yield calm.outcome(f"memory {before.memory_mb:.0f} to {after.memory_mb:.0f} MB")
    yield health.outcome()


def _request(kind: str, session: str, number: int, draw: random.Random, models: Models) -> JobRequest:
    selection = draw.choice((models.full, models.lora))
    place = random_place(draw)
    match kind:
        case "preview":
            return move(selection, place, session=session, prompt=draw.choice(PROMPTS), seed=number)
        case "measure":
            return MeasureRequest(session=session, selection=selection, places=(place,), num_prompts=2, reward=REWARD)
        case "check":
            return CheckRequest(session=session, selection=selection)
        case "geometry":
            return GeometryRequest(session=session, selection=selection, granularity=draw.choice(("layer", "tensor")))
    name = f"{session}-{number}"
    return ExportRequest(session=session, selection=selection, place=place, name=name, verify=False)


def _warm_up(engine: HttpEngine, models: Models) -> None:
    """Do one job of every kind with both selections, so that what libraries keep is kept before the first look."""
    draw = random.Random(SEED)
    for kind in dict.fromkeys(KINDS):
        for number, selection in enumerate((models.full, models.lora)):
            request = _request(kind, "warm-up", 0, draw, models)
            asked = {"selection": selection} | ({"name": f"warm-{number}"} if kind == "export" else {})
            job = finished(engine, engine.submit(request.model_copy(update=asked)))
            if job.state is not JobState.DONE:
                raise RuntimeError(f"{kind} before the attack: {job.error}")


def _client(url: str, number: int, count: int, models: Models) -> list[Followed]:
    """Queue all at once, cancel some, and look until all have ended, at some on the way too."""
    draw = random.Random(SEED + number)
    session = f"client-{number}"
    followed: list[Followed] = []
    with connect(url) as engine:
        for index in range(count):
            request = _request(draw.choice(KINDS), session, index, draw, models)
            followed.append(Followed(engine.submit(request), index))
            followed[-1].see(followed[-1].last)
            if draw.random() < CANCELLED:
                one = draw.choice(followed[-10:])
                one.was_cancelled = one.was_cancelled or not one.finals
                one.see(engine.cancel(one.last.id))
            if index % LOOK_EVERY == 0:  # the engine knows the latest that have ended, not all
                _look(engine, followed)
        until = time.monotonic() + END_S
        while any(not one.finals for one in followed) and time.monotonic() < until:
            _look(engine, followed)
            time.sleep(0.02)
        _look(engine, followed, again=True)
    return followed


def _look(engine: HttpEngine, followed: list[Followed], *, again: bool = False) -> None:
    """Ask for every job that has not ended; `again`: also for the latest that have, which may not change any more."""
    chosen = [one for one in followed if not one.finals]
    if again:
        chosen += [one for one in followed if one.finals][-20:]
    for one in chosen:
        try:
            one.see(engine.job(one.last.id))
        except WarpError:
            if not one.finals:
                raise


def _ends(followed: list[list[Followed]], took: str) -> Outcome:
    tally = Tally(
        "many jobs at once, cancels at random",
        promise="",
        holds="every job ends once, as done or, where somebody or a newer preview asked for it, as cancelled",
    )
    for mine in followed:
        newest = max((one.number for one in mine if one.last.kind == "preview"), default=-1)
        for one in mine:
            may_stop = one.was_cancelled or (one.last.kind == "preview" and one.number != newest)
            allowed = {JobState.DONE, JobState.CANCELLED} if may_stop else {JobState.DONE}
            label = f"{one.last.session}, job {one.number} ({one.last.kind}, asked to stop: {may_stop})"
            said = f"{label}: {sorted(one.finals)} {one.last.error}"
            tally.check(len(one.finals) == 1 and one.finals <= allowed, said)
    everyone = [one for mine in followed for one in mine]
    stopped = sum(JobState.CANCELLED in one.finals for one in everyone)
    deepest = max(one.deepest for one in everyone)
    tally.check(deepest > len(everyone) / 10, f"no more than {deepest} were waiting at once")
    return tally.outcome(
        f"{len(everyone)} jobs of {len(followed)} clients, up to {deepest} waiting, {stopped} cancelled, {took}"
    )


def _order(followed: list[list[Followed]]) -> Outcome:
    tally = Tally(
        "the order of a session's jobs", promise="", holds="jobs of a kind begin in the order in which a session asked"
    )
    for mine in followed:
        for kind in ("measure", "geometry", "export", "check"):
            begun = [(one.number, one.last.started_at) for one in mine if one.last.kind == kind and one.last.started_at]
            times = [started for _, started in begun]
            tally.check(times == sorted(times), f"{mine[0].last.session}, {kind}: {begun}")
    return tally.outcome()


class _Health:
    """Asks an engine for its health all the time."""

    def __init__(self, url: str, *, within_s: float) -> None:
        self._url, self._over = f"{url}/health", threading.Event()
        self._thread = threading.Thread(target=self._ask, name="health")
        self._tally = Tally("health while many jobs wait", promise="", holds=f"/health answers within {within_s:g} s")
        self._within_s = within_s
        self._slowest_s = 0.0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            while not self._over.wait(0.05):
                started = time.monotonic()
                try:
                    good = client.get(self._url).status_code == 200
                except httpx.HTTPError as error:
                    good = False
                    self._tally.check(False, f"no answer: {error!r}")
                took_s = time.monotonic() - started
                self._slowest_s = max(self._slowest_s, took_s)
                self._tally.check(good and took_s < self._within_s, f"{took_s:.2f} s, well: {good}")

    def outcome(self) -> Outcome:
        """What was seen."""
        return self._tally.outcome(f"slowest {1000 * self._slowest_s:.0f} ms")
