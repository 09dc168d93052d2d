"""SHA-256 of files, remembered while the file does not change."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from warp_core.workspace.reading import read_regular

__all__ = ["sha256_file"]

_RACY_NS = 2_000_000_000  # a file written this recently may change again without a new timestamp
_memory: dict[tuple[str, int, int, int, int, int], str] = {}


def sha256_file(path: Path, *, cache_dir: Path | None = None) -> str:
    """The SHA-256 of a file as 64 hex digits, read in one pass without loading it.

    The answer is remembered in this process, and in `cache_dir` too if given, under the file's absolute path, device,
    inode, size, mtime and ctime. Nothing is remembered about a file that changed less than 2 seconds ago or while it
    was read: its timestamp could not tell the next change. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        key = _key(path, os.fstat(file.fileno()))
        known = _memory.get(key) or _read_cache(cache_dir, key)
        if known is None:
            known = hashlib.file_digest(file, "sha256").hexdigest()
            settled = time.time_ns() - max(key[4], key[5]) > _RACY_NS
            if not settled or _key(path, os.fstat(file.fileno())) != key:
                return known
            _write_cache(cache_dir, key, known)
    _memory[key] = known
    return known


def _key(path: Path, st: os.stat_result) -> tuple[str, int, int, int, int, int]:
    return (str(path.resolve()), st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def _entry(cache_dir: Path, key: tuple[str, int, int, int, int, int]) -> Path:
    return cache_dir / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.sha256"


def _read_cache(cache_dir: Path | None, key: tuple[str, int, int, int, int, int]) -> str | None:
    if cache_dir is None:
        return None
    with suppress(OSError, UnicodeDecodeError):
        text = read_regular(_entry(cache_dir, key))
        if len(text) == 64 and set(text) <= set("0123456789abcdef"):
            return text
    return None


def _write_cache(cache_dir: Path | None, key: tuple[str, int, int, int, int, int], digest: str) -> None:
    if cache_dir is None:
        return
    entry = _entry(cache_dir, key)
    temp = entry.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # a cache that cannot be written costs time, never an answer
        cache_dir.mkdir(parents=True, exist_ok=True)
        temp.write_text(digest, encoding="ascii")
        temp.replace(entry)
