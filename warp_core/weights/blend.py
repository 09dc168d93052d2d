"""The arithmetic of a merge on one piece of one tensor, shared by the streamed and the resident merge.

Products and sums are separate float32 operations, so an element's result does not depend on where a piece begins: what
is previewed in memory is bit for bit what is exported (on one device). Float64 checkpoints are summed in float64.

Shape suffixes: K sources [init, policies..., towards]; R rank.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from warp_core.weights.adapters import FactorStack

__all__ = ["add_update", "blend", "working_dtype"]


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any input is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def blend(pieces: Sequence[torch.Tensor], factors_K: NDArray[np.float64]) -> torch.Tensor:
    """sum_k factors[k] * pieces[k], in float32 at least, as a new tensor.

    Pieces with factor 0 are not touched, so one source with factor 1 comes back bitwise.
    """
    dtype = working_dtype(*(piece.dtype for piece in pieces))
    total: torch.Tensor | None = None
    for piece, factor in zip(pieces, factors_K.tolist(), strict=True):
        if factor == 0:
            continue
        term = piece.to(dtype, copy=True)
        if factor != 1:
            term.mul_(factor)
        total = term if total is None else total.add_(term)
    return pieces[0].to(dtype, copy=True).zero_() if total is None else total


def add_update(
    weight: torch.Tensor,
    b: torch.Tensor,
    stack: FactorStack,
    *,
    scale: float,
    first: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """scale * weight + B A for rows first.. of an adapted weight (or + (B A)' where it is stored transposed).

    weight: the rows [n, width], float32 or float64; b: B [out, R] weighted for this merge; out: where to write.
    """
    rows = slice(first, first + len(weight))
    a, b = stack.a.to(weight.dtype), b.to(weight.dtype)
    left, right = (a[:, rows].T, b.T) if stack.transposed else (b[rows], a)
    return torch.addmm(weight, left, right, beta=scale, out=out)
