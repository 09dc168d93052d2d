"""Compute what the k completions of a prompt share once: the keys and values of the prompt.

G prompts, k completions of each, B = G k rows, P prompt tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch

__all__ = ["SharedPrefix", "position_arguments", "shared_prefix"]


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """The prompt's keys and values for B rows, and the logits after it.

    Attributes:
        cache: of B rows.
        logits_GV: what the last prompt token predicts, one row per prompt.
    """

    cache: DynamicCache
    logits_GV: torch.Tensor


def position_arguments(policy: Policy, mask: torch.Tensor, *, start: int = 0) -> dict[str, torch.Tensor]:
    """Return position_ids that count from the first token that is not padding, for models that take them."""
    if not policy.takes_positions:
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)[:, start:]}


def shared_prefix(policy: Policy, prompts: PromptBatch, *, length: int) -> SharedPrefix | None:
    """Run the first `length` prompt tokens once per prompt and repeat the cache for its completions.

    Follows the caller's gradient mode: gradients of all completions flow into the one prefix. Returns None where
    there is nothing to share, or the model's cache cannot be repeated.
    """
    if prompts.group == 1 or length < 1 or not policy.shares_prefix:
        return None
    ids, mask = prompts.ids_BP[:: prompts.group, :length], prompts.mask_BP[:: prompts.group, :length]
    extra: dict[str, object] = {**position_arguments(policy, mask)}
    if policy.keeps_logits:
        extra["logits_to_keep"] = 1
    cache = DynamicCache(config=policy.model.config)
    out = policy.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    cache.batch_repeat_interleave(prompts.group)
    return SharedPrefix(cache=cache, logits_GV=out.logits[:, -1])
