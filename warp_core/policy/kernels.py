"""Linear layers whose weight stays as it is, multiplied as fast as the device can.

A decoding step of a few rows reads every weight once and computes little. On CPUs torch's own matrix product is far
from memory speed there (a sixth of it, for the output head); oneDNN with the weight laid out for it once comes close.
"""

from functools import cache
from typing import Protocol

import torch
from torch.nn import functional

__all__ = ["Kernel", "make_kernel", "packs"]

_PACKED_ROWS = 4  # the layout is chosen for so many rows; it serves any number


class Kernel(Protocol):
    """x -> x W' + bias, without gradients."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to [..., I]; a new tensor [..., O]."""

    def dense(self) -> torch.Tensor:
        """Return W [O, I]."""


class _Plain:
    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        self._weight, self._bias = weight_OI, bias_O

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)

    def dense(self) -> torch.Tensor:
        return self._weight


class _Packed:
    """Holds the weight in oneDNN's own layout and nothing else."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _PACKED_ROWS)
        self._bias = bias_O

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")

    def dense(self) -> torch.Tensor:
        return self._weight.to_dense()

    def __deepcopy__(self, memo: object) -> "_Packed":
        """The weight never changes: a copy of a model shares it."""
        return self


@torch.no_grad()
def make_kernel(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Kernel:
    """Return the fastest kernel for a weight; on the CPU it may be a copy in another layout, so let go of yours."""
    if packs(weight_OI.device, weight_OI.dtype):
        return _Packed(weight_OI, bias_O)
    return _Plain(weight_OI, bias_O)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `make_kernel` lays a weight out anew there, which is a copy."""
    return device.type == "cpu" and _can_pack(dtype)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor multiplies packed weights of a dtype, and rightly: these are operators that
    torch uses itself but does not promise."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 24), (40,), (2, 3, 24)))
    try:
        packed = _Packed(weight, bias)
        close = torch.allclose(packed(x).float(), functional.linear(x, weight, bias).float(), rtol=2e-2, atol=2e-2)
        return close and torch.equal(packed.dense(), weight)
    except (AttributeError, RuntimeError):  # not built with oneDNN, another signature, no instructions for the dtype
        return False
