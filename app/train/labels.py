"""How the form is laid out: which fields come first, which stand together, and what people call them.

The help of a field and its limits come from the configuration's schema; only names and order are here. A field that is
in no group is shown in a group of its own, so that none is ever missing.
"""

from collections.abc import Iterable, Mapping

__all__ = ["ESSENTIALS", "GROUPS", "LORA_ONLY", "label_of", "ungrouped"]

Rows = tuple[tuple[str, ...], ...]

ESSENTIALS: Mapping[str, Rows] = {
    "Prompts": (("prompts.train", "prompts.evaluation"),),
    "Algorithm 1": (
        ("warp.policies", "warp.iterations", "training.steps"),
        ("training.beta", "training.mu", "merge.eta", "training.learning_rate"),
    ),
}
"""Always visible, after the model and the reward."""

GROUPS: Mapping[str, Rows] = {
    "Model and adapter": (
        ("model.dtype", "model.chat_template"),
        ("adapter.rank", "adapter.alpha", "adapter.train"),
        ("adapter.targets", "adapter.save_dtype"),
    ),
    "Batch and sampling": (
        ("training.prompts_per_step", "training.completions_per_prompt"),
        ("training.max_new_tokens", "training.temperature"),
    ),
    "Anchor, baseline and optimiser": (
        ("training.anchor", "training.baseline"),
        ("training.warmup_steps", "training.max_grad_norm", "training.adam_betas"),
        ("training.micro_batch", "training.kl_ceiling", "training.seed"),
    ),
    "Merging": (("merge.method", "merge.granularity", "merge.weights"),),
    "Measuring and saving": (
        ("training.evaluate_every", "training.save_every"),
        ("training.keep_every", "training.keep_ema"),
        ("evaluation.prompts", "evaluation.samples_per_prompt"),
        ("evaluation.training_samples_per_prompt", "evaluation.batch_size"),
        ("evaluation.etas", "evaluation.methods"),
        ("evaluation.kl_estimator", "evaluation.seed"),
    ),
}

LORA_ONLY = ("adapter.rank", "adapter.alpha", "adapter.train", "adapter.targets", "adapter.save_dtype")
ELSEWHERE = ("model.name", "adapter.kind", "reward.terms")
"""Drawn by hand at the top of the form."""

_LABELS = {
    "model.name": "Model",
    "model.dtype": "Compute dtype",
    "adapter.kind": "Train",
    "adapter.train": "Trained factors",
    "adapter.targets": "Target layers",
    "adapter.save_dtype": "Dtype on disk",
    "prompts.train": "Training prompts",
    "prompts.evaluation": "Held-out prompts",
    "training.steps": "Steps T",
    "training.completions_per_prompt": "Completions per prompt k",
    "training.beta": "KL beta",
    "training.mu": "EMA mu",
    "training.max_new_tokens": "Tokens per completion",
    "training.max_grad_norm": "Gradient limit",
    "training.keep_ema": "Keep EMA weights",
    "training.keep_every": "Keep checkpoint every",
    "training.kl_ceiling": "KL ceiling",
    "training.micro_batch": "Micro-batch",
    "training.warmup_steps": "Warm-up steps",
    "merge.eta": "LITI eta",
    "merge.method": "Method",
    "merge.weights": "Shares",
    "warp.policies": "Policies M",
    "warp.iterations": "Iterations I",
    "evaluation.prompts": "Prompts",
    "evaluation.training_samples_per_prompt": "Samples on curves",
    "evaluation.kl_estimator": "KL estimator",
    "evaluation.seed": "Evaluation seed",
}


def label_of(field_id: str) -> str:
    """Return what people read beside the field."""
    return _LABELS.get(field_id) or field_id.partition(".")[2].replace("_", " ").capitalize()


def ungrouped(ids: Iterable[str]) -> Rows:
    """Return the fields that stand nowhere else, one a row."""
    placed = {one for rows in (*ESSENTIALS.values(), *GROUPS.values()) for row in rows for one in row} | {*ELSEWHERE}
    return tuple((one,) for one in ids if one not in placed)
