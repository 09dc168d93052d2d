"""SLERP on a Gram matrix alone: what the engine merges by and the app shows, without torch.

Shape suffixes: L layers, M policies. Equation numbers are those of arXiv 2406.16768.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import GeometryError

__all__ = ["slerp_coefficients", "slerp_coefficients_of_layers", "slerp_pair"]

Floats = NDArray[np.float64]
SIN_PARALLEL = 1e-6  # below this sin W the two directions count as parallel: LERP limit
ANGLE_OPPOSITE = 1e-3  # this close to pi (radians) the path is undefined


def slerp_coefficients(gram_MM: Floats, weights_M: Sequence[float] | Floats, *, layer: str = "") -> Floats:
    """Eq. 26 with general weights: factors of M vectors in their iterated SLERP, in the order given.

    The m-th vector joins with lam_m = w_m / sum_{j<=m} w_j, which is 1/m for equal weights. Each step's angle comes
    from the Gram: <x, v_m> = (gram x)_m and |x|^2 = x' gram x for the factors x so far. Weight 0 leaves a vector out.

    Example: three orthonormal vectors, equal weights -> (.6124, .6124, .5): slerp at 1/2 gives sin 45deg = .7071 twice;
    at 1/3 of 90deg the first two are scaled by sin 60deg = .8660 and the third gets sin 30deg = .5.

    Raises GeometryError naming `layer` if a step would join opposite vectors.
    """
    coef_1M: Floats = slerp_coefficients_of_layers(np.asarray(gram_MM)[None], weights_M, layers=[layer])
    row: Floats = coef_1M[0]
    return row


def slerp_coefficients_of_layers(
    gram_LMM: Floats, weights_M: Sequence[float] | Floats, *, layers: Sequence[str]
) -> Floats:
    """`slerp_coefficients` of all layers at once, [L, M]: a slider of a model of 30 layers asks for them per frame.

    Raises GeometryError naming the first layer in which a step would join opposite vectors.
    """
    x_LM = np.zeros(gram_LMM.shape[:2])
    lengths_LM = np.sqrt(np.maximum(np.diagonal(gram_LMM, axis1=1, axis2=2), 0.0))
    total = 0.0
    for m, weight in enumerate(np.asarray(weights_M, dtype=np.float64).tolist()):
        if weight == 0:
            continue
        total += weight
        if total == weight:
            x_LM[:, m] = 1.0
            continue
        square_L = np.einsum("lm,lmk,lk->l", x_LM, gram_LMM, x_LM)
        scale_L = np.sqrt(np.maximum(square_L, 0.0)) * lengths_LM[:, m]
        inner_L = np.einsum("lm,lm->l", gram_LMM[:, m], x_LM)
        cosine_L = np.where(scale_L > 0, inner_L / np.where(scale_L > 0, scale_L, 1.0), 1.0)
        keep_L, join_L, opposite_L = _pairs(cosine_L, weight / total)
        if opposite_L.any():
            row = int(opposite_L.argmax())
            raise GeometryError(f"layer {layers[row]!r}, policy {m + 1}: {_opposite(cosine_L[row])}")
        x_LM *= keep_L[:, None]
        x_LM[:, m] += join_L
    return x_LM


def slerp_pair(cosine: float, lam: float) -> tuple[float, float]:
    """Equation SLERP: the factors (sin((1-lam)W)/sin W, sin(lam W)/sin W) of two vectors whose angle is W.

    Example: orthogonal vectors, lam = 1/2 -> (.7071, .7071). Parallel ones (sin W < 1e-6) -> the limit (1-lam, lam).
    Raises GeometryError when W is within 1e-3 of pi: opposite vectors have no shortest path.
    """
    keep, join, opposite = _pairs(np.array([cosine]), lam)
    if opposite[0]:
        raise GeometryError(_opposite(cosine))
    return float(keep[0]), float(join[0])


def _pairs(cosine_L: Floats, lam: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """The two factors of each pair, and which pairs are opposite and have none."""
    angle_L = np.arccos(np.clip(cosine_L, -1.0, 1.0))
    sine_L = np.sin(angle_L)
    parallel_L = sine_L < SIN_PARALLEL
    sine_L = np.where(parallel_L, 1.0, sine_L)
    keep_L = np.where(parallel_L, 1.0 - lam, np.sin((1.0 - lam) * angle_L) / sine_L)
    join_L = np.where(parallel_L, lam, np.sin(lam * angle_L) / sine_L)
    return keep_L, join_L, np.pi - angle_L < ANGLE_OPPOSITE


def _opposite(cosine: float) -> str:
    angle = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
    return (
        f"the task vectors are opposite (angle {angle:.2f} degrees), so their SLERP is undefined; "
        "use --method lerp or drop one of them"
    )
