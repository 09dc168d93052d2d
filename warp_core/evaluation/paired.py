"""Differences between points measured on the same prompts, and between the curves that such points make.

compare_front(points, samples)             every point beside a reference and beside its neighbour along the curve
front_gap(curve_a, curve_b)                reward of one curve less that of the other, at equal KL
hypervolume_difference(curve_a, curve_b, reference=(20.0, 0.0))

What makes a prompt easy or hard is the same for both sides and cancels; so does what the common random numbers of a
front share. Errors of single differences are clustered by prompt (`statistics.paired_difference`). Those of curves,
which are no means, come from a bootstrap over prompts that draws the same prompts for both.

Shape suffixes: P points of a curve, G prompts, R bootstrap replicates, K values of KL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warp_core.evaluation.fronts import hypervolume
from warp_core.evaluation.points import Point, Sample
from warp_core.evaluation.series import Front, label, with_error
from warp_core.evaluation.statistics import Estimate, paired_difference

__all__ = [
    "Comparison",
    "Curve",
    "Difference",
    "FrontGap",
    "Interval",
    "Samples",
    "compare_front",
    "curve_of",
    "difference",
    "difference_note",
    "difference_rows",
    "front_gap",
    "hypervolume_difference",
]

Floats = NDArray[np.float64]
Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One point less another, on the same prompts."""

    to: Point
    """The other point, which is subtracted."""
    reward: Estimate
    kl: Estimate
    """Nats per completion."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `to` is the key of the other point, errors are null with a single prompt."""
        return {
            "to": self.to.key,
            "reward": self.reward.mean,
            "reward_se": self.reward.se,
            "kl": self.kl.mean,
            "kl_se": self.kl.se,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is known of a point beside others; None where there is no other, or it saw other prompts."""

    to_reference: Difference | None = None
    to_previous: Difference | None = None
    """To the point before it along its curve, by rising eta."""


def difference(point: Point, to: Point, samples: Samples) -> Difference | None:
    """Return `point` less `to`, or None where their samples are not known or are of different prompts.

    samples: of each point, by `Point.key`.
    """
    mine, theirs = samples.get(point.key, ()), samples.get(to.key, ())
    mine_of, theirs_of = [one.prompt for one in mine], [one.prompt for one in theirs]
    if not mine or set(mine_of) != set(theirs_of):
        return None
    return Difference(
        to=to,
        reward=paired_difference([one.reward for one in mine], mine_of, [one.reward for one in theirs], theirs_of),
        kl=paired_difference([one.kl for one in mine], mine_of, [one.kl for one in theirs], theirs_of),
    )


def compare_front(front: Front, samples: Samples, *, reference: Point | None = None) -> dict[str, Comparison]:
    """Return, by `Point.key`, every measured point beside a reference and beside its neighbour along the curve.

    Args:
        front: the points and their curves.
        samples: of each point, by `Point.key`.
        reference: what to compare with; None for the SFT policy, and for none where the front has no SFT policy.
    """
    base = reference or next((point for point in front.points if point.kind == "sft"), None)
    before: dict[str, Point] = {}
    for series in front.series:
        if series.kind == "merge":
            before |= {point.key: previous for previous, point in zip(series.path[:-1], series.path[1:], strict=True)}
    found = {}
    for point in front.points:
        previous = before.get(point.key)
        found[point.key] = Comparison(
            to_reference=difference(point, base, samples) if base and base.key != point.key else None,
            to_previous=difference(point, previous, samples) if previous else None,
        )
    return found


def difference_rows(
    front: Front, comparisons: Mapping[str, Comparison], *, sign: str
) -> list[tuple[Point, tuple[str, str, str, str]]]:
    """Return what a table shows of every point that is compared: reward and KL to the reference, and to the previous.

    sign: what stands before a standard error.
    """
    rows = []
    for point in front.points:
        found = comparisons.get(point.key, Comparison())
        if found.to_reference or found.to_previous:
            rows.append((point, (*_cells(found.to_reference, sign), *_cells(found.to_previous, sign))))
    return rows


def difference_note(comparisons: Mapping[str, Comparison]) -> str:
    """What the columns of `difference_rows` are, in words; empty where nothing is compared."""
    bases = [found.to_reference.to for found in comparisons.values() if found.to_reference]
    if not bases and not any(found.to_previous for found in comparisons.values()):
        return ""
    at = f" at eta {bases[0].eta:.4g}" if bases and bases[0].eta is not None else ""
    ours = f"less {label(bases[0])}{at}; " if bases else ""
    return f"Differences on the same prompts and noise: {ours}step: less the point before."


def _cells(found: Difference | None, sign: str) -> tuple[str, str]:
    if found is None:
        return "", ""
    cells = [with_error(one.mean, one.se, sign=sign) for one in (found.reward, found.kl)]
    shown = ["+" + cell if one.mean > 0 else cell for one, cell in zip((found.reward, found.kl), cells, strict=True)]
    return shown[0], shown[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The points of a curve by their sums over each prompt, from which any resampling of prompts is a product.

    Attributes:
        prompts: the G prompts, in the order of the columns.
        kl_PG: summed KL of a point's completions of a prompt, nats.
        reward_PG: summed reward.
        count_PG: number of completions.
    """

    prompts: tuple[str, ...]
    kl_PG: Floats
    reward_PG: Floats
    count_PG: Floats

    def means(self, weight_RG: Floats) -> tuple[Floats, Floats]:
        """Return the mean KL and reward of every point, kl_RP and reward_RP, where prompt g counts weight_RG times."""
        count_RP = weight_RG @ self.count_PG.T
        return (weight_RG @ self.kl_PG.T) / count_RP, (weight_RG @ self.reward_PG.T) / count_RP


def curve_of(points: Sequence[Sequence[Sample]]) -> Curve:
    """Return the curve through points, each given by its samples.

    Raises ValueError if there are fewer than two points, or they were not measured on the same prompts.
    """
    if len(points) < 2:
        raise ValueError("a curve needs at least two points")
    prompts = tuple(dict.fromkeys(sample.prompt for sample in points[0]))
    place = {prompt: g for g, prompt in enumerate(prompts)}
    if any({sample.prompt for sample in one} != place.keys() for one in points):
        raise ValueError("the points of the curve were not measured on the same prompts")

    def summed(values: Sequence[Sequence[float]]) -> Floats:
        index = [[place[sample.prompt] for sample in one] for one in points]
        rows = [np.bincount(g, weights=x, minlength=len(prompts)) for g, x in zip(index, values, strict=True)]
        return np.array(rows, dtype=np.float64)

    return Curve(
        prompts=prompts,
        kl_PG=summed([[sample.kl for sample in one] for one in points]),
        reward_PG=summed([[sample.reward for sample in one] for one in points]),
        count_PG=summed([[1.0] * len(one) for one in points]),
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and what a bootstrap over prompts says of it: standard error, and ends of the interval."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FrontGap:
    """How much more reward one curve has than another at equal KL.

    Attributes:
        kl_K: where the curves are compared, nats.
        gap: at each of these KLs.
        mean: over the KLs, equally weighted; its interval is that of the whole and not of the worst place.
    """

    kl_K: tuple[float, ...]
    gap: tuple[Interval, ...]
    mean: Interval


def front_gap(
    curve_a: Curve,
    curve_b: Curve,
    *,
    kls: ArrayLike | None = None,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> FrontGap:
    """Return the reward of curve a less that of curve b at equal KL, with intervals.

    Between two points of a curve the reward is linear in the KL; the points are taken by rising KL. Where the KLs of a
    replicate do not reach as far as asked, its first or last stretch goes on straight.

    Args:
        curve_a: the curve that a positive gap speaks for.
        curve_b: measured on the same prompts.
        kls: where to compare, inside the range that both curves cover; None for 21 places across that range.
        replicates: R resamplings of the prompts.
        level: of the percentile intervals.
        seed: of the resampling.

    Raises:
        ValueError: other prompts, fewer than two, no KL that both curves cover, or one asked for that they do not.
    """
    whole_1G, weight_RG = _weights(curve_a, curve_b, replicates, seed)
    kl_K = _common_kls(curve_a.means(whole_1G)[0][0], curve_b.means(whole_1G)[0][0], kls)
    value_K = _gaps(curve_a, curve_b, whole_1G, kl_K)[0]
    gap_RK = _gaps(curve_a, curve_b, weight_RG, kl_K)
    gap = tuple(_interval(float(value), gap_R, level) for value, gap_R in zip(value_K, gap_RK.T, strict=True))
    mean = _interval(float(value_K.mean()), gap_RK.mean(axis=1), level)
    return FrontGap(kl_K=tuple(map(float, kl_K)), gap=gap, mean=mean)


def hypervolume_difference(
    curve_a: Curve,
    curve_b: Curve,
    *,
    reference: tuple[float, float],
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the hypervolume of curve a less that of curve b, to one reference (KL, reward), with its interval.

    Args as in `front_gap`. Raises ValueError for curves on other prompts, or on fewer than two.
    """
    whole_1G, weight_RG = _weights(curve_a, curve_b, replicates, seed)

    def volumes(curve: Curve, weight_RG: Floats) -> Floats:
        kl_RP, reward_RP = curve.means(weight_RG)
        rows = zip(kl_RP.tolist(), reward_RP.tolist(), strict=True)
        return np.array([hypervolume([_Spot(*spot) for spot in zip(*row, strict=True)], reference) for row in rows])

    value = float((volumes(curve_a, whole_1G) - volumes(curve_b, whole_1G))[0])
    return _interval(value, volumes(curve_a, weight_RG) - volumes(curve_b, weight_RG), level)


@dataclass(frozen=True)
class _Spot:
    """A place on the plane."""

    kl: float
    reward: float


def _weights(curve_a: Curve, curve_b: Curve, replicates: int, seed: int) -> tuple[Floats, Floats]:
    """How often each prompt counts: once, and in each of the replicates, the same for both curves."""
    if curve_a.prompts != curve_b.prompts:
        raise ValueError("the two curves were not measured on the same prompts in the same order: nothing to pair")
    count = len(curve_a.prompts)
    if count < 2:
        raise ValueError("one prompt says nothing about the spread between prompts: no interval")
    generator = np.random.default_rng(seed)
    drawn_RG = generator.multinomial(count, np.full(count, 1 / count), size=replicates)
    return np.ones((1, count)), drawn_RG.astype(np.float64)


def _common_kls(kl_a_P: Floats, kl_b_P: Floats, kls: ArrayLike | None) -> Floats:
    low, high = max(kl_a_P.min(), kl_b_P.min()), min(kl_a_P.max(), kl_b_P.max())
    if low >= high:
        raise ValueError(f"no KL that both curves cover: one ends at {high:.4g} nats, the other begins at {low:.4g}")
    if kls is None:
        return np.linspace(low, high, 21)
    kl_K = np.asarray(kls, dtype=np.float64).reshape(-1)
    if not len(kl_K) or kl_K.min() < low or kl_K.max() > high:
        raise ValueError(f"the curves can be compared from {low:.6g} to {high:.6g} nats: ask for KLs in between")
    return kl_K


def _gaps(curve_a: Curve, curve_b: Curve, weight_RG: Floats, kl_K: Floats) -> Floats:
    """Gap of every replicate at every KL [R, K]."""
    a, b = curve_a.means(weight_RG), curve_b.means(weight_RG)
    return np.array([_at(a[0][r], a[1][r], kl_K) - _at(b[0][r], b[1][r], kl_K) for r in range(len(weight_RG))])


def _at(kl_P: Floats, reward_P: Floats, kl_K: Floats) -> Floats:
    """The piecewise linear curve through the points at each KL, its first and last stretch continued."""
    order = np.argsort(kl_P, kind="stable")
    kl_P, reward_P = kl_P[order], reward_P[order]
    stretch_K = np.clip(np.searchsorted(kl_P, kl_K, side="right") - 1, 0, len(kl_P) - 2)
    start_K, end_K = kl_P[stretch_K], kl_P[stretch_K + 1]
    # Two points at one KL are a step: the later one counts.
    part_K = np.divide(kl_K - start_K, end_K - start_K, out=np.ones_like(kl_K), where=end_K > start_K)
    return reward_P[stretch_K] + part_K * (reward_P[stretch_K + 1] - reward_P[stretch_K])


def _interval(value: float, value_R: Floats, level: float) -> Interval:
    low, high = np.quantile(value_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, se=float(value_R.std(ddof=1)), low=float(low), high=float(high))
