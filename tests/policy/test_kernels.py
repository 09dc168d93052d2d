"""Kernels give what a linear layer gives, whatever the layout of the weight."""

import pytest
import torch
from torch.nn import functional

from warp_core.policy import kernels
from warp_core.policy.kernels import make_kernel

SHAPES = [(40, 24), (1, 7), (70, 1), (257, 33)]


def linear(shape, dtype=torch.float32, *, bias=True):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return weight, torch.randn(shape[0], generator=generator).to(dtype) if bias else None


def inputs(width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for shape in [(1, width), (3, 1, width), (2, 5, width), (64, width), (2, 2, 3, width)]:
        yield torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("can_pack", [True, False])
def test_the_product_of_torch(shape, bias, can_pack, monkeypatch):
    if not can_pack:
        monkeypatch.setattr(kernels, "_can_pack", lambda dtype: False)
    weight, bias_O = linear(shape, bias=bias)
    kernel = make_kernel(weight, bias_O)
    for x in inputs(shape[1]):
        out = kernel(x)
        torch.testing.assert_close(out, functional.linear(x, weight, bias_O), rtol=1e-5, atol=1e-5)
        assert out.is_contiguous()
    assert torch.equal(kernel.dense(), weight)


def test_inputs_and_weights_that_are_not_contiguous():
    weight, _ = linear((24, 40))
    kernel = make_kernel(weight.T, None)
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(2)).T
    torch.testing.assert_close(kernel(x), x @ weight, rtol=1e-5, atol=1e-5)
    assert torch.equal(kernel.dense(), weight.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    weight, bias = linear((40, 24), dtype)
    kernel = make_kernel(weight, bias)
    for x in inputs(24, dtype):
        assert kernel(x).dtype == dtype
        torch.testing.assert_close(kernel(x), functional.linear(x, weight, bias), rtol=2e-2, atol=5e-2)


def test_a_torch_without_these_operators_falls_back(monkeypatch):
    class Without:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Without())
    kernels._can_pack.cache_clear()
    try:
        weight, bias = linear((40, 24))
        assert make_kernel(weight, bias).dense() is weight
    finally:
        kernels._can_pack.cache_clear()


def test_wrong_numbers_are_not_trusted(monkeypatch):
    monkeypatch.setattr(kernels._Packed, "__call__", lambda self, x: torch.zeros(*x.shape[:-1], 40))
    kernels._can_pack.cache_clear()
    try:
        assert not kernels._can_pack(torch.float32)
    finally:
        kernels._can_pack.cache_clear()
