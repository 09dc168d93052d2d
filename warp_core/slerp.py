"""SLERP on a Gram matrix alone: what the engine merges by and the app shows, without torch.

Shape suffixes: M policies. Equation numbers are those of arXiv 2406.16768.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import GeometryError

__all__ = ["slerp_coefficients", "slerp_pair"]

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
    x_M = np.zeros(len(gram_MM))
    total = 0.0
    for m, weight in enumerate(np.asarray(weights_M, dtype=np.float64)):
        if weight == 0:
            continue
        total += weight
        length, own = math.sqrt(max(float(x_M @ gram_MM @ x_M), 0.0)), math.sqrt(max(float(gram_MM[m, m]), 0.0))
        scale = length * own
        cosine = float(gram_MM[m] @ x_M) / scale if scale > 0 else 1.0
        lam = weight / total
        try:
            keep, join = (0.0, 1.0) if total == weight else slerp_pair(cosine, lam)
        except GeometryError as err:
            raise GeometryError(f"layer {layer!r}, policy {m + 1}: {err}") from None
        x_M *= keep
        x_M[m] += join
    return x_M


def slerp_pair(cosine: float, lam: float) -> tuple[float, float]:
    """Equation SLERP: the factors (sin((1-lam)W)/sin W, sin(lam W)/sin W) of two vectors whose angle is W.

    Example: orthogonal vectors, lam = 1/2 -> (.7071, .7071). Parallel ones (sin W < 1e-6) -> the limit (1-lam, lam).
    Raises GeometryError when W is within 1e-3 of pi: opposite vectors have no shortest path.
    """
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.pi - angle < ANGLE_OPPOSITE:
        raise GeometryError(
            f"the task vectors are opposite (angle {math.degrees(angle):.2f} degrees), so their SLERP is undefined; "
            "use --method lerp or drop one of them"
        )
    sine = math.sin(angle)
    if sine < SIN_PARALLEL:
        return 1.0 - lam, lam
    return math.sin((1.0 - lam) * angle) / sine, math.sin(lam * angle) / sine
