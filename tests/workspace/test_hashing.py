"""Hashes are right, are remembered while the file is the same, and never when it could have changed unseen."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from warp_core.workspace import hashing
from warp_core.workspace.hashing import sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that ten seconds pass after every write."""
    real = time.time_ns
    monkeypatch.setattr(hashing.time, "time_ns", lambda: real() + 10_000_000_000)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were really read."""
    read: list[str] = []
    real = hashlib.file_digest

    def counting(file, name):
        read.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return read


def test_the_hash_of_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc") == ABC
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "none")


def test_an_unchanged_file_is_read_once(tmp_path: Path, settled: None, digests: list[str]) -> None:
    (tmp_path / "abc").write_text("abc")
    assert [sha256_file(tmp_path / "abc") for _ in range(3)] == [ABC] * 3
    assert digests == ["abc"]


def test_a_changed_file_is_read_again_even_with_its_old_size_and_mtime(tmp_path: Path, settled: None) -> None:
    path = tmp_path / "abc"
    path.write_text("abc")
    before = path.stat()
    sha256_file(path)
    time.sleep(0.02)
    path.write_text("abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_file(path) == hashlib.sha256(b"abd").hexdigest()


def test_a_young_file_is_not_remembered(tmp_path: Path, digests: list[str]) -> None:
    (tmp_path / "abc").write_text("abc")
    assert [sha256_file(tmp_path / "abc") for _ in range(2)] == [ABC] * 2
    assert digests == ["abc", "abc"]


def test_the_cache_on_disk_serves_the_next_process(tmp_path: Path, settled: None, digests: list[str]) -> None:
    path, cache = tmp_path / "abc", tmp_path / "cache"
    path.write_text("abc")
    sha256_file(path, cache_dir=cache)
    hashing._memory.clear()
    assert sha256_file(path, cache_dir=cache) == ABC
    assert digests == ["abc"]
    for entry in cache.iterdir():
        entry.write_text("nonsense")
    hashing._memory.clear()
    assert sha256_file(path, cache_dir=cache) == ABC
    assert digests == ["abc", "abc"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, settled: None) -> None:
    (tmp_path / "abc").write_text("abc")
    (tmp_path / "file").write_text("")
    assert sha256_file(tmp_path / "abc", cache_dir=tmp_path / "file" / "cache") == ABC
