"""From the measured points of an iteration to the surface through them that the page draws between them.

Shape suffixes: P measured points, L layers, K columns of the Gram.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from warp_core.evaluation.prediction import fit_surface, mean_square, squared_distances
from warp_core.service.documents import FrontDocument, FrontPoint, Prediction, Surface
from warp_core.service.geometry import coefficients_at
from warp_core.service.places import is_sft
from warp_core.service.protocol import Place
from warp_core.weights import Geometry

__all__ = ["prediction_through"]

Floats = NDArray[np.float64]

MIN_POINTS = 4
SAME = 1e-10  # squared distance below which two recipes are one model


def prediction_through(
    front: FrontDocument, geometry: Geometry, *, iteration: int, num_policies: int
) -> Prediction | None:
    """Return the surface through the measured points of one iteration and the SFT policy; None with fewer than four.

    Args:
        front: all points; those of the default evaluation count.
        geometry: of the iteration, with a column for the SFT policy where that is not the init.
        iteration: whose merges and policies to take.
        num_policies: M.
    """
    sft_LK = coefficients_at(geometry, Place(iteration=iteration, eta=0.0), num_policies)
    placed = list(_placed(front, geometry, iteration, num_policies))
    gram_LKK = geometry.gram_LMM
    scale = mean_square(gram_LKK, num_policies=num_policies)
    if not placed or scale == 0:
        return None
    points_PLK = np.stack([c_LK for _, c_LK in placed])
    d2_PP = squared_distances(points_PLK, points_PLK, gram_LKK, scale=scale)
    # The same model under two recipes, such as eta = 1 towards either end, counts once.
    kept = [p for p in range(len(placed)) if not (d2_PP[p, :p] < SAME).any()]
    if len(kept) < MIN_POINTS:
        return None
    points, points_PLK = [placed[p][0] for p in kept], points_PLK[kept]
    u_P = np.sqrt(squared_distances(points_PLK, sft_LK[None], gram_LKK, scale=scale)[:, 0])
    return Prediction(
        iteration=iteration,
        scale=scale,
        sft_LK=sft_LK.tolist(),
        points_PLK=points_PLK.tolist(),
        keys=tuple(point.key for point in points),
        surfaces=_surfaces(points, d2_PP[np.ix_(kept, kept)], u_P),
    )


def _placed(
    front: FrontDocument, geometry: Geometry, iteration: int, num_policies: int
) -> Iterator[tuple[FrontPoint, Floats]]:
    """Yield the points that the surface goes through, with their coefficients."""
    default = next((note.id for note in front.evaluations if note.is_default), None)
    for point in front.points:
        place = point.place
        if point.kind == "training" or place is None or point.evaluation != default:
            continue
        if point.kind == "sft":
            place = Place(iteration=iteration, eta=0.0)
        # A SLERP of full weights leaves the plane of the task vectors a little, and the page cannot follow it there.
        elif place.iteration != iteration or place.method == "slerp-weights" or is_sft(place):
            continue
        yield point, coefficients_at(geometry, place, num_policies)


def _surfaces(points: Sequence[FrontPoint], d2_PP: Floats, u_P: Floats) -> dict[str, Surface]:
    """Fit every metric that all points have."""
    found = {}
    for name in points[0].metrics:
        if not all(name in point.metrics for point in points):
            continue
        metrics = [point.metrics[name] for point in points]
        fitted = fit_surface(
            np.array([metric.mean for metric in metrics]),
            np.array([np.nan if metric.se is None else metric.se for metric in metrics]),
            d2_PP,
            u_P,
            zero_at_sft=name == "kl",
        )
        found[name] = Surface(
            beta=fitted.beta,
            alpha=tuple(fitted.alpha_P.tolist()),
            lengthscale=fitted.lengthscale,
            loo_rmse=fitted.loo_rmse,
        )
    return found
