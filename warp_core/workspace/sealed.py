"""JSON that is kept to save work and read back only as it was written: a seal over its content finds every damage.

write_sealed(path, {"a": 1})
known = read_sealed(path)      # None where it is absent or was changed: then it is computed again
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from warp_core.workspace.publish import write_json_atomic
from warp_core.workspace.reading import read_regular

__all__ = ["read_sealed", "seal_of", "write_sealed"]


def write_sealed(path: Path, content: Any) -> None:
    """Write JSON data with its seal, whole or not at all. Raises WorkspaceError where the disk refuses."""
    write_json_atomic(path, {"sha256": seal_of(content), "content": content})


def read_sealed(path: Path) -> Any:
    """Return what `write_sealed` wrote; None for anything else, whatever it is."""
    try:
        stored = json.loads(read_regular(path))
        return stored["content"] if stored["sha256"] == seal_of(stored["content"]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def seal_of(content: Any) -> str:
    """Return the SHA-256 of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
