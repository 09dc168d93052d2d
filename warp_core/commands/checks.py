"""What is looked at before hours of work and not after them: places to write to, and room in the context."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from warp_core.errors import ConfigError, WorkspaceError
from warp_core.policy.model import load_tokenizer
from warp_core.policy.prompts import encode_prompts
from warp_core.weights import Checkpoint

__all__ = ["require_file_place", "require_new_folder", "require_room"]

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
    limits = [json.loads(checkpoint.full.facts.get(name, "null")) for name in POSITIONS]
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    if limit is not None and longest + max_new_tokens > limit:
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens}: with a prompt of {longest} tokens that is more than the {limit} "
            f"positions of {checkpoint.full.path}; ask for fewer"
        )


def require_file_place(file: Path) -> None:
    """Raise WorkspaceError where `file` cannot be written: a folder, or a place that is not ours. Parents are made."""
    if file.is_dir():
        raise WorkspaceError(f"{file} is a folder: give the name of a file")
    _require_writable(file)


def require_new_folder(folder: Path) -> None:
    """Raise WorkspaceError where `folder` cannot be made: something is there, or the place is not ours."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise WorkspaceError(f"{folder} exists and is not a folder: choose another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise WorkspaceError(f"{folder} exists and is not empty: choose another output folder or remove it")
    _require_writable(folder)


def _require_writable(path: Path) -> None:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise WorkspaceError(f"{path}: {parent} is a file, not a folder: choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WorkspaceError(f"{path}: no right to write in {parent}: choose another place")
