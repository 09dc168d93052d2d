"""KL divergence of completions to the SFT policy, in nats per completion: two estimators. Pure functions.

B completions, T tokens, V vocabulary.
"""

import torch

__all__ = ["exact_kl", "mc_kl"]


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
    logp_BTV = logits_BTV.log_softmax(dim=2)
    anchor_logp_BTV = anchor_logits_BTV.log_softmax(dim=2)
    p_BTV = logp_BTV.exp()
    # A token that the sampler can never draw has p = 0, also where exp underflows, and 0 * inf would be NaN. The NaN of
    # a broken policy stays: asking for p > 0 would make it a KL of 0.
    term_BTV = torch.where(p_BTV == 0, 0.0, p_BTV * (logp_BTV - anchor_logp_BTV))
    kl_BT = term_BTV.sum(dim=2, dtype=torch.float64)
    # A sum of rounding errors may be a hair below zero.
    return (kl_BT.clamp_min(0.0) * mask_BT).sum(dim=1)
