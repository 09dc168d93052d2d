"""Attack: a front of hundreds of points measured in one engine, which must hold no more after the last than before."""

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import (
    REWARD,
    Level,
    connect,
    engine_here,
    finished,
    level_of,
    make_models,
    random_place,
)
from warp_core.service.client import HttpEngine
from warp_core.service.protocol import JobState, MeasureRequest, Place, Selection
from warp_core.workspace.results import shared_results_file

SEED = 20260103
POINTS, FIRST_LOOK = 200, 50
QUICK_POINTS, QUICK_LOOK = 20, 10
BATCH = 10  # points of one request
ALLOWED_MB = 12.0
ENOUGH_S = 900.0


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Measure a front of full policies, then one of adapters, in one engine."""
    points, first = (QUICK_POINTS, QUICK_LOOK) if quick else (POINTS, FIRST_LOOK)
    models = make_models(place)
    kinds = {"full policies": models.full, "adapters": models.lora}
    for kind, selection in kinds.items():
        yield from _front(kind, selection, points // 2 if quick else points, first // 2 if quick else first)


def _front(kind: str, selection: Selection, points: int, first: int) -> Iterator[Outcome]:
    draw = random.Random(SEED)
    places = [random_place(draw) for _ in range(points)]
    stored = Tally(
        f"{points} points of {kind}", promise="P3", holds="every point is in the store and on the front, measured once"
    )
    flat = Tally(
        f"what the engine holds over {points} points of {kind}",
        promise="",
        holds=f"memory grows by less than {ALLOWED_MB:g} MB after the first {first}; descriptors and threads do not",
    )
    started, keys, levels = time.monotonic(), [], []
    batch = min(BATCH, first)
    with engine_here() as url, connect(url) as engine:
        for done in range(0, points, batch):
            keys += _measured(engine, selection, places[done : done + batch])
            if done + batch in (first, points):
                levels.append(level_of())
        known = {point.key for point in engine.front(selection).points}
    took_s = time.monotonic() - started
    with engine_here() as url, connect(url) as engine:
        again = time.monotonic()
        same = _measured(engine, selection, places)
        again_s = time.monotonic() - again
    in_file = _stored_keys()
    for number, key in enumerate(keys):
        stored.check(
            key in in_file and key in known and same[number] == key, f"point {number}: {key} is not where it belongs"
        )
    stored.check(len(set(keys)) == points, f"{len(set(keys))} of {points} keys differ")
    yield stored.outcome(f"{took_s / points:.2f} s a point; all again from the store {again_s:.1f} s")
    yield from _flat(flat, levels[0], levels[-1])


def _measured(engine: HttpEngine, selection: Selection, places: list[Place]) -> list[str]:
    request = MeasureRequest(
        session="sweep", selection=selection, places=tuple(places), num_prompts=2, samples_per_prompt=1, reward=REWARD
    )
    job = finished(engine, engine.submit(request), within_s=ENOUGH_S)
    if job.state is not JobState.DONE or job.result is None:
        raise RuntimeError(f"measuring: {job.state}, {job.error}")
    return list(job.result["keys"])


def _stored_keys() -> set[str]:
    """What a reader of the file finds, without any code of ours."""
    with closing(sqlite3.connect(f"{shared_results_file().as_uri()}?mode=ro", uri=True)) as db:
        return {key for (key,) in db.execute("SELECT key FROM points")}


def _flat(tally: Tally, before: Level, after: Level) -> Iterator[Outcome]:
    grown = after.memory_mb - before.memory_mb
    tally.check(grown < ALLOWED_MB, f"memory {before.memory_mb:.1f} to {after.memory_mb:.1f} MB")
    tally.check(after.descriptors <= before.descriptors, f"descriptors {before.descriptors} to {after.descriptors}")
    tally.check(after.threads <= before.threads, f"threads {before.threads} to {after.threads}")
    yield tally.outcome(
        f"memory {before.memory_mb:.0f} to {after.memory_mb:.0f} MB, descriptors {before.descriptors} to"
        f" {after.descriptors}, threads {before.threads} to {after.threads}"
    )
