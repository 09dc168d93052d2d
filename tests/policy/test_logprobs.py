"""Token log-probabilities: against a plain forward row by row, over families, with left padding and shared prompts."""

import pytest
import torch

from tests.tiny import FAMILIES, make_model
from warp_core.policy.logprobs import completion_logits, token_logprobs
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts
from warp_core.policy.sampling import Completions, sample

CPU = torch.device("cpu")
PROMPTS = ["a", "the film was", "in the end I think that"]
TEMPERATURE = 0.7


def draw(policy: Policy, *, copies: int, tokens: int = 7) -> Completions:
    batch = encode_prompts(PROMPTS, policy.tokenizer, chat_template=False, device=CPU).repeat(copies)
    seeds = list(range(len(batch.texts)))
    return sample(policy, batch, seeds=seeds, max_new_tokens=tokens, temperature=TEMPERATURE)


def plain_logprobs(policy: Policy, completions: Completions, row: int) -> torch.Tensor:
    """The definition: one row, no padding, no cache, the whole sequence through the model."""
    prompt = completions.prompts.ids_BP[row][completions.prompts.mask_BP[row].bool()]
    tokens = completions.tokens_BT[row][completions.mask_BT[row]]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.cat([prompt, tokens]).unsqueeze(0)).logits[0].double() / TEMPERATURE
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return chosen.gather(1, tokens.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_a_plain_forward_row_by_row(family, copies, tmp_path):
    policy = load_policy(make_model(family, tmp_path / "m"), device=CPU)
    completions = draw(policy, copies=copies)
    with torch.no_grad():
        logp_BT = token_logprobs(policy, completions, temperature=TEMPERATURE)
    for row, length in enumerate(completions.num_tokens):
        expected = plain_logprobs(policy, completions, row)
        torch.testing.assert_close(logp_BT[row, :length].double(), expected, atol=2e-5, rtol=1e-4)
        assert logp_BT[row, length:].eq(0).all()


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_saw_the_same_log_probabilities(family, copies, tmp_path):
    policy = load_policy(make_model(family, tmp_path / "m"), device=CPU)
    completions = draw(policy, copies=copies)
    with torch.no_grad():
        logp_BT = token_logprobs(policy, completions, temperature=TEMPERATURE)
    torch.testing.assert_close(completions.logp_BT, logp_BT, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradients_flow_through_a_shared_prompt(family, tmp_path):
    policy = load_policy(make_model(family, tmp_path / "m"), device=CPU)
    completions = draw(policy, copies=2)
    weight = policy.model.get_input_embeddings().weight.requires_grad_(True)
    alone = Completions(
        prompts=PromptBatch(
            texts=completions.prompts.texts, ids_BP=completions.prompts.ids_BP, mask_BP=completions.prompts.mask_BP
        ),
        tokens_BT=completions.tokens_BT,
        mask_BT=completions.mask_BT,
        logp_BT=completions.logp_BT,
        texts=completions.texts,
    )
    gradients = [
        torch.autograd.grad(token_logprobs(policy, one, temperature=TEMPERATURE).sum(), weight)[0]
        for one in (completions, alone)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


def test_the_temperature_is_in_the_logits(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    completions = draw(policy, copies=1)
    with torch.no_grad():
        one, half = (completion_logits(policy, completions, temperature=t) for t in (1.0, 0.5))
    torch.testing.assert_close(half, 2 * one)


def test_rows_that_cut_a_group_are_no_longer_shared(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    completions = draw(policy, copies=3)
    assert completions.rows(0, 3).prompts.group == 3
    assert completions.rows(1, 4).prompts.group == 1
    with torch.no_grad():
        whole = token_logprobs(policy, completions, temperature=TEMPERATURE)
        cut = token_logprobs(policy, completions.rows(1, 5), temperature=TEMPERATURE)
    torch.testing.assert_close(cut, whole[1:5], atol=2e-5, rtol=1e-4)
