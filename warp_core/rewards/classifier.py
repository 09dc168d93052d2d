"""Rewards from sequence-classification models: the bundled sentiment model, a reward model from the Hub, any folder.

The reward is the log-odds of one label, which is a raw logit for a model with one label and "positive minus
negative" for a model with two. Text is the prompt with its completion; where the tokenizer has a chat template, it is
the conversation of the two.

Shapes: B completions, T tokens, K labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from warp_core.errors import RewardError
from warp_core.rewards.base import RewardBatch, one_line
from warp_core.rewards.folders import check_model_folder, folder_id

__all__ = ["ClassifierReward", "choose_label", "join_text", "label_log_odds", "load_classifier"]

POSITIVE_NAMES = frozenset({"positive", "pos", "good", "label_1", "1", "true", "yes", "chosen"})
NEGATIVE_NAMES = frozenset({"negative", "neg", "bad", "label_0", "0", "false", "no", "rejected"})
BATCH_TOKENS = 8192
"""Most tokens, padding included, that go through the model at once."""
LONGEST = 4096
"""Most tokens of one text; what is cut is its beginning."""


def join_text(prompt: str, completion: str) -> str:
    """Return the prompt with its completion, a space between them where two words would run together.

    A completion that begins with a letter or digit right after the prompt came through a chat template or lost
    its leading space when special tokens were stripped.
    """
    gap = " " if prompt and not prompt[-1].isspace() and completion[:1].isalnum() else ""
    return f"{prompt}{gap}{completion}"


def label_log_odds(logits_BK: torch.Tensor, *, label: int, independent: bool) -> torch.Tensor:
    """Return log p(label) - log(1 - p(label)) [B], float64.

    A raw logit for one label or for independent labels (sigmoid each); else logit minus the logsumexp of the others,
    so for two labels their difference.
    """
    logits_BK = logits_BK.double()
    if independent or logits_BK.shape[-1] == 1:
        return logits_BK[:, label]
    others = [k for k in range(logits_BK.shape[-1]) if k != label]
    return logits_BK[:, label] - logits_BK[:, others].logsumexp(dim=-1)


def choose_label(id2label: Mapping[int, str], *, wanted: str | None, independent: bool, name: str) -> int:
    """Return the index of the label whose log-odds is the reward.

    Args:
        id2label: the labels of the model.
        wanted: what stands after `#` in the name of the reward: a label or its index; None to find it by name.
        independent: the labels do not exclude each other.
        name: of the reward, for messages.

    Raises:
        RewardError: `wanted` is no label, or none is given and the model does not say which one is good.
    """
    labels = [str(id2label[index]) for index in sorted(id2label)]
    shown = one_line(", ".join(labels), 200)
    if wanted is not None:
        matches = [index for index, label in enumerate(labels) if label.lower() == wanted.lower()]
        if len(matches) == 1:
            return matches[0]
        if wanted.isdecimal() and int(wanted) < len(labels):
            return int(wanted)
        raise RewardError(f"reward {name!r}: the model has no label {wanted!r}; its labels are {shown}")
    if len(labels) == 1:
        return 0
    if len(labels) == 2 and not independent:
        lower = [label.lower() for label in labels]
        for index in (1, 0):
            if lower[index] in POSITIVE_NAMES and lower[1 - index] in NEGATIVE_NAMES:
                return index
    raise RewardError(
        f"reward {name!r}: which of the labels {shown} is good? Name it after a #: {name}#{labels[-1]} for example"
    )


class ClassifierReward:
    """The log-odds of one label under a sequence-classification model."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, name: str, label: int, content_id: str
    ) -> None:
        self.name = name
        self.id = f"classifier:{content_id}:{label}"
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.label = label
        self.independent = model.config.problem_type == "multi_label_classification"
        self.max_tokens = _max_tokens(model, tokenizer)

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        """Return the log-odds [B], float64 on the CPU."""
        rows = self._encode(batch.prompts, batch.completions)
        scores_B = torch.zeros(len(rows), dtype=torch.float64)
        for chunk in _chunks([len(row) for row in rows]):
            scores_B[chunk] = self._score([rows[index] for index in chunk]).cpu()
        return scores_B

    def _encode(self, prompts: Sequence[str], completions: Sequence[str]) -> list[list[int]]:
        """Return token ids, cut on the left: what is judged is the completion, at the end."""
        templated = self.tokenizer.chat_template is not None
        render = self._conversation if templated else join_text
        texts = [render(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return [
            # The template writes its own special tokens.
            list(ids) or [_pad_id(self.tokenizer)]
            for ids in self.tokenizer(
                texts, add_special_tokens=not templated, truncation=True, max_length=self.max_tokens
            )["input_ids"]
        ]

    def _conversation(self, prompt: str, completion: str) -> str:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    @torch.inference_mode()
    def _score(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        longest, pad = max(map(len, rows)), _pad_id(self.tokenizer)
        ids_BT = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self.model.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device)
        logits_BK = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        return label_log_odds(logits_BK, label=self.label, independent=self.independent)


def load_classifier(
    folder: Path, *, name: str, label: str | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> ClassifierReward:
    """Open a safetensors sequence-classification folder as a reward; none of its code is run.

    Args:
        folder: of the model.
        name: of the reward, for reports and messages.
        label: a label or its index; None where the model has one label, or two named positive and negative.
        device: where it runs.
        dtype: of the weights; None for float32 on the CPU and for what the folder says elsewhere.

    Raises:
        RewardError: the folder is unsafe, incomplete or not a classifier, or which label is good is not clear.
    """
    check_model_folder(folder, name=name)
    chosen = dtype or (torch.float32 if device == "cpu" else "auto")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **safe)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=chosen,
            use_safetensors=True,
            disable_mmap=True,  # a mapped file that somebody truncates kills the process
            output_loading_info=True,
            **safe,
        )
    except Exception as error:  # transformers raises anything for a broken folder
        raise RewardError(
            f"reward {name!r}: {folder} does not open as a sequence-classification model "
            f"({type(error).__name__}: {one_line(str(error), 200)}): check the folder"
        ) from error
    _require_whole(model, report, folder=folder, name=name)
    _prepare_padding(model, tokenizer)
    independent = config.problem_type == "multi_label_classification"
    index = choose_label(config.id2label, wanted=label, independent=independent, name=name)
    return ClassifierReward(
        model.to(device), tokenizer, name=name, label=index, content_id=f"{folder_id(folder)}:{model.dtype}"
    )


def _require_whole(model: Any, report: Mapping[str, Any], *, folder: Path, name: str) -> None:
    """Refuse what transformers only warns about: tensors that it had to make up, and numbers that are none."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    if missing:
        raise RewardError(
            f"reward {name!r}: {folder} lacks the tensor {missing[0]!r} ({len(missing)} in all): it is not a "
            "sequence-classification model, or not a whole one"
        )
    for tensor_name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise RewardError(f"reward {name!r}: NaN or infinity in {tensor_name!r} of {folder}: fetch the model again")


def _prepare_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad on the right, cut on the left; a decoder finds its last token by the padding id."""
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = _pad_id(tokenizer)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _max_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens one text may have."""
    limits = [LONGEST, int(min(tokenizer.model_max_length, LONGEST))]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        # RoBERTa and its kin number positions from the padding id + 1.
        offsets = [
            module.padding_idx + 1
            for module_name, module in model.named_modules()
            if module_name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        limits.append(int(positions) - max(offsets, default=0))
    return min(limits)


def _chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Group texts of like length so that a group, padded, has at most BATCH_TOKENS tokens."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    chunks: list[list[int]] = []
    for index in order:  # ascending, so the newcomer is the longest of its group
        if chunks and (len(chunks[-1]) + 1) * lengths[index] <= BATCH_TOKENS:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks
