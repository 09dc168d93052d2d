"""Rewards by name, and their weighted sum.

A spec is NAME or NAME:WEIGHT. NAME is a built-in name, python:module.function, or a local folder or Hub id of a
sequence-classification model (with #LABEL where the model does not say which of its labels is good).

    load_reward(["sentiment", "length:-0.0005"])
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from warp_core.errors import RewardError, UserError
from warp_core.rewards.base import Reward, RewardBatch, RewardScores, checked_scores
from warp_core.rewards.builtin import BUILT_IN_REWARDS
from warp_core.rewards.classifier import load_classifier
from warp_core.rewards.function import PREFIX, load_function
from warp_core.workspace.assets import assets_root
from warp_core.workspace.sources import resolve_model

__all__ = ["RewardSpec", "RewardSum", "known_rewards", "load_reward", "parse_spec"]

SENTIMENT = "sentiment"


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One part of a reward: its name and its weight in the sum."""

    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        weight = short if float(short) == self.weight else repr(self.weight)  # what is written reads back the same
        return self.name if self.weight == 1.0 else f"{self.name}:{weight}"


def parse_spec(text: str) -> RewardSpec:
    """Read NAME or NAME:WEIGHT; what follows the last colon is a weight if it is a number.

    A weight of 0 is allowed: the part is reported and does not count.

    Raises:
        RewardError: the name is empty or the weight is not finite.
    """
    name, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon else None
    except ValueError:
        weight = None
    if weight is None:
        name, weight = text, 1.0
    if not name.strip():
        raise RewardError(f"reward {text!r} has no name: write NAME or NAME:WEIGHT, for example sentiment:0.5")
    if not math.isfinite(weight):
        raise RewardError(f"reward {text!r}: the weight must be a finite number")
    return RewardSpec(name=name.strip(), weight=weight)


def known_rewards() -> dict[str, str]:
    """Return the built-in names with a line of help each."""
    sentiment = "bundled model of movie-review sentiment, log-odds of positive, about -3.5 to 3.7"
    return {SENTIMENT: sentiment, **{name: reward.help for name, reward in BUILT_IN_REWARDS.items()}}


class RewardSum:
    """The weighted sum of rewards, each part checked and reported.

    Attributes:
        specs: the parts, in the order given.
        id: changes whenever the same text might earn another number: hash of weights, models and code.
    """

    def __init__(self, parts: Sequence[tuple[RewardSpec, Reward]]) -> None:
        self.specs = tuple(spec for spec, _ in parts)
        self._rewards = tuple(reward for _, reward in parts)
        identity = [[reward.id, spec.weight] for spec, reward in parts]
        self.id = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The specs joined, for a title."""
        return " + ".join(map(str, self.specs))

    def __call__(self, batch: RewardBatch) -> RewardScores:
        """Score a batch: total_B = sum over the parts of weight * part_B.

        Raises:
            RewardError: a part raised, hung, or did not give one finite number per completion.
        """
        parts = {
            spec.name: checked_scores(reward, batch) for spec, reward in zip(self.specs, self._rewards, strict=True)
        }
        total_B = torch.zeros(len(batch), dtype=torch.float64)
        for spec in self.specs:
            total_B += spec.weight * parts[spec.name]
        if not torch.isfinite(total_B).all():
            raise RewardError(f"the sum {self.name} is not finite: choose smaller weights")
        return RewardScores(total_B=total_B, parts=parts)


def load_reward(
    specs: Sequence[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    find_model: Callable[[str], Path] | None = None,
    timeout_s: float = 300.0,
) -> RewardSum:
    """Load rewards and add them up.

    Args:
        specs: NAME or NAME:WEIGHT each; a name may occur once.
        device: where reward models run.
        dtype: of reward models; None for float32 on the CPU and for what their folder says elsewhere.
        find_model: turns a Hub id into a folder; None for the usual way (fetched to the Hub's cache, safetensors only).
        timeout_s: longest time that one call of a python: reward may take.

    Raises:
        RewardError: a spec is not valid, a name unknown or given twice, or a model folder unsafe or incomplete.
    """
    parsed = [parse_spec(text) for text in specs]
    if not parsed:
        raise RewardError(f"no reward given: name at least one, for example {SENTIMENT!r}")
    names = [spec.name for spec in parsed]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(
                f"reward {name!r} is given {names.count(name)} times: give it once, with the summed weight"
            )

    def load(name: str) -> Reward:
        if name in BUILT_IN_REWARDS:
            return BUILT_IN_REWARDS[name]
        if name.startswith(PREFIX):
            return load_function(name, timeout_s=timeout_s)
        model_name, _, label = name.partition("#")
        folder = _model_folder(model_name, find_model=find_model or resolve_model)
        return load_classifier(folder, name=name, label=label or None, device=device, dtype=dtype)

    return RewardSum([(spec, load(spec.name)) for spec in parsed])


def _model_folder(name: str, *, find_model: Callable[[str], Path]) -> Path:
    if name == SENTIMENT:
        return assets_root() / "reward-model"
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError) as error:  # a name that is too long; ~someone who is not known here
        raise RewardError(f"reward {name[:80]!r}: that is no usable path") from error
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name
    if "/" not in name and not looks_like_path:
        raise RewardError(_unknown(name))
    if looks_like_path or name.count("/") > 1:
        raise RewardError(f"reward {name!r}: there is no such folder")
    try:
        return find_model(name)
    except RewardError:
        raise
    except UserError as error:
        raise RewardError(f"reward {name!r}: {error}") from error


def _unknown(name: str) -> str:
    known = list(known_rewards())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"unknown reward {name!r}: {hint}known are {', '.join(known)}; or give a model folder, a Hub id (owner/name) "
        "or python:module.function"
    )
