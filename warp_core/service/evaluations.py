"""How the points of a selection were measured: which way is the default one, and each in words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from warp_core.evaluation.points import Evaluation, Point
from warp_core.policy.prompts import prompts_id
from warp_core.rewards import parse_spec
from warp_core.service.documents import EvaluationNote
from warp_core.training.config import WarpConfig

__all__ = ["default_evaluation", "evaluation_notes"]

# Fields that a label does not name anyway, with what it says of a point where they are not those of the default.
_DIFFERENCES = {
    "reward_id": "another reward",
    "prompts_id": "other prompts",
    "speech": "another tokenizer",
    "anchor": "KL to another model",
}


def default_evaluation(
    points: Sequence[Point], config: WarpConfig, *, prompts: Sequence[str], anchor: str
) -> Evaluation | None:
    """Return how `config` measures a point of the front, recognised among what was measured, so that no model is
    needed; None where nothing was.

    Args:
        points: all stored points.
        config: how the selection is measured.
        prompts: what on.
        anchor: content id of the SFT policy.
    """
    settings = config.evaluation
    wanted = {
        "prompts_id": prompts_id(prompts),
        "num_prompts": len(prompts),
        "samples_per_prompt": settings.samples_per_prompt,
        "max_new_tokens": config.training.max_new_tokens,
        "temperature": config.training.temperature,
        "seed": settings.seed,
        "kl_estimator": settings.kl_estimator,
        "chat_template": config.model.chat_template,
        "anchor": anchor,
        "dtype": config.model.dtype,
    }
    terms = {parse_spec(term).name for term in config.reward.terms}
    trained = [p.evaluation for p in points if p.kind == "training" and p.evaluation is not None]
    counts = Counter(
        point.evaluation
        for point in points
        if point.kind != "training"
        and point.evaluation is not None
        and point.rewards.keys() == terms
        and all(getattr(point.evaluation, name) == value for name, value in wanted.items())
    )
    # Names do not tell rewards with other weights apart; those of training have the run's own.
    own = {evaluation.reward_id for evaluation in trained}
    found = sorted(counts, key=lambda evaluation: (evaluation.reward_id in own, counts[evaluation]))
    if found:
        return found[-1]
    return replace(trained[-1], samples_per_prompt=settings.samples_per_prompt) if trained else None


def evaluation_notes(evaluations: Sequence[Evaluation], default: Evaluation | None) -> tuple[EvaluationNote, ...]:
    """Describe distinct evaluations, the default one first."""
    ordered = sorted(dict.fromkeys(evaluations), key=lambda evaluation: evaluation != default)
    return tuple(
        EvaluationNote(id=one.id, label=_label(one, default or one), is_default=one == default) for one in ordered
    )


def _label(one: Evaluation, default: Evaluation) -> str:
    parts = [
        f"{one.num_prompts} prompts x {one.samples_per_prompt}",
        f"{one.max_new_tokens} tokens",
        f"{one.kl_estimator} KL",
        f"seed {one.seed}",
    ]
    if one.temperature != default.temperature:
        parts.append(f"temperature {one.temperature:g}")
    if one.dtype != default.dtype:
        parts.append(one.dtype)
    if one.chat_template != default.chat_template:
        parts.append("chat template" if one.chat_template else "no chat template")
    parts += [text for name, text in _DIFFERENCES.items() if getattr(one, name) != getattr(default, name)]
    return ", ".join(parts)
