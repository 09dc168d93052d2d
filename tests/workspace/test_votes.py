"""Acknowledged votes survive kills and concurrent writers; undo takes one vote; files of another sort are refused."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from warp_core.errors import UserError, WorkspaceError
from warp_core.workspace.store import ResultsStore
from warp_core.workspace.votes import VotesStore

VOTE = {"prompt": "p\n\u00e9\ud800\x00", "first_text": "a", "second_text": "b", "score": -1.5, "blind": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "votes.sqlite"


def test_a_vote_comes_back_with_id_and_time(path: Path) -> None:
    with VotesStore(path) as store:
        before = time.time()
        stored = store.put({**VOTE, "id": "mine", "time": 0.0})
        assert before <= stored["time"] <= time.time()
        assert stored == {**VOTE, "id": stored["id"], "time": stored["time"]}
        assert stored["id"] not in ("", "mine")
    with VotesStore(path) as store:
        assert store.list() == [stored]


def test_votes_are_listed_oldest_first_and_ids_differ(path: Path) -> None:
    with VotesStore(path) as store:
        assert store.list() == []
        ids = [store.put({"n": n})["id"] for n in range(5)]
        assert [vote["n"] for vote in store.list()] == [0, 1, 2, 3, 4]
        assert len(set(ids)) == 5


def test_remove_takes_one_vote_and_only_once(path: Path) -> None:
    with VotesStore(path) as store:
        ids = [store.put({"n": n})["id"] for n in range(3)]
        store.remove(ids[2])
        store.remove(ids[0])
        store.put({"n": 3})
        assert [vote["n"] for vote in store.list()] == [1, 3]
        with pytest.raises(UserError, match="no vote") as caught:
            store.remove(ids[0])
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="no vote"):
            store.remove("' OR 1 --\n" * 20)
        assert len(store.list()) == 2


def test_numbers_that_json_cannot_hold_are_refused_and_nothing_is_written(path: Path) -> None:
    with VotesStore(path) as store:
        with pytest.raises(ValueError, match="JSON"):
            store.put({"score": float("nan")})
        assert store.list() == []


def test_threads_share_a_store(path: Path) -> None:
    with VotesStore(path) as store:
        threads = [
            threading.Thread(target=lambda t=t: [store.put({"t": t, "i": i}) for i in range(20)]) for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted((vote["t"], vote["i"]) for vote in store.list()) == [(t, i) for t in range(4) for i in range(20)]


WRITER = """
import sys
from pathlib import Path
from warp_core.workspace.votes import VotesStore
store = VotesStore(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    stored = store.put({"writer": sys.argv[2], "i": i})
    if i % 3 == 2:
        store.remove(stored["id"])
    print(i, flush=True)
"""


def writer(path: Path, name: str, votes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(votes)], stdout=subprocess.PIPE, text=True
    )


def test_processes_write_at_the_same_time_from_the_first_moment_on(path: Path) -> None:
    children = [writer(path, str(n), 30) for n in range(3)]
    for child in children:
        child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0, 0, 0]
    with VotesStore(path, read_only=True) as store:
        votes = store.list()
    assert sorted((v["writer"], v["i"]) for v in votes) == [
        (str(w), i) for w in range(3) for i in range(30) if i % 3 < 2
    ]


def test_a_killed_writer_loses_no_acknowledged_vote_and_no_undo(path: Path) -> None:
    promised = []
    for round_ in range(6):
        child = writer(path, str(round_), 100_000)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(0.01 * round_)
        child.send_signal(signal.SIGKILL)
        lines += child.communicate()[0].splitlines(keepends=True)
        promised += [(str(round_), int(line)) for line in lines if line.endswith("\n")]
    with VotesStore(path) as store:
        kept = {(vote["writer"], vote["i"]) for vote in store.list()}
    assert {(w, i) for w, i in promised if i % 3 < 2} <= kept
    assert not {(w, i) for w, i in promised if i % 3 == 2} & kept
    assert len(promised) >= 6


def test_reading_makes_no_file_and_writes_nothing(path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no votes store here; vote first"):
        VotesStore(path, read_only=True)
    assert not path.exists()
    with VotesStore(path) as store:
        vote_id = store.put(VOTE)["id"]
    with VotesStore(path, read_only=True) as store:
        with pytest.raises(WorkspaceError, match="read-only"):
            store.put(VOTE)
        with pytest.raises(WorkspaceError, match="read-only"):
            store.remove(vote_id)
        assert [vote["id"] for vote in store.list()] == [vote_id]


@pytest.mark.parametrize("kind", ["text", "results", "newer", "damaged row"])
def test_files_that_are_no_votes_are_refused_in_one_line(path: Path, kind: str) -> None:
    if kind == "results":
        ResultsStore(path).close()
    else:
        with VotesStore(path) as store:
            store.put(VOTE)
    if kind == "text":
        path.write_text("not a database, but long enough to have a header " * 10)
    elif kind in ("newer", "damaged row"):
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 2" if kind == "newer" else "UPDATE votes SET vote = '{'")
        db.commit()
        db.close()
    with pytest.raises(WorkspaceError) as caught, VotesStore(path) as store:
        store.list()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "votes" in str(caught.value)
