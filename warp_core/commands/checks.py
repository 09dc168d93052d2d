"""What is looked at before hours of work and not after them: places to write to."""

import os
from pathlib import Path

from warp_core.errors import WorkspaceError

__all__ = ["require_file_place", "require_new_folder"]


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
