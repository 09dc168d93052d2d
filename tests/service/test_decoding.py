"""Token by token: the same completions as the sampler's, and a text that never shows half a character."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import FAMILIES, make_model, make_tokenizer
from tests.toy import CPU, toy_policy
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.sampling import sample
from warp_core.service import decoding
from warp_core.service.decoding import GrowingText, TokenStream

TEXT = "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f469\u200d\U0001f52c\U0001f1e9\U0001f1ea ok  two\n\tspaces"


def grown(tokenizer, tokens):
    text = GrowingText(tokenizer)
    seen = []
    for token in tokens:
        text.add(token)
        seen.append(text.text)
    text.finish()
    return seen, text.text


def words_with_spaces_on_their_left():
    """A tokenizer that marks the space before a word, and drops it at the start of a text, as sentencepiece does."""
    pieces = ["<unk>", "\u2581the", "\u2581film", "\u2581", "s", "\u2581was", "</s>"]
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_bytes_of_a_character_are_shown_together():
    tokenizer = make_tokenizer()
    tokens = tokenizer(TEXT)["input_ids"]
    assert len(tokens) == len(TEXT.encode()), "every byte is a token"
    seen, whole = grown(tokenizer, tokens)
    assert whole == TEXT
    assert all("\ufffd" not in text and TEXT.startswith(text) for text in seen)
    assert len(set(seen)) == len(TEXT), "every character was seen as soon as it was there"


def test_a_character_that_is_cut_off_is_shown_at_the_end_as_decoding_shows_it():
    tokenizer = make_tokenizer()
    tokens = tokenizer("ab\u65e5")["input_ids"][:-1]
    seen, whole = grown(tokenizer, tokens)
    assert seen[-1] == "ab"
    assert whole == tokenizer.decode(tokens) == "ab\ufffd"


def test_spaces_between_words_are_kept_and_special_tokens_left_out():
    tokenizer = words_with_spaces_on_their_left()
    tokens = tokenizer("the films was")["input_ids"] + [6]
    seen, whole = grown(tokenizer, tokens)
    assert whole == tokenizer.decode(tokens, skip_special_tokens=True) == "the films was"
    assert seen == ["the", "the film", "the films", "the films was", "the films was"]


def stream_of(policy, *, prompt="the film was", copies=2, tokens=9, models=1, seeds=None, **options):
    batch = encode_prompts([prompt], policy.tokenizer, chat_template=False, device=CPU).repeat(models)
    seeds = seeds or list(range(copies))
    return TokenStream(policy, batch, seeds=seeds, max_new_tokens=tokens, temperature=0.9, **options)


def run(stream):
    shown = []
    while not stream.is_complete:
        stream.step()
        shown.append((stream.texts, tuple(stream.num_tokens), tuple(stream.has_ended)))
    return shown


def sampled(policy, *, prompt="the film was", seeds, tokens=9):
    batch = encode_prompts([prompt], policy.tokenizer, chat_template=False, device=CPU).repeat(len(seeds))
    return sample(policy, batch, seeds=seeds, max_new_tokens=tokens, temperature=0.9, keep_distributions=True)


def assert_same(found, want):
    assert found.texts == want.texts
    assert found.num_tokens == want.num_tokens
    length = min(found.tokens_BT.shape[1], want.tokens_BT.shape[1])
    assert torch.equal(found.tokens_BT[:, :length], want.tokens_BT[:, :length])
    torch.testing.assert_close(found.logp_BT[:, :length], want.logp_BT[:, :length], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_completions_of_the_sampler(family, tmp_path):
    policy = load_policy(make_model(family, tmp_path / "m"), device=CPU)
    stream = stream_of(policy, copies=3, tokens=24)
    shown = run(stream)
    found, want = stream.completions(), sampled(policy, seeds=[0, 1, 2], tokens=24)
    assert_same(found, want)
    torch.testing.assert_close(found.logps_BTV, want.logps_BTV, rtol=1e-3, atol=1e-3)
    assert shown[-1][0] == want.texts
    assert len(shown) == max(want.num_tokens)
    for row in range(3):
        assert [num[row] for _, num, _ in shown] == [min(t + 1, want.num_tokens[row]) for t in range(len(shown))]


def test_a_model_with_a_memory_of_its_own_kind(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    other = Policy(**{**vars(policy), "shares_prefix": False, "keeps_logits": False})
    stream = stream_of(other, copies=2)
    run(stream)
    assert_same(stream.completions(), sampled(policy, seeds=[0, 1]))


def test_rows_that_end_early_are_padded_and_stay():
    policy = toy_policy(seed=3)
    stream = stream_of(policy, prompt="a", seeds=list(range(20)), tokens=6)
    shown = run(stream)
    want = sampled(policy, prompt="a", seeds=list(range(20)), tokens=6)
    assert_same(stream.completions(), want)
    assert min(want.num_tokens) == 1
    early = want.num_tokens.index(1)
    assert {(texts[early], num[early], ended[early]) for texts, num, ended in shown} == {("", 1, True)}
    assert all(stream.has_ended)


def test_all_rows_ended_ends_the_stream():
    policy = toy_policy(seed=3)
    seeds = [seed for seed in range(40) if sampled(policy, prompt="a", seeds=[seed], tokens=6).num_tokens[0] < 4]
    stream = stream_of(policy, prompt="a", seeds=seeds, tokens=6)
    assert len(run(stream)) < 4


def test_copies_of_the_prompt_for_several_models_share_their_random_numbers(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    stream = stream_of(policy, copies=2, models=3)
    run(stream)
    texts = stream.texts
    assert texts[0] != texts[1]
    assert texts == texts[:2] * 3
    completions = stream.completions()
    assert completions.prompts.group == 6
    assert completions.prompts.ids_BP.shape[0] == 6


def test_distributions_are_kept_where_they_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "KEPT_NUMEL", 2 * 9 * 262 - 1)
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    stream = stream_of(policy)
    run(stream)
    assert stream.completions().logps_BTV is None
    assert_same(stream.completions(), sampled(policy, seeds=[0, 1]))
