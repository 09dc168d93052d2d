"""Write folders and files so that a reader finds all of the old, all of the new, or nothing: never a mix.

    with publish_folder(Path("runs/a/merged")) as temp:    # temp is a hidden folder beside runs/a/merged
        save_everything_into(temp)                         # an exception here leaves nothing behind

The order is: write, hash (if a manifest is asked for), fsync every file and folder, rename, fsync the parent. A
process that is killed leaves at most a hidden folder `.NAME.tmp-PID-TOKEN`; whoever next publishes under the same
name removes it. A folder that is being replaced is first renamed to `.NAME.old-PID-TOKEN`; a kill between the two
renames leaves `NAME` absent, and `recover_folder` (called by every `publish_folder`) puts the old one back.

POSIX only: a folder in the making is locked with flock on the folder itself, which the kernel frees with the process.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from warp_core.errors import UserError, WorkspaceError
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.reading import read_regular

__all__ = [
    "MANIFEST_NAME",
    "check_manifest",
    "publish_folder",
    "recover_folder",
    "sha256_file",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_text_atomic",
]

MANIFEST_NAME = "manifest.json"
_LOG = logging.getLogger(__name__)
_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.(?P<role>tmp|old)-(?P<pid>\d+)-[0-9a-f]{8}")
_GRACE_S = 60.0  # an unlocked leftover of a live pid is ours to remove after this: containers reuse low pids
_DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
# How safetensors and tokenizers, written in Rust, pass on what the disk says; and how shutil.copytree does.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_SWAP_TRIES = 20


@contextmanager
def publish_folder(out: Path, *, replace: bool = False, manifest: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `out` in one rename, on any exception it is removed.

    out: the folder to publish; missing parents are made. Files get mode 0644 and folders 0755.
    replace: an `out` that exists is swapped for the new folder after the block (else: refused before the block).
    manifest: also write manifest.json with the SHA-256 and size of every file (`check_manifest` reads it).

    Raises WorkspaceError if `out` is a file or a folder with something in it (unless `replace`), if the block left a
    link or a special file in the folder, and for any I/O error or full disk; `out` is then as it was before.
    A failing fsync of the parent after the rename is only logged: the folder is whole, its durability is unknown.
    """
    out = _checked_target(out)
    try:
        _make_parents(out.parent)
        recover_folder(out)
        _refuse_taken(out, replace=replace)
        temp, lock = _new_temp_folder(out)
    except OSError as err:
        raise _io_error(out, err) from err
    try:
        try:
            yield temp
        except Exception as err:
            if isinstance(err, UserError) or (problem := _of_the_disk(err, temp)) is None:
                raise
            raise _io_error(out, problem) from err
        try:
            _seal(temp, manifest=manifest)
            old = _swap_in(temp, out, replace=replace)
        except OSError as err:
            raise _io_error(out, err) from err
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    finally:
        with suppress(OSError):  # it is closed all the same, and nothing was written through it
            os.close(lock)
    _sync_after_rename(out.parent)
    for path in old:
        _remove(out, path)


def recover_folder(out: Path) -> None:
    """Undo what killed processes left beside `out`: put back a folder that was being replaced, remove temporaries.

    Safe at any time and beside live writers, whose temporaries are locked. Raises nothing on a read-only disk.
    """
    out = _checked_target(out)
    leftovers = _leftovers(out)
    olds = sorted((p for p, role in leftovers if role == "old"), key=lambda p: p.lstat().st_mtime_ns)
    if olds and not os.path.lexists(out):
        with suppress(OSError):  # another process recovered it first, or the disk is read-only
            olds[-1].rename(out)
            _LOG.warning("put back %s, which an interrupted replacement had moved away", out)
    for path, _role in leftovers:
        _remove(out, path)


def check_manifest(folder: Path) -> list[str]:
    """All differences between a folder and its manifest.json, one line each; empty when the folder is whole.

    Raises WorkspaceError if the manifest is missing or not readable.
    """
    try:
        files = json.loads(read_regular(folder / MANIFEST_NAME))["files"]
        wanted = {str(name): (str(entry["sha256"]), int(entry["size_bytes"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise WorkspaceError(
            f"{folder / MANIFEST_NAME}: no readable manifest ({err}); publish the folder again"
        ) from err
    present = {p.relative_to(folder).as_posix(): p for p in _files(folder)} if folder.is_dir() else {}
    present.pop(MANIFEST_NAME, None)
    problems = [f"{name}: missing" for name in sorted(wanted.keys() - present.keys())]
    problems += [f"{name}: not in the manifest" for name in sorted(present.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & present.keys()):
        digest, size = wanted[name]
        if present[name].stat().st_size != size:
            problems.append(f"{name}: {present[name].stat().st_size} bytes, the manifest says {size}")
        elif sha256_file(present[name]) != digest:
            problems.append(f"{name}: its SHA-256 differs from the manifest")
    return problems


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file through a temporary beside it, fsync and rename: a reader sees the old bytes or the new ones.

    Missing parents are made; mode 0644. Raises WorkspaceError on an I/O error or full disk, the old file intact.
    """
    path = _checked_target(path)
    try:
        _make_parents(path.parent)
        for leftover, role in _leftovers(path):
            if role == "tmp":
                _remove(path, leftover)
        temp = path.parent / _temp_name(path, "tmp")
        try:
            _write_synced(temp, data)
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise _io_error(path, err) from err
    _sync_after_rename(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` for text, as UTF-8 and with the line endings it has."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON with a final newline. NaN and infinity are refused with ValueError: not JSON."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _checked_target(out: Path) -> Path:
    """The absolute form of `out`; not resolved, so that a link is seen as a link."""
    if "\0" in str(out):
        raise WorkspaceError(f"{str(out)!r}: a path cannot contain a NUL character; choose another name")
    target = Path(os.path.abspath(out))  # noqa: PTH100 - Path.resolve would follow links
    if not target.name:
        raise WorkspaceError(f"{out}: cannot write over the root of a file system; choose a folder below it")
    return target


def _refuse_taken(out: Path, *, replace: bool) -> None:
    if replace or not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise WorkspaceError(f"{out} exists and is not a folder; choose another output folder")
    if any(out.iterdir()):
        raise WorkspaceError(f"{out} exists and is not empty; choose another output folder or remove it")


def _of_the_disk(err: Exception, temp: Path) -> OSError | None:
    """What the disk said, where it is to blame: full, failing, or the folder in the making is gone."""
    if isinstance(err, OSError) and err.errno is not None:
        number = err.errno
    else:
        found = _NUMBER.search(str(err))
        number = int(found[1] or found[2]) if found else 0
    if number in _DISK_FAILS or (number and not temp.is_dir()):
        return OSError(number, os.strerror(number))
    return None


def _io_error(out: Path, err: OSError) -> WorkspaceError:
    why = err.strerror or str(err)
    return WorkspaceError(f"{out}: cannot be written ({why}); nothing there has changed; mend that and try again")


def _make_parents(folder: Path) -> None:
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _temp_name(out: Path, role: str) -> str:
    name = out.name if len(os.fsencode(out.name)) <= 200 else sha256(os.fsencode(out.name)).hexdigest()
    return f".{name}.{role}-{os.getpid()}-{secrets.token_hex(4)}"


def _new_temp_folder(out: Path) -> tuple[Path, int]:
    temp = out.parent / _temp_name(out, "tmp")
    temp.mkdir(mode=0o700)
    try:
        lock = os.open(temp, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        temp.rmdir()
        raise
    with suppress(OSError):  # a file system without flock: the pid in the name still protects the folder
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temp, lock


def _leftovers(out: Path) -> list[tuple[Path, str]]:
    """Temporaries of `out` whose writer is dead, with their role ("tmp" or "old")."""
    stem = _LEFTOVER.fullmatch(_temp_name(out, "tmp"))
    found = []
    with suppress(OSError):
        for path in out.parent.iterdir():
            match = _LEFTOVER.fullmatch(path.name)
            if match and stem and match["stem"] == stem["stem"] and _is_abandoned(path, int(match["pid"])):
                found.append((path, match["role"]))
    return found


def _is_abandoned(path: Path, pid: int) -> bool:
    """True when nobody holds the lock and the writer's pid is dead, or was reused (the leftover is old)."""
    try:
        age_s = time.time() - path.lstat().st_ctime  # a rename sets ctime, so a swap going on is young
        if path.is_symlink():
            return not _alive(pid)
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not _alive(pid)
    finally:
        os.close(fd)
    return age_s > _GRACE_S or not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()]


def _seal(temp: Path, *, manifest: bool) -> None:
    """Refuse links and special files, write the manifest, set modes, fsync every file, then every folder."""
    files = _files(temp)
    for path in files:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise WorkspaceError(f"{path.relative_to(temp)}: only plain files and folders can be published")
    if manifest:
        entries = {
            p.relative_to(temp).as_posix(): {"sha256": sha256_file(p), "size_bytes": p.stat().st_size} for p in files
        }
        path = temp / MANIFEST_NAME
        path.write_text(json.dumps({"format": 1, "files": entries}, indent=2) + "\n", encoding="utf-8")
        files.append(path)
    for path in files:
        path.chmod(0o644)
        _sync(path)
    folders = [p for p in temp.rglob("*") if p.is_dir()]
    for path in [*sorted(folders, reverse=True), temp]:
        path.chmod(0o755)
        _sync(path)


def _swap_in(temp: Path, out: Path, *, replace: bool) -> list[Path]:
    """Rename temp to out; returns the replaced folders, moved aside and still to be removed."""
    old: list[Path] = []
    for _ in range(_SWAP_TRIES):  # more than once only if others publish under the same name at the same time
        if replace and os.path.lexists(out):
            aside = out.parent / _temp_name(out, "old")
            with suppress(FileNotFoundError):
                out.rename(aside)
                old.append(aside)
        try:
            temp.rename(out)
        except OSError as err:
            taken = err.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if taken and replace:
                continue
            _put_back(old, out)
            if taken:
                _refuse_taken(out, replace=False)
            raise
        except BaseException:
            _put_back(old, out)
            raise
        return old
    _put_back(old, out)
    raise WorkspaceError(f"{out}: other processes keep publishing under this name; choose another output folder")


def _put_back(old: list[Path], out: Path) -> None:
    if old and not os.path.lexists(out):
        try:
            old[-1].rename(out)
        except OSError as err:
            _LOG.warning("%s is safe as %s, but could not be renamed back (%s)", out, old[-1], err)


def _remove(out: Path, path: Path) -> None:
    """Remove a leftover of `out`. It is renamed first: what is called "old" must be whole, or it is no way back."""
    doomed = out.parent / _temp_name(out, "tmp")
    with suppress(OSError):
        path.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(fd, "wb") as file:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(data)
        file.flush()
        os.fchmod(fd, 0o644)
        os.fsync(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_after_rename(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as err:
        _LOG.warning(
            "%s: fsync failed after the rename (%s); the files are whole, a power cut may lose them", folder, err
        )
