"""The votes store: side-by-side judgements of completions in one SQLite file, `votes.sqlite` of a run.

    with VotesStore(run / "votes.sqlite") as store:
        stored = store.put({"prompt": "...", "score": 1.5, ...})   # durable when this returns; has id and time
        store.remove(stored["id"])                                 # undo

A vote is a JSON object of the caller's choosing. It is on the disk before `put` returns (write-ahead log, synchronous
FULL), so a vote that was acknowledged survives a kill. Threads may share a store; processes open their own.
"""

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warp_core.errors import WorkspaceError
from warp_core.workspace.sqlite import Database, Layout

__all__ = ["VOTES_NAME", "VotesStore"]

VOTES_NAME = "votes.sqlite"
_LAYOUT = Layout(
    application_id=0x57415256,  # "WARV"
    version=1,
    name="votes store",
    content="votes",
    tables=frozenset({"votes"}),
    schema="""
CREATE TABLE votes (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    vote TEXT NOT NULL
);
""",
    if_missing="vote first",
    if_damaged="move it away and vote again",
)

Json = dict[str, Any]


class VotesStore:
    """Votes in the order in which they came.

    path: the SQLite file; it and its parents are made if missing. read_only: nothing on the disk is touched; the file
    must exist. Raises WorkspaceError for a missing, damaged, foreign or newer file.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path.absolute()
        self._database = Database(path, layout=_LAYOUT, read_only=read_only)

    def put(self, vote: Mapping[str, Any]) -> Json:
        """Store a vote and return it with a new `id` and the `time` (Unix seconds); durable when this returns.

        Whatever the vote says of its own id and time is replaced. Raises WorkspaceError if the disk is full, the store
        is locked for 30 s or opened read-only, and ValueError for a number that JSON cannot hold.
        """
        stored = {**vote, "id": uuid.uuid4().hex, "time": time.time()}
        text = json.dumps(stored, allow_nan=False)
        with self._database.transaction() as db:
            db.execute("INSERT INTO votes (id, vote) VALUES (?, ?)", (stored["id"], text))
        return stored

    def remove(self, vote_id: str) -> None:
        """Take a vote back; durable when this returns. Raises WorkspaceError if there is none of that id."""
        with self._database.transaction() as db:
            removed = db.execute("DELETE FROM votes WHERE id = ?", (vote_id,)).rowcount
        if not removed:
            raise WorkspaceError(f"{self.path}: no vote {vote_id[:40]!r} here; it may have been taken back already")

    def list(self) -> list[Json]:
        """All votes, oldest first."""
        with self._database.errors():
            rows = self._database.connection.execute("SELECT vote FROM votes ORDER BY seq").fetchall()
            return [json.loads(text) for (text,) in rows]

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
