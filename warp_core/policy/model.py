"""Load a causal language model and its tokenizer from a folder: safetensors only, never remote code."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from warp_core.errors import CheckpointError
from warp_core.policy.prompts import pad_token_id
from warp_core.policy.tokenizer import first_line, load_tokenizer

__all__ = ["DTYPES", "Policy", "load_policy", "pick_device", "pointed_at"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model in memory with its tokenizer, in evaluation mode (no dropout, also while it is trained).

    Attributes:
        eos_ids: the tokens that end a completion.
        pad_id: the token written after the end.
        takes_positions: whether the forward accepts `position_ids`; the others count from the mask themselves.
        keeps_logits: whether the forward can compute the last logits only.
        shares_prefix: whether keys and values are all that the model remembers, so that a prompt's can be shared.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    pad_id: int
    takes_positions: bool
    keeps_logits: bool
    shares_prefix: bool

    @property
    def device(self) -> torch.device:
        """The device of the embedding, where tokens go in."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.model.get_input_embeddings().weight.dtype


def pick_device() -> torch.device:
    """Return the first GPU where there is one, otherwise the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load_policy(folder: Path, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Policy:
    """Load a full checkpoint for sampling and scoring.

    The folder's generation settings (top-k, repetition penalty and the like) are set aside apart from the end tokens:
    the log-probabilities must be those of the distribution that is sampled from.

    Raises:
        CheckpointError: the folder is not a complete causal language model in safetensors.
    """
    device = device or pick_device()
    tokenizer = load_tokenizer(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            disable_mmap=True,  # a mapped file that somebody truncates kills the process
            output_loading_info=True,
        )
    except (
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise CheckpointError(f"cannot load a causal language model from {folder}: {first_line(error)}") from error
    _require_complete(report, folder)
    model.requires_grad_(False)
    model.eval().to(device)
    try:
        eos_ids = _end_tokens(model, tokenizer)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder}: eos_token_id is no token: {first_line(error)}") from error
    pad_id = pad_token_id(tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=list(eos_ids) or None, pad_token_id=pad_id)
    parameters = inspect.signature(model.forward).parameters
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad_id,
        takes_positions="position_ids" in parameters,
        keeps_logits="logits_to_keep" in parameters,
        # Recurrent and hybrid models carry a state that is not a key-value cache.
        shares_prefix="past_key_values" in parameters and not getattr(model, "_is_stateful", False),
    )


def _require_complete(report: Mapping[str, object], folder: Path) -> None:
    """Refuse what transformers would fill with random numbers."""
    for key, meaning in (("missing_keys", "is missing"), ("mismatched_keys", "has another shape than the config")):
        names = sorted(str(name) for name in report.get(key) or ())  # type: ignore[attr-defined]
        if names:
            raise CheckpointError(f"{folder}: tensor {names[0]} {meaning} ({len(names)} in all): download it again")


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    found: list[int] = []
    for ids in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(sorted({int(token) for token in found}))


@contextmanager
def pointed_at(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Point the named parameters at other tensors for the time of the block; nothing is copied.

    A tied parameter is one object under its first name, so that its other uses follow.
    """
    live = dict(model.named_parameters())
    kept = {name: live[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            live[name].data = tensor
        yield
    finally:
        for name, tensor in kept.items():
            live[name].data = tensor
