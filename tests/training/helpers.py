"""Learners over tiny models, and rewards made of a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.toy import CPU
from warp_core.policy.model import load_policy
from warp_core.rewards import RewardBatch, RewardSum
from warp_core.rewards.specs import RewardSpec
from warp_core.training.config import AdapterConfig, TrainingConfig
from warp_core.training.reinforce import Learner
from warp_core.training.trainable import FullTrainable, LoraTrainable

PROMPTS = ["a", "the film was", "in the end", "I think that"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SETTINGS: dict[str, Any] = {
    "prompts_per_step": 2,
    "completions_per_prompt": 3,
    "max_new_tokens": 5,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "beta": 0.1,
    "mu": 0.25,
}


class Scored:
    """A reward that is a function of prompt and completion."""

    name = "scored"
    id = "scored"

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self.function = function

    def __call__(self, batch: RewardBatch) -> list[float]:
        return [self.function(*pair) for pair in zip(batch.prompts, batch.completions, strict=True)]


def letters(prompt: str, completion: str) -> float:
    """An arbitrary reward of the text, different for nearly every text."""
    return sum((index + 1) * ord(letter) % 17 for index, letter in enumerate(completion)) / 10.0


def reward_of(function: Callable[[str, str], float] = letters) -> RewardSum:
    return RewardSum([(RewardSpec(name="scored"), Scored(function))])


def make_trainable(folder: Path, *, kind: str = "lora", dtype: str = "float32", frozen=None, sft=None, **adapter):
    """A trainable over the model in `folder`; `sft` is the SFT policy's folder where that is another."""
    if kind == "full":
        policy = load_policy(folder, device=CPU, dtype=torch.float32)
        return FullTrainable(policy, dtype=DTYPES[dtype], sft_folder=lambda: sft or folder, keep_sft=True)
    policy = load_policy(folder, device=CPU, dtype=DTYPES[dtype])
    return LoraTrainable(policy, AdapterConfig(**({"rank": 4, "alpha": 8.0} | adapter)), seed=0, frozen=frozen)


def make_learner(folder: Path, *, reward: RewardSum | None = None, seed: int = 0, trainable=None, **options) -> Learner:
    """A learner; options that are fields of TrainingConfig go there, the others to the trainable."""
    names = set(TrainingConfig.__dataclass_fields__)
    training = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return Learner(
        trainable or make_trainable(folder, **rest),
        prompts=PROMPTS,
        reward=reward or reward_of(),
        config=TrainingConfig(**(SETTINGS | training)),
        chat_template=False,
        seed=seed,
    )


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, NaN equal to itself."""
    return one.keys() == other.keys() and all(_bytes(tensor) == _bytes(other[name]) for name, tensor in one.items())


def _bytes(tensor: torch.Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
