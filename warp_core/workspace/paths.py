"""Where things live on disk, and the one gate that turns a name into a path.

    $WARP_WORKSPACE (default ./runs)        one folder per run; exports, studies, and votes on models without a run
    $WARP_CACHE (default: the user's cache) dequantised models, Gram matrices, hashes: all of it can be made again

A name that a person or a request sends passes `safe_name` before it becomes part of a path: it is one path component
on every system, so it cannot leave the workspace (promise P10).
"""

import os
import re
import unicodedata
from pathlib import Path

import platformdirs

from warp_core.errors import WorkspaceError

__all__ = ["MAX_NAME_CHARS", "cache_root", "find_run", "require_run_name", "run_path", "safe_name", "workspace_root"]

MAX_NAME_CHARS = 100  # leaves room for what we put around a name in 255 bytes
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
_NO_RUNS = {"exports", "studies", "votes"}  # what else there is in a workspace
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def safe_name(name: str) -> str:
    """Return `name` unchanged if it is safe as one component of a path, else raise WorkspaceError.

    Allowed: ASCII letters and digits, and . _ + = - after the first character; at most 100 characters; no trailing
    dot; not a device name of Windows (con, nul, com1, ...), whatever its extension. So: no separators, no .., no
    hidden files, no control characters, no look-alikes from the rest of Unicode.
    """
    shown = _shown(name)
    if not name:
        raise WorkspaceError("a name is empty: give one of letters, digits and . _ + = -")
    if len(name) > MAX_NAME_CHARS:
        raise WorkspaceError(f"the name {shown} has {len(name)} characters: at most {MAX_NAME_CHARS}")
    if not _ALLOWED.fullmatch(name) or name.endswith("."):
        raise WorkspaceError(
            f"the name {shown} is not safe: start with an ASCII letter or digit, go on with those and . _ + = -,"
            " and do not end with a dot"
        )
    if name.split(".")[0].lower() in _RESERVED:
        raise WorkspaceError(f"the name {shown} is a device on some systems: choose another")
    return name


def workspace_root() -> Path:
    """The absolute folder that holds the runs: $WARP_WORKSPACE, else `runs` in the current folder. Not created."""
    return Path(os.environ.get("WARP_WORKSPACE") or "runs").expanduser().absolute()


def cache_root() -> Path:
    """The absolute folder for what can be made again: $WARP_CACHE, else the user's cache folder. Not created."""
    chosen = os.environ.get("WARP_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(str(platformdirs.user_cache_dir("warp-core", appauthor=False)))


def run_path(name: str, *, root: Path | None = None) -> Path:
    """The folder of the run called `name` in the workspace (or in another `root`), existing or not.

    Raises WorkspaceError if the name is not safe, or if a link of that name leads out of the workspace.
    """
    root = root or workspace_root()
    path = root / safe_name(name)
    if not path.resolve().is_relative_to(root.resolve()):
        raise WorkspaceError(f"{path} is a link that leads out of the workspace: give the folder itself as a path")
    return path


def require_run_name(folder: Path, *, root: Path | None = None) -> None:
    """Raise WorkspaceError if a new run in `folder` would lie among the exports, the studies or the votes."""
    if folder.absolute().parent == (root or workspace_root()) and folder.name.lower() in _NO_RUNS:
        raise WorkspaceError(f"{folder} is where the workspace keeps its {folder.name.lower()}: choose another name")


def find_run(run: str | Path) -> Path:
    """The existing folder of a run given on the command line: a path, or else a name in the workspace.

    Raises WorkspaceError if there is neither.
    """
    given = Path(run).expanduser()
    if os.path.isdir(given):  # noqa: PTH112 - Path.is_dir raises for a name that is too long or holds a NUL
        return given.absolute()
    if isinstance(run, str) and os.sep not in run:
        path = run_path(run)
        if path.is_dir():
            return path
    where = _shown(str(run))
    raise WorkspaceError(f"no run at {where}, nor of that name in {workspace_root()}: give the folder of a run")


def _shown(name: str) -> str:
    """The name for an error message: one line, escaped, cut."""
    plain = "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else ascii(c)[1:-1] for c in name[:40])
    return f"'{plain}{'...' if len(name) > 40 else ''}'"
