"""A real engine for a bench: `warp-core serve` in a process of its own, asked over HTTP as the app does."""

import json
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.models import make_inputs
from bench.processes import ROOT, ProcessError
from bench.settings import Settings
from warp_core.service.client import HttpEngine
from warp_core.service.protocol import (
    SFT,
    Job,
    JobRequest,
    JobState,
    PaneRequest,
    Place,
    PreviewRequest,
    Selection,
)

__all__ = ["KINDS", "NUM_POLICIES", "Seen", "ended", "places_of", "preview", "selection_of", "served", "watched"]

KINDS = ("adapters", "full checkpoints")
NUM_POLICIES = 3
PROMPT = "The film was"
LOOK_S, REST_S = 0.01, 0.1  # for the first token, and for the others: a look takes a moment of the engine's time
PATIENCE_S = 120.0
END_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a client saw of a preview, in seconds from before it was submitted.

    Attributes:
        first_s: a token stands in every pane, as the client sees it.
        all_s: all tokens do, by the engine's own clock from when it had the request.
        marks: all of the engine's own times.
    """

    first_s: float
    all_s: float
    marks: dict[str, float]


@contextmanager
def served(settings: Settings) -> Iterator[tuple[HttpEngine, int]]:
    """Start an engine in an empty workspace; a client of it and its process id."""
    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        environment = settings.environment() | {"WARP_ENGINE_TOKEN": token, "WARP_WORKSPACE": f"{folder}/runs"}
        process = subprocess.Popen(
            [sys.executable, "-m", "warp_core", "serve", "--port", "0", "--json"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ProcessError("warp-core serve did not start: the lines above say why")
            with HttpEngine(json.loads(line)["url"], token) as engine:
                yield engine, process.pid
        finally:
            process.terminate()
            process.wait(timeout=END_S)


def selection_of(kind: str, settings: Settings) -> Selection:
    """Return three policies of SmolLM2: adapters of the bundled run, or whole checkpoints."""
    if kind == "adapters":
        return Selection(run="demo-run")
    inputs = make_inputs(settings.scratch, settings.smollm2, size="135M", dtype="float32", policies=NUM_POLICIES)
    return Selection(init=str(inputs.init), policies=tuple(map(str, inputs.policies)))


def places_of(chance: random.Random) -> tuple[Place, Place, Place]:
    """Return three panes as the explorer has them, at a random position: SFT policy, merge, the merge's other end."""
    shares = [chance.expovariate(1.0) + 0.01 for _ in range(NUM_POLICIES)]
    weights = [round(share / sum(shares), 4) for share in shares[:-1]]
    weights.append(round(1 - sum(weights), 4))
    place = Place(weights=tuple(weights), eta=round(chance.uniform(0.05, 0.95), 3))
    return SFT, place, place.model_copy(update={"eta": 1.0})


def preview(selection: Selection, places: tuple[Place, ...], *, seed: int, tokens: int = 24) -> PreviewRequest:
    """Return the request of a slider that was let go."""
    panes = tuple(PaneRequest(id=str(number), place=place) for number, place in enumerate(places))
    return PreviewRequest(
        session="bench", selection=selection, prompt=PROMPT, seed=seed, max_new_tokens=tokens, score=False, panes=panes
    )


def watched(engine: HttpEngine, request: PreviewRequest) -> Seen:
    """Submit a preview and look at it every few milliseconds. Raises ProcessError if it fails."""
    first_s = None
    began = time.perf_counter()
    job = engine.submit(request)
    while not job.state.is_final:
        time.sleep(LOOK_S if first_s is None else REST_S)
        job = engine.job(job.id)
        if first_s is None and job.panes and all(pane.completions for pane in job.panes):
            first_s = time.perf_counter() - began
    _require_done(job)
    all_s = job.timings_s["sampled"]
    return Seen(first_s=first_s or all_s, all_s=all_s, marks=job.timings_s)


def ended(engine: HttpEngine, request: JobRequest) -> Job:
    """Submit a job and return it when it is done. Raises ProcessError if it fails or takes too long."""
    until = time.monotonic() + PATIENCE_S
    job = engine.submit(request)
    while not job.state.is_final:
        if time.monotonic() > until:
            raise ProcessError(f"{job.title}: not done after {PATIENCE_S:.0f} s")
        time.sleep(0.02)
        job = engine.job(job.id)
    _require_done(job)
    return job


def _require_done(job: Job) -> None:
    if job.state is not JobState.DONE:
        raise ProcessError(f"{job.title}: {job.state}: {job.error}")
