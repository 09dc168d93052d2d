"""Variance of differences along a front under several ways to sample it, from one set of completions.

All ways are unbiased for the same expectation on every prompt, so the variance of a difference d between two points, at
one completion per prompt and point, is

    between (of the expectations over prompts: the same for all)  +  within (of the estimate on a given prompt)

and only `within` tells the ways apart, except for prompts that the points do not share, where the between-prompt
variances of both add up. The estimate of point j is a sum of contributions c_ij(x_i), x_i being the completion drawn at
point i: with c_ij = f(x_i) for i = j alone it is the plain mean; with pooling it is the balance heuristic of multiple
importance sampling,

    c_ij(x) = f_j(x) p_j(x) / sum_{i' in N(j)} p_i'(x)        N(j): the points whose completions serve j

The models are normalised, so no constant has to be solved for, which is what MBAR (pymbar) is about. Independent noise:
within = sum_i var(c_ij - c_ik). Common noise: within = var(sum_i (c_ij - c_ik)). Pure functions.

Shape suffixes: G prompts, S samples, E points; a pair EE is (where drawn, whom it serves); D differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.trajectories import REACH, Trajectories

__all__ = ["Spread", "blocks", "contributions", "effective_share", "pooled_kl", "pooled_reward", "spread", "window"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def window(count: int, radius: int) -> Flags:
    """Return N(j) as flags [E, E]: the points up to `radius` places from j; 0 is j alone."""
    place_E = np.arange(count)
    return np.abs(place_E[:, None] - place_E) <= radius


def blocks(count: int, size: int) -> Flags:
    """Return N(j) as flags [E, E]: the points of j's block, when the front is cut in blocks of `size`."""
    block_E = np.arange(count) // size
    return np.asarray(block_E[:, None] == block_E)


def contributions(value_GSEE: Floats, logp_GSEE: Floats, serves_EE: Flags, baseline_E: Floats) -> Floats:
    """Return c_GSEE by the balance heuristic, with a baseline as control variate: c = w (f - b) + b for i = j.

    value_GSEE: f_j(x_i). logp_GSEE: log p_j(x_i), -inf where it is not known, which must be outside of `serves_EE`.
    The baseline changes no expectation, because sum_i w_ij(x_i) has mean 1.
    """
    top_GSE1 = logp_GSEE.max(axis=-1, keepdims=True)
    density_GSEE = np.exp(logp_GSEE - top_GSE1)
    total_GSEE = density_GSEE @ serves_EE.astype(float)  # [i, j]: sum over i' in N(j) of p_i'(x_i)
    weight_GSEE = np.divide(density_GSEE, total_GSEE, out=np.zeros_like(total_GSEE), where=serves_EE & (total_GSEE > 0))
    centred = np.where(serves_EE, value_GSEE - baseline_E, 0.0)
    return np.asarray(weight_GSEE * centred + np.eye(len(serves_EE)) * baseline_E)


def effective_share(data: Trajectories, serves_EE: Flags) -> Floats:
    """Return, for each point, the effective number of completions per completion drawn: (sum w)^2 / sum w^2 [E]."""
    ones = np.ones((*data.reward_GSE.shape, len(data.etas)))
    weight_GSEE = contributions(ones, _logps(data), serves_EE, np.zeros(len(data.etas)))
    drawn = data.reward_GSE[..., 0].size
    return np.asarray(weight_GSEE.sum(axis=(0, 1, 2)) ** 2 / (weight_GSEE**2).sum(axis=(0, 1, 2)) / drawn)


def pooled_reward(data: Trajectories, serves_EE: Flags, *, baseline: bool) -> Floats:
    """Return the contributions to the mean reward, with or without the mean as control variate."""
    value_GSEE = np.repeat(data.reward_GSE[..., None], len(data.etas), axis=-1)
    mean_E = data.reward_GSE.mean(axis=(0, 1)) * baseline
    return contributions(value_GSEE, _logps(data), serves_EE, mean_E)


def pooled_kl(data: Trajectories, serves_EE: Flags, *, baseline: bool) -> Floats:
    """Return the contributions to the exact KL; each position is weighted by what was drawn before it, not after."""
    total = np.zeros((*data.reward_GSE.shape, len(data.etas)))
    for t in range(data.logp_GSEOT.shape[-1]):
        kl_GSEE = _spread_out(data.kl_GSEOT[..., t], 0.0)
        own_GSE = np.einsum("...ii->...i", kl_GSEE)
        total += contributions(kl_GSEE, _logps(data, t), serves_EE, own_GSE.mean(axis=(0, 1)) * baseline)
    return total


def _logps(data: Trajectories, before: int | None = None) -> Floats:
    """log p_j of the first `before` tokens of x_i (all by default), -inf where it was not scored [G, S, E, E]."""
    return _spread_out(data.logp_GSEOT[..., :before].sum(axis=-1), -np.inf)


def _spread_out(value_GSEO: Floats, missing: float) -> Floats:
    """From offsets to pairs of points."""
    count = value_GSEO.shape[2]
    out = np.full((*value_GSEO.shape[:2], count, count), missing)
    for i in range(count):
        for j in range(max(0, i - REACH), min(count, i + REACH + 1)):
            found_GS = value_GSEO[:, :, i, REACH + j - i]
            out[:, :, i, j] = np.where(np.isnan(found_GS), missing, found_GS)
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """What a way of sampling leaves uncertain in D differences, prompt by prompt, at one completion each.

    Attributes:
        within_GD: variance of the estimate on each prompt.
        mean_GSD: the S estimates of the difference on each prompt, common noise.
    """

    within_GD: Floats
    mean_GSD: Floats


def spread(contribution_GSEE: Floats, pairs: Sequence[tuple[int, int]], *, common: bool) -> Spread:
    """Return the variances of the differences j - k for each (j, k) of `pairs`, with common or independent noise."""
    first, second = (list(side) for side in zip(*pairs, strict=True))
    part_GSED = contribution_GSEE[..., first] - contribution_GSEE[..., second]
    mean_GSD = part_GSED.sum(axis=2)
    within_GD = mean_GSD.var(axis=1, ddof=1) if common else part_GSED.var(axis=1, ddof=1).sum(axis=1)
    return Spread(within_GD=np.asarray(within_GD), mean_GSD=np.asarray(mean_GSD))
