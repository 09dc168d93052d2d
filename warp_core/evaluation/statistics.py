"""Means and their standard errors when several completions share a prompt. Pure functions, float64.

n values x_i in G clusters (prompts). With the residual sum of a cluster, u_g = sum_{i in g} (x_i - mean),

    se^2 = G / (G - 1) * sum_g u_g^2 / n^2

the cluster-robust ("sandwich") variance of a mean with its small-sample factor. With one value per cluster it is the
usual s / sqrt(n); with equal clusters it is the standard deviation of the cluster means over sqrt(G). One cluster says
nothing about the spread between clusters: its standard error is None (null in JSON), never 0.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "clustered_mean", "paired_difference"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean (or difference of means), its standard error, and what it rests on."""

    mean: float
    se: float | None
    """None with a single cluster."""
    n: int
    """Number of values; of a difference, of both sides together."""
    num_clusters: int


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> Estimate:
    """The mean of all values and its cluster-robust standard error (formula at the top of this file).

    values: n numbers; clusters: the cluster of each, e.g. its prompt. Raises ValueError if they are empty, differ in
    number, or a value is not finite.
    """
    values_B = _checked(values, clusters)
    groups = _distinct(clusters)
    influence_G = _residual_sums(values_B, clusters, groups) / len(values_B)
    return Estimate(mean=_mean(values_B), se=_se(influence_G), n=len(values_B), num_clusters=len(groups))


def paired_difference(
    first: ArrayLike, first_clusters: Sequence[Hashable], second: ArrayLike, second_clusters: Sequence[Hashable]
) -> Estimate:
    """mean(first) - mean(second) for two points measured on the same prompts, and its standard error.

    What makes a prompt easy or hard cancels, so the error is smaller than that of independent samples:

        u_g = sum_{i in g} (x_i - mean_x) / n_x  -  sum_{j in g} (y_j - mean_y) / n_y
        se^2 = G / (G - 1) * sum_g u_g^2

    With equal clusters this is the standard deviation of the differences per prompt over sqrt(G). Completions need
    not correspond one to one. Raises ValueError if the two have other prompts, and as `clustered_mean` does.
    """
    first_B, second_B = _checked(first, first_clusters), _checked(second, second_clusters)
    groups = _distinct(first_clusters)
    if set(groups) != set(second_clusters):
        raise ValueError("the two points were not measured on the same prompts: nothing to pair")
    influence_G = _residual_sums(first_B, first_clusters, groups) / len(first_B)
    influence_G -= _residual_sums(second_B, second_clusters, groups) / len(second_B)
    return Estimate(
        mean=_mean(first_B) - _mean(second_B),
        se=_se(influence_G),
        n=len(first_B) + len(second_B),
        num_clusters=len(groups),
    )


def _distinct(clusters: Sequence[Hashable]) -> list[Hashable]:
    """The distinct clusters in the order of their first appearance."""
    return list(dict.fromkeys(clusters))


def _checked(values: ArrayLike, clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    values_B = np.asarray(values, dtype=np.float64)
    if values_B.ndim != 1 or len(values_B) == 0 or len(values_B) != len(clusters):
        raise ValueError(f"{values_B.shape} values and {len(clusters)} clusters: need as many of each, at least one")
    if not np.isfinite(values_B).all():
        raise ValueError("a value is not finite: no mean")
    return values_B


def _mean(values_B: NDArray[np.float64]) -> float:
    return math.fsum(values_B) / len(values_B)


def _residual_sums(
    values_B: NDArray[np.float64], clusters: Sequence[Hashable], groups: Sequence[Hashable]
) -> NDArray[np.float64]:
    place = {group: i for i, group in enumerate(groups)}
    index_B = np.array([place[cluster] for cluster in clusters])
    return np.bincount(index_B, weights=values_B - _mean(values_B), minlength=len(groups)).astype(np.float64)


def _se(influence_G: NDArray[np.float64]) -> float | None:
    count = len(influence_G)
    if count < 2:
        return None
    # A power of two changes no digit, and squares of huge rewards do not overflow.
    scale = math.ldexp(1.0, math.frexp(float(np.abs(influence_G).max()))[1])
    scaled_G = influence_G / scale
    return scale * math.sqrt(count / (count - 1) * float(scaled_G @ scaled_G))
