"""Score completions: logits and token log-probabilities under the sampling distribution.

B completions, P prompt tokens, T completion tokens, V vocabulary.
"""

import torch

from warp_core.policy.model import Policy
from warp_core.policy.sampling import Completions

__all__ = ["completion_logits", "token_logprobs"]


def completion_logits(policy: Policy, completions: Completions, *, temperature: float) -> torch.Tensor:
    """Return float32 logits_BTV / temperature, the ones that each completion token was drawn from.

    Only the T positions that predict a completion token go through the head. Follows the caller's gradient mode.
    """
    prompts = completions.prompts
    num_prompt, num_new = prompts.ids_BP.shape[1], completions.tokens_BT.shape[1]
    # The last token predicts nothing that is scored.
    ids = torch.cat([prompts.ids_BP, completions.tokens_BT[:, :-1]], dim=1)
    mask = torch.cat([prompts.mask_BP, completions.mask_BT[:, :-1].long()], dim=1)
    extra: dict[str, object] = {}
    if policy.takes_positions:
        extra["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
    if policy.keeps_logits:
        extra["logits_to_keep"] = num_new
    logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
    if not policy.keeps_logits:
        logits = logits[:, num_prompt - 1 :]
    return logits.float() / temperature


def token_logprobs(policy: Policy, completions: Completions, *, temperature: float) -> torch.Tensor:
    """Return float32 logp_BT of the completion tokens; 0 after the end token."""
    logits_BTV = completion_logits(policy, completions, temperature=temperature)
    chosen_BT = logits_BTV.gather(2, completions.tokens_BT.unsqueeze(2)).squeeze(2)
    return (chosen_BT - logits_BTV.logsumexp(dim=2)).masked_fill(~completions.mask_BT, 0.0)
