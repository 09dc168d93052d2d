"""What a model has kept of its abilities: negative log-likelihood of held-out text, and tasks of lm-evaluation-harness.

W windows, T tokens of a window.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from warp_core.errors import ConfigError
from warp_core.policy.model import Policy

__all__ = ["harness_scores", "has_harness", "text_windows", "window_nll"]

_ROWS = 8


def text_windows(policy: Policy, path: Path, *, count: int, length: int) -> torch.Tensor:
    """Return token ids [W, T]: windows without overlap, evenly spread over the text.

    Raises:
        ConfigError: the text is too short for one window, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the text {path}: {error}") from error
    # As much of the beginning as is surely enough: a token has rarely more than 12 characters.
    ids = policy.tokenizer(text[: 12 * count * length], add_special_tokens=False)["input_ids"]
    num = min(count, len(ids) // length)
    if num < 1:
        raise ConfigError(f"the text {path} has {len(ids)} tokens: it needs at least {length}")
    stride = len(ids) // num
    return torch.tensor([ids[start * stride : start * stride + length] for start in range(num)])


@torch.inference_mode()
def window_nll(policy: Policy, ids_WT: torch.Tensor) -> list[float]:
    """Return the mean negative log-likelihood of each window's tokens after its first, nats per token."""
    found: list[float] = []
    for start in range(0, len(ids_WT), _ROWS):
        rows = ids_WT[start : start + _ROWS].to(policy.device)
        logits = policy.model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        found += [float(value) for value in nll.double().mean(dim=1)]
    return found


def has_harness() -> bool:
    """Whether lm-evaluation-harness is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def harness_scores(policy: Policy, tasks: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of each task by lm-evaluation-harness, which fetches its data sets itself."""
    import lm_eval  # type: ignore[import-not-found, unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found, unused-ignore]

    model = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer)
    results: dict[str, Any] = lm_eval.simple_evaluate(model=model, tasks=list(tasks))["results"]
    return {task: float(results[task]["acc,none"]) for task in tasks}
