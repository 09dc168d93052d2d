"""Results: read without a trace, opened for writing at the first write, left as one file."""

import hashlib
from pathlib import Path

import pytest

from warp_core.errors import WorkspaceError
from warp_core.workspace import results
from warp_core.workspace.results import Results
from warp_core.workspace.store import ResultsStore


def files_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def stored(path: Path) -> Path:
    store = Results(path)
    store.put_point("a", {"kind": "merge", "reward": 1.5}, [{"completion": "x"}, {"completion": "y"}])
    store.put_point("b", {"kind": "sft", "reward": 0.5})
    store.close()
    return path


def test_a_store_that_does_not_exist_is_empty_and_is_not_made_by_reading(tmp_path):
    store = Results(tmp_path / "new" / "results.sqlite")
    assert store.get_point("a") is None
    assert store.samples("a") == []
    assert store.list_points() == []
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_is_found_at_once_and_later(tmp_path):
    store = Results(tmp_path / "new" / "results.sqlite")
    store.put_point("a", {"kind": "merge"}, [{"completion": "x"}])
    assert store.get_point("a") == {"kind": "merge"}
    assert store.samples("a") == [{"completion": "x"}]
    store.close()
    again = Results(tmp_path / "new" / "results.sqlite")
    assert again.get_point("a") == {"kind": "merge"}
    again.close()


def test_points_are_listed_by_their_fields_in_the_order_they_came(tmp_path):
    store = Results(stored(tmp_path / "results.sqlite"))
    assert [point["kind"] for point in store.list_points()] == ["merge", "sft"]
    assert store.list_points(kind="sft") == [{"kind": "sft", "reward": 0.5}]
    store.close()


def test_after_writing_one_file_is_left_and_reading_it_changes_no_byte(tmp_path):
    path = stored(tmp_path / "results.sqlite")
    before = files_of(tmp_path)
    assert list(before) == ["results.sqlite"]
    store = Results(path)
    assert store.samples("a") == [{"completion": "x"}, {"completion": "y"}]
    assert files_of(tmp_path) == before
    store.close()
    assert files_of(tmp_path) == before


def test_a_reader_elsewhere_does_not_disturb_writing_and_closing(tmp_path):
    path = stored(tmp_path / "results.sqlite")
    reader, writer = Results(path), Results(path)
    writer.put_point("c", {"kind": "policy"})
    writer.close()
    assert reader.get_point("c") == {"kind": "policy"}
    reader.close()


def test_where_writing_is_refused_reading_goes_on(tmp_path, monkeypatch):
    store = Results(stored(tmp_path / "results.sqlite"))

    def refuse(path: Path) -> ResultsStore:
        raise WorkspaceError(f"{path}: opened read-only or not ours to write")

    monkeypatch.setattr(results, "ResultsStore", refuse)
    with pytest.raises(WorkspaceError, match="not ours to write"):
        store.put_point("c", {"kind": "policy"})
    assert store.get_point("a") == {"kind": "merge", "reward": 1.5}
    store.close()


def test_closing_twice_is_fine_and_a_closed_store_is_empty(tmp_path):
    store = Results(stored(tmp_path / "results.sqlite"))
    store.close()
    store.close()
    assert store.list_points() == []


def test_a_file_that_is_no_store_is_refused_in_one_line(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(WorkspaceError, match="damaged, or no results store") as caught:
        Results(path)
    assert "\n" not in str(caught.value)


def test_nothing_is_made_in_the_place_of_a_folder_that_was_moved_away(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    store = Results(stored(home / "results.sqlite"))
    home.rename(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="moved or removed; put it back"):
        store.put_point("c", {"kind": "sft"})
    assert not home.exists()
    (tmp_path / "elsewhere").rename(home)
    store.put_point("c", {"kind": "sft"})
    assert len(store.list_points()) == 3
    store.close()
