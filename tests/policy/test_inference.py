"""Fused and packed inference: the tokens and numbers of transformers' own loop, and nothing left behind."""

import pytest
import torch
import transformers

from tests.tiny import FAMILIES, VOCAB_SIZE, make_model, make_tokenizer
from tests.toy import toy_policy
from warp_core.policy import inference, kernels
from warp_core.policy import sampling as sampling_module
from warp_core.policy.inference import completion_states, fast_inference, make_decoder
from warp_core.policy.logprobs import completion_logits
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts
from warp_core.policy.sampling import Completions, sample

CPU = torch.device("cpu")
PROMPTS = ["a", "the film was", "in the end I think that"]


def policy_of(family: str, folder, **config) -> Policy:
    policy = load_policy(make_model(family, folder / family, **config), device=CPU)
    # More end tokens than usual, so that rows end at different times.
    return Policy(**{**vars(policy), "eos_ids": (*range(0, 250, 8), 258)})


def batch_of(policy: Policy, *, copies: int = 3) -> PromptBatch:
    return encode_prompts(PROMPTS, policy.tokenizer, chat_template=False, device=CPU).repeat(copies)


def draw(policy: Policy, prompts: PromptBatch, **settings) -> Completions:
    seeds = [100 + row for row in range(len(prompts.texts))]
    return sample(policy, prompts, seeds=seeds, **({"max_new_tokens": 12, "temperature": 0.8} | settings))


def generated(policy: Policy, prompts: PromptBatch, monkeypatch, **settings) -> Completions:
    """The same draws by transformers' own loop."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling_module, "make_decoder", lambda *args, **kwargs: None)
        return draw(policy, prompts, **settings)


def assert_same(found: Completions, want: Completions) -> None:
    assert torch.equal(found.tokens_BT, want.tokens_BT)
    assert torch.equal(found.mask_BT, want.mask_BT)
    assert found.texts == want.texts
    torch.testing.assert_close(found.logp_BT, want.logp_BT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_draws_of_transformers_own_loop(family, tmp_path, monkeypatch):
    policy = policy_of(family, tmp_path)
    prompts = batch_of(policy)
    want = generated(policy, prompts, monkeypatch, keep_distributions=True)
    assert len(set(want.num_tokens)) > 2, "rows end at different times"
    plain = draw(policy, prompts, keep_distributions=True)
    with fast_inference(policy):
        fast = draw(policy, prompts, keep_distributions=True)
        assert_same(draw(policy, prompts), want)
    for found in (plain, fast):
        assert_same(found, want)
        mask_BT = want.mask_BT
        torch.testing.assert_close(found.logps_BTV[mask_BT], want.logps_BTV[mask_BT], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_temperature_and_common_seeds(temperature, tmp_path, monkeypatch):
    """Rows that share a seed share the noise, also once some of them have left."""
    policy = policy_of("llama", tmp_path)
    prompts = batch_of(policy)
    settings = {"seeds": [5, 6, 7] * 3, "max_new_tokens": 12, "temperature": temperature}
    with monkeypatch.context() as patch:
        patch.setattr(sampling_module, "make_decoder", lambda *args, **kwargs: None)
        want = sample(policy, prompts, **settings)
    with fast_inference(policy):
        assert_same(sample(policy, prompts, **settings), want)


def test_whole_completions_follow_the_policy():
    """Packed and fused, 3000 completions of a toy: chi-square over the first two tokens, 6 degrees of freedom."""
    policy = toy_policy(seed=3)
    batch = encode_prompts(["a"], policy.tokenizer, chat_template=False, device=CPU).repeat(3000)
    with fast_inference(policy), torch.no_grad():
        drawn = sample(policy, batch, seeds=range(3000), max_new_tokens=2, temperature=0.9)
    rows = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    ids = torch.cat([batch.ids_BP[:1].expand(9, -1), rows], dim=1)
    with torch.no_grad():
        logp = (policy.model(input_ids=ids).logits[:, -3:-1].double() / 0.9).log_softmax(-1)
    chance = logp.gather(2, rows[..., None]).squeeze(2).sum(1).exp().view(3, 3)
    chance[2] = torch.tensor([0.0, 0.0, float(chance[2].sum())])  # after the end token there is padding: the same token
    counts = torch.bincount(drawn.tokens_BT[:, 0] * 3 + drawn.tokens_BT[:, 1], minlength=9).view(3, 3).double()
    possible = chance > 0
    assert counts[~possible].sum() == 0
    expected = 3000 * chance[possible]
    assert float(expected.min()) > 5
    # 22.5 is exceeded once in a thousand; seeds are fixed.
    assert float(((counts[possible] - expected) ** 2 / expected).sum()) < 22.5
    flat = torch.full_like(expected, 3000 / len(expected))
    assert float(((counts[possible] - flat) ** 2 / flat).sum()) > 100, "the test would not see a wrong distribution"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("copies", [1, 3])
def test_states_of_completions_make_their_logits(family, copies, tmp_path):
    policy = policy_of(family, tmp_path)
    drawn = draw(policy, batch_of(policy, copies=copies))
    with torch.no_grad():
        want_BTV = completion_logits(policy, drawn, temperature=1.0)
    settings = {"tokens_BT": drawn.tokens_BT, "mask_BT": drawn.mask_BT}
    states = completion_states(policy, drawn.prompts, **settings)
    with fast_inference(policy):
        packed = completion_states(policy, drawn.prompts, **settings)
    for one in (states, packed):
        assert one.hidden_MH.shape == (int(drawn.mask_BT.sum()), 32)
        torch.testing.assert_close(one.head(one.hidden_MH), want_BTV[drawn.mask_BT], rtol=1e-4, atol=1e-4)


def test_one_token_completions_have_states(tmp_path):
    policy = policy_of("llama", tmp_path)
    drawn = draw(policy, batch_of(policy), max_new_tokens=1)
    states = completion_states(policy, drawn.prompts, tokens_BT=drawn.tokens_BT, mask_BT=drawn.mask_BT)
    want = completion_logits(policy, drawn, temperature=1.0)[:, 0]
    torch.testing.assert_close(states.head(states.hidden_MH), want, rtol=1e-4, atol=1e-4)


def test_other_architectures_have_no_states(tmp_path):
    policy = policy_of("gpt2", tmp_path)
    drawn = draw(policy, batch_of(policy), max_new_tokens=2)
    assert completion_states(policy, drawn.prompts, tokens_BT=drawn.tokens_BT, mask_BT=drawn.mask_BT) is None


def test_a_model_with_a_state_of_its_own_is_generated(tmp_path):
    config = transformers.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=258, pad_token_id=256
    )
    torch.manual_seed(0)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(tmp_path, device=CPU)
    assert make_decoder(policy, max_new_tokens=3) is None
    prompts = encode_prompts(["one prompt"], policy.tokenizer, chat_template=False, device=CPU).repeat(3)
    with fast_inference(policy):
        drawn = draw(policy, prompts, max_new_tokens=4)
    want = draw(policy, prompts, max_new_tokens=4)
    assert torch.equal(drawn.tokens_BT, want.tokens_BT)
    torch.testing.assert_close(drawn.logp_BT, want.logp_BT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_left_as_it_was_also_after_an_error(family, tmp_path):
    policy = policy_of(family, tmp_path)
    modules = {name: dict(vars(module)) for name, module in policy.model.named_modules()}

    def enter() -> None:
        with fast_inference(policy):
            assert make_decoder(policy, max_new_tokens=1) is not None
            raise InterruptedError

    with pytest.raises(InterruptedError):
        enter()
    assert policy.model not in inference._prepared
    for name, module in policy.model.named_modules():
        assert vars(module).keys() == modules[name].keys()


def test_weights_are_packed_once_for_blocks_within_blocks(tmp_path, monkeypatch):
    policy = policy_of("llama", tmp_path)
    packed = []
    made = kernels._Packed.__init__
    monkeypatch.setattr(
        kernels._Packed, "__init__", lambda self, *args: packed.append(args[0].shape) or made(self, *args)
    )
    with fast_inference(policy):
        # query, key and value are one product, gate and up another; two layers and the head
        shapes = [(64, 32), (32, 32), (96, 32), (32, 48)] * 2 + [(VOCAB_SIZE, 32)]
        assert [tuple(shape) for shape in packed] == shapes
        with fast_inference(policy):
            draw(policy, batch_of(policy))
        draw(policy, batch_of(policy))
    assert len(packed) == len(shapes)


def test_weights_that_move_between_blocks_are_followed(tmp_path, monkeypatch):
    policy = policy_of("llama", tmp_path)
    prompts = batch_of(policy)
    with fast_inference(policy):
        before = draw(policy, prompts)
    for parameter in policy.model.parameters():
        parameter.data.mul_(1.1)
    want = generated(policy, prompts, monkeypatch)
    assert not torch.equal(want.tokens_BT, before.tokens_BT)
    assert_same(draw(policy, prompts), want)
    with fast_inference(policy):
        assert_same(draw(policy, prompts), want)


def test_where_nothing_can_be_packed_it_works_all_the_same(tmp_path, monkeypatch):
    policy = policy_of("llama", tmp_path)
    prompts = batch_of(policy)
    want = generated(policy, prompts, monkeypatch)
    monkeypatch.setattr(kernels, "_can_pack", lambda dtype: False)
    with fast_inference(policy):
        assert_same(draw(policy, prompts), want)


def test_the_policy_trains_on_after_the_block(tmp_path):
    policy = policy_of("llama", tmp_path)
    policy.model.requires_grad_(True)
    with fast_inference(policy):
        drawn = draw(policy, batch_of(policy))
    completion_logits(policy, drawn, temperature=1.0).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())
