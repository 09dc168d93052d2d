"""KL divergence of completions to the SFT policy, in nats per completion: two estimators. Pure functions.

B completions, T tokens, V vocabulary; N positions, R of them at a time.
"""

import torch

__all__ = ["exact_kl", "kl_of_positions", "mc_kl"]

# Numbers of each policy that are worked on at once on the CPU: they and what is made of them stay in its cache.
_CACHED_NUMEL = 1 << 18


def mc_kl(logp_BT: torch.Tensor, anchor_logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the Monte-Carlo estimate per completion: the log-ratio of its tokens (the paper's), float64.

    Unbiased over samples of the policy; one completion can be negative.
    """
    return ((logp_BT.double() - anchor_logp_BT.double()) * mask_BT).sum(dim=1)


def exact_kl(logits_BTV: torch.Tensor, anchor_logits_BTV: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return, per completion, the sum over its positions of the KL over the full vocabulary, float64.

    By the chain rule its expectation over completions of the policy is the KL of the two distributions over
    completions. Never negative, and without the noise of which token was drawn. Logits have the temperature in them.
    """
    kl_BT = torch.zeros(mask_BT.shape, dtype=torch.float64, device=mask_BT.device)
    kl_BT[mask_BT] = kl_of_positions(logits_BTV[mask_BT], anchor_logits_BTV[mask_BT])
    return kl_BT.sum(dim=1)


def kl_of_positions(logits_NV: torch.Tensor, anchor_logits_NV: torch.Tensor) -> torch.Tensor:
    """Return the KL over the full vocabulary at each position [N], float64.

    A few positions at a time, so that nothing of the inputs' size is made; summed in float64.
    """
    size = max(1, _CACHED_NUMEL // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    parts = zip(torch.split(logits_NV, size), torch.split(anchor_logits_NV, size), strict=True)
    return torch.cat([_kl_at_once(logits_RV, anchor_RV) for logits_RV, anchor_RV in parts])


def _kl_at_once(logits_RV: torch.Tensor, anchor_logits_RV: torch.Tensor) -> torch.Tensor:
    logp_RV = logits_RV.log_softmax(dim=1)
    ratio_RV = anchor_logits_RV.log_softmax(dim=1).neg_().add_(logp_RV)
    p_RV = logp_RV.exp_()
    # A token that the sampler can never draw has p = 0, also where exp underflows, and 0 * inf would be NaN. The NaN of
    # a broken policy stays: asking for p > 0 would make it a KL of 0.
    term_RV = ratio_RV.mul_(p_RV).masked_fill_(p_RV == 0, 0.0)
    # A sum of rounding errors may be a hair below zero.
    return term_RV.sum(dim=1, dtype=torch.float64).clamp_min_(0.0)
