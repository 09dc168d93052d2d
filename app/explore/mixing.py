"""How much of each policy a place means, and what the fitted surface predicts there. Pure functions, float64.

The app never imports torch, and `warp_core.weights` does; a test holds `mix` against `coefficients` there.
Shape suffixes: L layers, M policies, K columns (M, or M + 1 with the SFT policy last), P measured points.
"""

import math

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import GeometryError
from warp_core.service.documents import GeometryDocument, Prediction
from warp_core.service.places import full_weights
from warp_core.service.protocol import Place
from warp_core.slerp import slerp_coefficients

__all__ = ["mix", "predict"]

Floats = NDArray[np.float64]


def mix(place: Place, geometry: GeometryDocument) -> Floats | None:
    """Return c_LK with theta = theta_init + sum_k c_k delta_k in each layer.

    None for SLERP of full weights, whose angles are not in the document.

    Raises:
        RecipeError: the place has another number of weights than there are policies.
        GeometryError: two task vectors of a layer are opposite, so that no shortest path joins them.
    """
    count = len(geometry.policies)
    weights_M = np.asarray(full_weights(place, count), dtype=np.float64)
    weights_M = weights_M / weights_M.sum()
    if place.method == "slerp-weights":
        return None
    if place.method == "lerp":
        merged_LM = np.tile(weights_M, (len(geometry.layers), 1))
    else:
        gram_LKK = np.asarray(geometry.gram_LKK, dtype=np.float64)
        layers = zip(gram_LKK, geometry.layers, strict=True)
        merged_LM = np.array([_slerp(gram_KK[:count, :count], weights_M, layer=name) for gram_KK, name in layers])
    if not geometry.has_sft_column:
        return place.eta * merged_LM
    rest_L1 = np.full((len(merged_LM), 1), 1.0 - place.eta if place.towards == "sft" else 0.0)
    return np.concatenate([place.eta * merged_LM, rest_L1], axis=1)


def predict(prediction: Prediction, coef_LK: Floats, geometry: GeometryDocument) -> dict[str, float]:
    """Evaluate every surface of a prediction at the coefficients of a place; its docstring has the formula."""
    gram_LKK = np.asarray(geometry.gram_LKK, dtype=np.float64)
    from_points_PLK = coef_LK[None] - np.asarray(prediction.points_PLK, dtype=np.float64)
    d2_P = np.einsum("plk,lkj,plj->p", from_points_PLK, gram_LKK, from_points_PLK, optimize=True) / prediction.scale
    from_sft_LK = coef_LK - np.asarray(prediction.sft_LK, dtype=np.float64)
    length = math.sqrt(max(0.0, float(np.einsum("lk,lkj,lj->", from_sft_LK, gram_LKK, from_sft_LK)) / prediction.scale))
    trend = np.array([1.0, length, length**2])
    return {
        name: float(
            trend @ np.asarray(surface.beta)
            + np.exp(-d2_P / (2.0 * surface.lengthscale**2)) @ np.asarray(surface.alpha)
        )
        for name, surface in prediction.surfaces.items()
    }


def _slerp(gram_MM: Floats, weights_M: Floats, *, layer: str) -> Floats:
    try:
        return slerp_coefficients(gram_MM, weights_M)
    except GeometryError as error:
        raise GeometryError(f"SLERP is undefined: task vectors of layer {layer!r} are opposite; choose LERP") from error
