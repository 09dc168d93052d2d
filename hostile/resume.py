"""Attack: a training is killed at random moments and resumed; it must end in the bytes of one that was left alone.

Two policies, merge, LITI, a second iteration; adapters and full checkpoints.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.crash_child import leftovers
from hostile.outcomes import Outcome, Tally
from tests.tiny import make_model
from tests.training.runs import in_a_process, metrics, stored_points, tiny_config, trained_bytes
from warp_core.training.config import WarpConfig
from warp_core.workspace.paths import cache_root

SEED = 20260107
KILLS, QUICK_KILLS = 25, {"lora": 2, "full": 1}
KILLS_OF_A_RUN = 5
LIMIT_S = 180.0
SHORTEST_S = 0.05
POLICIES = ITERATIONS = 2


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Kill adapters first, then full checkpoints."""
    init = make_model("llama", place / "init")
    for kind, kills in QUICK_KILLS.items() if quick else dict.fromkeys(("lora", "full"), KILLS).items():
        yield _killed_and_resumed(place / kind, init, kind, kills)


def _killed_and_resumed(place: Path, init: Path, kind: str, kills: int) -> Outcome:
    tally = Tally(
        f"training {'adapters' if kind == 'lora' else 'full checkpoints'}, kill -9 at random moments",
        promise="P2",
        holds="weights, merged inits, metrics and points are byte for byte those of a run that was left alone",
    )
    place.mkdir()
    config = tiny_config(
        place,
        init,
        kind=kind,
        training={"steps": 3, "save_every": 1 if kind == "lora" else 2},
        warp={"policies": POLICIES, "iterations": ITERATIONS},
    )
    took_s = _ends(config, place / "straight")
    expected, draw, done, runs = _content(place / "straight"), random.Random(SEED), 0, 0
    while done < kills:
        runs += 1
        out = place / f"run-{runs}"
        shutil.rmtree(cache_root() / "geometry", ignore_errors=True)
        problems: list[str] = []
        wanted, of_this_run = min(KILLS_OF_A_RUN, kills - done), 0
        while of_this_run < wanted and not problems:
            code = _killed(config, out, draw.uniform(SHORTEST_S, 0.7 * took_s))
            if code == 0:
                break  # it had come to its end
            of_this_run += code == -9
            problems += [] if code == -9 else [f"a resume ended with {code}"]
        try:
            _ends(config, out)
            problems += _differences(expected, out)
        except RuntimeError as error:
            problems.append(str(error))
        for _ in range(of_this_run):
            tally.check(not problems, f"run {runs}, {of_this_run} kills: {'; '.join(problems)}")
        if problems and not of_this_run:
            tally.check(False, f"run {runs}, no kill: {'; '.join(problems)}")
            break
        done += of_this_run
        if of_this_run < wanted:
            took_s *= 0.7  # it comes to its end faster than the first one did
        if not problems:
            shutil.rmtree(out)
    return tally.outcome(f"{done} kills of {runs} runs")


def _killed(config: WarpConfig, out: Path, after_s: float) -> int | None:
    """Train, and kill that after a while; the exit code."""
    process = in_a_process(config, out)
    try:
        process.join(after_s)
    finally:
        process.kill()
        process.join()
    return process.exitcode


def _ends(config: WarpConfig, out: Path) -> float:
    """Train to the end; the seconds that took."""
    began = time.monotonic()
    process = in_a_process(config, out)
    try:
        process.join(LIMIT_S)
        if process.exitcode != 0:
            raise RuntimeError(f"a training that nobody disturbed ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return time.monotonic() - began


def _content(run: Path) -> dict[str, Any]:
    """What must be the same: tensors, metrics without clocks, points."""
    places = [(iteration, policy) for iteration in (1, 2) for policy in range(1, POLICIES + 1)]
    rows: dict[str, Any] = {f"metrics of {place}": metrics(run, *place) for place in places}
    points = {f"point {number}": point for number, point in enumerate(stored_points(run))}
    return dict(trained_bytes(run)) | rows | points


def _differences(expected: dict[str, Any], out: Path) -> list[str]:
    found = _content(out)
    names = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    rest = leftovers(out)
    return [f"{name} differs" for name in sorted(names)[:3]] + ([f"left: {rest}"] if rest else [])
