"""Side-by-side preferences of people and of reward models. Pure functions, float64; no torch.

    table = preference([Judgement(first="A", second="B", score=1.5, prompt="p1"), ...], "A", "B")
    table.score, table.low, table.high, table.wins, table.ties, table.losses

A judgement compares two completions of one prompt on the scale of the paper (Rame et al. 2024, arXiv 2406.16768,
Table 1): 1.5 the first is much better, 1 better, 0.5 slightly better, 0 a tie, negative where the second is. The
*preference score* of A over B is the mean over their judgements, with the sign flipped where B stood first.

Its 95 % interval takes prompts as what varies, since judgements of one prompt resemble each other: prompts are drawn
with replacement (cluster bootstrap, percentiles, fixed seed), or, with fewer than 8 prompts, too few to resample, or
more than 1000, where both are the same, mean +- t cluster-robust standard errors (`statistics.clustered_mean`), t being
Student's 97.5 % quantile for one degree of freedom less than there are prompts: with two prompts it is 12.7, and two
votes for one model prove nothing.
Where all prompts say the same, or there is only one, nothing is known about the spread, and there is no interval.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warp_core.evaluation.statistics import Estimate, clustered_mean, paired_difference

__all__ = [
    "SCALE",
    "Agreement",
    "Estimate",
    "Judgement",
    "Preference",
    "Thresholds",
    "agreement",
    "clustered_mean",
    "graded",
    "judged",
    "paired_difference",
    "preference",
    "preference_matrix",
    "quartiles",
]

SCALE = (1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5)
"""What a judgement can be, from `the first is much better` to `the second is much better`."""
_BOUND = SCALE[0]
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)  # 97.5 % quantiles for 1 to 6 degrees of freedom
_NORMAL = 1.960
_DRAWS = 4000
_SEED = 20240624
_MIN_RESAMPLED, _MAX_RESAMPLED = 8, 1000

_Model = TypeVar("_Model", bound=Hashable)
Thresholds = tuple[float, float, float]
"""Score differences above which one completion is slightly better, better, much better."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One comparison of two completions of a prompt. `score` > 0 prefers the first."""

    first: Hashable
    second: Hashable
    score: float
    prompt: Hashable


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How one model compares with another over all judgements of the two."""

    score: float
    """Mean, from -1.5 to 1.5."""
    low: float | None
    high: float | None
    """95 % interval; None with one prompt, or where all prompts say the same."""
    method: Literal["bootstrap", "t"] | None
    """How the interval was found."""
    wins: int
    ties: int
    losses: int
    num_prompts: int

    @property
    def n(self) -> int:
        """Number of judgements."""
        return self.wins + self.ties + self.losses

    def reversed(self) -> "Preference":
        """The same judgements, seen from the other model."""
        return Preference(
            score=0.0 - self.score,  # never -0.0
            low=None if self.high is None else 0.0 - self.high,
            high=None if self.low is None else 0.0 - self.low,
            method=self.method,
            wins=self.losses,
            ties=self.ties,
            losses=self.wins,
            num_prompts=self.num_prompts,
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two judges of the same pairs agree."""

    n: int
    """Pairs that both have judged."""
    num_decided: int
    """Pairs that neither calls a tie."""
    share: float | None
    """Of the decided pairs, how many both decide the same way; None where there is none."""
    kappa: float | None
    """Cohen's kappa over first, tie, second; None where chance alone explains all agreement."""


def preference(judgements: Sequence[Judgement], first: Hashable, second: Hashable) -> Preference | None:
    """Return the preference score of `first` over `second`, its interval and its counts; None without judgements.

    Judgements of other pairs are ignored. Raises ValueError if the two are one model or a score is not finite.
    """
    if first == second:
        raise ValueError(f"{first!r} compared with itself: name two models")
    scores, prompts = [], []
    for judgement in judgements:
        if (judgement.first, judgement.second) == (first, second):
            scores.append(judgement.score)
        elif (judgement.second, judgement.first) == (first, second):
            scores.append(0.0 - judgement.score)
        else:
            continue
        prompts.append(judgement.prompt)
    if not scores:
        return None
    estimate = clustered_mean(scores, prompts)
    low, high, method = _interval(scores, prompts, estimate)
    return Preference(
        score=estimate.mean,
        low=low,
        high=high,
        method=method,
        wins=sum(score > 0 for score in scores),
        ties=sum(score == 0 for score in scores),
        losses=sum(score < 0 for score in scores),
        num_prompts=estimate.num_clusters,
    )


def preference_matrix(judgements: Sequence[Judgement], models: Sequence[Hashable]) -> list[list[Preference | None]]:
    """Return, per row and column, the preference for the row's model over the column's; None where nobody has judged.

    The diagonal is None. Raises ValueError if a model is named twice or a score is not finite.
    """
    matrix: list[list[Preference | None]] = [[None] * len(models) for _ in models]
    for i, j in combinations(range(len(models)), 2):
        found = preference(judgements, models[i], models[j])
        matrix[i][j], matrix[j][i] = found, found.reversed() if found else None
    return matrix


def quartiles(differences: ArrayLike) -> Thresholds:
    """Return the three quartiles of the absolute differences, as thresholds for `graded`.

    So the quarter of pairs whose scores differ least are ties, and the quarter that differs most is much better: a
    judge on any scale then uses the grades as often as one another. Raises ValueError if there is no difference.
    """
    sizes_P = np.abs(np.asarray(differences, dtype=np.float64))
    if sizes_P.size == 0:
        raise ValueError("no differences: no quartiles")
    low, middle, high = np.quantile(sizes_P, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def graded(differences: ArrayLike, thresholds: Thresholds | None = None) -> list[float]:
    """Return score differences on the scale of the judgements.

    With thresholds, half a grade for each one that |difference| is above; without, 1 or -1 by the sign alone. No
    difference is a tie either way. Raises ValueError if the thresholds are negative or fall.
    """
    values_P = np.asarray(differences, dtype=np.float64)
    if thresholds is None:
        grades_P = np.sign(values_P)
    else:
        if not 0 <= thresholds[0] <= thresholds[1] <= thresholds[2]:
            raise ValueError(f"thresholds {thresholds}: give three that are not negative and do not fall")
        above_P = (np.abs(values_P)[:, None] > np.asarray(thresholds)).sum(axis=1)
        grades_P = np.sign(values_P) * 0.5 * above_P
    return [float(grade) + 0.0 for grade in grades_P]


def judged(
    prompts: Sequence[Hashable], scores: Mapping[_Model, Sequence[float]], thresholds: Thresholds | None = None
) -> list[Judgement]:
    """Return what a scoring judge says of every pair of models, completion by completion.

    prompts: the prompt of each row; scores: by model, one score per row, the rows of all models belonging together
    (same prompt, same seed); thresholds: as for `graded`. Raises ValueError if the numbers of rows differ.
    """
    for model, values in scores.items():
        if len(values) != len(prompts):
            raise ValueError(f"{len(values)} scores of {model!r} for {len(prompts)} prompts: need one per row")
    found = []
    for first, second in combinations(scores, 2):
        differences_B = np.asarray(scores[first], dtype=np.float64) - np.asarray(scores[second], dtype=np.float64)
        grades = graded(differences_B, thresholds)
        found += [
            Judgement(first=first, second=second, score=grade, prompt=prompt)
            for prompt, grade in zip(prompts, grades, strict=True)
        ]
    return found


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Return how far two judges agree on the same pairs; scores > 0 prefer the first completion, 0 is a tie.

    Cohen's kappa (Cohen 1960) = (o - e) / (1 - e), o the share of pairs on which both say first, tie or second alike,
    e what chance would give. Which completion of a pair stands first is arbitrary, so each pair counts in both orders:
    with t1, t2 the shares of ties, e = t1 t2 + (1 - t1)(1 - t2) / 2. Raises ValueError if the numbers of pairs differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} judgements: need both judges' of the same pairs")
    if not first:
        return Agreement(n=0, num_decided=0, share=None, kappa=None)
    a_P, b_P = np.sign(np.asarray(first, dtype=np.float64)), np.sign(np.asarray(second, dtype=np.float64))
    decided_P = (a_P != 0) & (b_P != 0)
    observed = float((a_P == b_P).mean())
    tied_a, tied_b = float((a_P == 0).mean()), float((b_P == 0).mean())
    chance = tied_a * tied_b + (1 - tied_a) * (1 - tied_b) / 2
    return Agreement(
        n=len(first),
        num_decided=int(decided_P.sum()),
        share=float((a_P == b_P)[decided_P].mean()) if decided_P.any() else None,
        kappa=None if chance == 1 else (observed - chance) / (1 - chance),
    )


def _interval(
    scores: Sequence[float], prompts: Sequence[Hashable], estimate: Estimate
) -> tuple[float | None, float | None, Literal["bootstrap", "t"] | None]:
    if not estimate.se:
        return None, None, None
    if not _MIN_RESAMPLED <= estimate.num_clusters <= _MAX_RESAMPLED:
        freedom = estimate.num_clusters - 1
        half = estimate.se * (_STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL)
        return max(-_BOUND, estimate.mean - half), min(_BOUND, estimate.mean + half), "t"
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    index_B = np.array([place[prompt] for prompt in prompts])
    sums_G = np.bincount(index_B, weights=np.asarray(scores, dtype=np.float64))
    sizes_G = np.bincount(index_B)
    times_RG = _resamples(estimate.num_clusters)
    means_R = (times_RG @ sums_G) / (times_RG @ sizes_G)
    low, high = np.quantile(means_R, (0.025, 0.975))
    return float(low), float(high), "bootstrap"


@lru_cache(maxsize=4)
def _resamples(num_prompts: int) -> NDArray[np.float64]:
    """How often each of the prompts is drawn, in each resample: the same for all pairs, so intervals compare."""
    generator = np.random.default_rng(_SEED)
    shares = np.full(num_prompts, 1 / num_prompts)
    return generator.multinomial(num_prompts, shares, size=_DRAWS).astype(np.float64)
