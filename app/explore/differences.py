"""A position against a reference: which points they are, and how their metrics differ. Pure functions.

Two points of one evaluation share prompts, so the standard error of a difference is that of the differences per
prompt (`paired_difference`), which is smaller than that of independent samples. Where the completions are not at hand,
or for diversity, which is a number per prompt set, it is sqrt(se_a^2 + se_b^2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from warp_core.evaluation.preferences import paired_difference
from warp_core.service.documents import FrontDocument, FrontPoint, Metric, SampleRow
from warp_core.service.places import same_place
from warp_core.service.protocol import Place

__all__ = ["Difference", "default_evaluation", "difference", "metric_label", "paired", "point_at", "verdict"]

Tone = Literal["good", "bad", "flat"]
_LABELS = {"reward": "Reward", "kl": "KL to SFT", "length": "Length", "diversity": "Diversity"}
_WORDS: dict[str, tuple[tuple[Tone, str], tuple[Tone, str]]] = {
    # what more of it means, what less of it means
    "reward": (("good", "better"), ("bad", "worse")),
    "kl": (("bad", "further away"), ("good", "closer")),
    "length": (("flat", "longer"), ("flat", "shorter")),
    "diversity": (("good", "more varied"), ("bad", "less varied")),
}
_PART: tuple[tuple[Tone, str], tuple[Tone, str]] = (("flat", "higher"), ("flat", "lower"))  # its weight may be negative


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of one metric: position minus reference."""

    mean: float
    se: float | None
    is_paired: bool


def metric_label(name: str) -> str:
    """Return the name of a metric for people: `reward:sentiment` becomes `sentiment`."""
    return _LABELS.get(name, name.removeprefix("reward:"))


def default_evaluation(front: FrontDocument) -> str | None:
    """Return the id of the evaluation that points are measured with unless asked otherwise; None if there is none."""
    return next((note.id for note in front.evaluations if note.is_default), None)


def point_at(front: FrontDocument, place: Place, *, evaluation: str | None = None) -> FrontPoint | None:
    """Return the measured point of a place.

    evaluation: only points measured so; None: those of the default evaluation first, then those with most completions.
    """
    found = [point for point in front.points if point.place is not None and same_place(point.place, place)]
    if evaluation is not None:
        return next((point for point in found if point.evaluation == evaluation), None)
    default = default_evaluation(front)
    return max(found, key=lambda point: (point.evaluation == default, point.n), default=None)


def paired(first: Sequence[SampleRow], second: Sequence[SampleRow]) -> dict[str, Difference]:
    """Differences of reward, its parts, KL and length with errors paired over prompts.

    Empty when the two were not measured on the same prompts.
    """
    prompts = [[row.prompt for row in rows] for rows in (first, second)]
    if not first or set(prompts[0]) != set(prompts[1]):
        return {}
    parts = set(first[0].rewards) & set(second[0].rewards)
    names = ["reward", "kl", "length", *(f"reward:{part}" for part in sorted(parts))]
    found = {}
    for name in names:
        values = [[_value(row, name) for row in rows] for rows in (first, second)]
        estimate = paired_difference(values[0], prompts[0], values[1], prompts[1])
        found[name] = Difference(mean=estimate.mean, se=estimate.se, is_paired=True)
    return found


def difference(metric: Metric, reference: Metric, pair: Difference | None = None) -> Difference:
    """Return metric - reference; its error is that of the `pair`, else as if their samples had nothing in common."""
    if pair is not None:
        return Difference(mean=metric.mean - reference.mean, se=pair.se, is_paired=True)
    errors = (metric.se, reference.se)
    se = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    return Difference(mean=metric.mean - reference.mean, se=se, is_paired=False)


def verdict(name: str, difference: Difference) -> tuple[Tone, str]:
    """Say what a difference means: its tone, and words; "no clear difference" within two standard errors."""
    if difference.mean == 0 or (difference.se is not None and abs(difference.mean) < 2 * difference.se):
        return "flat", "no clear difference"
    more, less = _WORDS.get(name, _PART)
    return more if difference.mean > 0 else less


def _value(row: SampleRow, name: str) -> float:
    if name == "length":
        return float(row.num_tokens)
    if name.startswith("reward:"):
        return row.rewards[name.removeprefix("reward:")]
    return row.reward if name == "reward" else row.kl
