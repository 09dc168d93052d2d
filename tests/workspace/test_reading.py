"""Small files that have become something else: refused at once, never waited for."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warp_core.errors import WorkspaceError
from warp_core.service.trainings import Trainings
from warp_core.studies.report import read_documents
from warp_core.training.config import WarpConfig, kept_config
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.publish import check_manifest
from warp_core.workspace.reading import read_regular
from warp_core.workspace.runs import RunFolder
from warp_core.workspace.sealed import read_sealed


def at_once(call: Callable[[], Any]) -> Any:
    """What a call returns or raises; it fails where that takes 10 s."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it waits for somebody to write into the pipe"
    return found[0]


def test_text_is_read_as_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ä\r\nb\n".encode())
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path) == read_regular(tmp_path / "link") == "ä\nb\n"
    path.write_bytes(b"\xff")
    assert read_regular(path, errors="replace") == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(UnicodeDecodeError):
        read_regular(path)


def test_what_is_no_file_is_refused_and_leaves_no_descriptor(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        error = at_once(lambda path=path: read_regular(path))
        assert isinstance(error, OSError)
        assert message in str(error)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_caches_and_records_that_are_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    os.mkfifo(tmp_path / "manifest.json")
    assert at_once(lambda: read_sealed(tmp_path / "run.json")) is None
    assert isinstance(at_once(RunFolder(tmp_path).about), WorkspaceError)
    assert isinstance(at_once(lambda: check_manifest(tmp_path)), WorkspaceError)
    studies = tmp_path / "studies"
    (studies / "ema").mkdir(parents=True)
    os.mkfifo(studies / "ema" / "tiny.json")
    assert "tiny.json" in str(at_once(lambda: read_documents(studies)))


def test_the_log_of_a_start_that_is_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / ".training" / "a").mkdir(parents=True)
    (tmp_path / ".training" / "a" / "config.toml").write_text(kept_config(WarpConfig()))
    os.mkfifo(tmp_path / ".training" / "a" / "log.txt")
    assert at_once(lambda: Trainings(tmp_path).summary_of_start("a")).state == "stopped"


def test_a_remembered_hash_that_has_become_a_pipe_is_computed_again(tmp_path, monkeypatch):
    import warp_core.workspace.hashing as module

    monkeypatch.setattr(module, "_RACY_NS", -(10**12))
    file, cache = tmp_path / "a", tmp_path / "cache"
    file.write_bytes(b"abc")
    wanted = sha256_file(file, cache_dir=cache)
    (entry,) = cache.iterdir()
    entry.unlink()
    os.mkfifo(entry)
    monkeypatch.setattr(module, "_memory", {})
    assert at_once(lambda: sha256_file(file, cache_dir=cache)) == wanted
