"""The fused head against autograd on plain operations."""

import pytest
import torch

from warp_core.policy import head
from warp_core.policy.head import head_logprobs, plain_head_logprobs

N, H, V = 7, 5, 11


def inputs(*, bias: bool, trained: bool, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((N, H), (V, H), (V,))
    )
    token_N = torch.randint(V, (N,), generator=generator)
    tensors = [hidden.requires_grad_(True), weight.requires_grad_(trained)]
    tensors.append(offset.requires_grad_(trained) if bias else None)
    return tensors, token_N


def plain(hidden, weight, bias, token_N, temperature):
    logits = torch.nn.functional.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32))
    return (logits / temperature).log_softmax(dim=1)[torch.arange(N), token_N]


@pytest.fixture(params=[1 << 24, 3 * V], ids=["one-chunk", "chunks"], autouse=True)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_NUMBERS", request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_values_and_gradients_are_those_of_plain_operations(bias, trained):
    (hidden, weight, offset), token_N = inputs(bias=bias, trained=trained)
    fused = head_logprobs(hidden, weight_VH=weight, bias_V=offset, token_N=token_N, temperature=0.7)
    expected = plain(hidden, weight, offset, token_N, 0.7)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-13)
    sought = [one for one in (hidden, weight, offset) if one is not None and one.requires_grad]
    g_N = torch.linspace(-2, 1, N, dtype=torch.float64)
    found = torch.autograd.grad(fused, sought, g_N)
    for one, other in zip(found, torch.autograd.grad(expected, sought, g_N), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("trained", [False, True])
def test_gradcheck(trained):
    (hidden, weight, offset), token_N = inputs(bias=True, trained=trained)

    def function(*tensors):
        return head_logprobs(tensors[0], weight_VH=tensors[1], bias_V=tensors[2], token_N=token_N, temperature=1.3)

    assert torch.autograd.gradcheck(function, (hidden, weight, offset))


@pytest.mark.parametrize("trained", [False, True])
def test_bfloat16_is_float32_up_to_rounding(trained):
    (hidden, weight, _), token_N = inputs(bias=False, trained=trained, dtype=torch.bfloat16)
    low = head_logprobs(hidden, weight_VH=weight, bias_V=None, token_N=token_N, temperature=0.7)
    assert low.dtype == torch.float32
    precise = [one.detach().float().requires_grad_(one.requires_grad) for one in (hidden, weight)]
    high = head_logprobs(precise[0], weight_VH=precise[1], bias_V=None, token_N=token_N, temperature=0.7)
    torch.testing.assert_close(low, high, rtol=0, atol=0.05)
    sought = [one for one in (hidden, weight) if one.requires_grad]
    found = torch.autograd.grad(low.sum(), sought)
    for one, other in zip(found, torch.autograd.grad(high.sum(), [p for p in precise if p.requires_grad]), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0.02 * float(other.abs().max()))


def test_any_head_without_gradients():
    (hidden, weight, offset), token_N = inputs(bias=True, trained=False)
    found = plain_head_logprobs(hidden.detach(), head=lambda x: x @ weight.T + offset, token_N=token_N, temperature=0.7)
    torch.testing.assert_close(found, plain(hidden, weight, offset, token_N, 0.7).detach(), rtol=0, atol=1e-13)


def test_logits_of_all_rows_are_never_there(monkeypatch):
    """The most rows that a product with the vocabulary has at a time, on the way there and back."""
    monkeypatch.setattr(head, "CHUNK_NUMBERS", 2 * V)
    (hidden, weight, offset), token_N = inputs(bias=False, trained=True)
    seen = []
    inner = head._normalised
    monkeypatch.setattr(head, "_normalised", lambda logits, t: seen.append(len(logits)) or inner(logits, t))
    head_logprobs(hidden, weight_VH=weight, bias_V=offset, token_N=token_N, temperature=1.0).sum().backward()
    assert seen == [2, 2, 2, 1] * 2
