"""Names cannot escape the workspace (P10), and the roots follow the environment."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warp_core.errors import WorkspaceError
from warp_core.workspace.paths import cache_root, find_run, require_run_name, run_path, safe_name, workspace_root

NASTY = [
    "", ".", "..", "...", "../x", "..\\x", "/etc/passwd", "a/b", "a\\b", "C:\\x", "C:x", "~", "~root", "-rf", ".hidden",
    "a\0b", "a\n", "\na", "a\tb", "a b", " a", "a ", "a.", "nul", "NUL.txt", "con", "Com1.json", "lpt9", "x" * 101,
    "\uff0e\uff0e\uff0fx", "a\u2215b", "a\u202eb", "\u2025", "e\u0301", "\u00e9", "a\u200b", "\ud800", "%2e%2e", "a%00",
    "$HOME", "`id`", "a;b", "a|b", "<script>", "a'b", 'a"b', "a*", "a?", "a:b", "@x", "file://x",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        safe_name(name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 250
    with pytest.raises(WorkspaceError):
        run_path(name)


@pytest.mark.parametrize("name", ["demo", "a", "0", "run-1_b.v2+eta=0.3", "x" * 100, "console", "a..b"])
def test_plain_names_pass_unchanged(name: str) -> None:
    assert safe_name(name) == name


PIECES = st.lists(st.sampled_from(["a", "..", ".", "/", "\\", "~", "\0", "\n", " "]), max_size=8).map("".join)


@given(st.text(max_size=120) | PIECES)
def test_whatever_passes_stays_inside(name: str) -> None:
    try:
        safe_name(name)
    except WorkspaceError as err:
        assert str(err).isprintable()  # noqa: PT017 - both outcomes are fine
        return
    path = Path("/base") / name
    assert (path.parent, path.name, path.resolve().parent) == (Path("/base"), name, Path("/base"))


def test_the_workspace_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "w"))
    assert workspace_root() == tmp_path / "w"
    assert run_path("demo") == tmp_path / "w" / "demo"
    monkeypatch.setenv("WARP_WORKSPACE", "")
    monkeypatch.chdir(tmp_path)
    assert workspace_root() == tmp_path / "runs"
    assert list(tmp_path.iterdir()) == []


def test_the_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c"
    monkeypatch.delenv("WARP_CACHE")
    assert cache_root().is_absolute()
    assert cache_root().name == "warp-core"


def test_a_link_out_of_the_workspace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "w"))
    (tmp_path / "w" / "real").mkdir(parents=True)
    (tmp_path / "w" / "inside").symlink_to(tmp_path / "w" / "real")
    (tmp_path / "w" / "outside").symlink_to(tmp_path)
    assert run_path("inside") == tmp_path / "w" / "inside"
    with pytest.raises(WorkspaceError, match="leads out"):
        run_path("outside")


def test_find_run_takes_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "w"))
    (tmp_path / "w" / "demo").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_run("demo") == tmp_path / "w" / "demo"
    assert find_run("here") == tmp_path / "here"
    assert find_run(tmp_path / "here") == tmp_path / "here"
    for missing in ("nothing", "no/where", "a\0b", "x" * 300, "..\n", Path("demo")):
        with pytest.raises(WorkspaceError) as caught:
            find_run(missing)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["exports", "studies", "votes", "Exports"])
def test_a_run_does_not_lie_among_exports_studies_or_votes(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkspaceError, match=f"where the workspace keeps its {name.lower()}: choose another name"):
        require_run_name(tmp_path / name, root=tmp_path)
    require_run_name(tmp_path / "deeper" / name, root=tmp_path)
    require_run_name(tmp_path / f"{name}-2", root=tmp_path)
