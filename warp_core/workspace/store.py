"""The results store: evaluated points and their samples in one SQLite file, `results.sqlite` of a run.

    with ResultsStore(run / "results.sqlite") as store:
        store.put_point("RECIPE_ID:EVALUATION_ID", point_json, samples_json)   # durable when this returns
        store.list_points(kind="merge", iteration=1)

A point and its samples are written in one transaction and are on the disk before `put_point` returns (write-ahead log,
synchronous FULL), so a result that was shown is never lost (promise P3). Threads may share a store; processes open
their own. Not for network file systems, where locks are not to be trusted: there, treat it as a cache.
"""

import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warp_core.errors import WorkspaceError

__all__ = ["RESULTS_NAME", "ResultsStore"]

RESULTS_NAME = "results.sqlite"
_APPLICATION_ID = 0x57415250  # "WARP": tells our files from other SQLite files
_SCHEMA_VERSION = 1
_BUSY_S = 30.0
_SCHEMA = """
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
"""

Json = dict[str, Any]


class ResultsStore:
    """Points by key, each with its samples. Keys are chosen by the caller (`Point.key`).

    path: the SQLite file; it and its parents are made if missing. read_only: nothing on the disk is touched, and the
    folder may be read-only; the file must exist. Raises WorkspaceError for a missing, damaged, foreign or newer file.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path.absolute()
        self._lock = threading.RLock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        with self._errors():
            if read_only:
                self._db = self._open_read_only()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._db = self._open_for_writing()

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
        with self._errors():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA journal_mode = DELETE").fetchall()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        with self._lock:
            self._db.close()
            if self._scratch is not None:
                self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _query(self, sql: str, values: Iterable[str | float | None]) -> list[Json]:
        with self._errors():
            return [json.loads(text) for (text,) in self._db.execute(sql, tuple(values)).fetchall()]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or, on any exception, nothing."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Hold the lock, and turn what SQLite and the disk complain about into one line for the user."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as err:
            raise WorkspaceError(f"{self.path}: {_advice(str(err))}") from err
        except (sqlite3.DatabaseError, json.JSONDecodeError) as err:
            raise WorkspaceError(
                f"{self.path}: damaged, or no results store ({err}); move it away and evaluate again"
            ) from err
        except OSError as err:
            raise WorkspaceError(
                f"{self.path}: cannot be opened ({err.strerror}); check the path and its rights"
            ) from err

    def _open_for_writing(self) -> sqlite3.Connection:
        db = _connect(self.path, "rwc")
        try:
            _switch_to_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")  # of several processes that open a new file, one makes the tables
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            db.execute("COMMIT")
            self._check_schema(db)
        except BaseException:
            db.close()
            raise
        return db

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise WorkspaceError(f"{self.path}: no results store here; evaluate something in this run first")
        try:
            return self._opened(_connect(self.path, "ro"))
        except sqlite3.OperationalError:  # a log index cannot be made beside the file
            log = self.path.with_name(self.path.name + "-wal")
            if not log.exists() or log.stat().st_size == 0:
                return self._opened(_connect(self.path, "ro", immutable=1))
        self._scratch = tempfile.TemporaryDirectory(prefix="warp-results-")  # the log holds rows: read them in a copy
        for file in (self.path, log):
            shutil.copyfile(file, Path(self._scratch.name) / file.name)
        return self._opened(_connect(Path(self._scratch.name) / self.path.name, "rw"))

    def _opened(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            self._check_schema(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_schema(self, db: sqlite3.Connection) -> None:
        """Refuse a file that is not ours: other tables, another version, or code (triggers, views) in the schema."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        names = {tuple(row) for row in db.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL")}
        if application != _APPLICATION_ID or names != {("table", "points"), ("table", "samples")}:
            raise WorkspaceError(f"{self.path}: an SQLite file, but no results store; give another path")
        if version != _SCHEMA_VERSION:
            raise WorkspaceError(
                f"{self.path}: results of format {version}, this version reads {_SCHEMA_VERSION}; install the newer one"
            )


def _connect(path: Path, mode: str, **options: int) -> sqlite3.Connection:
    extra = "".join(f"&{name}={value}" for name, value in options.items())
    db = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}{extra}", uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def _switch_to_wal(db: sqlite3.Connection) -> None:
    """Ask for the write-ahead log; the busy timeout does not cover this switch, so wait here."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as err:
            if "locked" not in str(err) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _advice(message: str) -> str:
    """What went wrong and what to do, for the operational errors of SQLite."""
    hints = {
        "locked": "another process is using it: close that one and try again",
        "full": "free some space and try again",
        "readonly": "opened read-only or not ours to write: copy the run somewhere else",
        "unable to open": "check the path and its rights",
    }
    hint = next((hint for word, hint in hints.items() if word in message), "try again, or move it away")
    return f"{message}; {hint}"
