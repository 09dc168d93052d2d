"""The sampler: its distribution, its independence of the batch, its streams of random numbers, its masks."""

import json

import numpy as np
import pytest
import torch

from tests.tiny import make_model
from tests.toy import CPU, END, A, B, all_completions, toy_policy
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts
from warp_core.policy.sampling import Completions, GumbelSampler, completion_mask, row_seed, sample

PROMPTS = ["a", "the film was", "in the end I think that"]


def draw(policy: Policy, prompts: list[str], seeds: list[int], *, tokens: int = 6, temperature=0.9) -> Completions:
    batch = encode_prompts(prompts, policy.tokenizer, chat_template=False, device=CPU)
    return sample(policy, batch, seeds=seeds, max_new_tokens=tokens, temperature=temperature)


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    expected = counts.sum() * probability
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 0.9, 2.0])
def test_gumbel_draws_follow_the_softmax_with_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    sampler = GumbelSampler(range(6000), temperature=temperature)
    drawn = sampler(torch.zeros(6000, 1), logits.expand(6000, 5)).argmax(dim=1)
    counts = np.bincount(drawn.numpy(), minlength=5)
    probability = (logits.double() / temperature).softmax(0)
    # 4 degrees of freedom: 18.5 is exceeded once in a thousand; seeds are fixed.
    assert chi_square(counts, probability.numpy()) < 18.5
    other = (logits.double() / (1.5 * temperature)).softmax(0)
    assert chi_square(counts, other.numpy()) > 100, "the test would not see a wrong temperature"
    torch.testing.assert_close(sampler.logps[0].double(), probability.log()[drawn], rtol=1e-5, atol=1e-6)


def test_the_second_draw_of_a_row_is_independent_of_its_first():
    sampler = GumbelSampler(range(4000), temperature=1.0)
    scores = torch.zeros(4000, 2)
    first, second = (sampler(torch.zeros(4000, 1), scores).argmax(dim=1) for _ in range(2))
    counts = np.bincount((2 * first + second).numpy(), minlength=4)
    assert chi_square(counts, np.full(4, 0.25)) < 16.3  # 3 degrees of freedom, one in a thousand


def test_an_excluded_token_is_never_drawn():
    scores = torch.tensor([[0.0, -torch.inf, -80.0]]).expand(3000, 3)
    drawn = GumbelSampler(range(3000), temperature=1.0)(torch.zeros(3000, 1), scores)
    assert torch.isfinite(drawn[:, 0]).all()
    assert drawn.argmax(dim=1).eq(0).all()


def test_completions_follow_the_policy_over_whole_sequences():
    """Chi-square over all 15 completions of at most three tokens, end token included: 14 degrees of freedom."""
    policy = toy_policy(seed=3)
    every = all_completions(policy, prompt="a", length=3, temperature=0.9)
    batch = encode_prompts(["a"], policy.tokenizer, chat_template=False, device=CPU).repeat(4000)
    drawn = sample(policy, batch, seeds=range(4000), max_new_tokens=3, temperature=0.9)
    place = {tuple(row): number for number, row in enumerate(every.tokens_BT.tolist())}
    counts = np.zeros(len(place))
    for row in drawn.tokens_BT.tolist():
        counts[place[tuple(row)]] += 1
    probability = every.logp_BT.double().sum(1).exp().numpy()
    assert 4000 * probability.min() > 5
    assert chi_square(counts, probability) < 36.1
    assert chi_square(counts, probability[::-1] / probability.sum()) > 200


def test_a_row_does_not_depend_on_the_rows_beside_it(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    together = draw(policy, PROMPTS, [7, 8, 9])
    turned = draw(policy, PROMPTS[::-1], [9, 8, 7])
    for row, (prompt, seed) in enumerate(zip(PROMPTS, [7, 8, 9], strict=True)):
        alone = draw(policy, [prompt], [seed])
        length = alone.num_tokens[0]
        assert together.tokens_BT[row, :length].tolist() == alone.tokens_BT[0, :length].tolist()
        assert together.texts[row] == alone.texts[0] == turned.texts[2 - row]
        assert together.num_tokens[row] == length


def test_copies_of_a_prompt_differ_by_their_seed_alone(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    batch = encode_prompts([PROMPTS[1]], policy.tokenizer, chat_template=False, device=CPU).repeat(4)
    drawn = sample(policy, batch, seeds=[1, 2, 1, 3], max_new_tokens=8, temperature=0.9)
    rows = drawn.tokens_BT.tolist()
    assert rows[0] == rows[2]
    assert len({tuple(row) for row in rows}) == 3


class _Fixed:
    """Records the noise that a sampler adds to the log-probabilities."""

    def __init__(self, seeds: list[int]) -> None:
        self.sampler = GumbelSampler(seeds, temperature=1.0)

    def noise(self, scores: torch.Tensor) -> torch.Tensor:
        return self.sampler(torch.zeros(len(scores), 1), scores) - scores.log_softmax(dim=-1)


def test_the_same_seeds_give_two_policies_the_same_noise():
    one, other = _Fixed([4, 5]), _Fixed([4, 5])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        scores, others = torch.randn(2, 10, generator=generator), 2 * torch.randn(2, 10, generator=generator)
        torch.testing.assert_close(one.noise(scores), other.noise(others), rtol=0, atol=2e-6)


def test_common_random_numbers_keep_close_policies_together():
    """Two policies that nearly agree draw the same token nearly always; with seeds of their own they would not."""
    base = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(1000, 50)
    moved = base + 0.05 * torch.randn(50, generator=torch.Generator().manual_seed(1))
    drawn = {
        (name, shift): GumbelSampler(range(shift, shift + 1000), temperature=1.0)(torch.zeros(1000, 1), scores).argmax(
            1
        )
        for name, scores in (("base", base), ("moved", moved))
        for shift in (0, 5000)
    }
    assert (drawn["base", 0] == drawn["moved", 0]).double().mean() > 0.9
    assert (drawn["base", 0] == drawn["moved", 5000]).double().mean() < 0.2


def test_one_seed_a_row():
    policy = toy_policy()
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        draw(policy, ["a"], [1, 2])


def test_the_mask_ends_with_the_first_end_token_although_padding_is_the_same_token():
    tokens = torch.tensor([[A, B, END, END], [END, END, END, END], [A, A, A, A], [A, END, B, END]])
    mask = completion_mask(tokens, (END,))
    assert mask.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_several_end_tokens_and_none():
    tokens = torch.tensor([[5, 7, 6, 5]])
    assert completion_mask(tokens, (6, 7)).int().tolist() == [[1, 1, 0, 0]]
    assert completion_mask(tokens, ()).int().tolist() == [[1, 1, 1, 1]]


def test_sampled_rows_are_padded_and_their_log_probabilities_are_zero_after_the_end():
    policy = toy_policy(seed=3)
    drawn = draw(policy, ["a"] * 40, list(range(40)), tokens=5)
    assert min(drawn.num_tokens) == 1
    assert max(drawn.num_tokens) == 5
    for row, length in enumerate(drawn.num_tokens):
        tokens = drawn.tokens_BT[row].tolist()
        assert END not in tokens[: length - 1]
        assert tokens[length:] == [END] * (5 - length)
        assert drawn.logp_BT[row, length:].eq(0).all()
        assert drawn.logp_BT[row, :length].lt(0).all()
        assert len(drawn.texts[row].split()) == length - (END in tokens)


def test_generation_settings_of_the_folder_are_set_aside(tmp_path):
    plain = make_model("llama", tmp_path / "plain")
    loud = make_model("llama", tmp_path / "loud")
    settings = {"top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0, "temperature": 0.01, "do_sample": True}
    settings |= {"min_new_tokens": 20, "max_new_tokens": 3, "suppress_tokens": list(range(200)), "num_beams": 2}
    settings |= {"eos_token_id": [258, 100], "no_repeat_ngram_size": 1}
    (loud / "generation_config.json").write_text(json.dumps(settings))
    config = json.loads((loud / "config.json").read_text())
    (loud / "config.json").write_text(json.dumps(config | {"repetition_penalty": 4.0, "top_k": 3}))
    one, other = (load_policy(folder, device=CPU) for folder in (plain, loud))
    assert other.eos_ids == (100, 258)
    prompts, seeds = PROMPTS * 4, list(range(12))
    drawn = [draw(policy, prompts, seeds, tokens=12) for policy in (one, other)]
    for row in range(12):
        tokens = [completions.tokens_BT[row].tolist() for completions in drawn]
        length = tokens[0].index(100) + 1 if 100 in tokens[0] else len(tokens[0])
        assert tokens[0][:length] == tokens[1][:length]


def test_no_end_token_at_all_means_full_length(tmp_path):
    policy = toy_policy()
    endless = Policy(**{**vars(policy), "eos_ids": ()})
    endless.model.generation_config.eos_token_id = None
    drawn = draw(endless, ["a"] * 5, list(range(5)), tokens=4)
    assert drawn.num_tokens == (4,) * 5


def test_rows_are_cut_alike():
    policy = toy_policy(seed=3)
    drawn = draw(policy, ["a", "b", "a b"], [1, 2, 3], tokens=3)
    part = drawn.rows(1, 3)
    assert part.prompts.texts == ("b", "a b")
    assert part.texts == drawn.texts[1:]
    assert torch.equal(part.tokens_BT, drawn.tokens_BT[1:])
    assert torch.equal(part.logp_BT, drawn.logp_BT[1:])
    assert isinstance(part.prompts, PromptBatch)


def test_seeds_depend_on_every_part():
    seeds = {row_seed("train", run, step, row) for run in range(4) for step in range(4) for row in range(4)}
    assert len(seeds) == 64
    assert row_seed("a", 1) == row_seed("a", 1)
    assert row_seed("a", 1, 23) != row_seed("a", 12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_something_else_may_happen_between_two_tokens_and_can_end_the_sampling(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    batch = encode_prompts(PROMPTS, policy.tokenizer, chat_template=False, device=CPU)
    settings = {"seeds": [1, 2, 3], "max_new_tokens": 7, "temperature": 0.9}
    want = sample(policy, batch, **settings)
    calls = []

    def other_work() -> None:
        calls.append(sample(policy, batch.rows(0, 1), seeds=[9], max_new_tokens=2, temperature=1.0).texts)

    got = sample(policy, batch, **settings, between=other_work)
    assert len(calls) == want.tokens_BT.shape[1]
    assert len(set(calls)) == 1
    assert torch.equal(got.tokens_BT, want.tokens_BT)
    assert torch.equal(got.logp_BT, want.logp_BT)

    def stop() -> None:
        if len(calls) == 10:
            raise InterruptedError
        calls.append(())

    calls.clear()
    with pytest.raises(InterruptedError):
        sample(policy, batch, seeds=[1, 2, 3], max_new_tokens=50, temperature=0.9, between=stop)
    assert len(calls) == 10
