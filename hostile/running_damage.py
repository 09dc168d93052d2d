"""What happens to files behind a program's back: deleted, cut, overwritten, replaced, in the way."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["DAMAGES", "REPLACES"]

Damage = Callable[[Path, bytes], None]


def _gone(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _deleted(file: Path, other: bytes) -> None:
    _gone(file)


def _truncated(file: Path, other: bytes) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _emptied(file: Path, other: bytes) -> None:
    os.truncate(file, 0)


def _overwritten(file: Path, other: bytes) -> None:
    with file.open("r+b") as into:
        into.write(other)
        into.truncate()


def _replaced(file: Path, other: bytes) -> None:
    beside = file.with_name(f"{file.name}.new")
    beside.write_bytes(other)
    beside.replace(file)


def _replaced_in_disguise(file: Path, other: bytes) -> None:
    """With the times of the old one, as `cp -p` and `rsync -a` have it; the size is the same with tiny models."""
    before = file.stat()
    _replaced(file, other)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _unreadable(file: Path, other: bytes) -> None:
    file.chmod(0)


def _garbage(file: Path, other: bytes) -> None:
    _replaced(file, bytes(range(256)) * 40)


def _folder(file: Path, other: bytes) -> None:
    _gone(file)
    file.mkdir()


def _dangling(file: Path, other: bytes) -> None:
    _gone(file)
    file.symlink_to(file.with_name("nowhere"))


def _pipe(file: Path, other: bytes) -> None:
    _gone(file)
    os.mkfifo(file)


DAMAGES: Mapping[str, Damage] = {
    "deleted": _deleted,
    "truncated": _truncated,
    "emptied": _emptied,
    "unreadable": _unreadable,
    "overwritten": _overwritten,
    "replaced": _replaced,
    "replaced, same size and times": _replaced_in_disguise,
    "garbage": _garbage,
    "a folder in its place": _folder,
    "a dangling link": _dangling,
    "a pipe in its place": _pipe,
}
# After these there is another model where the old one was.
REPLACES = ("overwritten", "replaced", "replaced, same size and times")
