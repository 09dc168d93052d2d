"""The run that ships with the project, made available in a workspace where its points can be added to."""

import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from warp_core.errors import WorkspaceError
from warp_core.workspace.assets import assets_root
from warp_core.workspace.paths import cache_root, run_path
from warp_core.workspace.publish import MANIFEST_NAME, check_manifest, publish_folder
from warp_core.workspace.reading import read_regular

__all__ = ["BUNDLED", "bundled_run", "is_bundled_run"]

BUNDLED = "demo-run"
_copying = threading.Lock()


def bundled_run(root: Path) -> Path:
    """Return the folder of the bundled run for the workspace `root`, copied there where it is not yet.

    A copy that the project's own run is newer than is replaced, unless anything in it was changed or added: measured
    points and votes are the user's. Where the workspace cannot be written, the copy is in the cache; where neither can,
    it is the folder in `assets`, which is then read-only as well.

    Raises:
        EnvironmentProblem: the package was installed without its assets.
    """
    source = assets_root() / BUNDLED
    with _copying:
        for parent in (root, cache_root()):
            with suppress(WorkspaceError):
                return _copied(source, run_path(BUNDLED, root=parent))
    return source


def is_bundled_run(folder: Path) -> bool:
    """Whether a folder is a copy of the bundled run, added to or not, or that run itself."""
    return folder == assets_root() / BUNDLED or (folder / MANIFEST_NAME).is_file()


def _copied(source: Path, out: Path) -> Path:
    exists = out.exists()
    if exists and not _may_be_replaced(source, out):
        return out
    with publish_folder(out, replace=exists, manifest=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return out


def _may_be_replaced(source: Path, out: Path) -> bool:
    """Whether `out` is an older copy in which nothing was changed. Raises WorkspaceError if it is no run at all."""
    if _started(source) <= _started(out):
        return False
    with suppress(WorkspaceError):  # a run of that name that somebody trained has no manifest
        return not check_manifest(out)
    return False


def _started(run: Path) -> float:
    try:
        return float(json.loads(read_regular(run / "run.json"))["started"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise WorkspaceError(f"{run} is not a run: its run.json cannot be read ({error})") from error
