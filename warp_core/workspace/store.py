"""The results store: evaluated points and their samples in one SQLite file, `results.sqlite` of a run.

    with ResultsStore(run / "results.sqlite") as store:
        store.put_point("RECIPE_ID:EVALUATION_ID", point_json, samples_json)   # durable when this returns
        store.list_points(kind="merge", iteration=1)

A point and its samples are written in one transaction and are on the disk before `put_point` returns (write-ahead log,
synchronous FULL), so a result that was shown is never lost (promise P3). Threads may share a store; processes open
their own. Not for network file systems, where locks are not to be trusted: there, treat it as a cache.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warp_core.workspace.sqlite import BUSY_S, Database, Layout

__all__ = ["RESULTS_NAME", "ResultsStore"]

RESULTS_NAME = "results.sqlite"
_BUSY_S = BUSY_S
_LAYOUT = Layout(
    application_id=0x57415250,  # "WARP"
    version=1,
    name="results store",
    content="results",
    tables=frozenset({"points", "samples"}),
    schema="""
CREATE TABLE points (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    point TEXT NOT NULL
);
CREATE TABLE samples (
    seq INTEGER NOT NULL REFERENCES points (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    sample TEXT NOT NULL,
    PRIMARY KEY (seq, place)
) WITHOUT ROWID;
""",
    if_missing="evaluate something in this run first",
    if_damaged="move it away and evaluate again",
)

Json = dict[str, Any]


class ResultsStore:
    """Points by key, each with its samples. Keys are chosen by the caller (`Point.key`).

    path: the SQLite file; it and its parents are made if missing. read_only: nothing on the disk is touched, and the
    folder may be read-only; the file must exist. Raises WorkspaceError for a missing, damaged, foreign or newer file.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path.absolute()
        self._database = Database(path, layout=_LAYOUT, read_only=read_only, busy_s=_BUSY_S)
        self._db = self._database.connection
        self._errors = self._database.errors
        self._transaction = self._database.transaction

    def put_point(self, key: str, point: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()) -> None:
        """Store a point and its samples under `key`, in place of what was there; durable when this returns.

        Raises WorkspaceError if the disk is full, the store is locked for 30 s or opened read-only, and ValueError
        for a number that JSON cannot hold (NaN is written as null by `Point.to_json`).
        """
        point_text = json.dumps(point, allow_nan=False)
        sample_texts = [json.dumps(sample, allow_nan=False) for sample in samples]
        with self._transaction() as db:
            (seq,) = db.execute(
                "INSERT INTO points (key, point) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET point = excluded.point RETURNING seq",
                (key, point_text),
            ).fetchone()
            db.execute("DELETE FROM samples WHERE seq = ?", (seq,))
            db.executemany("INSERT INTO samples VALUES (?, ?, ?)", [(seq, i, t) for i, t in enumerate(sample_texts)])

    def get_point(self, key: str) -> Json | None:
        """The point stored under `key`, or None."""
        rows = self._query("SELECT point FROM points WHERE key = ?", (key,))
        return rows[0] if rows else None

    def samples(self, key: str) -> list[Json]:
        """The samples of the point stored under `key`, in the order they were given; empty if there is none."""
        return self._query("SELECT sample FROM samples JOIN points USING (seq) WHERE key = ? ORDER BY place", (key,))

    def list_points(self, **where: str | float | None) -> list[Json]:
        """All points, oldest first, whose fields have the given values: `list_points(kind="merge", iteration=1)`.

        None asks for a field that is absent or null.
        """
        clauses, values = ["1"], list[str | float | None]()
        for field, value in where.items():
            clauses.append("json_extract(point, ?) IS ?")
            values += [f"$.{field}", value]
        return self._query(f"SELECT point FROM points WHERE {' AND '.join(clauses)} ORDER BY seq", values)

    def keys(self) -> list[str]:
        """The keys of all points, oldest first."""
        with self._errors():
            return [key for (key,) in self._db.execute("SELECT key FROM points ORDER BY seq").fetchall()]

    def compact(self) -> None:
        """Fold the write-ahead log into the file and shrink it: one small file is left, fit to be moved or committed.

        Raises WorkspaceError if another connection is using the store. The store stays usable; the log comes back with
        the next opening for writing.
        """
        self._database.compact()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _query(self, sql: str, values: Iterable[str | float | None]) -> list[Json]:
        with self._errors():
            return [json.loads(text) for (text,) in self._db.execute(sql, tuple(values)).fetchall()]
