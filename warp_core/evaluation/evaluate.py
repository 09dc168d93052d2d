"""Measure a policy: sample on fixed prompts with common random numbers, score with the reward, KL to the SFT policy.

B completions, P prompt tokens, T completion tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from warp_core.errors import DivergedError
from warp_core.evaluation.divergence import Subject, Within, completion_kl, vocabulary_of
from warp_core.evaluation.points import Evaluation, KlEstimator, Sample
from warp_core.policy.inference import fast_inference
from warp_core.policy.prompts import PromptBatch, encode_prompts, prompts_id
from warp_core.policy.sampling import Completions, row_seed, sample
from warp_core.rewards import RewardBatch, RewardSum

__all__ = ["KEPT_NUMEL", "Subject", "Within", "completion_kl", "evaluation_of", "measure", "measure_together"]

# The sampler keeps its distributions up to so many numbers, a GB in float32 (twice that for a moment).
KEPT_NUMEL = 1 << 28

Between = Callable[[], None]


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
    """Sample every prompt `samples_per_prompt` times and score each completion: `measure_together` for one model."""
    assert subject.models == 1, "several models have several lists of samples"
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "between": between}
    (samples,) = measure_together(subject, prompts, reward, evaluation, **options)
    return samples


def measure_together(
    subject: Subject,
    prompts: Sequence[str],
    reward: RewardSum,
    evaluation: Evaluation,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    between: Between | None = None,
) -> list[list[Sample]]:
    """Sample every prompt `samples_per_prompt` times from each model of the subject and score each completion.

    A completion's random stream depends on the seed, the prompt's place and the sample's number alone: the same for
    every policy measured with the same evaluation, whatever the batch size and the models beside it (which still decide
    how sums are rounded).

    Args:
        subject: the models and their SFT anchor.
        prompts: the prompts, in the order that `evaluation` was made of.
        reward: what scores (prompt, completion).
        evaluation: lengths, temperature, seed, estimator.
        batch_size: completions sampled at once, of all models together; one of each is the least.
        progress: called with (completions done, completions in all), of all models together.
        between: called before each token and between parts of the scoring, always with the measured policy in place;
            it may take its time, and what it raises ends the measurement.

    Returns:
        The samples of each model, prompt by prompt.

    Raises:
        DivergedError: a KL is not finite.
        RewardError: the reward misbehaved.
    """
    k = evaluation.samples_per_prompt
    found: list[list[Sample]] = [[] for _ in range(subject.models)]
    with subject.measured(), fast_inference(subject.policy), _fast_reference(subject):
        for places, numbers in _batches(len(prompts), k, max(1, batch_size // subject.models)):
            completions = _sample_places(subject, prompts, places, numbers, evaluation, between)
            kl_B = completion_kl(
                subject,
                completions,
                temperature=evaluation.temperature,
                kl_estimator=evaluation.kl_estimator,
                between=between,
            )
            if between:
                between()
            samples = _scored(completions, kl_B, reward)
            rows = len(samples) // subject.models
            for number, own in enumerate(found):
                own += samples[number * rows : (number + 1) * rows]
            if progress:
                progress(sum(map(len, found)), len(prompts) * k * subject.models)
    return found


def _fast_reference(subject: Subject) -> AbstractContextManager[None]:
    # Where `policy` becomes the anchor it does so for one pass of many tokens: laying its weights out would not pay.
    return nullcontext() if subject.reference is None else fast_inference(subject.reference)


def _batches(num_prompts: int, k: int, batch_size: int) -> Iterator[tuple[range, range]]:
    """Yield places of prompts and numbers of samples: whole prompts, or parts of one that has too many samples."""
    at_once = max(1, batch_size // k)
    for start in range(0, num_prompts, at_once):
        places = range(start, min(start + at_once, num_prompts))
        for first in range(0, k, batch_size):
            yield places, range(first, min(first + batch_size, k))


def _sample_places(
    subject: Subject,
    prompts: Sequence[str],
    places: range,
    numbers: range,
    evaluation: Evaluation,
    between: Between | None,
) -> Completions:
    policy, models = subject.policy, subject.models
    chosen = [prompts[place] for place in places]
    numel = models * len(places) * len(numbers) * evaluation.max_new_tokens * vocabulary_of(policy)
    batch = encode_prompts(chosen, policy.tokenizer, chat_template=evaluation.chat_template, device=policy.device)
    batch = batch.repeat(len(numbers))
    seeds = [row_seed("evaluate", evaluation.seed, place, number) for place in places for number in numbers]
    return sample(
        policy,
        batch if models == 1 else _beside(batch, models),
        seeds=seeds * models,
        max_new_tokens=evaluation.max_new_tokens,
        temperature=evaluation.temperature,
        keep_distributions=evaluation.kl_estimator == "exact" and not subject.is_the_anchor and numel <= KEPT_NUMEL,
        between=between,
    )


def _beside(batch: PromptBatch, models: int) -> PromptBatch:
    """The same prompts for each of some models, one model's after the other's."""
    return PromptBatch(
        texts=batch.texts * models,
        ids_BP=batch.ids_BP.repeat(models, 1),
        mask_BP=batch.mask_BP.repeat(models, 1),
        group=batch.group,
    )


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
