"""What a `GeometryDocument` says about a merge, in numbers and in a sentence. No drawing.

Shape suffixes: L layers, M policies, K columns of the Gram matrix, P pairs of policies.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from warp_core.service.documents import GeometryDocument

__all__ = ["Facts", "angles_LP", "facts_of", "full_angles_LP", "pairs_of", "short_names", "table", "what_it_means"]

Floats = NDArray[np.float64]
SIMILAR_DEG, OPPOSITE_DEG = 70.0, 110.0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The geometry of an iteration in a few numbers; angles in degrees, over all layers that were trained and pairs."""

    num_layers: int
    """Layers in which every policy moved."""
    num_still: int
    """Layers in which some policy did not move: they have no angle."""
    mean_deg: float
    low_deg: float
    high_deg: float
    full_deg: float | None
    """Mean angle of the full weights."""
    lerp_share: float
    """Length of the plain mean of the task vectors over the mean of their lengths: what LERP keeps of the update."""
    norm_ratio: float
    """Largest over smallest norm of two policies in one layer, at most."""


def pairs_of(num_policies: int) -> list[tuple[int, int]]:
    """Return the pairs of policies, counted from 0."""
    return list(itertools.combinations(range(num_policies), 2))


def angles_LP(document: GeometryDocument) -> Floats:
    """Angles between task vectors in degrees, NaN in layers where one of the two did not move."""
    norms_LM = np.asarray(document.norms_LM)
    angles_LMM = np.asarray(document.angles_deg_LMM)
    columns = [
        np.where((norms_LM[:, a] > 0) & (norms_LM[:, b] > 0), angles_LMM[:, a, b], np.nan)
        for a, b in pairs_of(len(document.policies))
    ]
    return np.stack(columns, axis=1) if columns else np.empty((len(document.layers), 0))


def full_angles_LP(document: GeometryDocument) -> Floats | None:
    """Angles between full weights in degrees; None where the init was not at hand."""
    if document.full_cosines_LMM is None:
        return None
    cosines_LMM = np.clip(np.asarray(document.full_cosines_LMM), -1.0, 1.0)
    columns = [np.degrees(np.arccos(cosines_LMM[:, a, b])) for a, b in pairs_of(len(document.policies))]
    return np.stack(columns, axis=1) if columns else np.empty((len(document.layers), 0))


def facts_of(document: GeometryDocument) -> Facts | None:
    """Return the facts; None with a single policy, or where no layer was moved by two."""
    angles = angles_LP(document)
    moved_L = np.isfinite(angles).all(axis=1)
    if angles.shape[1] == 0 or not moved_L.any():
        return None
    known = angles[moved_L]
    full = full_angles_LP(document)
    count = len(document.policies)
    norms_LM = np.asarray(document.norms_LM)[moved_L]
    gram_LMM = np.asarray(document.gram_LKK)[moved_L, :count, :count]
    mean_length_L = np.sqrt(np.maximum(gram_LMM.sum(axis=(1, 2)), 0.0)) / count
    return Facts(
        num_layers=int(moved_L.sum()),
        num_still=int((~moved_L).sum()),
        mean_deg=float(known.mean()),
        low_deg=float(known.min()),
        high_deg=float(known.max()),
        full_deg=None if full is None else float(full[moved_L].mean()),
        lerp_share=float((mean_length_L / norms_LM.mean(axis=1)).mean()),
        norm_ratio=float((norms_LM.max(axis=1) / norms_LM.min(axis=1)).max()),
    )


def what_it_means(facts: Facts, *, unit: str = "layer") -> str:
    """Return what the angles mean for SLERP, in sentences with their numbers."""
    over = f"over {facts.num_layers} {unit}s" if facts.num_layers > 1 else "in all"
    span = "" if facts.num_layers == 1 else f" ({facts.low_deg:.1f} to {facts.high_deg:.1f})"
    how = "nearly orthogonal"
    if facts.mean_deg < SIMILAR_DEG:
        how = "similar directions"
    elif facts.mean_deg > OPPOSITE_DEG:
        how = "partly against each other"
    sentences = [
        f"The task vectors stand at {facts.mean_deg:.1f} degrees on average{span} {over}: {how}.",
        f"Their plain mean (LERP) is only {facts.lerp_share:.2f} times as long as they are; SLERP goes along the arc "
        "and keeps the length.",
        f"Two policies' norms differ by a factor of {facts.norm_ratio:.2f} at most.",
    ]
    if facts.full_deg is not None:
        sentences.append(
            f"The full weights stand at {_small(facts.full_deg)} degrees: seen from the origin all policies are one "
            "point, so a SLERP of full weights is no more than their mean."
        )
    if facts.num_still:
        sentences.append(f"In {facts.num_still} further {unit}s some policy did not move, so that there is no angle.")
    return " ".join(sentences)


def _small(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def short_names(layers: Sequence[str]) -> list[str]:
    """Return the names without the dotted beginning that those with a number share: `model.layers.3` is `3`."""
    parts = [name.split(".") for name in layers]
    numbered = [part for part in parts if any(one.isdigit() for one in part)]
    shared = 0
    while (
        numbered and all(len(part) > shared + 1 for part in numbered) and len({part[shared] for part in numbered}) == 1
    ):
        shared += 1
    prefix = numbered[0][:shared] if numbered else []
    return [".".join(part[shared:] if part[:shared] == prefix and len(part) > shared else part) for part in parts]


def table(document: GeometryDocument) -> pd.DataFrame:
    """Return a row per layer and pair; a row per layer where there is a single policy."""
    angles, full = angles_LP(document), full_angles_LP(document)
    norms_LM, cosines_LMM = np.asarray(document.norms_LM), np.asarray(document.cosines_LMM)
    rows = []
    for layer, name in enumerate(document.layers):
        start = {"layer": name, "parameters": document.num_params[layer]}
        for place, (a, b) in enumerate(pairs_of(len(document.policies))):
            angle = float(angles[layer, place])
            rows.append(
                start
                | {
                    "first": document.policies[a],
                    "second": document.policies[b],
                    "angle_deg": angle,
                    "cosine": math.nan if math.isnan(angle) else float(cosines_LMM[layer, a, b]),
                    "norm_first": float(norms_LM[layer, a]),
                    "norm_second": float(norms_LM[layer, b]),
                    "full_angle_deg": math.nan if full is None else float(full[layer, place]),
                }
            )
        if len(document.policies) == 1:
            rows.append(start | {"first": document.policies[0], "norm_first": float(norms_LM[layer, 0])})
    return pd.DataFrame(rows)
