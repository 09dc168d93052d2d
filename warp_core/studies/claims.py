"""Claims about curves: a difference, a bootstrap interval over prompts (and seeds), a verdict. Pure, float64.

All curves of a study are measured on the same prompts with the same random numbers, so a resample of the prompts moves
them together: intervals are of paired differences. Where at least three seeds were run the interval has their spread
in it as well: to the mean over seeds in each resample of the prompts is added Student's t of S - 1 degrees of freedom
times the standard error that the seeds have. (Three seeds are too few to resample: the percentiles of a bootstrap of
three normal numbers hold their mean about 3 times in 4 instead of 19 in 20.) With fewer seeds the interval speaks of
the prompts alone, for the runs that were made.

P points of a curve, G prompts, R resamples, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from warp_core.evaluation.fronts import hypervolume

__all__ = [
    "Claim",
    "Interval",
    "Means",
    "Readings",
    "Table",
    "Verdict",
    "bootstrapped",
    "chord_height",
    "decide",
    "front_gap",
    "hypervolume_gap",
    "mean_heights",
    "mean_interval",
    "verdict_of",
]

Floats = NDArray[np.float64]
Verdict = Literal["held", "failed", "undecided"]
DRAWS = 1000
SEEDS_NEEDED = 3
_SEED = 20240624
_GRID = 33
_SPREADS = 16  # of Student's t to each resample of the prompts: its tails are long


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """What was measured along a curve, per point and prompt (means over the prompt's completions)."""

    at_P: Floats
    kl_PG: Floats
    reward_PG: Floats
    length_PG: Floats
    similarity_PG: Floats | None = None
    judge_PG: Floats | None = None

    def means(self, share_G: Floats) -> "Means":
        """Return the means over prompts that count with the given shares (which add up to 1)."""
        similarity = None if self.similarity_PG is None else self.similarity_PG @ share_G
        judge = None if self.judge_PG is None else self.judge_PG @ share_G
        return Means(
            at_P=self.at_P,
            kl_P=self.kl_PG @ share_G,
            reward_P=self.reward_PG @ share_G,
            length_P=self.length_PG @ share_G,
            similarity_P=similarity,
            judge_P=judge,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """A curve of means."""

    at_P: Floats
    kl_P: Floats
    reward_P: Floats
    length_P: Floats
    similarity_P: Floats | None = None
    judge_P: Floats | None = None


Table = Mapping[str, Readings]
"""The finished curves of one seed, by name."""
Statistic = Callable[[Mapping[str, Means]], float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % interval, and what the interval rests on."""

    value: float
    low: float
    high: float
    num_prompts: int
    num_seeds: int

    @property
    def over_seeds(self) -> bool:
        """Whether it speaks of other seeds too."""
        return self.num_seeds >= SEEDS_NEEDED


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One observation, tested: held, failed or undecided, with the number that says so."""

    name: str
    verdict: Verdict
    sentence: str
    unit: str
    interval: Interval | None
    """None where the curves are not all measured yet, or have nothing in common."""
    hypervolume: Interval | None = None
    """The difference of hypervolumes to one reference, beside a front gap; reward * nats."""
    margin: float | None = None
    """For a claim that two things are alike: how far apart still counts as alike."""
    counts: bool = True
    """Whether the verdict of the study rests on it."""


def bootstrapped(
    statistic: Statistic, tables: Sequence[Table], curves: Sequence[str], *, draws: int = DRAWS
) -> Interval | None:
    """Return the statistic of the named curves, mean over the seeds that have them all, with its 95 % interval.

    None where no seed has them, or where the statistic is not defined (NaN) for the data or for a twentieth of the
    resamples.
    """
    complete = [{name: table[name] for name in curves} for table in tables if all(name in table for name in curves)]
    if not complete:
        return None
    num_prompts = next(iter(complete[0].values())).kl_PG.shape[1]
    generator = np.random.default_rng(_SEED)
    equal_G = np.full(num_prompts, 1 / num_prompts)
    share_RG = generator.multinomial(num_prompts, equal_G, size=draws) / num_prompts
    found_SR = np.array([[_value(statistic, table, share_G) for share_G in share_RG] for table in complete])
    value_S = np.array([_value(statistic, table, equal_G) for table in complete])
    known_SR = found_SR[:, np.isfinite(found_SR).all(axis=0)]
    if not np.isfinite(value_S).all() or known_SR.shape[1] < 0.95 * draws:
        return None
    return _interval(value_S, known_SR, num_prompts, generator)


def mean_interval(value_SG: Floats, *, draws: int = DRAWS) -> Interval:
    """Return the mean of numbers per seed and prompt (or window of a text), with an interval as above."""
    num_prompts = value_SG.shape[1]
    generator = np.random.default_rng(_SEED)
    share_RG = generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=draws) / num_prompts
    return _interval(value_SG.mean(axis=1), value_SG @ share_RG.T, num_prompts, generator)


def _interval(value_S: Floats, found_SR: Floats, num_prompts: int, generator: np.random.Generator) -> Interval:
    """Return the mean over seeds with its interval, from its value of each seed, for all prompts and by resample."""
    num_seeds, draws = found_SR.shape
    found = found_SR.mean(axis=0)
    if num_seeds >= SEEDS_NEEDED:
        error = value_S.std(ddof=1) / np.sqrt(num_seeds)
        found = found + error * generator.standard_t(num_seeds - 1, size=(_SPREADS, draws))
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(
        value=float(value_S.mean()), low=float(low), high=float(high), num_prompts=num_prompts, num_seeds=num_seeds
    )


def _value(statistic: Statistic, table: Table, share_G: Floats) -> float:
    return statistic({name: readings.means(share_G) for name, readings in table.items()})


def front_gap(first: Means, second: Means) -> float:
    """Return how far `first` lies above `second`: mean difference of reward over the KLs that both reach.

    NaN where they share no stretch of KL.
    """
    heights = mean_heights([first, second])
    return float(heights[0] - heights[1])


def mean_heights(curves: Sequence[Means]) -> Floats:
    """Return the mean reward of each curve over the KLs that all of them reach; NaN where they share no stretch.

    Each is read as lines through its points by rising KL. No maximum is taken over points, which would favour the
    curve with more of them.
    """
    low, high = max(curve.kl_P.min() for curve in curves), min(curve.kl_P.max() for curve in curves)
    if high <= low:
        return np.full(len(curves), np.nan)
    grid = np.linspace(low, high, _GRID)
    heights = np.array([_height(curve, grid) for curve in curves])
    return np.asarray((heights[:, 1:] + heights[:, :-1]).mean(axis=1) / 2)  # by trapezoids


def _height(curve: Means, grid: Floats) -> Floats:
    order = np.argsort(curve.kl_P, kind="stable")
    return np.interp(grid, curve.kl_P[order], curve.reward_P[order])


@dataclass(frozen=True)
class _Spot:
    kl: float
    reward: float


def hypervolume_gap(first: Means, second: Means, reference: tuple[float, float]) -> float:
    """Return hypervolume(first) - hypervolume(second) to one reference (KL, reward); reward * nats."""
    areas = [
        hypervolume([_Spot(kl, reward) for kl, reward in zip(c.kl_P, c.reward_P, strict=True)], reference)
        for c in (first, second)
    ]
    return areas[0] - areas[1]


def chord_height(x_P: Floats, y_P: Floats) -> float:
    """Return how far y lies above the chord from its first to its last point, mean over the points between.

    Positive for a concave curve, negative for a convex one; it is a sum of the second differences of y with positive
    weights, so it tests their common sign with less noise than each has.
    """
    share_P = (x_P[1:-1] - x_P[0]) / (x_P[-1] - x_P[0])
    chord_P = y_P[0] + share_P * (y_P[-1] - y_P[0])
    return float(np.mean(y_P[1:-1] - chord_P))


def decide(interval: Interval | None, *, margin: float | None = None, one_sided: bool = False) -> Verdict:
    """Return the verdict on "the number is positive"; with a margin on "it is 0, give or take the margin".

    One-sided with a margin: on "it is not below -margin".
    """
    if interval is None:
        return "undecided"
    if margin is None or one_sided:
        floor = -(margin or 0.0)
        return "held" if interval.low > floor else "failed" if interval.high < floor else "undecided"
    if -margin <= interval.low and interval.high <= margin:
        return "held"
    return "failed" if interval.low > margin or interval.high < -margin else "undecided"


def verdict_of(claims: Sequence[Claim]) -> Verdict:
    """Return the verdict on an observation that all claims make together: held if all did, failed if one did."""
    verdicts = {claim.verdict for claim in claims}
    if "failed" in verdicts:
        return "failed"
    return "held" if verdicts == {"held"} else "undecided"
