"""Prompts: read a file, render each for the model (chat template or plain continuation), pad on the left."""

import hashlib
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from warp_core.errors import PromptError
from warp_core.workspace.assets import assets_root
from warp_core.workspace.publish import write_text_atomic

__all__ = [
    "BUILT_IN_PROMPTS",
    "PromptBatch",
    "chosen_prompts",
    "encode_prompts",
    "prompts_id",
    "read_prompts",
    "write_prompts",
]

BUILT_IN_PROMPTS = ("reviews-train", "reviews-eval")
_LARGEST_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts as tokens, padded on the left to a common length P.

    Attributes:
        texts: the B prompts as given.
        ids_BP: int64 token ids.
        mask_BP: int64, 0 on padding.
        group: every `group` rows in a row are the same prompt, so that its keys and values can be computed once.
    """

    texts: tuple[str, ...]
    ids_BP: torch.Tensor
    mask_BP: torch.Tensor
    group: int = 1

    def repeat(self, times: int) -> "PromptBatch":
        """Return each prompt `times` times in a row: B * times rows, groups kept together."""
        return PromptBatch(
            texts=tuple(text for text in self.texts for _ in range(times)),
            ids_BP=self.ids_BP.repeat_interleave(times, dim=0),
            mask_BP=self.mask_BP.repeat_interleave(times, dim=0),
            group=self.group * times,
        )

    def rows(self, start: int, stop: int) -> "PromptBatch":
        """Return the rows start..stop-1; they stay groups only where no group is cut."""
        stop = min(stop, len(self.texts))
        whole = start % self.group == 0 and stop % self.group == 0
        return PromptBatch(
            texts=self.texts[start:stop],
            ids_BP=self.ids_BP[start:stop],
            mask_BP=self.mask_BP[start:stop],
            group=self.group if whole else 1,
        )


def read_prompts(source: str) -> tuple[str, ...]:
    """Read prompts from a built-in set (`reviews-train`, `reviews-eval`) or a file.

    A `.jsonl` file holds one object with a `prompt` per line, any other file one prompt per line. Lines end with LF,
    CR or both, and with nothing else. Blank lines and a byte order mark are left out, leading and trailing blanks are
    kept out of the prompt; the rest is kept as it is, repetitions and control characters too.

    Raises:
        PromptError: no such file, not a file, too large, not UTF-8 text, a line without a prompt, or nothing in it.
    """
    try:
        path = _built_in(source) if source in BUILT_IN_PROMPTS else Path(source).expanduser()
        text = _text_of(path)
    except PromptError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        if isinstance(error, RuntimeError) or "\0" in source:  # ~someone who is not known here
            reason = "that is no path"
        known = ", ".join(BUILT_IN_PROMPTS)
        raise PromptError(
            f"cannot read prompts from {source[:200]!r} ({reason}): give a text file or one of {known}"
        ) from error
    # Not splitlines: U+2028, form feeds and the like belong to the prompt.
    lines = [line.strip() for line in text.split("\n")]
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt_of(line, path, number) for number, line in enumerate(lines, start=1) if line]
    else:
        prompts = [line for line in lines if line]
    if not prompts:
        raise PromptError(f"no prompt in {source!r}: it needs at least one line of text")
    return tuple(prompts)


def chosen_prompts(source: str, limit: int | None) -> tuple[str, ...]:
    """Read prompts and keep the first `limit`; None keeps all.

    Raises:
        PromptError: the source cannot be read, or has fewer.
    """
    prompts = read_prompts(source)
    if limit is not None and limit > len(prompts):
        raise PromptError(f"{limit} prompts asked for: {source!r} has {len(prompts)}; ask for at most that many")
    return prompts[:limit]


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """Write prompts as JSON lines, which `read_prompts` reads back as they are."""
    write_text_atomic(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def _text_of(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not path.is_dir():  # a pipe would hang, a device never end
        raise PromptError(f"cannot read prompts from {str(path)[:200]!r} (not a regular file): give a text file")
    if status.st_size > _LARGEST_BYTES:
        raise PromptError(
            f"cannot read prompts from {str(path)[:200]!r} (larger than {_LARGEST_BYTES} bytes): give a smaller file"
        )
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise ValueError("NUL in a text file")
    return text


def _built_in(source: str) -> Path:
    return assets_root() / "prompts" / f"review-openings-{source.removeprefix('reviews-')}.txt"


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptError(f'{path}, line {number}: expected a JSON object with a "prompt"') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f'{path}, line {number}: "prompt" must be text that is not empty')
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise PromptError(f'{path}, line {number}: "prompt" holds half a character (a lone surrogate)')
    return prompt.strip()


def prompts_id(prompts: Sequence[str]) -> str:
    """Return a hash of the prompts in their order, so that a stored result names what it was measured on."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


def encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, chat_template: bool, device: torch.device
) -> PromptBatch:
    """Tokenise and pad on the left.

    With `chat_template` each prompt becomes the user's turn and the assistant's turn is opened; otherwise the model
    continues the text, after the special tokens that the tokenizer puts in front. A special token that is written out
    in a prompt ("<|im_end|>") counts as that token, as it does in transformers.

    Raises:
        PromptError: the tokenizer has no chat template, or a prompt has no token.
    """
    if chat_template and tokenizer.chat_template is None:
        raise PromptError("this model has no chat template: use plain continuation (chat_template = false)")
    rows = [_ids_of(prompt, tokenizer, chat_template=chat_template) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise PromptError(f"prompt {prompt!r} has no token: the model has nothing to continue")
    length = max(len(row) for row in rows)
    pad = pad_token_id(tokenizer)
    ids_BP = torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    mask_BP = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return PromptBatch(texts=tuple(prompts), ids_BP=ids_BP.to(device), mask_BP=mask_BP.to(device))


def _ids_of(prompt: str, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool) -> list[int]:
    if not chat_template:
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    # The template writes its own special tokens.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token for padding; any token will do, because masks and not ids say what is padding."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
