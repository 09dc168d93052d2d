"""The arithmetic of a merge on one piece of one tensor, shared by the streamed and the resident merge.

A term is multiplied and added in one operation, which rounds once on processors that can and does so for every element
alike: what is previewed in memory is bit for bit what is exported (on one device). Float64 checkpoints are summed in
float64.

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


def blend(
    pieces: Sequence[torch.Tensor],
    factors_K: NDArray[np.float64],
    *,
    out: torch.Tensor | None = None,
    term: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum_k factors[k] * pieces[k], in float32 at least.

    out, term: memory of the size of a piece and of the working dtype, for the result and for a product; new if not
    given. Pieces with factor 0 are not touched, so one source with factor 1 comes back bitwise.
    """
    dtype = working_dtype(*(piece.dtype for piece in pieces))
    total = torch.empty_like(pieces[0], dtype=dtype) if out is None else out
    used = [(piece, factor) for piece, factor in zip(pieces, factors_K.tolist(), strict=True) if factor != 0]
    if not used:
        return total.zero_()
    _product(*used[0], out=total)
    if len(used) > 1 and term is None:
        term = torch.empty_like(total)
    for piece, factor in used[1:]:
        if piece.dtype != dtype:
            assert term is not None
            piece = term.copy_(piece)
        total.add_(piece, alpha=factor)
    return total


def _product(piece: torch.Tensor, factor: float, *, out: torch.Tensor) -> torch.Tensor:
    """factor * piece, rounded once in the dtype of `out`."""
    if factor != 1 and piece.dtype == out.dtype:
        return torch.mul(piece, factor, out=out)
    out.copy_(piece)
    return out if factor == 1 else out.mul_(factor)


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
