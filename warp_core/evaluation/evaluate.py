"""Measure a policy: sample on fixed prompts with common random numbers, score with the reward, KL to the SFT policy.

B completions, P prompt tokens, T completion tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from warp_core.errors import DivergedError
from warp_core.evaluation.kl import exact_kl, mc_kl
from warp_core.evaluation.points import Evaluation, KlEstimator, Sample
from warp_core.policy.logprobs import chosen_logprobs, completion_logits
from warp_core.policy.model import Policy
from warp_core.policy.prompts import encode_prompts, prompts_id
from warp_core.policy.sampling import Completions, row_seed, sample
from warp_core.rewards import RewardBatch, RewardSum

__all__ = ["KEPT_NUMEL", "Subject", "Within", "completion_kl", "evaluation_of", "measure"]

# Completions whose logits over the whole vocabulary are in memory at once, for two policies: so many rows at most, and
# so many numbers (a quarter of a GB in float32, about eight times that with what the KL needs on the way).
SCORED_ROWS = 16
SCORED_NUMEL = 1 << 26
# The sampler keeps its distributions up to so many numbers, a GB in float32 (twice that for a moment).
KEPT_NUMEL = 1 << 28

Within = Callable[[], AbstractContextManager[None]]
Between = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The policy to measure and the SFT policy to measure it against: two models, or one that can be both.

    Attributes:
        policy: the model that is measured.
        measured: makes `policy` the measured one for the time of a block.
        reference: the model of the SFT policy; None where `policy` can become it.
        anchor: makes `reference`, or else `policy`, the SFT policy for the time of a block inside `measured`; without
            either, the measured policy is the SFT policy.
    """

    policy: Policy
    measured: Within = nullcontext
    reference: Policy | None = None
    anchor: Within = nullcontext

    @property
    def is_the_anchor(self) -> bool:
        """Whether the measured policy is the SFT policy itself, at no distance from it."""
        return self.reference is None and self.anchor is nullcontext


def evaluation_of(
    prompts: Sequence[str],
    reward: RewardSum,
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    kl_estimator: KlEstimator,
    chat_template: bool,
    anchor: str,
    speech: str,
    dtype: str = "float32",
) -> Evaluation:
    """Return the record of what is asked, which names a result in the store together with the recipe.

    Args:
        prompts: the prompts, in order.
        reward: what scores the completions.
        samples_per_prompt: completions of each prompt.
        max_new_tokens: length limit.
        temperature: of the sampling and of every log-probability.
        seed: common random numbers of all that is measured with it.
        kl_estimator: `exact` or `mc`.
        chat_template: how the prompts are rendered.
        anchor: content id of the SFT policy.
        speech: `speech_id` of the folder that the tokenizer comes from.
        dtype: what the model computes in, by torch's name.
    """
    return Evaluation(
        reward_id=reward.id,
        prompts_id=prompts_id(prompts),
        num_prompts=len(prompts),
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        kl_estimator=kl_estimator,
        chat_template=chat_template,
        anchor=anchor,
        speech=speech,
        dtype=dtype,
    )


def measure(
    subject: Subject,
    prompts: Sequence[str],
    reward: RewardSum,
    evaluation: Evaluation,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    between: Between | None = None,
) -> list[Sample]:
    """Sample every prompt `samples_per_prompt` times and score each completion.

    A completion's random stream depends on the seed, the prompt's place and the sample's number alone: the same for
    every policy measured with the same evaluation, whatever the batch size (which still decides how sums are rounded).

    Args:
        subject: the policy and its SFT anchor.
        prompts: the prompts, in the order that `evaluation` was made of.
        reward: what scores (prompt, completion).
        evaluation: lengths, temperature, seed, estimator.
        batch_size: completions sampled at once.
        progress: called with (completions done, completions in all).
        between: called before each token and between parts of the scoring, always with the measured policy in place;
            it may take its time, and what it raises ends the measurement.

    Raises:
        DivergedError: a KL is not finite.
        RewardError: the reward misbehaved.
    """
    k = evaluation.samples_per_prompt
    samples: list[Sample] = []
    with subject.measured():
        for places, numbers in _batches(len(prompts), k, batch_size):
            completions = _sample_places(subject.policy, prompts, places, numbers, evaluation, between)
            kl_B = completion_kl(
                subject,
                completions,
                temperature=evaluation.temperature,
                kl_estimator=evaluation.kl_estimator,
                between=between,
            )
            if between:
                between()
            samples += _scored(completions, kl_B, reward)
            if progress:
                progress(len(samples), len(prompts) * k)
    return samples


def _batches(num_prompts: int, k: int, batch_size: int) -> Iterator[tuple[range, range]]:
    """Yield places of prompts and numbers of samples: whole prompts, or parts of one that has too many samples."""
    at_once = max(1, batch_size // k)
    for start in range(0, num_prompts, at_once):
        places = range(start, min(start + at_once, num_prompts))
        for first in range(0, k, batch_size):
            yield places, range(first, min(first + batch_size, k))


def _sample_places(
    policy: Policy,
    prompts: Sequence[str],
    places: range,
    numbers: range,
    evaluation: Evaluation,
    between: Between | None,
) -> Completions:
    chosen = [prompts[place] for place in places]
    rows = len(places) * len(numbers)
    numel = rows * evaluation.max_new_tokens * policy.model.config.get_text_config().vocab_size
    batch = encode_prompts(chosen, policy.tokenizer, chat_template=evaluation.chat_template, device=policy.device)
    return sample(
        policy,
        batch.repeat(len(numbers)),
        seeds=[row_seed("evaluate", evaluation.seed, place, number) for place in places for number in numbers],
        max_new_tokens=evaluation.max_new_tokens,
        temperature=evaluation.temperature,
        keep_distributions=numel <= KEPT_NUMEL,
        between=between,
    )


@torch.no_grad()
def completion_kl(
    subject: Subject,
    completions: Completions,
    *,
    temperature: float,
    kl_estimator: KlEstimator = "exact",
    between: Between | None = None,
) -> torch.Tensor:
    """Return the KL of each completion to the SFT policy, nats, float64 on the CPU [B].

    A few rows at a time, so that the logits of two policies fit beside each other. `subject.measured` is the caller's
    to enter: it is needed where the completions do not bring their distributions along.
    """
    if subject.is_the_anchor:
        return torch.zeros(len(completions.texts), dtype=torch.float64)
    group = completions.prompts.group
    row_numel = completions.tokens_BT.shape[1] * subject.policy.model.config.get_text_config().vocab_size
    step = max(1, min(SCORED_ROWS, SCORED_NUMEL // row_numel))
    if step > group:
        step -= step % group  # whole groups of one prompt, so that the prompt is computed once
    parts = []
    for start in range(0, len(completions.texts), step):
        if between:
            between()
        rows = completions.rows(start, start + step)
        parts.append(_kl_of_rows(subject, rows, temperature=temperature, kl_estimator=kl_estimator))
    return torch.cat(parts)


def _kl_of_rows(subject: Subject, rows: Completions, *, temperature: float, kl_estimator: KlEstimator) -> torch.Tensor:
    # What the sampler saw is what scoring would find again, at the price of another forward pass.
    logits_BTV = rows.logps_BTV
    if logits_BTV is None:
        logits_BTV = completion_logits(subject.policy, rows, temperature=temperature)
    with subject.anchor():
        anchor_BTV = completion_logits(subject.reference or subject.policy, rows, temperature=temperature)
    if kl_estimator == "exact":
        return exact_kl(logits_BTV, anchor_BTV, rows.mask_BT).cpu()
    logp_BT, anchor_logp_BT = (chosen_logprobs(logits, rows) for logits in (logits_BTV, anchor_BTV))
    return mc_kl(logp_BT, anchor_logp_BT, rows.mask_BT).cpu()


def _scored(completions: Completions, kl_B: torch.Tensor, reward: RewardSum) -> list[Sample]:
    if not torch.isfinite(kl_B).all():
        row = int((~torch.isfinite(kl_B)).nonzero()[0])
        raise DivergedError(
            f"the KL of completion {row} is {float(kl_B[row])}: the weights of the policy or of its anchor are broken"
        )
    scores = reward(
        RewardBatch(prompts=completions.prompts.texts, completions=completions.texts, num_tokens=completions.num_tokens)
    )
    return [
        Sample(
            prompt=completions.prompts.texts[row],
            completion=completions.texts[row],
            reward=float(scores.total_B[row]),
            rewards={name: float(part_B[row]) for name, part_B in scores.parts.items()},
            kl=float(kl_B[row]),
            num_tokens=completions.num_tokens[row],
        )
        for row in range(len(completions.texts))
    ]
