"""A forward pass with gradients for models built like Llama: the parts between the products are one operation each.

In transformers' general code a norm is six operations, each a pass over memory that leaves a tensor for the way back,
and attention under a mask has no fast gradient on CPUs. Here each part keeps its inputs alone and computes the rest
again.

K rows, L tokens of each, N = K L, J query heads, S key heads, G = J / S, D features of a head, I inner features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

__all__ = ["Attended", "attend", "forward_hidden", "gated", "rms_norm"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """Where tokens stand and what they see, the same in every layer.

    Attributes:
        cos_KL1D, sin_KL1D: rotation of each token.
        bias_K11LL: added to the scores of query L (first) and key L: 0, or -inf where a token is not seen.
        scale: of the scores.
    """

    cos_KL1D: torch.Tensor
    sin_KL1D: torch.Tensor
    bias_K11LL: torch.Tensor
    scale: float


def forward_hidden(
    model: PreTrainedModel, ids_KL: torch.Tensor, *, positions_KL: torch.Tensor, sees_KLL: torch.Tensor
) -> torch.Tensor:
    """Return the last hidden states [N, H] of a model that `is_like_llama`; layers are called as the modules they are.

    Args:
        model: the model.
        ids_KL: tokens.
        positions_KL: their positions.
        sees_KLL: whether query L (first) sees key L; every query must see one.
    """
    inner = model.base_model
    x_NH = model.get_input_embeddings()(ids_KL).flatten(0, 1)
    precise = torch.promote_types(x_NH.dtype, torch.float32)
    cos_KLD, sin_KLD = inner.rotary_emb(x_NH[:1].detach().to(precise), positions_KL)
    bias_KLL = torch.zeros(sees_KLL.shape, dtype=precise, device=x_NH.device).masked_fill_(~sees_KLL, -torch.inf)
    place = Attended(
        cos_KL1D=cos_KLD[:, :, None],
        sin_KL1D=sin_KLD[:, :, None],
        bias_K11LL=bias_KLL[:, None, None],
        scale=float(inner.layers[0].self_attn.scaling),
    )
    for layer in inner.layers:
        x_NH = x_NH + _attention(layer.self_attn, _normed(layer.input_layernorm, x_NH), place)
        inner_NH = _normed(layer.post_attention_layernorm, x_NH)
        mlp = layer.mlp
        x_NH = x_NH + mlp.down_proj(gated(mlp.gate_proj(inner_NH), mlp.up_proj(inner_NH)))
    return _normed(inner.norm, x_NH)


def _attention(attention: nn.Module, x_NH: torch.Tensor, place: Attended) -> torch.Tensor:
    """Attention and its products; the modules' attributes are those that `is_like_llama` has seen."""
    width = int(attention.head_dim)  # type: ignore[arg-type]
    parts = []
    for name in ("q", "k", "v"):
        part_NJD = getattr(attention, f"{name}_proj")(x_NH).unflatten(1, (-1, width))
        norm = getattr(attention, f"{name}_norm", None)
        parts.append(part_NJD if norm is None else _normed(norm, part_NJD))
    mixed_NX: torch.Tensor = attention.o_proj(attend(*parts, place=place))  # type: ignore[operator]
    return mixed_NX


def _normed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, module.weight, epsilon=float(module.variance_epsilon))  # type: ignore[arg-type]


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Return weight * x / sqrt(mean(x^2) + epsilon) over the last dimension, computed in float32 at least."""
    result: torch.Tensor = _RmsNorm.apply(x, weight_H, epsilon)  # type: ignore[no-untyped-call]
    return result


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up."""
    result: torch.Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


def attend(query_NJD: torch.Tensor, key_NSD: torch.Tensor, value_NSD: torch.Tensor, *, place: Attended) -> torch.Tensor:
    """Rotate queries and keys, and return the attention's output [N, J D] in the dtype of its inputs."""
    result: torch.Tensor = _Attend.apply(query_NJD, key_NSD, value_NSD, place)  # type: ignore[no-untyped-call]
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> torch.Tensor:
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        square = torch.linalg.vector_norm(precise, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_H, inverse)
        return (precise * inverse).to(x.dtype).mul_(weight_H)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = gradients
        x, weight_H, inverse = ctx.saved_tensors
        unit = x * inverse  # in float32 at least, as `inverse` is
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (grad * unit).flatten(0, -2).sum(dim=0).to(weight_H.dtype)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        scaled = (grad * weight_H).to(unit.dtype)
        along = torch.linalg.vecdot(scaled, unit).div_(x.shape[-1])[..., None]
        return scaled.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), for_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (grad,) = gradients
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_NJD: torch.Tensor, key_NSD: torch.Tensor, value_NSD: torch.Tensor, place: Attended
    ) -> torch.Tensor:
        ctx.save_for_backward(query_NJD, key_NSD, value_NSD)
        ctx.place = place
        query, key, value = _heads(query_NJD, key_NSD, value_NSD, place)
        mixed = torch.matmul(_weights(query, key, place), value)
        return _as_tokens(mixed, query_NJD).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        place: Attended = ctx.place
        query_NJD, key_NSD, value_NSD = ctx.saved_tensors
        query, key, value = _heads(query_NJD, key_NSD, value_NSD, place)
        weights = _weights(query, key, place)
        grad = _by_key_head(gradients[0].view_as(query_NJD), key_NSD.shape[1], place)
        for_value = torch.matmul(weights.transpose(2, 3), grad)
        for_scores = torch._softmax_backward_data(torch.matmul(grad, value.transpose(2, 3)), weights, -1, weights.dtype)
        for_scores.mul_(place.scale)
        for_query = _turned(torch.matmul(for_scores, key), place, back=True)
        for_key = _turned(torch.matmul(for_scores.transpose(2, 3), query), place, back=True)
        return _as_tokens(for_query, query_NJD), _as_tokens(for_key, key_NSD), _as_tokens(for_value, value_NSD), None


def _heads(
    query_NJD: torch.Tensor, key_NSD: torch.Tensor, value_NSD: torch.Tensor, place: Attended
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries [K, S, G L, D] and keys, and values [K, S, L, D], in the precision of the rotation.

    The queries of the G heads that share a key head stand together, so that no key is repeated.
    """
    query, key, value = (_by_key_head(one, key_NSD.shape[1], place) for one in (query_NJD, key_NSD, value_NSD))
    return _turned(query, place), _turned(key, place), value


def _by_key_head(x_NJD: torch.Tensor, heads: int, place: Attended) -> torch.Tensor:
    """Bring [N, J, D] into [K, S, G L, D] and the precision of the rotation, in one copy."""
    rows, length = place.cos_KL1D.shape[:2]
    x = x_NJD.view(rows, length, heads, -1, x_NJD.shape[-1]).permute(0, 2, 3, 1, 4)
    copy = torch.empty(x.shape, dtype=place.cos_KL1D.dtype, device=x.device)
    return copy.copy_(x).flatten(2, 3)


def _as_tokens(x: torch.Tensor, like_NJD: torch.Tensor) -> torch.Tensor:
    """Bring [K, S, G L, D] into the order and dtype of `like`, in one copy."""
    rows, heads, _, width = x.shape
    tokens = x.view(rows, heads, like_NJD.shape[1] // heads, -1, width).permute(0, 3, 1, 2, 4)
    copy = torch.empty(tokens.shape, dtype=like_NJD.dtype, device=x.device)
    return copy.copy_(tokens).view(like_NJD.shape)


def _weights(query: torch.Tensor, key: torch.Tensor, place: Attended) -> torch.Tensor:
    """Softmax of the scores [K, S, G L, L]."""
    rows, heads, _, _ = query.shape
    length = key.shape[2]
    scores = torch.matmul(query, key.transpose(2, 3)).view(rows, heads, -1, length, length)
    return torch.add(place.bias_K11LL, scores, alpha=place.scale).softmax(dim=-1).view(rows, heads, -1, length)


def _turned(x: torch.Tensor, place: Attended, *, back: bool = False) -> torch.Tensor:
    """Rotate the features [K, S, G L, D] of each token by its position, or back, the gradient of rotating."""
    rows, length, _, width = place.cos_KL1D.shape
    by_token = x.view(rows, -1, length, width)
    half, sign = width // 2, -1.0 if back else 1.0
    cosine, sine = place.cos_KL1D.transpose(1, 2), place.sin_KL1D.transpose(1, 2)[..., :half]
    turned = by_token * cosine
    turned[..., :half].addcmul_(by_token[..., half:], sine, value=-sign)
    turned[..., half:].addcmul_(by_token[..., :half], sine, value=sign)
    return turned.view_as(x)
