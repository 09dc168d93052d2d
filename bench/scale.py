"""How the time grows with model size, number of policies and batch: exponents, and whether that is a line.

Everything in bfloat16, where weights take half the memory, so that 1.1B has room. Each measurement is a process of its
own. The picture and the page go to bench/results/, of a smoke test to the scratch folder.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.models import SHAPES, make_inputs, parameters_of
from bench.picture import write_page, write_picture
from bench.processes import ROOT, ProcessError, run_measured
from bench.rows import Row
from bench.settings import Settings

__all__ = ["Series", "Spot", "exponent", "fit_line", "measure", "rows_of"]

DTYPE = "bfloat16"
# What a process of a part holds at most, as a multiple of one checkpoint's bytes; a size without room is left out.
ROOM = {"merge": 2.0, "sampling": 3.5, "training": 5.0, "front": 7.0}
LINEAR = (0.85, 1.15)  # exponents that are called linear


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One measurement: x, and how many seconds it took."""

    label: str
    x: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """Measurements that differ in one thing.

    Attributes:
        part: a key of `growth.PARTS`.
        along: what x is: parameters, policies or batch.
        case: what stays the same.
        expected: what the growth should be, in words.
        fitted: the spots that the exponent is taken from; the others are overhead.
    """

    part: str
    along: str
    case: str
    expected: str
    spots: tuple[Spot, ...]
    fitted: int


def measure(settings: Settings) -> list[Row]:
    """Return the times, the exponents, and write the plot."""
    found = [series for series in (_series(settings, *plan) for plan in plans(settings.quick)) if series.spots]
    folder = settings.scratch if settings.quick else ROOT / "bench" / "results"
    write_picture(folder / "scale.svg", found)
    write_page(folder / "scale.html", found)
    return [row for series in found for row in rows_of(series)]


Plan = tuple[str, str, str, str, list[dict[str, Any]]]


def plans(quick: bool) -> list[Plan]:
    """Return what is measured: part, along, what stays the same, what is expected, the tasks."""
    sizes = ["tiny"] if quick else list(SHAPES)
    one = "tiny" if quick else "135M"
    policies = [2, 3] if quick else [2, 3, 5]
    batches = [1, 4] if quick else [1, 4, 16, 64]
    plans: list[Plan] = [
        ("merge", "parameters", "2 policies", "linear: bytes are read and written", _along("size", sizes)),
        ("merge", "policies", one, "linear in M + 1 checkpoints read, one written", _along("m", policies, size=one)),
        ("sampling", "parameters", "batch 8", "linear: weights are read once a token", _along("size", sizes)),
        (
            "sampling",
            "batch",
            one,
            "below linear: the rows share the weights; linear once products limit",
            _along("batch", batches, size=one),
        ),
        ("training", "parameters", "LoRA, 4 x 8 tokens", "linear", _along("size", sizes, batch=4)),
        (
            "training",
            "batch",
            f"LoRA, {one}, 8 tokens",
            "at most linear",
            _along("batch", [4, 8] if quick else [4, 16, 32], size=one),
        ),
        ("front", "parameters", "2 policies, 4 prompts x 8 tokens", "linear", _along("size", sizes, batch=4)),
        ("front", "policies", f"{one}, 4 prompts x 8 tokens", "below linear", _along("m", policies, size=one, batch=4)),
    ]
    return plans


def _along(name: str, values: Sequence[object], **same: Any) -> list[dict[str, Any]]:
    """Tasks that differ in one field; `size`, `m` (policies) and `batch` have defaults."""
    return [{"m": 2, "batch": 8, "tokens": 8} | same | {name: value} for value in values]


def _series(settings: Settings, part: str, along: str, case: str, expected: str, tasks: list[dict[str, Any]]) -> Series:
    spots = []
    for task in tasks:
        label = str(task["size"] if along == "parameters" else task["m"] if along == "policies" else task["batch"])
        x = parameters_of(task["size"]) if along == "parameters" else float(label)
        seconds = _seconds(settings, part, task)
        if seconds is not None:
            spots.append(Spot(label=label, x=x, seconds=seconds))
    # The tiny model costs what starting a kernel costs: nothing of it grows.
    fitted = sum(spot.label != "tiny" for spot in spots)
    return Series(part=part, along=along, case=case, expected=expected, spots=tuple(spots), fitted=fitted)


def _seconds(settings: Settings, part: str, task: dict[str, Any]) -> float | None:
    """Measure one task in a process of its own; None where it has no room or fails, and stderr says which."""
    needs_policies = part in ("merge", "front")
    inputs = make_inputs(
        settings.scratch,
        settings.smollm2,
        size=task["size"],
        dtype=DTYPE,
        policies=task["m"] if needs_policies else 0,
    )
    name = f"scale: {part}, {task['size']}, M = {task['m']}, batch {task['batch']}"
    free = psutil.virtual_memory().available
    if ROOM[part] * inputs.size_bytes > 0.9 * free:
        _say(f"{name}: left out, {free / 1e9:.0f} GB of memory are too little")
        return None
    asked = task | {
        "part": part,
        "init": os.fspath(inputs.init),
        "policies": [os.fspath(folder) for folder in inputs.policies],
        "dtype": DTYPE,
        "threads": settings.threads,
        "tries": 1 if settings.quick or (task["size"] == "1.1B" and part != "merge") else 3,
    }
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        (Path(folder) / "task.json").write_text(json.dumps(asked), encoding="ascii")
        command = [sys.executable, "-m", "bench.growth", folder]
        try:
            done = run_measured(command, environment=settings.environment(), timeout_s=180)
        except ProcessError as error:
            _say(f"{name}: {error}")
            return None
    seconds = float(done.answer()["seconds"])
    _say(f"{name}: {seconds:.4g} s")
    return seconds


def exponent(spots: Sequence[Spot]) -> float:
    """Return b of seconds = a x^b, by least squares of the logarithms; at least two different x are needed."""
    xs, ys = [math.log(spot.x) for spot in spots], [math.log(spot.seconds) for spot in spots]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)


def fit_line(spots: Sequence[Spot]) -> tuple[float, float, float]:
    """Return a, b of seconds = a + b x by least squares, and the largest distance from it as a share of the time."""
    xs, ys = [spot.x for spot in spots], [spot.seconds for spot in spots]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    slope = covariance / sum((x - x_mean) ** 2 for x in xs)
    start = y_mean - slope * x_mean
    return start, slope, max(abs(start + slope * x - y) / y for x, y in zip(xs, ys, strict=True))


def rows_of(series: Series) -> list[Row]:
    """Return a row per measurement and, from two fitted ones on, a row with the exponent and what it means."""
    named = f"{series.part}: {series.case}"
    quantity = "time per token" if series.part == "sampling" else "time"
    rows = [
        Row(
            bench="scale",
            case=f"{named}, {_with_unit(series.along, spot.label)}",
            quantity=quantity,
            value=1000 * spot.seconds,
            unit="ms",
        )
        for spot in series.spots
    ]
    fitted = series.spots[len(series.spots) - series.fitted :]
    if len(fitted) < 2:
        return rows
    power, (start, _, distance) = exponent(fitted), fit_line(fitted)
    verdict = "linear" if LINEAR[0] <= power <= LINEAR[1] else "below linear" if power < LINEAR[0] else "above linear"
    note = f"{verdict}; expected: {series.expected}"
    if len(fitted) > 2:
        note += f"; a line from {1000 * start:.3g} ms on misses no point by more than {100 * distance:.0f} %"
    rows.append(
        Row(
            bench="scale",
            case=named,
            quantity=f"exponent in {series.along}",
            value=power,
            unit="",
            aim=f"<= {LINEAR[1]}",
            meets=power <= LINEAR[1],
            note=note,
        )
    )
    return rows


def _with_unit(along: str, label: str) -> str:
    return {"parameters": label, "policies": f"M = {label}", "batch": f"batch {label}"}[along]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
