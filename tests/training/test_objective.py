"""Return, baselines, loss, EMA and warm-up against numbers worked by hand."""

import math

import pytest
import torch

from warp_core.training.objective import advantages, ema_update, kl_regularised_return, reinforce_loss, warmup


def test_return_is_reward_minus_beta_times_the_log_ratio():
    logp = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    anchor = torch.tensor([[-1.5, -2.5], [-0.25, 0.0]])
    # log-ratios: (-3) - (-4) = 1 and (-.5) - (-.25) = -.25; beta = .1
    returns = kl_regularised_return(torch.tensor([2.0, 3.0]), logp, anchor, beta=0.1)
    assert returns.dtype == torch.float64
    torch.testing.assert_close(returns, torch.tensor([2.0 - 0.1, 3.0 + 0.025], dtype=torch.float64))


def test_the_return_carries_no_gradient():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    returns = kl_regularised_return(torch.tensor([2.0]), logp, logp.detach() - 1, beta=0.1)
    assert not returns.requires_grad


def test_the_log_ratio_is_summed_in_float64():
    """1,000 tokens of log p = -12.345678 against -12.345679: float32 sums would lose the small difference."""
    logp = torch.full((1, 1000), -12.345678, dtype=torch.float32)
    anchor = torch.full((1, 1000), -12.345679, dtype=torch.float32)
    expected = -1000 * float(logp[0, 0].double() - anchor[0, 0].double())
    returns = kl_regularised_return(torch.zeros(1), logp, anchor, beta=1.0)
    assert float(returns[0]) == pytest.approx(expected, rel=1e-9)
    assert expected != 0


def test_no_baseline_is_the_return_itself():
    returns = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    assert advantages(returns, baseline="none", group_size=2).tolist() == [1, 2, 6, 7]


def test_mean_baseline_is_of_the_batch():
    returns = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    assert advantages(returns, baseline="mean", group_size=2).tolist() == [-3, -2, 2, 3]


def test_leave_one_out_subtracts_the_mean_of_the_other_completions_of_the_prompt():
    # Groups (1, 2, 6) and (7, 7, 1): 1 - 4, 2 - 3.5, 6 - 1.5; 7 - 4, 7 - 4, 1 - 7.
    returns = torch.tensor([1.0, 2.0, 6.0, 7.0, 7.0, 1.0], dtype=torch.float64)
    assert advantages(returns, baseline="leave-one-out", group_size=3).tolist() == [-3, -1.5, 4.5, 3, 3, -6]


def test_leave_one_out_needs_two():
    with pytest.raises(ValueError, match="at least two"):
        advantages(torch.ones(3), baseline="leave-one-out", group_size=1)


def test_loss_and_its_gradient_by_hand():
    logp = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    loss = reinforce_loss(logp, torch.tensor([2.0, -4.0], dtype=torch.float64), total=2)
    # -(2 * -3 + -4 * -3) / 2 = -3
    assert loss.item() == -3.0
    loss.backward()
    assert logp.grad.tolist() == [[-1, -1], [2, 2]]


def test_micro_batches_add_up_to_the_loss_of_the_batch():
    logp = -torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = torch.arange(6.0, dtype=torch.float64) - 2
    whole = reinforce_loss(logp, advantage, total=6)
    parts = [reinforce_loss(logp[i : i + 4], advantage[i : i + 4], total=6) for i in (0, 4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_ema_covers_634_of_the_way_in_100_steps():
    ema, policy = [torch.zeros(3)], [torch.full((3,), 1.0)]
    for _ in range(100):
        ema_update(ema, policy, mu=0.01)
    assert ema[0].tolist() == pytest.approx([1 - 0.99**100] * 3, rel=1e-5)
    assert ema[0].tolist() == pytest.approx([0.63397] * 3, abs=1e-5)
    assert policy[0].tolist() == [1, 1, 1]


def test_ema_in_bfloat16_would_hardly_move():
    """Why masters are float32: weights near 1 whose task vector is .02 long; in bf16 each small move rounds away."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        start = 1 + 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
        target = start + 0.02 * torch.randn(4000, generator=torch.Generator().manual_seed(1))
        ema, policy = [start.to(dtype, copy=True)], [target.to(dtype)]
        way = (policy[0] - ema[0]).double()
        for _ in range(100):
            ema_update(ema, policy, mu=0.01)
        moved[dtype] = float(((ema[0].double() - start.to(dtype).double()) @ way) / (way @ way))
    assert moved[torch.float32] == pytest.approx(1 - 0.99**100, abs=1e-3)
    assert moved[torch.bfloat16] < 0.05


@pytest.mark.parametrize(("mu", "expected"), [(0.0, 2.0), (0.25, 3.0), (1.0, 6.0)])
def test_first_ema_update_moves_by_exactly_mu(mu, expected):
    ema = [torch.tensor([2.0])]
    ema_update(ema, [torch.tensor([6.0], requires_grad=True)], mu=mu)
    assert ema[0].item() == expected
    assert not ema[0].requires_grad


def test_warm_up_rises_linearly_to_one():
    assert [warmup(step, warmup_steps=4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, warmup_steps=0) == 1.0
    assert math.isclose(warmup(0, warmup_steps=100), 0.01)
