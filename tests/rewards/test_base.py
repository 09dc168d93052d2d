"""The checked call: exactly one finite number per completion gets through."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from warp_core.errors import RewardError
from warp_core.rewards import RewardBatch
from warp_core.rewards.base import checked_scores, one_line

BATCH = RewardBatch(prompts=("p", "p", "q"), completions=("first", "second one", "third"), num_tokens=(1, 2, 1))


@dataclass
class Returns:
    value: Any
    name: str = "mine"
    id: str = "mine-1"

    def __call__(self, batch: RewardBatch) -> Any:
        return self.value


@pytest.mark.parametrize(
    "value",
    [
        [1, -2.5, True],
        (1.0, -2.5, 1.0),
        torch.tensor([1.0, -2.5, 1.0], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, -2.5, 1.0], dtype=np.float32),
        [torch.tensor(1.0), np.float64(-2.5), 1],
        (number for number in (1.0, -2.5, 1.0)),
    ],
)
def test_every_usual_form_becomes_float64(value):
    scores_B = checked_scores(Returns(value), BATCH)
    assert scores_B.dtype == torch.float64
    assert not scores_B.requires_grad
    assert scores_B.tolist() == [1.0, -2.5, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "returned 2 numbers for 3 completions"),
        ([1.0] * 4, "returned 4 numbers for 3 completions"),
        ([], "returned 0 numbers for 3 completions"),
        (torch.zeros(3, 1), r"shape \(3, 1\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        (0.5, "returned float: return a list"),
        (None, "returned NoneType: return a list"),
        ("abc", "returned str: return a list"),
        ({"a": 1, "b": 2, "c": 3}, "returned dict: return a list"),
        ([1.0, float("nan"), 1.0], r"gave nan to completion 1 \('second one'\): return a finite number"),
        (torch.tensor([1.0, 1.0, -torch.inf]), r"gave -inf to completion 2 \('third'\)"),
        ([10**400, 1.0, 1.0], r"gave inf to completion 0 \('first'\)"),
        ([1.0, None, 1.0], r"gave None to completion 1 \('second one'\): return a number"),
        ([1.0, "2.0", 1.0], r"gave '2.0' to completion 1"),
        ([1.0, [2.0], 1.0], r"gave a list to completion 1"),
        ([1.0, 1j, 1.0], r"gave a complex to completion 1"),
        (np.array([1.0, 1j, 1.0]), r"gave a complex128 to completion 0"),
        (torch.tensor([1.0, 1j, 1.0]), r"returned a tensor of complex numbers"),
        ([1.0, torch.zeros(2), 1.0], r"gave a Tensor to completion 1"),
        (itertools.repeat(1.0), r"returned more than 3 numbers"),
    ],
)
def test_everything_else_is_an_error_that_names_the_reward(value, message):
    with pytest.raises(RewardError, match=message) as caught:
        checked_scores(Returns(value), BATCH)
    assert "'mine'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_exception_is_chained_and_told_in_one_line():
    class Raises(Returns):
        def __call__(self, batch):
            raise KeyError("no such\n key")

    with pytest.raises(RewardError, match=r"reward 'mine' raised KeyError: 'no such\\n key': mend") as caught:
        checked_scores(Raises(None), BATCH)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_exception_that_cannot_be_told_names_the_reward_all_the_same():
    class Mute(Exception):  # noqa: N818
        def __str__(self):
            raise ZeroDivisionError

    class Raises(Returns):
        def __call__(self, batch):
            raise Mute

    with pytest.raises(RewardError, match="reward 'mine' raised Mute: it cannot say why: mend"):
        checked_scores(Raises(None), BATCH)


def test_a_generator_that_raises_half_way_is_an_error_too():
    def numbers():
        yield 1.0
        raise ZeroDivisionError("half way")

    with pytest.raises(RewardError, match="ZeroDivisionError: half way"):
        checked_scores(Returns(numbers()), BATCH)


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_the_machines_trouble_is_not_the_rewards_fault(error):
    class Raises(Returns):
        def __call__(self, batch):
            raise error

    with pytest.raises(type(error)):
        checked_scores(Raises(None), BATCH)


def test_an_empty_batch_has_no_scores():
    empty = RewardBatch(prompts=(), completions=(), num_tokens=())
    assert checked_scores(Returns([]), empty).shape == (0,)


def test_a_batch_of_unequal_lengths_is_our_fault():
    with pytest.raises(AssertionError, match="differ in length"):
        RewardBatch(prompts=("p",), completions=("a", "b"), num_tokens=(1, 1))


def test_one_line_cuts_and_joins():
    assert one_line(" a\n b\tc ", 10) == "a b c"
    assert one_line("abcdef", 3) == "abc..."
