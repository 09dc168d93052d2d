"""What a reward is, and the checked call through which every reward goes.

Shapes: B completions.
"""

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from numbers import Complex, Real
from typing import Protocol

import torch

from warp_core.errors import RewardError

__all__ = ["Reward", "RewardBatch", "RewardScores", "checked_scores", "one_line"]


@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """B completions to score.

    Attributes:
        prompts: what each completion answers or continues.
        completions: text without special tokens.
        num_tokens: tokens that the policy drew for it, the end token included.
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    num_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = (len(self.prompts), len(self.completions), len(self.num_tokens))
        assert len(set(counts)) == 1, f"prompts, completions and num_tokens differ in length: {counts}"

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True, kw_only=True)
class RewardScores:
    """What a batch earned.

    Attributes:
        total_B: float64 on the CPU, the weighted sum of the parts.
        parts: each reward by its name, float64 on the CPU [B], before its weight.
    """

    total_B: torch.Tensor
    parts: dict[str, torch.Tensor]


class Reward(Protocol):
    """One number per completion; higher is better.

    The same text must always earn the same number, whatever else is in the batch.
    """

    @property
    def name(self) -> str:
        """How reports call it."""

    @property
    def id(self) -> str:
        """What it computes: changes whenever the same text might earn another number."""

    def __call__(self, batch: RewardBatch) -> Sequence[float] | torch.Tensor:
        """Return B numbers."""


def checked_scores(reward: Reward, batch: RewardBatch) -> torch.Tensor:
    """Call `reward` and return its scores, float64 on the CPU [B]; nothing else ever reaches a gradient.

    Raises:
        RewardError: the reward raised, or did not return one finite number per completion; the message names the
            reward and, where there is one, the completion.
    """
    try:
        returned = reward(batch)
        values = _listed(returned, name=reward.name, count=len(batch))
    except (RewardError, MemoryError, torch.OutOfMemoryError):
        raise  # memory is the machine's trouble, not the reward's
    except Exception as error:
        raise RewardError(
            f"reward {reward.name!r} raised {type(error).__name__}: {one_line(_words(error), 200)}: mend the reward"
        ) from error
    if len(values) != len(batch):
        raise RewardError(
            f"reward {reward.name!r} returned {len(values)} numbers for {len(batch)} completions: return one for each"
        )
    numbers = [
        _finite(value, index=index, name=reward.name, completion=completion)
        for index, (value, completion) in enumerate(zip(values, batch.completions, strict=True))
    ]
    return torch.tensor(numbers, dtype=torch.float64)


def one_line(text: str, limit: int) -> str:
    """Return `text` on one line, cut after `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit] + "..."


def _words(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # the reward's own class of error, and its own mistake
        return "it cannot say why"


def _listed(returned: object, *, name: str, count: int) -> list[object]:
    if isinstance(returned, torch.Tensor):
        if returned.is_complex():
            raise RewardError(f"reward {name!r} returned a tensor of complex numbers: return real ones")
        if returned.ndim != 1:
            raise RewardError(
                f"reward {name!r} returned a tensor of shape {tuple(returned.shape)}: return one dimension, "
                "one number for each completion"
            )
        return list(returned.detach().double().cpu().tolist())
    if isinstance(returned, str | bytes | dict) or not isinstance(returned, Iterable):
        raise RewardError(
            f"reward {name!r} returned {type(returned).__name__}: return a list or a tensor with one number for "
            "each completion"
        )
    if isinstance(returned, Sized):
        return list(returned)
    values = list(islice(returned, count + 1))  # an iterator may have no end
    if len(values) > count:
        raise RewardError(f"reward {name!r} returned more than {count} numbers: return one for each completion")
    return values


def _finite(value: object, *, index: int, name: str, completion: str) -> float:
    where = f"completion {index} ({one_line(completion, 60)!r})"
    if value is None or isinstance(value, str | bytes):
        raise RewardError(f"reward {name!r} gave {value!r} to {where}: return a number")
    try:
        if isinstance(value, Complex) and not isinstance(value, Real):
            raise ValueError("numpy would drop the imaginary part")
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    except Exception as error:  # of whatever class the value is
        raise RewardError(f"reward {name!r} gave a {type(value).__name__} to {where}: return a number") from error
    if not math.isfinite(number):
        raise RewardError(f"reward {name!r} gave {number} to {where}: return a finite number")
    return number
