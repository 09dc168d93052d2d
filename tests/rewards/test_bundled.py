"""The bundled sentiment model, with real numbers."""

import pytest
import torch

from warp_core.rewards import RewardBatch, load_reward
from warp_core.rewards.classifier import load_classifier
from warp_core.workspace.assets import assets_root

PRAISE = (
    "A charming, funny comedy with great performances.",
    "This film is amazing! I loved every minute of it",
    "It's a wonderful, heartfelt film that I can't recommend enough.",
    "The story is moving and the acting is superb, which makes",
    "One of the best films of the year.",
    "a delight from start to finish",
)
BLAME = (
    "Terrible pacing, wooden acting and a predictable plot.",
    "What a waste of two hours; nothing works.",
    "I was bored from start to finish.",
    "The acting isn't bad, but the script is a mess.",
    "The jokes are stale, the plot is tedious and the",
    "dull, lifeless and irritating",
)
SPELLINGS = (
    ("It's good, isn't it?", "it 's good , is n't it ?"),
    ("I don't, can't and won't.", "i do n't , ca n't and wo n't ."),
    ("You cannot miss it", "you ca n't miss it"),
    ("\u201cFine\u201d \u2014 it\u2019s fine\u2026", '" fine " -- it \'s fine ...'),
    ("A (small) film<br />of note", "a -lrb- small -rrb- film of note"),
)


@pytest.fixture(scope="module")
def reward():
    return load_reward(["sentiment"])


def batch_of(*completions: str, prompt: str = "") -> RewardBatch:
    count = len(completions)
    return RewardBatch(prompts=(prompt,) * count, completions=completions, num_tokens=(1,) * count)


def test_praise_earns_more_than_blame(reward):
    scores_B = reward(batch_of(*PRAISE, *BLAME)).total_B
    assert scores_B[: len(PRAISE)].min() > 0.5
    assert scores_B[len(PRAISE) :].max() < -0.5


def test_words_are_graded(reward):
    awful, okay, good, wonderful = reward(
        batch_of("awful.", "okay.", "good.", "wonderful.", prompt="The film is")
    ).total_B.tolist()
    assert awful < -1.0 < okay < good < wonderful
    assert wonderful - okay > 1.0


def test_the_completion_decides_after_openings_not_used_in_training(reward):
    openings = (assets_root() / "prompts" / "review-openings-eval.txt").read_text(encoding="utf-8").splitlines()

    def mean(completion: str) -> float:
        batch = RewardBatch(
            prompts=tuple(openings), completions=(completion,) * len(openings), num_tokens=(8,) * len(openings)
        )
        return float(reward(batch).total_B.mean())

    gap = mean(" moving, funny and beautifully acted.") - mean(" a tedious, lifeless mess.")
    assert gap > 3.0


@pytest.mark.parametrize(("natural", "tokenised"), SPELLINGS)
def test_natural_and_tokenised_spelling_are_the_same_to_it(natural, tokenised):
    tokenizer = load_classifier(assets_root() / "reward-model", name="sentiment").tokenizer
    assert tokenizer(natural)["input_ids"] == tokenizer(tokenised)["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer(natural)["input_ids"]


def test_scores_do_not_depend_on_the_rest_of_the_batch(reward):
    together_B = reward(batch_of(*PRAISE, *BLAME)).total_B
    alone_B = torch.cat([reward(batch_of(text)).total_B for text in (*PRAISE, *BLAME)])
    assert torch.allclose(together_B, alone_B, atol=1e-5)


def test_the_sum_with_a_length_penalty(reward):
    batch = RewardBatch(prompts=("The film is",), completions=(" good.",), num_tokens=(40,))
    total = load_reward(["sentiment", "length:-0.05"])(batch).total_B.item()
    assert total == pytest.approx(reward(batch).total_B.item() - 2.0)


def test_it_is_small_and_has_a_card():
    folder = assets_root() / "reward-model"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    assert "scripts/train_reward_model.py" in (folder / "README.md").read_text(encoding="utf-8")
