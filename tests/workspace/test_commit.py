"""Which code made a result: the commit, and whether files differ from it."""

import subprocess
from pathlib import Path

import pytest

from warp_core.workspace import commit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(commit, "assets_root", lambda: tmp_path / "assets")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_and_a_plus_for_changes(project):
    git(project, "init", "-q")
    (project / "code.py").write_text("1")
    git(project, "add", "code.py")
    git(project, "commit", "-q", "-m", "one")
    head = git(project, "rev-parse", "--short", "HEAD")
    assert commit.commit_here() == head
    (project / "new.txt").write_text("a result")
    assert commit.commit_here() == head, "what is not the project's does not count"
    (project / "code.py").write_text("2")
    assert commit.commit_here() == f"{head}+"
    assert commit.commit_here(apart_from=["code.py"]) == head
    assert commit.commit_here(apart_from=["new.txt"]) == f"{head}+"


def test_no_repository_and_no_git_have_none(project, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    assert commit.commit_here() == ""
    monkeypatch.setenv("PATH", "")
    assert commit.commit_here() == ""
