"""Rewards for configurations of the tests, as python:tests.training.rewards.NAME."""

import os
from pathlib import Path

from tests.training.helpers import letters


def fine(prompts: list[str], completions: list[str]) -> list[float]:
    return [letters(*pair) for pair in zip(prompts, completions, strict=True)]


def nan_on_request(prompts: list[str], completions: list[str]) -> list[float]:
    """NaN for the last completion as soon as the file $WARP_TEST_NAN exists."""
    scores = fine(prompts, completions)
    if Path(os.environ["WARP_TEST_NAN"]).exists():
        scores[-1] = float("nan")
    return scores


def huge_on_request(prompts: list[str], completions: list[str]) -> list[float]:
    """Numbers that are finite, and overflow in float32, as soon as the file $WARP_TEST_NAN exists."""
    factor = 1e300 if Path(os.environ["WARP_TEST_NAN"]).exists() else 1.0
    return [factor * score for score in fine(prompts, completions)]
