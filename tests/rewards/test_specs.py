"""Names, weights and the sum."""

from pathlib import Path

import pytest

from warp_core.errors import CheckpointError, RewardError
from warp_core.rewards import RewardBatch, RewardSpec, load_reward, parse_spec
from warp_core.rewards.specs import RewardSum

BATCH = RewardBatch(prompts=("p", "p"), completions=("a b c a b c", "Fin."), num_tokens=(12, 3))


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("sentiment", "sentiment", 1.0),
        ("sentiment:0.5", "sentiment", 0.5),
        ("length:-0.0005", "length", -0.0005),
        ("length:0", "length", 0.0),
        ("length:1e-3", "length", 0.001),
        ("python:module.fn", "python:module.fn", 1.0),
        ("python:module.fn:0.5", "python:module.fn", 0.5),
        ("owner/model#POSITIVE:2", "owner/model#POSITIVE", 2.0),
        (r"C:\models\judge", r"C:\models\judge", 1.0),
        ("./a:b", "./a:b", 1.0),
    ],
)
def test_a_weight_is_a_number_after_the_last_colon(text, name, weight):
    assert parse_spec(text) == RewardSpec(name=name, weight=weight)


@pytest.mark.parametrize(("text", "message"), [("", "no name"), (":0.5", "no name"), ("  :1", "no name")])
def test_a_spec_needs_a_name(text, message):
    with pytest.raises(RewardError, match=message):
        parse_spec(text)


@pytest.mark.parametrize("text", ["length:nan", "length:inf", "length:-inf", "length:1e999"])
def test_a_weight_must_be_finite(text):
    with pytest.raises(RewardError, match=f"reward '{text}': the weight must be a finite number"):
        parse_spec(text)


def test_the_sum_by_hand():
    scores = load_reward(["length:-0.5", "words:2", "repetition:-4", "finished:0"])(BATCH)
    # -6 + 12 - 1 + 0  and  -1.5 + 2 - 0 + 0
    assert scores.total_B.tolist() == [5.0, 0.5]
    assert {name: part_B.tolist() for name, part_B in scores.parts.items()} == {
        "length": [12.0, 3.0],
        "words": [6.0, 1.0],
        "repetition": [0.25, 0.0],
        "finished": [0.0, 1.0],
    }


def test_name_and_specs_tell_what_was_asked():
    reward = load_reward(["words", "length:-0.0005"])
    assert reward.name == "words + length:-0.0005"
    assert reward.specs == (RewardSpec(name="words"), RewardSpec(name="length", weight=-0.0005))


def test_the_id_is_stable_and_depends_on_weights_and_parts():
    ids = [load_reward(specs).id for specs in (["words"], ["words:1.0"], ["words:2"], ["length"], ["words", "length"])]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no reward given"),
        (["sentimnt"], "unknown reward 'sentimnt': did you mean 'sentiment'. known are sentiment, length, words"),
        (["lenght:0.1"], "unknown reward 'lenght': did you mean 'length'"),
        (["zzz"], "unknown reward 'zzz': known are sentiment"),
        (["words", "words:2"], "'words' is given 2 times"),
        (["./nowhere"], "reward './nowhere': there is no such folder"),
        (["~/nowhere/at/all"], "there is no such folder"),
        (["a/b/c"], "there is no such folder"),
    ],
)
def test_mistakes_in_names(specs, message):
    with pytest.raises(RewardError, match=message) as caught:
        load_reward(specs)
    assert "\n" not in str(caught.value)


def test_a_hub_id_goes_through_find_model():
    asked = []

    def find_model(name: str) -> Path:
        asked.append(name)
        raise CheckpointError("the Hub does not know it")

    with pytest.raises(RewardError, match="reward 'owner/judge': the Hub does not know it"):
        load_reward(["owner/judge#GOOD:0.5"], find_model=find_model)
    assert asked == ["owner/judge"]


class Huge:
    name = id = "huge"

    def __call__(self, batch):
        return [1e308] * len(batch)


def test_a_sum_that_overflows_is_an_error():
    reward = RewardSum([(RewardSpec(name="huge", weight=10.0), Huge())])
    with pytest.raises(RewardError, match="the sum huge:10 is not finite"):
        reward(BATCH)


def test_one_bad_part_spoils_the_sum():
    class Bad:
        name = id = "bad"

        def __call__(self, batch):
            return [0.0, float("nan")]

    reward = RewardSum([(RewardSpec(name="huge"), Huge()), (RewardSpec(name="bad", weight=0.0), Bad())])
    with pytest.raises(RewardError, match=r"reward 'bad' gave nan to completion 1 \('Fin.'\)"):
        reward(BATCH)
