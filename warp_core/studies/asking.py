"""The questions that studies ask of their curves, each answered by a claim with a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from warp_core.studies.claims import (
    Claim,
    Floats,
    Interval,
    Means,
    Statistic,
    Table,
    bootstrapped,
    chord_height,
    decide,
    front_gap,
    hypervolume_gap,
    mean_heights,
)

__all__ = ["above", "alike", "curved", "number", "rises", "trend"]

Tables = Sequence[Table]
Read = Callable[[Means], Floats]


def number(
    name: str,
    tables: Tables,
    statistic: Statistic,
    *,
    curves: Sequence[str],
    says: str,
    unit: str,
    margin: float | None = None,
    one_sided: bool = False,
    counts: bool = True,
) -> Claim:
    """Return the claim that a statistic of some curves is positive, within `margin` of 0, or not below -margin.

    says: the observation in words, before the number.
    """
    interval = bootstrapped(statistic, tables, curves)
    verdict = decide(interval, margin=margin, one_sided=one_sided)
    within = "" if margin is None else f", margin {margin:.2g}"
    sentence = f"{says}: {_shown(interval, unit)}{within}"
    return Claim(
        name=name, verdict=verdict, sentence=sentence, unit=unit, interval=interval, margin=margin, counts=counts
    )


def _shown(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return "not measured, or nothing to compare"
    return f"{interval.value:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}] {unit}"


def above(name: str, tables: Tables, first: str, second: str, *, counts: bool = True) -> Claim:
    """Return the claim that the front of one curve lies above that of another, with both measures of it."""
    claim = number(
        name,
        tables,
        lambda means: front_gap(means[first], means[second]),
        curves=(first, second),
        says=f"{first} above {second}",
        unit="reward at equal KL",
        counts=counts,
    )
    return _with_hypervolume(claim, tables, first, second)


def alike(name: str, tables: Tables, first: str, second: str, *, share: float = 0.1, one_sided: bool = False) -> Claim:
    """Return the claim that two fronts are alike: their gap is less than a share of the reward gained on the second.

    one_sided: the first may lie above the second by any amount; it is not to lie below.
    """
    gains = [float(np.ptp(table[second].reward_PG.mean(axis=1))) for table in tables if second in table]
    claim = number(
        name,
        tables,
        lambda means: front_gap(means[first], means[second]),
        curves=(first, second),
        says=f"{first} {'not below' if one_sided else 'like'} {second}",
        unit="reward at equal KL",
        margin=share * float(np.mean(gains)) if gains else None,
        one_sided=one_sided,
    )
    return _with_hypervolume(claim, tables, first, second)


def _with_hypervolume(claim: Claim, tables: Tables, first: str, second: str) -> Claim:
    whole = [table[name] for table in tables for name in (first, second) if first in table and second in table]
    if not whole or claim.interval is None:
        return claim
    # One reference for both: the largest KL, and the reward of the SFT policy, where every front starts.
    reference = (
        max(float(readings.kl_PG.mean(axis=1).max()) for readings in whole),
        min(float(readings.reward_PG.mean(axis=1)[0]) for readings in whole),
    )
    area = bootstrapped(lambda means: hypervolume_gap(means[first], means[second], reference), tables, (first, second))
    return replace(claim, hypervolume=area)


def curved(name: str, tables: Tables, curve: str, *, read: Read, what: str, concave: bool) -> Claim:
    """Return the claim that a quantity is concave (or convex) along a curve's own parameter."""
    sign = 1.0 if concave else -1.0
    return number(
        name,
        tables,
        lambda means: sign * chord_height(means[curve].at_P, read(means[curve])),
        curves=(curve,),
        says=f"{what} along {curve} is {'concave' if concave else 'convex'} (mean distance to its chord)",
        unit=what,
    )


def rises(name: str, tables: Tables, curve: str, *, read: Read, what: str) -> Claim:
    """Return the claim that a quantity rises with KL along a curve: its slope by least squares."""
    return number(
        name,
        tables,
        lambda means: _slope(means[curve].kl_P, read(means[curve])),
        curves=(curve,),
        says=f"{what} rises with KL along {curve}",
        unit=f"{what} per nat",
    )


def trend(name: str, tables: Tables, curves: Sequence[str], *, per: str) -> Claim:
    """Return the claim that fronts rise from curve to curve: the slope of their mean rewards over KLs all reach."""

    def slope(means: Mapping[str, Means]) -> float:
        heights = mean_heights([means[curve] for curve in curves])
        return _slope(np.arange(len(curves), dtype=np.float64), heights)

    return number(
        name, tables, slope, curves=curves, says=f"fronts rise from {curves[0]} to {curves[-1]}", unit=f"reward {per}"
    )


def _slope(x_P: Floats, y_P: Floats) -> float:
    spread = x_P - x_P.mean()
    total = float(spread @ spread)
    return float(spread @ y_P) / total if total > 0 else float("nan")
