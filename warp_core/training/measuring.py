"""How the points of a run are measured: the one place that reads it from the configuration.

A point of the front, a moment of a training run, the command `front` and the engine all ask here, so that they name
their results alike and find each other's.
"""

from collections.abc import Sequence
from pathlib import Path

from warp_core.errors import WorkspaceError
from warp_core.evaluation.evaluate import evaluation_of
from warp_core.evaluation.points import Evaluation
from warp_core.policy.prompts import read_prompts
from warp_core.policy.speech import speech_id
from warp_core.rewards import RewardSum
from warp_core.training.config import WarpConfig
from warp_core.workspace.runs import RunFolder

__all__ = ["evaluation_for", "held_out_prompts", "require_iteration"]


def evaluation_for(
    config: WarpConfig,
    prompts: Sequence[str],
    reward: RewardSum,
    *,
    anchor: str,
    sft: Path,
    samples_per_prompt: int | None = None,
) -> Evaluation:
    """Return the record of what a configuration asks of every point.

    Args:
        config: lengths, temperature, seed, estimator, dtype.
        prompts: what to measure on, in order.
        reward: what scores the completions.
        anchor: content id of the SFT policy, which the KL is to.
        sft: its folder, whose tokenizer is used.
        samples_per_prompt: completions of each prompt; None for those of a point of the front.
    """
    return evaluation_of(
        prompts,
        reward,
        samples_per_prompt=samples_per_prompt or config.evaluation.samples_per_prompt,
        max_new_tokens=config.training.max_new_tokens,
        temperature=config.training.temperature,
        seed=config.evaluation.seed,
        kl_estimator=config.evaluation.kl_estimator,
        chat_template=config.model.chat_template,
        anchor=anchor,
        speech=speech_id(sft),
        dtype=config.model.dtype,
    )


def held_out_prompts(source: str, config: WarpConfig) -> tuple[str, ...]:
    """Return what points are measured on: as many prompts of a file as configured, or all where it has fewer.

    Raises:
        PromptError: it cannot be read.
    """
    return read_prompts(source)[: config.evaluation.prompts]


def require_iteration(run: RunFolder, config: WarpConfig, iteration: int) -> None:
    """Raise WorkspaceError for an iteration that a run will never have."""
    if iteration > config.warp.iterations:
        raise WorkspaceError(f"{run.path}: iteration {iteration}: this run has {config.warp.iterations}")
