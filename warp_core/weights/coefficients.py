"""From a recipe and a Gram matrix to the coefficients of a merge: the method itself, in a few dozen floats.

    merged = init_L * theta_init + sum_m coef_LM * delta_m + towards_L * theta_towards        (per layer)

Shape suffixes: L layers, M policies, K = 1 + M (+ 1) sources [init, policies..., towards].
Equation numbers are those of arXiv 2406.16768.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import RecipeError
from warp_core.slerp import slerp_coefficients, slerp_coefficients_of_layers, slerp_pair
from warp_core.weights.geometry import Geometry
from warp_core.weights.layers import group_of
from warp_core.weights.recipes import Recipe

__all__ = ["Coefficients", "coefficients", "slerp_coefficients", "slerp_pair"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coefficients:
    """Coefficients of a merge, one row per layer.

    Attributes:
        layers: names of the rows.
        granularity: what a row is: "layer", "tensor" or "model".
        init_L: factor of theta_init (1 for slerp and lerp without `towards`).
        coef_LM: factors of the task vectors.
        towards_L: factor of theta_towards (0 without `towards`).
    """

    layers: tuple[str, ...]
    granularity: str
    init_L: Floats
    coef_LM: Floats
    towards_L: Floats

    @property
    def sources_LK(self) -> Floats:
        """The same merge as factors of the checkpoints [init, policies..., towards] instead of task vectors.

        A factor that is exactly 0 or 1 stays so, hence eta = 0 gives theta_init and M = 1, eta = 1 the policy itself.
        """
        rest_L = self.init_L - self.coef_LM.sum(axis=1)
        return np.concatenate([rest_L[:, None], self.coef_LM, self.towards_L[:, None]], axis=1)

    def row(self, tensor_name: str) -> int | None:
        """The row of a tensor; None for a tensor that no policy moves: there the merge is theta_init."""
        return self._rows.get(group_of(tensor_name, granularity=self.granularity))

    def to_json(self) -> dict[str, list[float]]:
        """{layer: [factor of delta_1, ..., delta_M]}."""
        return {name: row.tolist() for name, row in zip(self.layers, self.coef_LM, strict=True)}

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.layers)}


def coefficients(recipe: Recipe, geometry: Geometry) -> Coefficients:
    """Evaluate a recipe on a geometry. Pure: no weights are read, a model of 30 layers takes under a millisecond.

    slerp: eq. 26 on task vectors; lerp: the weights; slerp-weights: eq. 26 on full weights; then LITI with recipe.eta.

    Raises RecipeError if the geometry is not of these checkpoints or granularity, GeometryError (naming the layer) if
    two vectors are opposite, so that no shortest path between them exists.
    """
    columns = _columns(recipe, geometry)
    names = tuple(layer.name for layer in geometry.layers)
    weights_M = np.asarray(recipe.weights, dtype=np.float64)
    weights_M = weights_M / weights_M.sum()
    if recipe.method == "lerp":
        merged_LM = np.tile(weights_M, (len(names), 1))
    else:
        gram_LMM = geometry.gram_LMM if recipe.method == "slerp" else geometry.full_gram_LMM
        gram_LMM = gram_LMM[:, columns][:, :, columns]
        merged_LM = slerp_coefficients_of_layers(gram_LMM, weights_M, layers=names)
    # theta_merged = base_L * theta_init + sum_m merged_LM * delta_m
    base_L = merged_LM.sum(axis=1) if recipe.method == "slerp-weights" else np.ones(len(names))
    to_init = recipe.towards is None
    rest_L = np.full(len(names), 1.0 - recipe.eta)
    return Coefficients(
        layers=names,
        granularity=recipe.granularity,
        init_L=1.0 + recipe.eta * (base_L - 1.0) if to_init else recipe.eta * base_L,
        coef_LM=recipe.eta * merged_LM,
        towards_L=np.zeros(len(names)) if to_init else rest_L,
    )


def _columns(recipe: Recipe, geometry: Geometry) -> list[int]:
    """Which rows of the Gram are the recipe's policies; a geometry may know more policies than a recipe uses."""
    missing = sorted(set(recipe.policies) - set(geometry.policies))
    if recipe.init != geometry.init or missing:
        what = f"policies {missing}" if missing else f"init {recipe.init}"
        raise RecipeError(
            f"recipe: {what} not in this geometry (init {geometry.init}); compute it for these checkpoints"
        )
    if recipe.granularity != geometry.granularity:
        raise RecipeError(
            f"recipe: granularity {recipe.granularity!r}, but the geometry is per {geometry.granularity}; use one"
        )
    return [geometry.policies.index(policy) for policy in recipe.policies]
