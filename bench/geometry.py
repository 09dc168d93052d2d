"""A slider position to the factors of every layer, once the inner products are known."""

import statistics
from typing import Any

import numpy as np

from bench.rows import Row
from bench.settings import Settings
from bench.timing import interleaved_s
from warp_core.weights import Geometry, LayerInfo, Recipe, coefficients

__all__ = ["measure"]

LAYERS = 30
POLICIES = (2, 3, 5, 10)
AIM_MS = 1.0


def measure(settings: Settings) -> list[Row]:
    """Return the milliseconds of `coefficients` for growing numbers of policies and for each method at M = 5."""
    repeats = 20 if settings.quick else 500
    cases = {f"{LAYERS} layers, M = {count}, slerp": (_geometry(count), _recipe(count, "slerp")) for count in POLICIES}
    for method in ("lerp", "slerp-weights"):
        cases[f"{LAYERS} layers, M = 5, {method}"] = (_geometry(5), _recipe(5, method))
    calls = {name: lambda case=case: coefficients(case[1], case[0]) for name, case in cases.items()}
    found = interleaved_s(calls, repeats=repeats, warm=5)
    rows = []
    for name, times in found.items():
        value = 1e3 * statistics.median(times)
        aimed: dict[str, Any] = (
            {"aim": "< 1 ms", "meets": value < AIM_MS} if name == f"{LAYERS} layers, M = 5, slerp" else {}
        )
        rows.append(
            Row(bench="geometry", case=name, quantity="slider to coefficients", value=value, unit="ms", **aimed)
        )
    return rows


def _geometry(policies: int) -> Geometry:
    """Task vectors at random angles, of a length of a hundredth of the init's."""
    random = np.random.default_rng(policies)
    x_LNC = random.standard_normal((LAYERS, 1 + policies, 64)) * np.array([100.0] + [1.0] * policies)[:, None]
    layers = tuple(LayerInfo(name=f"model.layers.{number}", num_params=64) for number in range(LAYERS))
    names = tuple(f"policy {number}" for number in range(policies))
    gram_LNN = x_LNC @ x_LNC.swapaxes(1, 2)
    return Geometry(init="init", policies=names, granularity="layer", layers=layers, gram_LNN=gram_LNN)


def _recipe(policies: int, method: str) -> Recipe:
    names = tuple(f"policy {number}" for number in range(policies))
    return Recipe.from_json(
        {"init": "init", "policies": names, "weights": (1 / policies,) * policies, "eta": 0.4, "method": method}
    )
