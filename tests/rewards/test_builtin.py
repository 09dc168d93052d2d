"""The formulas, by hand."""

import pytest

from warp_core.rewards import RewardBatch, known_rewards, load_reward
from warp_core.rewards.builtin import BUILT_IN_REWARDS, ascii_share, finished, repetition, uppercase_share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("a b c d e", 0.0),
        ("a b c a b c", 0.25),  # abc bca cab abc
        ("a b c A B C", 0.25),
        ("good good good good good", 2 / 3),  # three trigrams, all the same
    ],
)
def test_repetition_counts_trigrams_seen_before(text, share):
    assert repetition(text) == pytest.approx(share)


def test_ascii_share():
    assert ascii_share("abc\u00e9") == 0.75
    assert ascii_share("") == 1.0


def test_uppercase_share_is_of_letters_only():
    assert uppercase_share("AB cd 12 !!") == 0.5
    assert uppercase_share("123") == 0.0


@pytest.mark.parametrize("text", ["Done.", "Really?", "Yes! ", 'He said "no."', "(It was.)"])
def test_finished_texts(text):
    assert finished(text) == 1.0


@pytest.mark.parametrize("text", ["", "and then the", "one, two,", "he said:"])
def test_unfinished_texts(text):
    assert finished(text) == 0.0


def test_all_of_them_on_one_batch():
    batch = RewardBatch(prompts=("p", "p"), completions=("So so so so.", "caf\u00e9"), num_tokens=(7, 3))
    scores = load_reward(list(BUILT_IN_REWARDS)).__call__(batch)
    assert {name: part_B.tolist() for name, part_B in scores.parts.items()} == {
        "length": [7.0, 3.0],
        "words": [4.0, 1.0],
        "repetition": [0.0, 0.0],
        "finished": [1.0, 0.0],
        "ascii": [1.0, 0.75],
        "uppercase": [0.125, 0.0],
    }


def test_every_built_in_reward_has_its_name_and_help():
    assert all(name == reward.name and reward.help for name, reward in BUILT_IN_REWARDS.items())
    assert set(known_rewards()) == {"sentiment", *BUILT_IN_REWARDS}
