"""The mathematics of stage 1 (Algorithm 1, lines 6-8): return, baseline, REINFORCE, EMA. Pure functions.

B completions (groups of k completions of one prompt stand together), T tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch

__all__ = ["advantages", "ema_update", "kl_regularised_return", "reinforce_loss", "warmup"]

Baseline = Literal["none", "mean", "leave-one-out"]


def kl_regularised_return(
    reward_B: torch.Tensor, logp_BT: torch.Tensor, anchor_logp_BT: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """Return r(x,y) - beta * (log pi(y|x) - log pi_anchor(y|x)) per completion (Algorithm 1, line 7), float64.

    Args:
        reward_B: rewards.
        logp_BT: log-probabilities of the sampled tokens under the policy, 0 after the end; no gradient flows.
        anchor_logp_BT: the same tokens under the anchor.
        beta: weight of the KL, >= 0.
    """
    log_ratio_B = (logp_BT.detach().double() - anchor_logp_BT.detach().double()).sum(dim=1)
    return reward_B.double() - beta * log_ratio_B


def advantages(return_B: torch.Tensor, *, baseline: Baseline, group_size: int) -> torch.Tensor:
    """Subtract a baseline that leaves the expected gradient as it is, or nearly so.

    `none` is the paper's rule; `leave-one-out` subtracts the mean of the other completions of the same prompt
    (unbiased); `mean` subtracts the mean of the batch (it contains the completion itself: biased by 1/B).

    Args:
        return_B: returns, groups of `group_size` completions of one prompt together.
        baseline: which baseline.
        group_size: k, completions per prompt; leave-one-out needs k >= 2.
    """
    if baseline == "none":
        return return_B
    if baseline == "mean":
        return return_B - return_B.mean()
    if group_size < 2:
        raise ValueError("leave-one-out needs at least two completions of each prompt")
    return_Gk = return_B.view(-1, group_size)
    others_Gk = (return_Gk.sum(dim=1, keepdim=True) - return_Gk) / (group_size - 1)
    return (return_Gk - others_Gk).reshape(-1)


def reinforce_loss(logp_BT: torch.Tensor, advantage_B: torch.Tensor, *, total: int) -> torch.Tensor:
    """Return a scalar whose gradient is minus the REINFORCE estimate (Williams 1992), -1/total sum_b A_b grad log pi_b.

    Args:
        logp_BT: with gradient, 0 after the end.
        advantage_B: detached advantages of these rows.
        total: completions in the whole batch, so that micro-batches add up to the batch's gradient.
    """
    return -(advantage_B.detach().to(logp_BT.dtype) * logp_BT.sum(dim=1)).sum() / total


@torch.no_grad()
def ema_update(ema: Sequence[torch.Tensor], policy: Sequence[torch.Tensor], *, mu: float) -> None:
    """Move the anchor in place: theta_ema <- (1 - mu) theta_ema + mu theta (eq. EMA); both in float32."""
    torch._foreach_lerp_(list(ema), [tensor.detach() for tensor in policy], mu)


def warmup(step: int, *, warmup_steps: int) -> float:
    """Return the factor on the learning rate at `step` (0-based): linear up to 1 over `warmup_steps`, then constant."""
    return 1.0 if warmup_steps <= 0 else min(1.0, (step + 1) / warmup_steps)
