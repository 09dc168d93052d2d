"""Acknowledged rows survive kills and concurrent writers; odd files and folders are refused or read as they are."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from warp_core.errors import WorkspaceError
from warp_core.workspace import sqlite as sqlite_module
from warp_core.workspace.results import Results
from warp_core.workspace.store import ResultsStore

POINT = {"reward": 4.5, "kl": 14.1, "kind": "merge", "iteration": 1, "eta": 0.3}
SAMPLES = [{"prompt": "p", "completion": "c\n\u00e9\ud800\x00"}, {"prompt": "p", "completion": "d"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "results.sqlite"


def test_a_point_comes_back_with_its_samples_in_order(path: Path) -> None:
    with ResultsStore(path) as store:
        store.put_point("a:e", POINT, SAMPLES)
        assert store.get_point("a:e") == POINT
        assert store.samples("a:e") == SAMPLES
        assert store.get_point("b:e") is None
        assert store.samples("b:e") == []
    with ResultsStore(path) as store:
        assert store.list_points() == [POINT]


def test_a_second_put_replaces_point_and_samples_and_keeps_its_place(path: Path) -> None:
    with ResultsStore(path) as store:
        store.put_point("a", POINT, SAMPLES)
        store.put_point("b", {"reward": 1.0})
        store.put_point("a", {"reward": 2.0}, SAMPLES[1:])
        assert store.list_points() == [{"reward": 2.0}, {"reward": 1.0}]
        assert store.samples("a") == SAMPLES[1:]
        assert store.keys() == ["a", "b"]


def test_filters(path: Path) -> None:
    with ResultsStore(path) as store:
        for key, fields in {
            "a": {},
            "b": {"eta": 0.5},
            "c": {"kind": "sft", "eta": None},
            "d": {"evaluation": {"seed": 7}},
        }.items():
            store.put_point(key, {**POINT, "id": key, **fields})

        def found(**where: str | float | None) -> str:
            return "".join(p["id"] for p in store.list_points(**where))

        assert found() == "abcd"
        assert found(kind="merge") == "abd"
        assert found(kind="merge", eta=0.3) == "ad"
        assert found(eta=None) == "c"
        assert found(missing=None, iteration=1) == "abcd"
        assert found(**{"evaluation.seed": 7}) == "d"
        assert found(kind="' OR 1 --") == ""


def test_numbers_that_json_cannot_hold_are_refused_and_nothing_is_written(path: Path) -> None:
    with ResultsStore(path) as store:
        with pytest.raises(ValueError, match="JSON"):
            store.put_point("a", POINT, [{"reward": float("inf")}])
        assert store.keys() == []


def test_a_failing_transaction_leaves_the_old_point(path: Path) -> None:
    with ResultsStore(path) as store:
        store.put_point("a", POINT, SAMPLES)
        with pytest.raises(WorkspaceError, match="no such table"), store._transaction() as db:
            assert [db.execute(sql).rowcount for sql in ("DELETE FROM points", "DELETE FROM nowhere")]
        assert store.samples("a") == SAMPLES


def test_threads_share_a_store(path: Path) -> None:
    with ResultsStore(path) as store:
        threads = [
            threading.Thread(
                target=lambda t=t: [store.put_point(f"{t}-{i}", {"t": t, "i": i}, SAMPLES) for i in range(20)]
            )
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.list_points()) == 80
        assert [p["i"] for p in store.list_points(t=2)] == list(range(20))


WRITER = """
import sys
from pathlib import Path
from warp_core.workspace import sqlite as sqlite_module
from warp_core.workspace.results import Results
from warp_core.workspace.store import ResultsStore
store = ResultsStore(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    store.put_point(f"{sys.argv[2]}-{i}", {"writer": sys.argv[2], "i": i}, [{"n": n} for n in range(3)])
    print(i, flush=True)
"""


def writer(path: Path, name: str, rows: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(rows)], stdout=subprocess.PIPE, text=True
    )


def test_processes_write_at_the_same_time_from_the_first_moment_on(path: Path) -> None:
    children = [writer(path, str(n), 30) for n in range(3)]
    for child in children:
        child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0, 0, 0]
    with ResultsStore(path, read_only=True) as store:
        assert len(store.list_points()) == 90
        assert len(store.samples("2-29")) == 3


def test_a_killed_writer_loses_no_acknowledged_row(path: Path) -> None:
    promised = []
    for round_ in range(6):
        child = writer(path, str(round_), 100_000)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(0.01 * round_)
        child.send_signal(signal.SIGKILL)
        lines += child.communicate()[0].splitlines(keepends=True)
        promised += [f"{round_}-{int(line)}" for line in lines if line.endswith("\n")]
    with ResultsStore(path) as store:
        keys = store.keys()
        assert set(promised) <= set(keys)
        assert all(len(store.samples(key)) == 3 for key in keys)
    assert len(promised) >= 6


def test_compact_leaves_one_file_that_opens_read_only(path: Path) -> None:
    with ResultsStore(path) as store:
        for i in range(200):
            store.put_point("a", POINT, [{"text": "x" * 200, "i": i}] * 20)
        store.compact()
        assert [p.name for p in path.parent.iterdir()] == ["results.sqlite"]
        assert path.stat().st_size < 30_000
        store.put_point("b", POINT)
    before = path.read_bytes()
    with ResultsStore(path, read_only=True) as store:
        assert store.keys() == ["a", "b"]
        with pytest.raises(WorkspaceError, match="read-only"):
            store.put_point("c", POINT)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["results.sqlite"]


def test_compact_beside_another_connection_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warp_core.workspace.store._BUSY_S", 0.1)
    with ResultsStore(path) as store, ResultsStore(path) as other:
        other.put_point("a", POINT)
        with pytest.raises(WorkspaceError, match="another process is using it"):
            store.compact()
        assert store.keys() == ["a"]


@contextmanager
def read_only_folder(folder: Path) -> Iterator[Path]:
    """A copy of the folder in which this process cannot write, not even as root (it becomes nobody for a while)."""
    base = Path(tempfile.mkdtemp(prefix="warp-test-"))
    copy = base / "copy"
    user = os.geteuid()
    try:
        base.chmod(0o755)
        shutil.copytree(folder, copy)
        for file in copy.iterdir():
            file.chmod(0o444)
        copy.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        yield copy
    finally:
        os.seteuid(user)
        copy.chmod(0o755)
        shutil.rmtree(base)


@pytest.mark.parametrize("state", ["compact", "closed", "open", "log only"])
def test_a_store_in_a_read_only_folder_shows_every_row(path: Path, state: str) -> None:
    store = ResultsStore(path)
    store.put_point("a", POINT, SAMPLES)
    if state == "compact":
        store.compact()
    if state == "closed":
        store.close()
    if state == "log only":
        folder = path.parent.parent / "log only"
        shutil.copytree(path.parent, folder, ignore=shutil.ignore_patterns("*-shm"))
    else:
        folder = path.parent
    with read_only_folder(folder) as copy, ResultsStore(copy / path.name, read_only=True) as reader:
        assert reader.keys() == ["a"]
        assert reader.samples("a") == SAMPLES
        with pytest.raises(WorkspaceError, match=r"cannot be opened|unable to open|readonly"):
            ResultsStore(copy / "other.sqlite")
    store.close()


def test_a_missing_store_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no results store here"):
        ResultsStore(tmp_path / "none.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("begun", ["", "PRAGMA journal_mode = WAL"])
def test_a_file_whose_maker_was_interrupted_is_empty_and_can_be_written(tmp_path, monkeypatch, begun):
    monkeypatch.setattr(sqlite_module, "_MADE_WITHIN_S", 0.05)
    path = tmp_path / "results.sqlite"
    db = sqlite3.connect(path)
    db.execute(begun or "PRAGMA user_version")
    db.close()
    path.touch()
    with ResultsStore(path, read_only=True) as store:
        assert store.keys() == []
        with pytest.raises(WorkspaceError, match="read"):
            store.put_point("a", {})
    results = Results(path)
    assert results.get_point("a") is None
    results.put_point("a", {"kl": 1.0})
    results.close()
    with ResultsStore(path, read_only=True) as store:
        assert store.keys() == ["a"]


WITHOUT_ROOM = """
import resource, sqlite3, sys
from pathlib import Path
from warp_core.errors import WorkspaceError
from warp_core.workspace.store import ResultsStore

said = set()
for number, room_kb in enumerate(range(0, 2000, 40)):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room_kb * 1024, resource.RLIM_INFINITY))
    try:
        with ResultsStore(Path(sys.argv[1]) / f"{number}.sqlite") as store:
            store.put_point("a", {"kl": 1.0})
    except WorkspaceError as error:
        said.add(str(error).partition(": ")[2])
    except MemoryError:
        pass
print(*said, sep="\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc are Linux's")
def test_a_store_without_room_in_memory_does_not_blame_the_disk_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "out of memory, or a disk whose files cannot be mapped: free memory, or keep the file on a local disk"
    ]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", ["text", "truncated", "foreign", "newer", "trigger", "folder"])
def test_files_that_are_no_store_are_refused_in_one_line(path: Path, kind: str, read_only: bool) -> None:
    with ResultsStore(path) as store:
        store.put_point("a", POINT, [{"text": "x" * 100}] * 500)
        store.compact()
    if kind == "text":
        path.write_text("not a database, but long enough to have a header " * 10)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        db = sqlite3.connect(path)
        statement = {
            "foreign": "PRAGMA application_id = 1",
            "newer": "PRAGMA user_version = 2",
            "trigger": "CREATE TRIGGER t AFTER INSERT ON points BEGIN DELETE FROM points; END",
        }[kind]
        db.execute(statement)
        db.commit()
        db.close()
    with pytest.raises(WorkspaceError) as caught, ResultsStore(path, read_only=read_only) as store:
        store.samples("a")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_full_disk_is_one_line_and_the_store_goes_on(path: Path) -> None:
    with ResultsStore(path) as store:
        store.put_point("a", POINT)
        store._db.execute("PRAGMA max_page_count = 8")
        with pytest.raises(WorkspaceError, match="full; free some space"):
            store.put_point("b", POINT, [{"text": "x" * 4000}] * 20)
        assert store.keys() == ["a"]
        store.put_point("c", POINT)
    with ResultsStore(path) as store:
        assert store.keys() == ["a", "c"]
