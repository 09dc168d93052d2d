"""Load the tokenizer of a model folder, once for all folders with the same one."""

import hashlib
import threading
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from warp_core.errors import CheckpointError

__all__ = ["first_line", "load_tokenizer"]

KEPT = 4
# What the loader looks at, whatever the class of the tokenizer; weights, cards and recipes are no part of it.
_STEMS = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab", "merges", "config.json")
_SUFFIXES = (".model", ".jinja", ".spm", ".bpe")
_FOLDERS = ("additional_chat_templates",)

_lock = threading.Lock()
_kept: dict[str, PreTrainedTokenizerBase] = {}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder; folders whose files for it are alike share one, so do not change it.

    A tokenizer of the `tokenizers` library leaves its cache of words behind when it goes (0.23: 2.5 KB for a prompt of
    12 words), so one that is loaded for each job lets a process grow without end. Loading takes its time, too.

    Raises:
        CheckpointError: there is none, or it needs code that comes with the folder.
    """
    try:
        with _lock:
            key = _digest(folder)
            if key not in _kept:
                found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                if _digest(folder) != key:  # somebody is writing it
                    return found
                _kept[key] = found
            _kept[key] = _kept.pop(key)
            while len(_kept) > KEPT:
                del _kept[next(iter(_kept))]
            return _kept[key]
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises Exception itself: whatever comes, the folder is at fault
        raise CheckpointError(f"no usable tokenizer in {folder}: {first_line(error)}") from error


def _digest(folder: Path) -> str:
    """Hash the names and contents of the files that make the tokenizer."""
    found = hashlib.sha256()
    for place in (folder, *(folder / name for name in _FOLDERS)):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            if (path.name.startswith(_STEMS) or path.suffix in _SUFFIXES) and path.is_file():
                found.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of what another library's error says, at most 400 letters; its name where it is silent."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
