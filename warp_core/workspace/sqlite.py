"""SQLite files of ours: opened, checked, written durably. What the stores of results and of votes stand on.

    layout = Layout(name="results store", tables=("points",), schema="CREATE TABLE points (...);", ...)
    database = Database(path, layout=layout)
    with database.transaction() as db: ...                # all or nothing, durable when the block ends
    with database.errors(): database.connection.execute("SELECT ...")

Write-ahead log, synchronous FULL: what a transaction wrote is on the disk when it ends. Threads may share a database;
processes open their own. Not for network file systems, where locks are not to be trusted.
"""

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from warp_core.errors import WorkspaceError

__all__ = ["BUSY_S", "Database", "Layout"]

BUSY_S = 30.0
"""How long a connection waits for another one that is writing."""
_MADE_WITHIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file of one sort holds, and the words for when it does not."""

    application_id: int
    """Tells our files from other SQLite files."""
    version: int
    name: str
    """What the file is called in messages: `results store`."""
    content: str
    """What it holds: `results`."""
    tables: frozenset[str]
    schema: str
    """Statements that make the tables, each ended by a semicolon and a new line."""
    if_missing: str
    """What to do where there is no file to read."""
    if_damaged: str


class Database:
    """One SQLite file of a given layout.

    path: the file; it and its parents are made if missing. read_only: nothing on the disk is touched, and the folder
    may be read-only; the file must exist (one without tables, whose maker was interrupted, is read as empty). busy_s:
    how long to wait for other writers. Raises WorkspaceError for a missing, damaged, foreign or newer file.
    """

    connection: sqlite3.Connection
    """Use it inside `errors()` or `transaction()`."""

    def __init__(self, path: Path, *, layout: Layout, read_only: bool = False, busy_s: float = BUSY_S) -> None:
        self.path = path.absolute()
        self.layout = layout
        self._busy_s = busy_s
        self._lock = threading.RLock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        with self.errors():
            if read_only:
                self.connection = self._open_read_only()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.connection = self._open_for_writing()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, durable when the block ends, or, on any exception, nothing."""
        with self.errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Hold the lock, and turn what SQLite and the disk complain about into one line for the user."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as err:
            raise WorkspaceError(f"{self.path}: {_advice(err)}") from err
        except WorkspaceError:
            raise
        except (sqlite3.DatabaseError, ValueError, RecursionError) as err:  # the last two: JSON that is none
            raise WorkspaceError(
                f"{self.path}: damaged, or no {self.layout.name} ({err}); {self.layout.if_damaged}"
            ) from err
        except OSError as err:
            raise WorkspaceError(
                f"{self.path}: cannot be opened ({err.strerror}); check the path and its rights"
            ) from err

    def compact(self) -> None:
        """Fold the write-ahead log into the file and shrink it: one small file is left, fit to be moved or committed.

        Raises WorkspaceError if another connection is using the file. It stays usable; the log comes back with the
        next opening for writing.
        """
        with self.errors():
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.execute("VACUUM")
            self.connection.execute("PRAGMA journal_mode = DELETE").fetchall()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        with self._lock:
            self.connection.close()
            if self._scratch is not None:
                self._scratch.cleanup()

    def _open_for_writing(self) -> sqlite3.Connection:
        db = self._connect(self.path, "rwc")
        try:
            self._switch_to_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")  # of several processes that open a new file, one makes the tables
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                self._make_tables(db)
            db.execute("COMMIT")
            self._check_schema(db)
        except BaseException:
            db.close()
            raise
        return db

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise WorkspaceError(f"{self.path}: no {self.layout.name} here; {self.layout.if_missing}")
        try:
            return self._opened(self._connect(self.path, "ro"))
        except sqlite3.OperationalError:  # a log index cannot be made beside the file
            log = self.path.with_name(self.path.name + "-wal")
            if not log.exists() or log.stat().st_size == 0:
                return self._opened(self._connect(self.path, "ro", immutable=1))
        self._scratch = tempfile.TemporaryDirectory(prefix="warp-read-")  # the log holds rows: read them in a copy
        for file in (self.path, log):
            shutil.copyfile(file, Path(self._scratch.name) / file.name)
        return self._opened(self._connect(Path(self._scratch.name) / self.path.name, "rw"))

    def _make_tables(self, db: sqlite3.Connection) -> None:
        for statement in self.layout.schema.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {self.layout.application_id}")
        db.execute(f"PRAGMA user_version = {self.layout.version}")

    def _opened(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """The connection for reading, checked; an empty database in the place of one whose maker was interrupted."""
        try:
            if not _objects_when_made(db) and db.execute("PRAGMA application_id").fetchone() == (0,):
                db.close()
                db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._make_tables(db)
                db.execute("PRAGMA query_only = ON")
            self._check_schema(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_schema(self, db: sqlite3.Connection) -> None:
        """Refuse a file that is not ours: other tables, another version, or code (triggers, views) in the schema."""
        names = _objects_when_made(db)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        layout = self.layout
        if application != layout.application_id or names != {("table", table) for table in layout.tables}:
            raise WorkspaceError(f"{self.path}: an SQLite file, but no {layout.name}; give another path")
        if version != layout.version:
            raise WorkspaceError(
                f"{self.path}: {layout.content} of format {version}, this version reads {layout.version};"
                " install the newer one"
            )

    def _connect(self, path: Path, mode: str, **options: int) -> sqlite3.Connection:
        extra = "".join(f"&{name}={value}" for name, value in options.items())
        db = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}{extra}",
            uri=True,
            timeout=self._busy_s,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute("PRAGMA trusted_schema = OFF")
        return db

    def _switch_to_wal(self, db: sqlite3.Connection) -> None:
        """Ask for the write-ahead log; the busy timeout does not cover this switch, so wait here."""
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL").fetchall()
            except sqlite3.OperationalError as err:
                if "locked" not in str(err) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


def _objects_when_made(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Type and name of all tables, triggers and views; another process may be making them: the file comes first."""
    until = time.monotonic() + _MADE_WITHIN_S
    while True:
        names = {tuple(row) for row in db.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL")}
        if names or time.monotonic() > until:
            return names
        time.sleep(0.01)


def _advice(error: sqlite3.OperationalError) -> str:
    """What went wrong and what to do, for the operational errors of SQLite."""
    message = str(error)
    if getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMMAP":  # SQLite calls both a disk I/O error
        return "out of memory, or a disk whose files cannot be mapped: free memory, or keep the file on a local disk"
    hints = {
        "locked": "another process is using it: close that one and try again",
        "full": "free some space and try again",
        "readonly": "opened read-only or not ours to write: copy the run somewhere else",
        "unable to open": "check the path and its rights",
    }
    hint = next((hint for word, hint in hints.items() if word in message), "try again, or move it away")
    return f"{message}; {hint}"
