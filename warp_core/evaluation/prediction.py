"""A surface through the measured points of a front: what reward or KL is likely to be between them.

Kriging with a trend (universal kriging; Rasmussen and Williams 2006, sections 2.2, 2.7 and 5.4.2). A model is a matrix
of coefficients c_LK, theta = theta_init + sum_k c_k delta_k in every layer, and models are as far apart as their
weights: with the Gram matrices G of the task vectors

    d2(a, b) = sum_l (a_l - b_l)^T G_l (a_l - b_l) / scale,      u = sqrt(d2(c, c_sft))
    f(c) = sum_b beta_b h_b(u) + sum_p alpha_p exp(-d2(c, c_p) / (2 lengthscale^2)),      h = [1, u, u^2]

Measured values are f plus noise. Lengthscale, signal variance and the share of the noise are those of a small grid with
the largest restricted likelihood; beta follows by generalised least squares.

Shape suffixes: P measured points, Q others; L layers, K columns of the Gram; H terms of the trend.
No torch: NumPy alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FittedSurface", "fit_surface", "mean_square", "predict", "squared_distances"]

Floats = NDArray[np.float64]

LENGTHSCALES = np.geomspace(0.1, 3.0, 12)
SIGNALS = np.geomspace(0.02, 1.5, 10)  # relative to the range of the values
# A point's error comes mostly from the choice of prompts and random numbers, which all points share: how much of its
# square is the point's own.
OWN_NOISE = (1.0, 0.3, 0.1, 0.03)
FLOOR = 1e-3  # of the range of the values: the least noise, which also keeps the matrices well conditioned
FITTED_ON = 80  # points that the grid is searched with
FULL_TREND_FROM = 8  # points; below, the square is left out


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSurface:
    """The numbers of the formula above, for one metric.

    Attributes:
        beta: factors of 1, u and u^2; a term that was left out has 0.
        alpha_P: factors of the measured points.
        lengthscale: in units of sqrt(scale).
        loo_rmse: root mean square error when each point is predicted from the others, with the trend fitted again;
            None where every point is exact.
    """

    beta: tuple[float, float, float]
    alpha_P: Floats
    lengthscale: float
    loo_rmse: float | None


def mean_square(gram_LKK: Floats, *, num_policies: int) -> float:
    """Return the mean squared length of the task vectors of the first `num_policies` columns: the unit of d2."""
    lengths_K = np.einsum("lkk->k", gram_LKK)[:num_policies]
    return float(lengths_K.mean())


def squared_distances(first_PLK: Floats, second_QLK: Floats, gram_LKK: Floats, *, scale: float) -> Floats:
    """Return d2 of every pair of models [P, Q]; never negative.

    Example: one layer, two orthogonal task vectors of length 2, scale 4: the two single policies are at d2 = 2.
    """
    found_PQ = np.empty((len(first_PLK), len(second_QLK)))
    for p, first_LK in enumerate(first_PLK):
        apart_QLK = second_QLK - first_LK
        found_PQ[p] = np.einsum("qlk,lkj,qlj->q", apart_QLK, gram_LKK, apart_QLK, optimize=True) / scale
    return np.maximum(found_PQ, 0.0)


def predict(surface: FittedSurface, d2_QP: Floats, u_Q: Floats) -> Floats:
    """Evaluate f for models at squared distances d2 from the measured points and at u from the SFT policy."""
    near_QP = np.exp(-d2_QP / (2 * surface.lengthscale**2))
    result: Floats = _trend(u_Q) @ np.asarray(surface.beta) + near_QP @ surface.alpha_P
    return result


def fit_surface(
    values_P: Floats, errors_P: Floats, d2_PP: Floats, u_P: Floats, *, zero_at_sft: bool = False
) -> FittedSurface:
    """Fit the surface of one metric.

    Args:
        values_P: measured means.
        errors_P: their standard errors; 0 for what is known (the KL of the SFT policy), NaN where nothing is known,
            which counts as the median of the others.
        d2_PP: squared distances between the points.
        u_P: distances to the SFT policy.
        zero_at_sft: the metric is 0 there by definition, so its trend has no constant.

    Raises:
        ValueError: fewer than four points, or a value that is not finite.
    """
    if len(values_P) < 4 or not np.isfinite(values_P).all():
        raise ValueError("a surface needs at least four points with finite values")
    span = float(np.ptp(values_P)) or max(1.0, abs(float(values_P[0])))
    known_P = np.isfinite(errors_P)
    usual = float(np.median(errors_P[known_P])) if known_P.any() else FLOOR * span
    errors_P = np.where(known_P, errors_P, usual)
    terms = [0, 1, 2] if len(values_P) >= FULL_TREND_FROM else [0, 1]
    terms = terms[1:] if zero_at_sft else terms
    trend_PH = _trend(u_P)[:, terms]
    some = np.unique(np.linspace(0, len(values_P) - 1, FITTED_ON).round().astype(int))
    lengthscale, signal, own = _likeliest(
        values_P[some], errors_P[some], d2_PP[np.ix_(some, some)], trend_PH[some], span
    )
    beta = np.zeros(3)
    beta[terms], alpha_P, left_out_P = _solved(
        values_P, _covariance(errors_P, d2_PP, span, lengthscale, signal, own), trend_PH
    )
    uncertain_P = errors_P > 0
    return FittedSurface(
        beta=(float(beta[0]), float(beta[1]), float(beta[2])),
        alpha_P=signal**2 * alpha_P,
        lengthscale=lengthscale,
        loo_rmse=float(np.sqrt(np.mean(left_out_P[uncertain_P] ** 2))) if uncertain_P.any() else None,
    )


def _trend(u_P: Floats) -> Floats:
    return np.stack([np.ones_like(u_P), u_P, u_P**2], axis=1)


def _covariance(
    errors_P: Floats, d2_PP: Floats, span: float, lengthscale: float, signal: float | Floats, own: float | Floats
) -> Floats:
    """V = signal^2 K + noise; signal and own may have leading axes."""
    kernel_PP = np.exp(-d2_PP / (2 * lengthscale**2))
    noise_PP = np.asarray(own)[..., None, None] * np.diag(errors_P**2) + (FLOOR * span) ** 2 * np.eye(len(errors_P))
    result: Floats = np.asarray(signal)[..., None, None] ** 2 * kernel_PP + noise_PP
    return result


def _likeliest(
    values_P: Floats, errors_P: Floats, d2_PP: Floats, trend_PH: Floats, span: float
) -> tuple[float, float, float]:
    """Return the lengthscale, signal and share of the noise with the largest restricted likelihood."""
    signal_G, own_G = (axis.ravel() for axis in np.meshgrid(SIGNALS * span, OWN_NOISE))
    best, found = -np.inf, (float(LENGTHSCALES[0]), float(signal_G[0]), float(own_G[0]))
    for lengthscale in LENGTHSCALES:
        chol_GPP = np.linalg.cholesky(_covariance(errors_P, d2_PP, span, lengthscale, signal_G, own_G))
        both = np.column_stack([trend_PH, values_P])
        white = np.linalg.solve(chol_GPP, np.broadcast_to(both, (len(own_G), *both.shape)))
        # The last entry of R is what the trend leaves of the values; the others are the volume of the trend.
        sizes_GH = np.abs(np.diagonal(np.linalg.qr(white, mode="r"), axis1=1, axis2=2))
        volume_GH = np.maximum(sizes_GH[:, :-1], 1e-9)  # points may not determine every term of the trend
        log_volume_G = np.log(np.diagonal(chol_GPP, axis1=1, axis2=2)).sum(axis=1) + np.log(volume_GH).sum(axis=1)
        likelihood_G = -log_volume_G - 0.5 * sizes_GH[:, -1] ** 2
        top = int(likelihood_G.argmax())
        if likelihood_G[top] > best:
            best, found = likelihood_G[top], (float(lengthscale), float(signal_G[top]), float(own_G[top]))
    return found


def _solved(values_P: Floats, covariance_PP: Floats, trend_PH: Floats) -> tuple[Floats, Floats, Floats]:
    """Generalised least squares: beta_H, V^-1 (y - H beta), and each value minus what the other points predict.

    Left out: with the precision Q = V^-1 - V^-1 H (H' V^-1 H)^-1 H' V^-1 the errors are (Q y)_p / Q_pp (Dubrule 1983).
    """
    whiten_PP = np.linalg.inv(np.linalg.cholesky(covariance_PP))
    basis_PH, sizes_H, turn_HH = np.linalg.svd(whiten_PP @ trend_PH, full_matrices=False)
    used_H = sizes_H > 1e-9 * sizes_H[0]
    basis_PH, sizes_H, turn_HH = basis_PH[:, used_H], sizes_H[used_H], turn_HH[used_H]
    white_P = whiten_PP @ values_P
    beta_H = turn_HH.T @ ((basis_PH.T @ white_P) / sizes_H)
    without_PP = whiten_PP - basis_PH @ (basis_PH.T @ whiten_PP)
    weighted_P = without_PP.T @ white_P
    return beta_H, weighted_P, weighted_P / np.einsum("qp,qp->p", without_PP, without_PP)
