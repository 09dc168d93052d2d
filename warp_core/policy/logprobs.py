"""Score completions: logits and token log-probabilities under the sampling distribution.

B completions, P prompt tokens, T completion tokens, V vocabulary.
"""

import torch

from warp_core.policy.head import head_logprobs, plain_head_logprobs
from warp_core.policy.inference import CompletionStates, completion_states
from warp_core.policy.model import Policy
from warp_core.policy.packing import hidden_states, packs, plant
from warp_core.policy.prefix import position_arguments, shared_prefix
from warp_core.policy.sampling import Completions

__all__ = ["chosen_logprobs", "completion_logits", "token_logprobs"]


def completion_logits(policy: Policy, completions: Completions, *, temperature: float) -> torch.Tensor:
    """Return float32 logits_BTV / temperature, the ones that each completion token was drawn from.

    Only the T positions that predict a completion token go through the head, and a prompt that several rows share is
    computed once. Follows the caller's gradient mode.
    """
    prompts, tokens_BT = completions.prompts, completions.tokens_BT
    num_prompt, num_new = prompts.ids_BP.shape[1], tokens_BT.shape[1]
    # The last token predicts nothing that is scored.
    mask = torch.cat([prompts.mask_BP, completions.mask_BT[:, :-1].long()], dim=1)
    prefix = shared_prefix(policy, prompts, length=num_prompt)
    if prefix is None:
        ids = torch.cat([prompts.ids_BP, tokens_BT[:, :-1]], dim=1)
        keep = {"logits_to_keep": num_new} if policy.keeps_logits else {}
        positions = position_arguments(policy, mask)
        logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False, **positions, **keep).logits
        return logits[:, -num_new:].float() / temperature
    first = prefix.logits_GV.repeat_interleave(prompts.group, dim=0).unsqueeze(1)
    if num_new == 1:
        return first.float() / temperature
    positions = position_arguments(policy, mask, start=num_prompt)
    rest = policy.model(
        input_ids=tokens_BT[:, :-1], attention_mask=mask, past_key_values=prefix.cache, use_cache=True, **positions
    ).logits
    return torch.cat([first, rest], dim=1).float() / temperature


def token_logprobs(policy: Policy, completions: Completions, *, temperature: float) -> torch.Tensor:
    """Return float32 logp_BT of the completion tokens; 0 after the end token. Follows the caller's gradient mode.

    Each prompt is computed once, tokens after the end not at all, and logits exist for some positions at a time; models
    that cannot be computed so take the way of `completion_logits`.
    """
    if not torch.is_grad_enabled() and (states := _states(policy, completions)) is not None:
        tokens_N = completions.tokens_BT[completions.mask_BT]
        logp_N = plain_head_logprobs(states.hidden_MH, head=states.head, token_N=tokens_N, temperature=temperature)
        return _spread(logp_N, completions)
    if not packs(policy):
        return chosen_logprobs(completion_logits(policy, completions, temperature=temperature), completions)
    trees = plant(completions)
    head = policy.model.get_output_embeddings()
    logp_N = head_logprobs(
        hidden_states(policy, trees),
        weight_VH=head.weight,
        bias_V=getattr(head, "bias", None),
        token_N=trees.token_N,
        temperature=temperature,
    )
    return _spread(logp_N, completions)


def _states(policy: Policy, completions: Completions) -> CompletionStates | None:
    return completion_states(policy, completions.prompts, tokens_BT=completions.tokens_BT, mask_BT=completions.mask_BT)


def _spread(logp_N: torch.Tensor, completions: Completions) -> torch.Tensor:
    return logp_N.new_zeros(completions.tokens_BT.shape).masked_scatter(completions.mask_BT, logp_N)


def chosen_logprobs(logits_BTV: torch.Tensor, completions: Completions) -> torch.Tensor:
    """Return the log-probabilities logp_BT of the completion tokens under logits_BTV; 0 after the end token."""
    chosen_BT = logits_BTV.gather(2, completions.tokens_BT.unsqueeze(2)).squeeze(2)
    return (chosen_BT - logits_BTV.logsumexp(dim=2)).masked_fill(~completions.mask_BT, 0.0)
