"""Pareto fronts of reward against KL: KL is to be small, reward large. Pure functions.

P points.
"""

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import Protocol, TypeVar

__all__ = ["Measured", "default_reference", "dominated", "hypervolume", "pareto_front"]


class Measured(Protocol):
    """Anything with a KL (nats) and a reward, e.g. a `Point`."""

    @property
    def kl(self) -> float:
        """KL to the SFT policy, nats per completion."""

    @property
    def reward(self) -> float:
        """Mean reward."""


class Labelled(Measured, Protocol):
    """A measured point that knows what it is, e.g. a `Point`."""

    @property
    def kind(self) -> str | None:
        """sft, policy, merge or training."""


AnyMeasured = TypeVar("AnyMeasured", bound=Measured)


def dominated(points: Sequence[Measured]) -> list[bool]:
    """For each point, whether another one has no more KL, no less reward, and is strictly better in one of the two.

    Ties: of two points with the same KL the one with less reward is dominated, and of two with the same reward the one
    with more KL; two points that agree in both do not dominate each other. Standard errors play no part. O(P log P).
    """
    flags = [False] * len(points)
    best_reward, best_kl = float("-inf"), float("-inf")
    for i in sorted(range(len(points)), key=lambda i: (points[i].kl, -points[i].reward)):
        kl, reward = points[i].kl, points[i].reward
        if reward > best_reward:
            best_reward, best_kl = reward, kl
        else:
            flags[i] = (kl, reward) != (best_kl, best_reward)
    return flags


def pareto_front(points: Sequence[AnyMeasured]) -> list[AnyMeasured]:
    """The points that are not dominated, by rising KL (and so by rising reward); equal points are all kept."""
    front = [point for point, flag in zip(points, dominated(points), strict=True) if not flag]
    return sorted(front, key=lambda point: point.kl)


def hypervolume(points: Sequence[Measured], reference: tuple[float, float]) -> float:
    """Area of the plane that is dominated by the points and dominates the reference (KL, reward); reward * nats.

    The area of the union of the rectangles [kl_i, kl_ref] x [reward_ref, reward_i]. A point that is not better than the
    reference in both adds nothing. Only hypervolumes with the same reference can be compared.
    """
    kl_ref, reward_ref = reference
    area, floor = 0.0, reward_ref
    for point in pareto_front(points):
        if point.kl < kl_ref and point.reward > floor:
            area += (kl_ref - point.kl) * (point.reward - floor)
            floor = point.reward
    return area


def default_reference(points: Sequence[Labelled]) -> tuple[float, float]:
    """The reference (KL, reward) when the user names none. Rule:

    - KL: the next multiple of half a power of ten (0.5, 5, 50 by size) above the largest KL of the points, strictly, so
      that the furthest point still counts: 16.2 -> 20, 20.0 -> 25, 0.34 -> 0.35; 1 when no KL is positive;
    - reward: the mean reward of the SFT policy (kind "sft"), because what is below it is not worth any KL; without an
      SFT point, the reward of the point with the smallest KL.

    It moves with the points: to compare two sets, take one reference for both. Raises ValueError for no points.
    """
    if not points:
        raise ValueError("no points: no reference")
    start = min(points, key=lambda point: (point.kind != "sft", point.kl))
    return _next_round(max(point.kl for point in points)), start.reward


def _next_round(value: float) -> float:
    """The smallest multiple of half of `value`'s power of ten that is larger than `value`; exact, in decimal."""
    if value <= 0:
        return 1.0
    number = Decimal(repr(float(value)))
    step = Decimal(5).scaleb(number.adjusted() - 1)
    return float(((number / step).to_integral_value(ROUND_FLOOR) + 1) * step)
