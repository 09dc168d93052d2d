"""How long a configuration would train, from runs that had the same work to do in a step; no guess without one."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warp_core.errors import WarpError
from warp_core.service.documents import Curve, RunState, RunSummary
from warp_core.service.interface import Engine

__all__ = ["Estimate", "estimate", "seconds_per_step", "steps_in_all"]

WORK = (
    ("model", ("name", "dtype", "chat_template")),
    ("adapter", ("kind", "rank", "train", "targets")),
    ("training", ("prompts_per_step", "completions_per_prompt", "max_new_tokens", "micro_batch")),
)
"""What decides how long a step takes, beside the machine."""
MAX_LOOKED_AT = 20
"""Runs whose configuration is read, the latest first."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Training time of a configuration, measuring not counted."""

    seconds: float
    seconds_per_step: float
    run: str
    """Where the time of a step was measured."""


def steps_in_all(config: Mapping[str, Any]) -> int:
    """Return the steps of all RL runs: M times the sum of T over the iterations."""
    steps = list(config["training"]["steps"])
    iterations = int(config["warp"]["iterations"])
    per_policy = sum(steps[min(iteration, len(steps) - 1)] for iteration in range(iterations))
    return int(config["warp"]["policies"]) * per_policy


def seconds_per_step(curves: Iterable[Curve], *, completions: int) -> float | None:
    """Return the median time of a step of a run; None where no throughput was recorded.

    A step samples `completions` completions of the mean `length`, and `tokens_per_s` counts them over the whole step.
    """
    times = [
        completions * length / rate
        for curve in curves
        for length, rate in zip(
            curve.metrics.get("length", ()),
            curve.metrics.get("tokens_per_s", ()),
            strict=False,
        )
        if length and rate
    ]
    return statistics.median(times) if times else None


def estimate(
    engine: Engine,
    config: Mapping[str, Any],
    runs: Sequence[RunSummary],
    *,
    known: dict[str, tuple[Mapping[str, Any], float | None]],
) -> Estimate | None:
    """Estimate the training time of a checked configuration.

    Args:
        engine: is asked for configurations and curves of the runs.
        config: every field filled in.
        runs: in the order to look at them.
        known: configuration and seconds per step by run, kept by the caller so that nothing is asked for twice.
    """
    for run in runs[:MAX_LOOKED_AT]:
        try:
            other, each = _measured(engine, run, known)
        except WarpError:
            continue  # it is being prepared, or was deleted meanwhile
        if each is not None and _work(other) == _work(config):
            return Estimate(seconds=each * steps_in_all(config), seconds_per_step=each, run=run.name)
    return None


def _measured(
    engine: Engine, run: RunSummary, known: dict[str, tuple[Mapping[str, Any], float | None]]
) -> tuple[Mapping[str, Any], float | None]:
    if run.name not in known:
        config = engine.run(run.name).config
        training = config["training"]
        completions = training["prompts_per_step"] * training["completions_per_prompt"]
        found = config, seconds_per_step(engine.curves(run.name), completions=completions)
        if run.state is RunState.RUNNING:
            return found  # its steps are still coming
        known[run.name] = found
    return known[run.name]


def _work(config: Mapping[str, Any]) -> list[Any]:
    is_full = config["adapter"]["kind"] == "full"
    return [
        None if section == "adapter" and is_full and name != "kind" else config[section][name]
        for section, names in WORK
        for name in names
    ]
