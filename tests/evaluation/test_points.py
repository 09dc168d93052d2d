"""Points: the aggregation by hand, JSON there and back, and what is refused."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from warp_core.errors import WorkspaceError
from warp_core.evaluation.points import Evaluation, Point, Sample, point_from_samples
from warp_core.weights.recipes import Recipe

EVALUATION = Evaluation(
    reward_id="r", prompts_id="p", num_prompts=2, samples_per_prompt=2, max_new_tokens=16, temperature=0.9, seed=3
)
RECIPE = Recipe(init="a" * 64, policies=("b" * 64, "c" * 64), method="slerp", weights=(0.5, 0.5), eta=0.3)


def sample(prompt: str, completion: str, reward: float, kl: float = 1.0, **parts: float) -> Sample:
    return Sample(prompt=prompt, completion=completion, reward=reward, kl=kl, num_tokens=len(completion), rewards=parts)


SAMPLES = [
    sample("p", "a b", 1, 0.5, good=2.0, length=-1.0),
    sample("p", "a c", 2, 1.5, good=3.0, length=-1.0),
    sample("q", "d", 3, 2.0, good=4.0, length=-1.0),
    sample("q", "d", 6, 2.0, good=7.0, length=-1.0),
]


def test_the_aggregation_by_hand() -> None:
    point = point_from_samples(SAMPLES, evaluation=EVALUATION, recipe=RECIPE.to_json(), iteration=1)
    assert (point.reward, point.reward_se) == (3.0, 1.5)
    assert (point.kl, point.kl_se) == (1.5, 0.5)  # prompt means 1 and 2
    assert (point.length, point.length_se) == (2.0, 1.0)  # prompt means 3 and 1
    assert (point.diversity, point.diversity_se) == (0.25, 0.25)  # 1 - 1/2 and 1 - 1
    assert point.rewards == {"good": 4.0, "length": -1.0}
    assert (point.n, point.seed, point.kl_estimator) == (4, 3, "exact")
    assert (point.kind, point.method, point.eta, point.iteration) == ("merge", "slerp", 0.3, 1)
    assert point.evaluation == EVALUATION


def test_a_policy_on_one_prompt_has_null_errors() -> None:
    point = point_from_samples(
        [sample("p", "x", 1.0)], evaluation=EVALUATION, policy="b", run="1", kind="training", step=20
    )
    found = json.loads(json.dumps(point.to_json(), allow_nan=False))
    assert {k: found[k] for k in ("reward_se", "kl_se", "length_se", "diversity", "diversity_se", "recipe", "eta")} == {
        "reward_se": None, "kl_se": None, "length_se": None, "diversity": None, "diversity_se": None, "recipe": None,
        "eta": None,
    }  # fmt: skip
    assert (found["policy"], found["kind"], found["run"], found["step"]) == ("b", "training", "1", 20)


def test_json_there_and_back() -> None:
    point = point_from_samples(SAMPLES, evaluation=EVALUATION, recipe=RECIPE.to_json())
    text = json.dumps(point.to_json() | {"dominated": False, "from a later version": 1}, allow_nan=False)
    assert Point.from_json(json.loads(text)) == point
    assert Evaluation.from_json(json.loads(text)["evaluation"]) == EVALUATION
    assert [Sample.from_json(json.loads(json.dumps(s.to_json()))) for s in SAMPLES] == SAMPLES
    wanted = "reward reward_se rewards kl kl_se kl_estimator length diversity n seed eta iteration method"
    assert set(wanted.split()) <= set(point.to_json())


def test_keys_tell_subjects_settings_and_steps_apart() -> None:
    merge = point_from_samples(SAMPLES, evaluation=EVALUATION, recipe=RECIPE.to_json())
    assert merge.subject == RECIPE.id
    assert merge.key == f"{RECIPE.id}:{EVALUATION.id}"
    other = Evaluation.from_json(EVALUATION.to_json() | {"seed": 4})
    keys = {
        merge.key,
        point_from_samples(SAMPLES, evaluation=other, recipe=RECIPE.to_json()).key,
        point_from_samples(SAMPLES, evaluation=EVALUATION, policy="b").key,
        point_from_samples(SAMPLES, evaluation=EVALUATION, policy="b", step=20).key,
        point_from_samples(SAMPLES, evaluation=EVALUATION, policy="b", step=40).key,
    }
    assert len(keys) == 5
    assert len(EVALUATION.id) == 16


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kl": "1"}, "kl:"),
        ({"kl": math.nan}, "kl:"),
        ({"reward": math.inf}, "reward:"),
        ({"reward": None}, "reward:"),
        ({"reward_se": -1.0}, "reward_se:"),
        ({"n": 0}, "n:"),
        ({"n": True}, "n:"),
        ({"diversity": 1.5}, "diversity:"),
        ({"rewards": {"good": "x"}}, "rewards.good:"),
        ({"kl_estimator": "k3"}, "kl_estimator:"),
        ({"kind": "other"}, "kind:"),
        ({"evaluation": {"seed": 1}}, r"evaluation\.reward_id:"),
        ({"policy": "b"}, "exactly one"),
        ({"recipe": None}, "exactly one"),
    ],
)
def test_damaged_points_are_refused_in_one_line_that_names_the_field(change: dict[str, Any], where: str) -> None:
    good = point_from_samples(SAMPLES, evaluation=EVALUATION, recipe=RECIPE.to_json()).to_json()
    with pytest.raises(WorkspaceError, match=where) as caught:
        Point.from_json(good | change)
    assert "\n" not in str(caught.value)


def test_a_sample_with_a_number_that_is_not_finite_is_no_sample() -> None:
    with pytest.raises(ValidationError):
        sample("p", "x", math.nan)
    with pytest.raises(WorkspaceError, match="kl: Input should be a finite number"):
        Sample.from_json(SAMPLES[0].to_json() | {"kl": math.inf})


def test_samples_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="at least one"):
        point_from_samples([], evaluation=EVALUATION, policy="b")
    with pytest.raises(ValueError, match="same parts"):
        point_from_samples([*SAMPLES, sample("p", "x", 1.0)], evaluation=EVALUATION, policy="b")
