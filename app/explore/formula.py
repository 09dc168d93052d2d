"""A place as a formula with its numbers, and how much of each policy is in it. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.ui import MINUS, number
from warp_core.service.documents import GeometryDocument
from warp_core.service.places import full_weights, is_sft
from warp_core.service.protocol import Place

__all__ = ["Share", "formula", "shares", "shares_note"]

Line = list[tuple[str, str]]
THETA, ETA, DOT = "\u03b8", "\u03b7", "\u00b7"
SFT_NAME = "SFT policy"
_NAMES = {"slerp": "SLERP", "lerp": "LERP", "slerp-weights": "SLERP of weights"}


@dataclass(frozen=True, kw_only=True)
class Share:
    """The factor of one model in a merge, over the layers."""

    name: str
    mean: float
    low: float
    high: float
    policy: int | None
    """1-based; None for the SFT policy and the init."""


def formula(place: Place, num_policies: int) -> list[Line]:
    """Return the recipe as lines of (text, kind); kind is "sub" for an index and "num" for what the sliders set."""
    if is_sft(place):
        return [[(f"{THETA} = ", ""), *_theta("SFT")]]
    weights = full_weights(place, num_policies)
    ones = [m for m, weight in enumerate(weights, 1) if math.isclose(weight, 1.0, abs_tol=1e-6)]
    merged = str(ones[0]) if ones else place.method.split("-")[0].upper()
    lines: list[Line] = []
    if place.eta == 1:
        lines.append([(f"{THETA} = ", ""), *_theta(merged)])
    else:
        start = "SFT" if place.towards == "sft" or place.iteration == 1 else f"init,{place.iteration}"
        lines.append(
            [(f"{THETA} = (1 {MINUS} {ETA}) {DOT} ", ""), *_theta(start), (f" + {ETA} {DOT} ", ""), *_theta(merged)]
        )
        numbers = [(_factor(1 - place.eta), "num"), (f" {DOT} ", ""), *_theta(start), (" + ", "")]
        lines.append([("  = ", ""), *numbers, (_factor(place.eta), "num"), (f" {DOT} ", ""), *_theta(merged)])
    if not ones:
        lines.append(_merge_line(place, weights, merged))
    return lines


def shares(place: Place, geometry: GeometryDocument, coef_LK: NDArray[np.float64]) -> list[Share]:
    """Return the factors of the models, adding up to 1 in each layer: init or SFT policy first, then the policies."""
    count = len(geometry.policies)
    rest_L = 1.0 - coef_LK.sum(axis=1)
    start = SFT_NAME if place.iteration == 1 else f"init of iteration {place.iteration}"
    found = [_share(start, rest_L, None)]
    if geometry.has_sft_column:
        found.insert(0, _share(SFT_NAME, coef_LK[:, count], None))
    found += [_share(f"policy {m + 1}", coef_LK[:, m], m + 1) for m in range(count)]
    return [share for share in found if share.policy is not None or max(abs(share.low), abs(share.high)) > 5e-4]


def shares_note(found: Sequence[Share], num_layers: int) -> str:
    """Say how much the factors differ between the layers."""
    if not found:
        return ""
    widest = max(found, key=lambda share: share.high - share.low)
    if widest.high - widest.low < 0.005:
        return f"The same in all {num_layers} layers."
    return f"Means over {num_layers} layers; {widest.name} from {number(widest.low)} to {number(widest.high)}."


def _share(name: str, values_L: NDArray[np.float64], policy: int | None) -> Share:
    mean, low, high = (float(value) for value in (values_L.mean(), values_L.min(), values_L.max()))
    return Share(name=name, mean=mean, low=low, high=high, policy=policy)


def _factor(value: float) -> str:
    """A factor that was set: as many decimals as it has, up to three."""
    text = f"{abs(value):.3f}".rstrip("0").rstrip(".")
    return f"{MINUS}{text}" if value < 0 and text != "0" else text


def _theta(index: str) -> Line:
    return [(THETA, ""), (index, "sub")]


def _merge_line(place: Place, weights: Sequence[float], merged: str) -> Line:
    line: Line = [*_theta(merged), (" = ", "")]
    if place.method == "lerp":
        for m, weight in enumerate(weights, 1):
            line += [*([(" + ", "")] if m > 1 else []), (_factor(weight), "num"), (f" {DOT} ", ""), *_theta(str(m))]
        return line
    line.append((f"{_NAMES[place.method]}(", ""))
    for m, weight in enumerate(weights, 1):
        line += [*([(", ", "")] if m > 1 else []), *_theta(str(m)), (" at ", ""), (_factor(weight), "num")]
    return [*line, (")", "")]
