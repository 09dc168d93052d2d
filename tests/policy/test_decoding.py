"""Decoders give the logits that the model's own forward pass gives for the whole text, whatever has happened before."""

import pytest
import torch

from tests.tiny import FAMILIES, make_adapter, make_model
from tests.weights.helpers import adapter_set
from warp_core.policy import decoding
from warp_core.policy.bank import AdapterBank
from warp_core.policy.decoding import LlamaDecoder, TransformersDecoder
from warp_core.policy.inference import fast_inference, make_decoder
from warp_core.policy.loading import load_checkpoint
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import encode_prompts
from warp_core.weights import coefficients, compute_geometry, make_recipe, open_checkpoint

CPU = torch.device("cpu")
PROMPTS = ["a", "the film was", "in the end I think that"]
TOKENS_BT = torch.randint(0, 256, (6, 5), generator=torch.Generator().manual_seed(3))
FUSED = ("llama", "qwen2", "qwen3")


def policy_of(family: str, folder, *, dtype: torch.dtype = torch.float32, **config) -> Policy:
    return load_policy(make_model(family, folder / family, dtype=dtype, **config), device=CPU, dtype=dtype)


def batch_of(policy: Policy, prompts=PROMPTS):
    return encode_prompts(prompts, policy.tokenizer, chat_template=False, device=CPU)


@torch.no_grad()
def whole(policy: Policy, prompt_P: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
    """Logits of the next token from one row without padding or cache [V]."""
    return policy.model(input_ids=torch.cat([prompt_P, tokens_T])[None], use_cache=False).logits[0, -1]


@torch.no_grad()
def assert_decodes(policy: Policy, *, copies: int, prompts=PROMPTS, tolerance: float = 2e-4) -> None:
    """Six rows; rows 1 and 4 leave after two tokens, the last row after four."""
    batch = batch_of(policy, prompts)
    decoder = make_decoder(policy, max_new_tokens=6)
    found = decoder.prefill(batch.ids_BP, batch.mask_BP, copies=copies)
    rows = list(range(len(prompts) * copies))
    for step in range(6):
        for place, row in enumerate(rows):
            prompt_P = batch.ids_BP[row // copies][batch.mask_BP[row // copies].bool()]
            want = whole(policy, prompt_P, TOKENS_BT[row, :step])
            torch.testing.assert_close(found[place].float(), want.float(), rtol=tolerance, atol=tolerance)
        if step == 5:
            break
        if step in (2, 4):
            places = [0, 5, 2, 3] if step == 2 else [0, 2, 1]
            decoder.keep(places)
            rows = [rows[place] for place in places]
        found = decoder.step(TOKENS_BT[rows, step])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_every_architecture_token_by_token(family, packed, tmp_path):
    policy = policy_of(family, tmp_path)
    expected = LlamaDecoder if family in FUSED else TransformersDecoder
    assert type(make_decoder(policy, max_new_tokens=1)) is expected
    if packed:
        with fast_inference(policy):
            assert_decodes(policy, copies=2)
    else:
        assert_decodes(policy, copies=2)


@pytest.mark.parametrize("prompts", [["the same length"] * 6, ["a", "abc", "ab", "abcdefgh", "abcde", "x"]])
def test_padding_or_none(prompts, tmp_path):
    assert_decodes(policy_of("llama", tmp_path), copies=1, prompts=prompts)


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 12},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rms_norm_eps": 0.1},
    ],
)
def test_variants_of_llama_are_fused_and_right(config, tmp_path):
    policy = policy_of("llama", tmp_path, **config)
    assert isinstance(make_decoder(policy, max_new_tokens=1), LlamaDecoder)
    with fast_inference(policy):
        assert_decodes(policy, copies=2)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_in_bfloat16_it_is_as_close_to_float32_as_the_model_itself(family, tmp_path):
    half = policy_of(family, tmp_path / "half", dtype=torch.bfloat16)
    exact = load_policy(tmp_path / "half" / family, device=CPU, dtype=torch.float32)
    batch = batch_of(half)
    with torch.no_grad(), fast_inference(half):
        decoder = make_decoder(half, max_new_tokens=2)
        decoder.prefill(batch.ids_BP, batch.mask_BP)
        found = decoder.step(TOKENS_BT[:3, 0])
    assert found.dtype == torch.bfloat16
    errors = {"ours": 0.0, "usual": 0.0}
    for row, found_V in enumerate(found):
        prompt_P = batch.ids_BP[row][batch.mask_BP[row].bool()]
        want = whole(exact, prompt_P, TOKENS_BT[row, :1])
        errors["ours"] += float((found_V.float() - want).square().sum())
        errors["usual"] += float((whole(half, prompt_P, TOKENS_BT[row, :1]).float() - want).square().sum())
    assert 0 < errors["ours"] < 2 * errors["usual"]


def test_many_scores_take_torchs_own_attention(tmp_path, monkeypatch):
    from warp_core.policy import llama

    monkeypatch.setattr(llama, "_MAX_SCORES", 0)
    assert_decodes(policy_of("llama", tmp_path), copies=2)


def test_rows_of_a_bank_are_their_mixes_and_stay(tmp_path):
    init, policies = adapter_set(tmp_path, num=2)
    bank = AdapterBank(load_policy(init.full.path, device=CPU), open_checkpoint(init.full.path))
    bank.load([init, *policies])
    recipe = make_recipe(init, policies, weights=[0.4, 0.6], method="slerp", granularity="layer", eta=0.8)
    mix = bank.mix(coefficients(recipe, compute_geometry(init, policies, granularity="layer")), [init, *policies])
    batch = batch_of(bank.policy)
    found = {}
    with torch.no_grad(), fast_inference(bank.policy):
        for name, mixes in (("both", [mix, None]), ("mix", [mix]), ("base", [None])):
            decoder = make_decoder(bank.policy, max_new_tokens=2)
            with bank.at(bank.table(mixes)):
                decoder.prefill(batch.ids_BP.repeat(len(mixes), 1), batch.mask_BP.repeat(len(mixes), 1))
                assert decoder.can_keep == (name == "base")
                found[name] = decoder.step(TOKENS_BT[:3, 0].repeat(len(mixes)))
    torch.testing.assert_close(found["both"], torch.cat([found["mix"], found["base"]]), rtol=1e-4, atol=1e-4)
    assert float((found["mix"] - found["base"]).abs().max()) > 0.05
    base = load_policy(init.full.path, device=CPU)
    prompt_P = batch.ids_BP[0][batch.mask_BP[0].bool()]
    torch.testing.assert_close(found["base"][0], whole(base, prompt_P, TOKENS_BT[0, :1]), rtol=1e-4, atol=1e-4)


def test_an_adapter_in_its_base(tmp_path):
    base = make_model("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    with fast_inference(policy := load_checkpoint(open_checkpoint(adapter, base=base), device=CPU)):
        assert_decodes(policy, copies=2)


def test_a_row_that_moves_costs_one_copy_of_its_cache(tmp_path):
    """Rows that stay in their place are not touched: the memory is the same, in its place."""
    policy = policy_of("llama", tmp_path)
    batch = batch_of(policy, ["abc"] * 5)
    decoder = make_decoder(policy, max_new_tokens=2)
    with torch.no_grad():
        decoder.prefill(batch.ids_BP, batch.mask_BP)
        before = decoder._cache.data.clone()
        held = decoder._cache.data.data_ptr()
        decoder.keep([0, 4, 2, 3])
    assert decoder._cache.data.data_ptr() == held
    assert torch.equal(decoder._cache.data, before[:, :, [0, 4, 2, 3]])


def test_positions_count_from_the_first_real_token():
    assert decoding.positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
