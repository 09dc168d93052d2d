"""How a policy is computed where no gradient is needed: fused and packed where its architecture is known.

with fast_inference(policy):                     # the weights stay as they are for the time of the block
    completions = sample(policy, prompts, ...)   # packed once, for everything in the block

Outside of such a block a known architecture is fused all the same, with its weights where they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from warp_core.policy.decoding import Decoder, LlamaDecoder, TransformersDecoder
from warp_core.policy.kernels import make_kernel, packs
from warp_core.policy.llama import FusedLlama, is_like_llama
from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch

__all__ = ["CompletionStates", "completion_states", "fast_inference", "make_decoder", "plain_inference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CompletionStates:
    """What M completion tokens are predicted from, those under the mask in its order.

    Attributes:
        hidden_MH: the last hidden states.
        head: makes logits [.., V] of them, or of any part of them.
    """

    hidden_MH: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]


_prepared: WeakKeyDictionary[PreTrainedModel, FusedLlama | None] = WeakKeyDictionary()


@contextmanager
def fast_inference(policy: Policy) -> Iterator[None]:
    """Compute a policy by packed weights for the time of the block: same numbers up to rounding, same seeds.

    They are a copy (on the CPU; elsewhere there is none) that is made at entry and let go of at the end, so the
    weights must not change within, and no gradient is to be taken. An entry within another is free. A linear module
    with a `kernel` of its own is called as it is. On other architectures than those of `llama` the linear layers are
    packed and the rest is transformers'.
    """
    model = policy.model
    if model in _prepared:
        yield
        return
    packed: list[nn.Module] = []
    try:
        with torch.no_grad():
            fused = FusedLlama(model, pack=_is_packed(policy)) if is_like_llama(model) else None
            _prepared[model] = fused
            if fused is None and _is_packed(policy):
                packed += _pack_linears(model)
        yield
    finally:
        _prepared.pop(model, None)
        for module in packed:
            del module.forward


@contextmanager
def plain_inference(policy: Policy) -> Iterator[None]:
    """Compute a policy by its weights as they are, also within `fast_inference`: a block that points them elsewhere."""
    model = policy.model
    if model not in _prepared:
        yield
        return
    fused = _prepared.pop(model)
    forwards = {
        module: vars(module).pop("forward")
        for module in model.modules()
        if type(module) in (nn.Linear, Conv1D) and "forward" in vars(module)
    }
    try:
        yield
    finally:
        _prepared[model] = fused
        for module, forward in forwards.items():
            module.forward = forward


def make_decoder(policy: Policy, *, max_new_tokens: int) -> Decoder | None:
    """Return what computes a policy token by token; None where the model remembers more than keys and values."""
    if not policy.shares_prefix:
        return None
    fused = _fused(policy)
    return TransformersDecoder(policy) if fused is None else LlamaDecoder(fused, max_new_tokens=max_new_tokens)


def _fused(policy: Policy) -> FusedLlama | None:
    if policy.model in _prepared:
        return _prepared[policy.model]
    return FusedLlama(policy.model, pack=False) if is_like_llama(policy.model) else None


def _is_packed(policy: Policy) -> bool:
    return packs(policy.device, policy.dtype)


def _pack_linears(model: PreTrainedModel) -> list[nn.Module]:
    """Let the plain linear layers of a model multiply by packed weights until their `forward` is deleted."""
    packed = []
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            weight = module.weight.detach().T if type(module) is Conv1D else module.weight.detach()
            module.forward = make_kernel(weight, module.bias)
            packed.append(module)
    return packed


@torch.no_grad()
def completion_states(
    policy: Policy, prompts: PromptBatch, *, tokens_BT: torch.Tensor, mask_BT: torch.Tensor
) -> CompletionStates | None:
    """Return what completion tokens are predicted from, without gradients; None where the architecture is not known.

    Args:
        policy: the model.
        prompts: B rows; those of a group are computed once.
        tokens_BT: the completions.
        mask_BT: true from the first token up to and including the end token.
    """
    fused = _fused(policy) if policy.shares_prefix else None
    if fused is None:
        return None
    decoder = LlamaDecoder(fused, max_new_tokens=tokens_BT.shape[1])
    ids_GP, mask_GP = prompts.ids_BP[:: prompts.group], prompts.mask_BP[:: prompts.group]
    return CompletionStates(hidden_MH=decoder.score(ids_GP, mask_GP, tokens_BT, mask_BT), head=fused.logits)
