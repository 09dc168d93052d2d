"""A results store that is only opened for writing when there is something to write.

The demo run that ships with the project, and a run on a read-only disk, can be read without touching a byte.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from warp_core.errors import WorkspaceError
from warp_core.workspace.paths import cache_root
from warp_core.workspace.store import ResultsStore

__all__ = ["Results", "shared_results_file"]


def shared_results_file() -> Path:
    """Return where the points of models that belong to no run are kept."""
    return cache_root() / "results.sqlite"


class Results:
    """Points by key at `path`, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._had_folder = path.parent.is_dir()
        self._store = ResultsStore(path, read_only=True) if path.exists() else None
        self._writable = False

    def get_point(self, key: str) -> dict[str, Any] | None:
        """The point stored under `key`, or None."""
        return self._store.get_point(key) if self._store else None

    def samples(self, key: str) -> list[dict[str, Any]]:
        """The samples of the point stored under `key`."""
        return self._store.samples(key) if self._store else []

    def list_points(self, **where: str | float | None) -> list[dict[str, Any]]:
        """All points, oldest first, whose fields have the given values."""
        return self._store.list_points(**where) if self._store else []

    def items(self) -> list[tuple[str, dict[str, Any]]]:
        """All points with their keys, oldest first."""
        return list(zip(self._store.keys(), self._store.list_points(), strict=False)) if self._store else []

    def put_point(self, key: str, point: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()) -> None:
        """Store a point durably. Raises WorkspaceError where the disk does not let us."""
        if self._store is None or not self._writable:
            if self._had_folder and not self.path.parent.is_dir():  # nothing is made in its place: it may come back
                raise WorkspaceError(f"{self.path}: its folder has been moved or removed; put it back and try again")
            # Opened before the other is closed: where the disk refuses, what is stored can still be read.
            writable = ResultsStore(self.path)
            self.close()
            self._store, self._writable = writable, True
        self._store.put_point(key, point, samples)

    def close(self) -> None:
        """Close the file; after writing it is left as one small file, which can be read without making others."""
        if self._store:
            if self._writable:
                with suppress(WorkspaceError):  # another process is using it, and will leave it so
                    self._store.compact()
            self._store.close()
        self._store, self._writable = None, False
