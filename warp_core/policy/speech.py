"""What decides how a model is spoken to and when it stops, beside its weights."""

import hashlib
import json
from pathlib import Path

from warp_core.weights.folders import read_json_object

__all__ = ["speech_id"]

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TABLES = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")


def speech_id(folder: Path) -> str:
    """Return a hash of a model folder's tokenizer, chat template and end tokens, 16 hex digits.

    A checkpoint's id is of its weights and its function. The same weights with another end token give other
    completions, so a stored measurement is named by both. Raises CheckpointError for JSON that cannot be read.
    """
    digest = hashlib.sha256()
    for name in (*FILES, *TEMPLATES, *TABLES):
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ends = read_json_object(path).get("eos_token_id") if path.is_file() else None
        digest.update(f"{name}={json.dumps(ends)};".encode())
    return digest.hexdigest()[:16]
