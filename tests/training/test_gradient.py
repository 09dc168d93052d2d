"""The REINFORCE estimator against the exact gradient of E[r] - beta KL(pi || anchor), by writing every completion down.

The policy is a table of logits over {0, 1, end}: one row for the first token, one per first token for the second. So
there are 7 completions: end; 0 end, 0 0, 0 1; 1 end, 1 0, 1 1. Y completions, C contexts, V vocabulary.
"""

import itertools

import pytest
import torch

from warp_core.training.objective import advantages, kl_regularised_return, reinforce_loss

END = 2
BETA = 0.3
COMPLETIONS = [(END, END)] + [(first, second) for first in (0, 1) for second in (END, 0, 1)]
MASK = torch.tensor([[1.0, float(first != END)] for first, _ in COMPLETIONS], dtype=torch.float64)
REWARD = torch.tensor([1.0, -2.0, 0.5, 3.0, 4.0, 7.0, 5.0], dtype=torch.float64)
ANCHOR = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def table() -> torch.Tensor:
    logits = 0.5 * torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return logits.requires_grad_(True)


def logps(logits_CV: torch.Tensor) -> torch.Tensor:
    """Token log-probabilities of all completions [Y, 2], 0 after the end."""
    logp_CV = logits_CV.log_softmax(dim=1)
    rows = [torch.stack([logp_CV[0, a], logp_CV[1 + min(a, 1), b]]) for a, b in COMPLETIONS]
    return torch.stack(rows) * MASK


def exact_gradient(logits_CV: torch.Tensor) -> torch.Tensor:
    logp_Y, anchor_Y = logps(logits_CV).sum(1), logps(ANCHOR).sum(1)
    objective = (logp_Y.exp() * (REWARD - BETA * (logp_Y - anchor_Y))).sum()
    return torch.autograd.grad(objective, logits_CV)[0]


def estimate(logits_CV: torch.Tensor, chosen: list[int], *, baseline: str, group_size: int) -> torch.Tensor:
    """What a learner would do with the batch `chosen`: the ascent direction."""
    logp_BT, anchor_BT = logps(logits_CV)[chosen], logps(ANCHOR)[chosen]
    returns = kl_regularised_return(REWARD[chosen], logp_BT, anchor_BT, beta=BETA)
    advantage = advantages(returns, baseline=baseline, group_size=group_size)
    return -torch.autograd.grad(reinforce_loss(logp_BT, advantage, total=len(chosen)), logits_CV)[0]


def expectation(logits_CV: torch.Tensor, *, baseline: str, batch: int) -> torch.Tensor:
    """Sum over all batches of `batch` independent completions of P(batch) * estimate(batch)."""
    probability = logps(logits_CV).sum(1).exp().detach()
    total = torch.zeros_like(ANCHOR)
    for chosen in itertools.product(range(len(COMPLETIONS)), repeat=batch):
        weight = probability[list(chosen)].prod()
        total += weight * estimate(logits_CV, list(chosen), baseline=baseline, group_size=batch)
    return total


def test_the_completions_are_all_there_are():
    torch.testing.assert_close(logps(table()).sum(1).exp().sum().item(), 1.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("baseline", "batch"), [("none", 1), ("none", 2), ("leave-one-out", 2), ("leave-one-out", 3)])
def test_the_expected_estimate_is_the_exact_gradient(baseline, batch):
    logits = table()
    exact = exact_gradient(logits)
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(expectation(logits, baseline=baseline, batch=batch), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [2, 3])
def test_the_batch_mean_shrinks_the_gradient_by_one_in_b(batch):
    """The mean contains the completion itself: the direction stays, the length is (1 - 1/B) of it."""
    logits = table()
    expected = (1 - 1 / batch) * exact_gradient(logits)
    torch.testing.assert_close(expectation(logits, baseline="mean", batch=batch), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("baseline", ["none", "leave-one-out"])
def test_sampled_gradients_converge_to_it(baseline):
    logits = table()
    exact = exact_gradient(logits)
    probability = logps(logits).sum(1).exp().detach()
    generator = torch.Generator().manual_seed(11)
    estimates = []
    for _ in range(400):
        chosen = torch.multinomial(probability, 8, replacement=True, generator=generator).tolist()
        estimates.append(estimate(logits, chosen, baseline=baseline, group_size=4))
    stack = torch.stack(estimates)
    error = stack.std(0) / len(estimates) ** 0.5
    deviation = (stack.mean(0) - exact) / error
    # The third row's last free direction is fixed by the others, so errors are never 0.
    assert deviation.abs().max() < 4
    assert (exact.abs() / error).max() > 8, "the test would not see a wrong gradient"


def test_leave_one_out_has_less_variance_than_none():
    logits = table()
    probability = logps(logits).sum(1).exp().detach()
    generator = torch.Generator().manual_seed(12)
    spread = {}
    batches = [torch.multinomial(probability, 8, replacement=True, generator=generator).tolist() for _ in range(200)]
    for baseline in ("none", "leave-one-out"):
        stack = torch.stack([estimate(logits, chosen, baseline=baseline, group_size=8) for chosen in batches])
        spread[baseline] = float(stack.var(0).sum())
    assert spread["leave-one-out"] < 0.7 * spread["none"]
