"""A naive second implementation of the method, on whole float64 weight vectors: what the fast code must agree with."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

Weights = dict[str, np.ndarray]


def read_folder(folder: Path, *, stem: str = "model") -> Weights:
    """All tensors of a folder as float64."""
    weights: Weights = {}
    for file in sorted(folder.glob(f"{stem}*.safetensors")):
        weights |= {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    return weights


def unit_of(name: str, granularity: str) -> str:
    """Which tensors share an angle, found by hand for the names of the tiny models."""
    if granularity == "model":
        return "all"
    if granularity == "tensor":
        return name
    for marker in (".layers.", ".h."):
        if marker in name:
            head, tail = name.split(marker)
            return f"{head}{marker}{tail.split('.')[0]}"
    return name.rsplit(".", 1)[0]


def slerp(u: np.ndarray, v: np.ndarray, lam: float) -> np.ndarray:
    """SLERP of two vectors by the textbook formula; LERP when they are parallel or one is zero."""
    nu, nv = np.linalg.norm(u), np.linalg.norm(v)
    if nu == 0 or nv == 0:
        return (1 - lam) * u + lam * v
    angle = math.acos(np.clip(np.dot(u / nu, v / nv), -1, 1))
    if math.sin(angle) < 1e-6:
        return (1 - lam) * u + lam * v
    return math.sin((1 - lam) * angle) / math.sin(angle) * u + math.sin(lam * angle) / math.sin(angle) * v


def iterated_slerp(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Eq. 26: each vector joins what was merged before with lam = w_m / (w_1 + ... + w_m)."""
    merged, total = None, 0.0
    for vector, weight in zip(vectors, weights, strict=True):
        if weight == 0:
            continue
        total += weight
        merged = vector.copy() if merged is None else slerp(merged, vector, weight / total)
    return merged


def merge(
    init: Weights,
    policies: Sequence[Weights],
    *,
    method: str = "slerp",
    weights: Sequence[float] | None = None,
    eta: float = 1.0,
    granularity: str = "layer",
    towards: Weights | None = None,
) -> Weights:
    """The merged float64 weights, unit by unit on flat vectors."""
    weights = weights or [1 / len(policies)] * len(policies)
    start = towards or init
    units: dict[str, list[str]] = {}
    for name in sorted(init):
        units.setdefault(unit_of(name, granularity), []).append(name)
    out: Weights = {}
    for names in units.values():
        flat = [np.concatenate([w[n].ravel() for n in names]) for w in (init, *policies)]
        if method == "slerp":
            full = flat[0] + iterated_slerp([f - flat[0] for f in flat[1:]], weights)
        elif method == "lerp":
            full = sum(w * f for w, f in zip(weights, flat[1:], strict=True))
        else:
            full = iterated_slerp(flat[1:], weights)
        position = 0
        for name in names:
            size = init[name].size
            merged = full[position : position + size].reshape(init[name].shape)
            out[name] = (1 - eta) * start[name] + eta * merged
            position += size
    return out
