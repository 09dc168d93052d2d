"""Both KL estimators against the KL of two distributions over completions, summed over every completion."""

import math

import pytest
import torch

from tests.toy import all_completions, toy_policy
from warp_core.evaluation import kl
from warp_core.evaluation.kl import exact_kl, kl_of_positions, mc_kl
from warp_core.policy.logprobs import completion_logits, token_logprobs

LENGTH = 4
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def enumerated():
    """Every completion of one prompt: probability, logits of policy and anchor, log-probabilities of both, mask."""
    policy, anchor = toy_policy(seed=0), toy_policy(seed=1)
    completions = all_completions(policy, prompt="a b", length=LENGTH, temperature=TEMPERATURE)
    with torch.no_grad():
        logits, anchor_logits = (
            completion_logits(one, completions, temperature=TEMPERATURE) for one in (policy, anchor)
        )
        anchor_logp = token_logprobs(anchor, completions, temperature=TEMPERATURE)
    probability = completions.logp_BT.double().sum(1).exp()
    return probability, logits, anchor_logits, completions.logp_BT, anchor_logp, completions.mask_BT


def test_all_completions_have_probability_one(enumerated):
    probability = enumerated[0]
    assert len(probability) == 2 ** (LENGTH + 1) - 1
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-6)


def test_both_estimators_have_the_kl_as_expectation(enumerated):
    probability, logits, anchor_logits, logp, anchor_logp, mask = enumerated
    sequence_kl = float((probability * (logp.double().sum(1) - anchor_logp.double().sum(1))).sum())
    assert sequence_kl > 0.1
    assert float((probability * exact_kl(logits, anchor_logits, mask)).sum()) == pytest.approx(sequence_kl, rel=1e-5)
    assert float((probability * mc_kl(logp, anchor_logp, mask)).sum()) == pytest.approx(sequence_kl, rel=1e-5)


def test_exact_has_less_variance_and_is_never_negative(enumerated):
    probability, logits, anchor_logits, logp, anchor_logp, mask = enumerated
    exact, mc = exact_kl(logits, anchor_logits, mask), mc_kl(logp, anchor_logp, mask)
    assert (exact >= 0).all()
    assert (mc < 0).any()

    def variance(values: torch.Tensor) -> float:
        mean = (probability * values).sum()
        return float((probability * (values - mean) ** 2).sum())

    assert variance(exact) < 0.5 * variance(mc)


def test_positions_after_the_end_count_for_nothing(enumerated):
    _, logits, anchor_logits, logp, anchor_logp, mask = enumerated
    spoiled = torch.where(mask.unsqueeze(2), logits, torch.tensor([50.0, -50.0, 0.0]))
    assert not torch.equal(spoiled, logits)
    assert torch.equal(exact_kl(spoiled, anchor_logits, mask), exact_kl(logits, anchor_logits, mask))
    spoiled_logp = logp - 5.0 * ~mask
    assert torch.equal(mc_kl(spoiled_logp, anchor_logp, mask), mc_kl(logp, anchor_logp, mask))


def test_by_hand():
    # Two positions over two tokens: (1/2, 1/2) against (1/4, 3/4), then (9/10, 1/10) against (1/2, 1/2).
    logits = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    anchor = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    second = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert exact_kl(logits, anchor, both).tolist() == pytest.approx([first + second], rel=1e-6)
    assert exact_kl(logits, anchor, one).tolist() == pytest.approx([first], rel=1e-6)
    assert exact_kl(logits, anchor, both).dtype == torch.float64


def test_equal_policies_are_exactly_zero_apart():
    logits = 5 * torch.randn(3, 4, 1000, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert exact_kl(logits, logits.clone(), mask).tolist() == [0, 0, 0]
    # The same distributions, logits shifted by a constant: rounding only, and not below zero.
    shifted = exact_kl(logits, logits + 3.3, mask)
    assert (shifted >= 0).all()
    assert shifted.max() < 1e-4


def test_small_kl_is_not_lost_in_rounding():
    """KL of 1e-4 nats a position, over a vocabulary of 50,000, to 1 % of a float64 computation."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 50_000, generator=generator)
    anchor = logits + 0.014 * torch.randn(logits.shape, generator=generator)
    mask = torch.ones(2, 5, dtype=torch.bool)
    logp, anchor_logp = logits.double().log_softmax(2), anchor.double().log_softmax(2)
    expected = (logp.exp() * (logp - anchor_logp)).sum((1, 2))
    assert 1e-4 < float(expected.mean()) < 1e-3
    torch.testing.assert_close(exact_kl(logits, anchor, mask), expected, rtol=1e-2, atol=0)


def test_a_token_that_neither_can_draw_costs_nothing():
    logits = torch.tensor([[[0.0, 1.0, -torch.inf]]])
    anchor = torch.tensor([[[1.0, 0.0, -torch.inf]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    without = exact_kl(logits[..., :2], anchor[..., :2], mask)
    assert torch.equal(exact_kl(logits, anchor, mask), without)
    assert float(without) > 0


def test_a_token_that_only_the_anchor_can_draw_is_finite():
    logits = torch.tensor([[[0.0, -torch.inf]]])
    anchor = torch.tensor([[[0.0, 0.0]]])
    assert exact_kl(logits, anchor, torch.ones(1, 1, dtype=torch.bool)).tolist() == pytest.approx([math.log(2)])


def test_a_token_that_only_the_policy_can_draw_is_infinite():
    logits = torch.tensor([[[0.0, 0.0]]])
    anchor = torch.tensor([[[0.0, -torch.inf]]])
    assert exact_kl(logits, anchor, torch.ones(1, 1, dtype=torch.bool)).tolist() == [math.inf]


def test_a_token_of_no_measurable_probability_that_the_anchor_excludes():
    """exp(-300) is 0 in float32, and 0 * inf must not make the whole KL NaN."""
    logits = torch.tensor([[[0.0, -300.0]]])
    anchor = torch.tensor([[[0.0, -torch.inf]]])
    assert exact_kl(logits, anchor, torch.ones(1, 1, dtype=torch.bool)).tolist() == [0.0]


def test_a_broken_policy_is_not_zero_apart():
    logits = torch.tensor([[[0.0, float("nan")]]])
    anchor = torch.tensor([[[0.0, 0.0]]])
    for one, other in ((logits, anchor), (anchor, logits)):
        assert exact_kl(one, other, torch.ones(1, 1, dtype=torch.bool)).isnan().all()


def test_positions_in_parts_are_positions_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits, anchor = (3 * torch.randn(7, 300, generator=generator) for _ in range(2))
    logp, anchor_logp = logits.double().log_softmax(1), anchor.double().log_softmax(1)
    expected = (logp.exp() * (logp - anchor_logp)).sum(1)
    for numel in (1, 700, 10**6):
        monkeypatch.setattr(kl, "_CACHED_NUMEL", numel)
        torch.testing.assert_close(kl_of_positions(logits, anchor), expected, rtol=1e-6, atol=0)
