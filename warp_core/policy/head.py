"""The output head fused with log-softmax and the choice of one token a row: no logits of all positions at once.

N rows (positions that predict a token), H width of the model, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["head_logprobs", "plain_head_logprobs"]

CHUNK_NUMBERS = 1 << 23  # logits at a time: 32 MB in float32
WIDE = 8  # gradients of so many chunks are held in the dtype of the weight


def head_logprobs(
    hidden_NH: torch.Tensor,
    *,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    token_N: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return logp_N = log_softmax((hidden W' + bias) / temperature) at each row's token, in float32 at least.

    Gradients flow to hidden, weight and bias. Logits exist for some rows at a time and are never kept: where the weight
    is trained they are computed a second time on the way back, and where it is not, the gradient, which is linear in
    one number a row, is prepared on the way there.
    """
    result: torch.Tensor = _HeadLogprobs.apply(hidden_NH, weight_VH, bias_V, token_N, temperature)  # type: ignore[no-untyped-call]
    return result


def plain_head_logprobs(
    hidden_NH: torch.Tensor,
    *,
    head: Callable[[torch.Tensor], torch.Tensor],
    token_N: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Return the same for any head, without gradients."""
    size = max(1, CHUNK_NUMBERS // head(hidden_NH[:1]).shape[1])
    parts = []
    for start in range(0, len(hidden_NH), size):
        logp_RV = _normalised(head(hidden_NH[start : start + size]), temperature)
        parts.append(logp_RV.gather(1, token_N[start : start + size, None]).squeeze(1))
    return torch.cat(parts)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        token_N: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        ctx.temperature, ctx.again = temperature, any(ctx.needs_input_grad[1:3])
        prepare = ctx.needs_input_grad[0] and not ctx.again
        ready_NH = torch.empty_like(hidden_NH) if prepare else None
        logp_N = []
        for rows in _chunks(len(hidden_NH), len(weight_VH)):
            logp_RV = _log_softmax(hidden_NH[rows], weight_VH, bias_V, temperature)
            logp_N.append(logp_RV.gather(1, token_N[rows, None]).squeeze(1))
            if ready_NH is not None:
                # d logp / d hidden = (W[token] - sum_v p_v W[v]) / temperature
                mean_RH = logp_RV.exp_().to(weight_VH.dtype) @ weight_VH
                ready_NH[rows] = (weight_VH[token_N[rows]] - mean_RH) / temperature
        if ctx.again:
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, token_N)
        else:
            ctx.save_for_backward(ready_NH)
        return torch.cat(logp_N)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_N,) = gradients
        if not ctx.again:
            (ready_NH,) = ctx.saved_tensors
            return grad_N.to(ready_NH.dtype)[:, None] * ready_NH, None, None, None, None
        hidden_NH, weight_VH, bias_V, token_N = ctx.saved_tensors
        grad_NH = torch.empty_like(hidden_NH)
        parts_VH: list[torch.Tensor] = []
        grad_V = torch.zeros_like(bias_V, dtype=grad_N.dtype) if ctx.needs_input_grad[2] else None
        # Few products for the weight: each is as large as the weight.
        for wide in _chunks(len(hidden_NH), len(weight_VH), numbers=WIDE * CHUNK_NUMBERS):
            wide_RV = hidden_NH.new_empty(wide.stop - wide.start, len(weight_VH))
            for rows in _chunks(wide.stop, len(weight_VH), start=wide.start):
                scale_R1 = (grad_N[rows] / ctx.temperature)[:, None]
                # d logp / d logits = (onehot - p) / temperature
                grad_RV = _log_softmax(hidden_NH[rows], weight_VH, bias_V, ctx.temperature).exp_().mul_(-scale_R1)
                grad_RV.scatter_add_(1, token_N[rows, None], scale_R1)
                if grad_V is not None:
                    grad_V += grad_RV.sum(dim=0)
                wide_RV[rows.start - wide.start : rows.stop - wide.start] = grad_RV
            torch.matmul(wide_RV, weight_VH, out=grad_NH[wide])
            if ctx.needs_input_grad[1]:
                parts_VH = [_sum([*parts_VH, wide_RV.T @ hidden_NH[wide]], grad_N.dtype)]
        return (
            grad_NH,
            parts_VH[0].to(weight_VH.dtype) if parts_VH else None,
            None if grad_V is None or bias_V is None else grad_V.to(bias_V.dtype),
            None,
            None,
        )


def _chunks(stop: int, vocabulary: int, *, start: int = 0, numbers: int | None = None) -> list[slice]:
    size = max(1, (numbers or CHUNK_NUMBERS) // vocabulary)
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _sum(parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Add a part to the sum before it, which is held precisely."""
    return parts[0] if len(parts) == 1 else parts[0].to(dtype).add_(parts[1])


def _log_softmax(
    hidden_RH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    return _normalised(torch.nn.functional.linear(hidden_RH, weight_VH, bias_V), temperature)


def _normalised(logits_RV: torch.Tensor, temperature: float) -> torch.Tensor:
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    return logits_RV.div_(temperature).log_softmax(dim=1)
