"""Whether prompts and their completions fit into a model's context, looked at before anything is sampled."""

import json
from collections.abc import Sequence

import torch

from warp_core.errors import ConfigError
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.tokenizer import load_tokenizer
from warp_core.weights import Checkpoint

__all__ = ["require_positions", "require_room"]

# How configs call the number of positions that a model has.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def require_room(checkpoint: Checkpoint, prompts: Sequence[str], *, chat_template: bool, max_new_tokens: int) -> None:
    """Raise ConfigError where the longest prompt and its completion are more tokens than the model has positions.

    Beyond them a model with learned positions fails, and any other says nonsense. Raises PromptError where the model
    has no chat template and one is asked for.
    """
    tokenizer = load_tokenizer(checkpoint.full.path)
    cpu = torch.device("cpu")
    longest = encode_prompts(prompts, tokenizer, chat_template=chat_template, device=cpu).ids_BP.shape[1]
    require_positions(checkpoint, num_prompt=longest, max_new_tokens=max_new_tokens)


def require_positions(checkpoint: Checkpoint, *, num_prompt: int, max_new_tokens: int) -> None:
    """Raise ConfigError where a prompt of so many tokens and its completion have no room in the model's context."""
    limits = [json.loads(checkpoint.full.facts.get(name, "null")) for name in POSITIONS]
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    if limit is not None and num_prompt + max_new_tokens > limit:
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens}: with a prompt of {num_prompt} tokens that is more than the {limit} "
            f"positions of {checkpoint.full.path}; ask for fewer"
        )
