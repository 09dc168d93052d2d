"""Folders are whole or absent: under exceptions, failing system calls, kills at random moments and replacement."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from warp_core.errors import WorkspaceError
from warp_core.workspace import publish
from warp_core.workspace.publish import (
    check_manifest,
    publish_folder,
    recover_folder,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

NEW = {"config.json": "{}", "model/a.bin": "aaaa", "model/b.bin": "bb"}
OLD = {"config.json": "old", "only_old": "x"}


def fill(folder: Path, files: dict[str, str] = NEW) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def attempt(out: Path, action: Callable[[Path], object], *, replace: bool = False) -> None:
    with publish_folder(out, replace=replace, manifest=True) as temp:
        fill(temp)
        action(temp)


def raiser(error: BaseException) -> Callable[[Path], object]:
    def action(_: Path) -> None:
        raise error

    return action


def read(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def hidden(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir() if p.name.startswith("."))


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_folder_appears_whole_with_modes_and_without_extra_files(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with publish_folder(out) as temp:
        assert temp.parent == out.parent
        assert temp.name.startswith(".out.tmp-")
        fill(temp)
        (temp / "config.json").chmod(0o600)
        assert not out.exists()
    assert read(out) == NEW
    assert hidden(out.parent) == []
    assert [oct(p.stat().st_mode & 0o777) for p in (out, out / "model", out / "config.json")] == [
        "0o755",
        "0o755",
        "0o644",
    ]


def test_the_manifest_names_every_file_and_finds_every_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with publish_folder(out, manifest=True) as temp:
        fill(temp)
    entry = json.loads((out / "manifest.json").read_text())["files"]["model/a.bin"]
    assert entry == {"sha256": "61be55a8e2f6b4e172338bddf184d6dbee29c98853e0a0485ecee7f27b9af0b4", "size_bytes": 4}
    assert check_manifest(out) == []
    (out / "config.json").unlink()
    (out / "model/a.bin").write_text("aaab")
    (out / "model/b.bin").write_text("b")
    (out / "extra").write_text("")
    assert check_manifest(out) == [
        "config.json: missing",
        "extra: not in the manifest",
        "model/a.bin: its SHA-256 differs from the manifest",
        "model/b.bin: 1 bytes, the manifest says 2",
    ]
    (out / "manifest.json").write_text("[]")
    with pytest.raises(WorkspaceError, match="no readable manifest"):
        check_manifest(out)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(3), PermissionError("x")])
def test_an_exception_in_the_block_leaves_nothing_and_passes_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        attempt(tmp_path / "out", raiser(error))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_block_is_one_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="No space left on device") as caught, publish_folder(tmp_path / "o"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(caught.value)


class RustError(Exception):
    """As safetensors raises: no OSError, the number of the system's error only in the text."""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_a_library_says_of_a_failing_disk_is_one_line_for_the_user(tmp_path: Path, code: int) -> None:
    with pytest.raises(WorkspaceError, match=rf"o: cannot be written \({os.strerror(code)}"):
        attempt(tmp_path / "o", raiser(RustError(f"Error while serializing: I/O error: x (os error {code})")))
    with pytest.raises(RustError):
        attempt(tmp_path / "o", raiser(RustError("a header that is too large")))
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_vanishes_in_the_block_is_one_line_for_the_user(tmp_path: Path) -> None:
    def vanish(temp: Path) -> None:
        shutil.rmtree(temp.parent)
        (temp / "a").write_text("x")

    with pytest.raises(WorkspaceError, match=r"cannot be written \(No such file"):
        attempt(tmp_path / "home" / "o", vanish)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_before_the_block(tmp_path: Path) -> None:
    fill(tmp_path / "folder", OLD)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in (("folder", "not empty"), ("file", "not a folder"), ("link", "not a folder")):
        with pytest.raises(WorkspaceError, match=why), publish_folder(tmp_path / name):
            pytest.fail("the block must not run")
    assert read(tmp_path / "folder") == OLD
    (tmp_path / "empty").mkdir()
    with publish_folder(tmp_path / "empty") as temp:
        fill(temp)
    assert read(tmp_path / "empty") == NEW


@pytest.mark.parametrize("name", ["/", "a\0b"])
def test_paths_that_cannot_be_an_output(name: str) -> None:
    with pytest.raises(WorkspaceError), publish_folder(Path(name)):
        pytest.fail("the block must not run")


def test_an_output_that_appears_during_the_block_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(WorkspaceError, match="not empty"):
        attempt(out, lambda _: fill(out, OLD))
    assert read(out) == OLD
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "make", [lambda temp: (temp / "odd").symlink_to("/etc/hosts"), lambda temp: os.mkfifo(temp / "odd")]
)
def test_links_and_special_files_are_not_published(tmp_path: Path, make: Callable[[Path], object]) -> None:
    with pytest.raises(WorkspaceError, match="odd: only plain files"):
        attempt(tmp_path / "out", make)
    assert list(tmp_path.iterdir()) == []


def test_long_names_are_published_too(tmp_path: Path) -> None:
    with publish_folder(tmp_path / ("n" * 255)) as temp:
        fill(temp)
    assert read(tmp_path / ("n" * 255)) == NEW
    with pytest.raises(WorkspaceError, match="File name too long"), publish_folder(tmp_path / ("n" * 256)) as temp:
        fill(temp)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_replace_swaps_whatever_was_there(tmp_path: Path, kind: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    fill(elsewhere, OLD)
    if kind == "folder":
        fill(out, OLD)
    elif kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(elsewhere)
    with publish_folder(out, replace=True) as temp:
        fill(temp)
        assert out.exists()
    assert read(out) == NEW
    assert read(elsewhere) == OLD
    assert hidden(tmp_path) == []


def test_a_failing_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    with pytest.raises(RuntimeError):
        attempt(out, raiser(RuntimeError()), replace=True)
    assert read(out) == OLD
    assert hidden(tmp_path) == []


class FailingCall:
    """Stands in for a function of os: fails at one call, or from that call on."""

    def __init__(self, real: Callable, code: int, first: int, *, lasting: bool) -> None:
        self.real, self.code, self.first, self.lasting, self.count = real, code, first, lasting, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count == self.first or (self.lasting and self.count > self.first):
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)


def whole(folder: Path) -> bool:
    return read(folder) == OLD or ({**read(folder), "manifest.json": ""} == {**NEW, "manifest.json": ""})


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("call", "at_least"), [("fsync", 7), ("rename", 1), ("mkdir", 2), ("chmod", 6), ("open", 8)])
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replace"])
def test_every_failing_system_call_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at_least: int, code: int, replace: bool, lasting: bool
) -> None:
    for index in range(1, 100):
        out = tmp_path / str(index) / "out"
        fill(out, OLD) if replace else out.parent.mkdir()
        failing = FailingCall(getattr(os, call), code, index, lasting=lasting)
        done = False
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                attempt(out, lambda _: None, replace=replace)
                done = True
            except WorkspaceError as err:
                assert os.strerror(code) in str(err)  # noqa: PT017 - publishing or one line for the user, nothing else
            except OSError as err:
                assert (err.errno, call) == (errno.EIO, "mkdir")  # noqa: PT017 - the block's own error passes through
        if failing.count < index:
            break
        if done:
            assert check_manifest(out) == []
        elif out.exists():
            assert replace
            assert read(out) == OLD
        elif replace:  # the disk failed for good between the two renames: the old folder waits under its other name
            (aside,) = out.parent.glob(".out.old-*")
            assert lasting
            assert read(aside) == OLD
    assert done
    assert at_least < index < 99


REPLACER = """
import sys
from pathlib import Path
from warp_core.workspace.publish import publish_folder
with publish_folder(Path(sys.argv[1]), replace=True) as temp:
    (temp / "a").write_text("new")
    (temp / "b").write_text("new")
"""


def replace_and_be_killed(out: Path, call: str, index: int) -> subprocess.CompletedProcess[str]:
    names = ",".join(f"?{name}" for name in call.split())
    inject = ["strace", "-qq", "-o", "/dev/null", "-e", f"inject={names}:signal=KILL:when={index}"]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*inject, sys.executable, "-S", "-c", REPLACER, str(out)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("call", "times"),
    [
        ("fsync", 4),
        ("rename renameat renameat2", 3),
        ("mkdir mkdirat", 1),
        ("chmod fchmodat", 3),
        ("unlink unlinkat", 2),
    ],
)
def test_a_kill_at_every_system_call_of_a_replacement(tmp_path: Path, call: str, times: int) -> None:
    for index in range(1, 20):
        out = tmp_path / str(index) / "out"
        fill(out, {"a": "old", "b": "old"})
        child = replace_and_be_killed(out, call, index)
        if child.returncode == 0:
            break
        if child.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            pytest.skip(f"strace cannot trace here: {child.stderr}")
        recover_folder(out)
        assert read(out) in ({"a": "old", "b": "old"}, {"a": "new", "b": "new"})
        assert hidden(out.parent) == []
    assert read(out) == {"a": "new", "b": "new"}
    assert times < index < 19


def test_a_failing_last_fsync_is_only_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    real = os.fsync

    def failing(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), tmp_path.stat()):
            raise OSError(errno.EIO, "I/O error")
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with publish_folder(tmp_path / "out") as temp:
        fill(temp)
    assert read(tmp_path / "out") == NEW
    assert "fsync failed after the rename" in caplog.text


def test_leftovers_of_dead_processes_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    pid = dead_pid()
    for name in (f".out.tmp-{pid}-00000000", f".out.tmp-{os.getpid()}-00000000", f".other.tmp-{pid}-00000000"):
        fill(tmp_path / name)
    with publish_folder(tmp_path / "out") as first:
        fill(first)
        recover_folder(tmp_path / "out")
        assert first.exists()
    assert hidden(tmp_path) == [f".other.tmp-{pid}-00000000", f".out.tmp-{os.getpid()}-00000000"]


def test_a_leftover_whose_pid_was_reused_goes_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / f".out.tmp-{os.getpid()}-00000000")
    monkeypatch.setattr(publish, "_GRACE_S", -1.0)
    with publish_folder(tmp_path / "out") as temp:
        fill(temp)
        recover_folder(tmp_path / "out")  # the folder in the making is locked, so age does not matter
        assert temp.exists()
    assert hidden(tmp_path) == []


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path, caplog) -> None:
    pid = dead_pid()
    fill(tmp_path / f".out.old-{pid}-00000000", OLD)
    fill(tmp_path / f".out.tmp-{pid}-00000001")
    recover_folder(tmp_path / "out")
    assert read(tmp_path / "out") == OLD
    assert hidden(tmp_path) == []
    assert "put back" in caplog.text


WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from warp_core.workspace.publish import publish_folder
    base, replace = Path(sys.argv[1]), sys.argv[2] == "replace"
    n = int(sys.argv[3])
    print("ready", flush=True)
    while True:
        n += 1
        with publish_folder(base / ("out" if replace else f"out{n}"), replace=replace, manifest=True) as temp:
            for i in range(5):
                (temp / f"part{i}").write_text(f"{n} " * 2000)
""")


@pytest.mark.parametrize("mode", ["new", "replace"])
def test_a_writer_killed_at_random_moments_leaves_whole_folders(tmp_path: Path, mode: str) -> None:
    seed = random.Random(6)
    for round_ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), mode, str(round_ * 100000)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(seed.uniform(0.02, 0.15))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if mode == "replace":
            recover_folder(tmp_path / "out")
            assert hidden(tmp_path) == []
        for folder in tmp_path.glob("out*"):
            texts = {p.name: p.read_text() for p in folder.iterdir()}
            texts.pop("manifest.json")
            assert sorted(texts) == [f"part{i}" for i in range(5)]
            assert len(set(texts.values())) == 1
    assert any(tmp_path.glob("out*"))
    assert check_manifest(next(tmp_path.glob("out*"))) == []


def test_concurrent_replacements_end_with_one_whole_folder(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from warp_core.workspace.publish import publish_folder
        for n in range(25):
            with publish_folder(Path(sys.argv[1]), replace=True) as temp:
                for i in range(3):
                    (temp / f"part{i}").write_text(f"{sys.argv[2]} {n}")
    """)
    out = tmp_path / "out"
    children = [subprocess.Popen([sys.executable, "-c", script, str(out), str(i)]) for i in range(3)]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert len(set(read(out).values())) == 1
    assert len(read(out)) == 3
    assert hidden(tmp_path) == []


def test_atomic_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json_atomic(path, {"b": [1.5, None], "name": "\u00e9"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": [\n    1.5,\n    null\n  ],\n  "name": "\u00e9"\n}\n'
    write_text_atomic(path, "x\r\n")
    assert path.read_bytes() == b"x\r\n"
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, {"x": float("nan")})
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_text_atomic(tmp_path / "deep", "x")
    assert path.read_bytes() == b"x\r\n"
    assert hidden(path.parent) == []


def test_a_leftover_file_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / f".a.tmp-{dead_pid()}-00000000").write_text("x")
    write_bytes_atomic(tmp_path / "a", b"y")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open", "fchmod"])
def test_every_failing_call_of_an_atomic_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a"
    write_text_atomic(path, "old")
    with monkeypatch.context() as patch:

        def failing(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, call, failing)
        with pytest.raises(WorkspaceError, match="No space left"):
            write_text_atomic(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_disk_that_is_full_while_a_tree_is_copied_is_named(tmp_path: Path) -> None:
    what = [("a", "b", f"[Errno {errno.ENOSPC}] No space left on device: 'b'")]
    with pytest.raises(WorkspaceError, match="No space left on device"), publish_folder(tmp_path / "out"):
        raise shutil.Error(what)
    assert list(tmp_path.iterdir()) == []
