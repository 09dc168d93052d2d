"""The second judge: its head over the frozen model scores what it says, and the script that makes the head."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.test_docs import script
from tests.tiny import load_model, make_model
from warp_core.policy.tokenizer import load_tokenizer
from warp_core.rewards import RewardBatch, load_reward
from warp_core.studies import judge
from warp_core.workspace.assets import assets_root


@pytest.fixture
def head(fresh, monkeypatch):
    """A head for tiny models in place of the bundled one."""
    folder = fresh / "assets" / "judge"
    folder.mkdir(parents=True)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    save_file({"score.weight": weight}, folder / "head.safetensors")
    monkeypatch.setattr(judge, "assets_root", lambda: fresh / "assets")
    return weight


@pytest.mark.parametrize("tied", [True, False])
def test_the_judge_is_the_head_on_the_last_token(head, fresh, tied):
    base = make_model("llama", fresh / "base", tied=tied)
    folder = judge.assemble_judge(base)
    texts = [("The film", " was good"), ("I", " left before the end of it")]
    batch = RewardBatch(prompts=tuple(p for p, _ in texts), completions=tuple(c for _, c in texts), num_tokens=(9, 26))
    scores = load_reward([str(folder)])(batch).total_B
    model, tokenizer = load_model(base), load_tokenizer(base)
    for (prompt, completion), score in zip(texts, scores, strict=True):
        ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0, -1]
        assert float(score) == pytest.approx(float(head[0] @ hidden), abs=1e-4)
    assert judge.assemble_judge(base) == folder


def test_weights_are_not_copied(head, fresh):
    base = make_model("llama", fresh / "base")
    folder = judge.assemble_judge(base)
    assert (folder / "model-00001-of-00002.safetensors").stat().st_ino == (base / "model.safetensors").stat().st_ino


def test_any_reward_can_be_the_judge():
    batch = RewardBatch(prompts=("a",), completions=("AB",), num_tokens=(2,))
    assert judge.load_judge("uppercase", device="cpu")(batch).total_B.tolist() == [1.0]
    assert judge.judge_id("uppercase") != judge.judge_id("words")
    assert judge.judge_in_words("words") == "words"


def test_the_bundled_head_says_what_it_is():
    facts = json.loads((assets_root() / "judge" / "judge.json").read_text())
    assert facts["trained_on"] + facts["held_out"] + facts["dropped"] == facts["sentences"]
    assert facts["dropped"] > facts["sentences"] / 2, "SST-2 was drawn from the same reviews"
    assert 0.7 < facts["held_out_accuracy"] < 1
    assert f"{facts['held_out_accuracy']:.3f}" in judge.judge_in_words(judge.JUDGE)
    card = (assets_root() / "judge" / "README.md").read_text()
    assert str(facts["held_out_accuracy"]) in card
    assert card.isascii()
    assert sum(file.stat().st_size for file in (assets_root() / "judge").iterdir()) < 20_000


def test_sentences_that_share_a_phrase_are_found():
    train_judge = script("train_judge")
    seen = {train_judge.words_of(text) for text in ("It 's so very good .", "bad", "a long walk home")}
    for text, shared in (
        ("it 's so very good", True),
        ("They say it 's so very good , really", True),
        ("Bad!", True),
        ("a bad film", False),
        ("so very good", False),
        ("after a long walk home they rest", True),
    ):
        assert train_judge.shares_phrase(train_judge.words_of(text), seen) is shared, text


def test_sentences_are_given_their_natural_spelling():
    natural = script("train_judge").natural
    assert natural("it 's good , but does n't last . ") == "It's good, but doesn't last."


def test_the_head_separates_what_can_be_separated():
    train_judge = script("train_judge")
    generator = torch.Generator().manual_seed(0)
    x_BH = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    y_B = (x_BH @ torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0], dtype=torch.float64) > 0).double()
    w_H = train_judge.fit(x_BH, y_B, penalty=1e-3)
    assert train_judge.accuracy(w_H, x_BH, y_B) > 0.98
    assert train_judge.chosen_penalty(x_BH, y_B) <= 1.0
    heavy = train_judge.fit(x_BH, y_B, penalty=100.0)
    assert heavy.norm() < w_H.norm() / 10
