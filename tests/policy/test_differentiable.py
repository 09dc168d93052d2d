"""The parts of a layer against autograd on plain operations, and whole models against transformers."""

import pytest
import torch
from torch.nn import functional

from tests.tiny import build_model
from warp_core.policy.differentiable import Attended, attend, forward_hidden, gated, rms_norm

K, L, J, S, D = 2, 4, 4, 2, 6


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(True)


def place() -> tuple[Attended, torch.Tensor]:
    angles = random(K, L, D // 2, seed=9).detach()
    sees = torch.ones(K, L, L, dtype=torch.bool).tril()
    sees[0, 3, 1] = False
    bias = torch.zeros(K, L, L, dtype=torch.float64).masked_fill_(~sees, -torch.inf)
    cos, sin = (torch.cat([part, part], dim=-1)[:, :, None] for part in (angles.cos(), angles.sin()))
    return Attended(cos_KL1D=cos, sin_KL1D=sin, bias_K11LL=bias[:, None, None], scale=0.3), sees


def rotated(x, where):
    halves = x.chunk(2, dim=-1)
    return x * where.cos_KL1D + torch.cat([-halves[1], halves[0]], dim=-1) * where.sin_KL1D


def plain_attention(query, key, value, where, sees):
    query, key = (rotated(one.view(K, L, -1, D), where) for one in (query, key))
    query, key, value = (one.view(K, L, -1, D).transpose(1, 2) for one in (query, key, value))
    key, value = (one.repeat_interleave(J // S, dim=1) for one in (key, value))
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=sees[:, None], scale=where.scale)
    return out.transpose(1, 2).reshape(K * L, J * D)


def test_attention_and_its_gradients():
    where, sees = place()
    tensors = (random(K * L, J, D, seed=1), random(K * L, S, D, seed=2), random(K * L, S, D, seed=3))
    found, expected = attend(*tensors, place=where), plain_attention(*tensors, where, sees)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    g = random(K * L, J * D, seed=4).detach()
    for one, other in zip(
        torch.autograd.grad(found, tensors, g), torch.autograd.grad(expected, tensors, g), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *parts: attend(*parts, place=where), tensors)


@pytest.mark.parametrize("shape", [(5, D), (5, 3, D)])
def test_norm_and_its_gradients(shape):
    x, weight = random(*shape, seed=1), random(D, seed=2)
    torch.testing.assert_close(
        rms_norm(x, weight, epsilon=1e-3), functional.rms_norm(x, (D,), weight, 1e-3), rtol=0, atol=1e-13
    )
    assert torch.autograd.gradcheck(lambda *parts: rms_norm(*parts, epsilon=1e-3), (x, weight))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda part: rms_norm(part, frozen, epsilon=1e-3), (x,))


def test_gate_and_its_gradients():
    gate, up = random(5, 7, seed=1), random(5, 7, seed=2)
    torch.testing.assert_close(gated(gate, up), functional.silu(gate) * up, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(gated, (gate, up))


def hidden(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    positions, sees = torch.arange(ids.shape[1]).expand(ids.shape), torch.ones(*ids.shape, ids.shape[1]).tril().bool()
    return forward_hidden(model, ids, positions_KL=positions, sees_KLL=sees)


def plain_hidden(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)


def values_and_gradients(compute, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The hidden states and every gradient, each divided by its largest number."""
    out = compute(model, torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(1)))
    out.float().square().sum().backward()
    found = {name: one.grad for name, one in model.base_model.named_parameters()} | {"hidden states": out.detach()}
    return {name: tensor.float() / float(tensor.abs().max()) for name, tensor in found.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_models_and_their_gradients(family):
    found = values_and_gradients(hidden, build_model(family))
    for name, expected in values_and_gradients(plain_hidden, build_model(family)).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bfloat16_is_no_further_from_float32_than_transformers(family):
    exact = values_and_gradients(plain_hidden, build_model(family))
    errors = []
    for compute in (hidden, plain_hidden):
        found = values_and_gradients(compute, build_model(family).to(torch.bfloat16))
        errors.append({name: float((found[name] - exact[name]).square().mean().sqrt()) for name in exact})
    ours, theirs = errors
    assert sum(ours.values()) < 1.1 * sum(theirs.values())
    assert ours["hidden states"] < 0.02
