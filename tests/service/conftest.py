"""A workspace and a cache of its own for every test, and a tiny run of two iterations whose front is measured."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.selections import Made, make_run
from tests.service.steered import SOON
from warp_core.service.jobs import JobQueue
from warp_core.service.library import Library


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Tiny models and a run over them; not to be changed."""
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def library(made: Made, tmp_path: Path) -> Library:
    """A library whose workspace holds a copy of the run under the name `tiny`."""
    shutil.copytree(made.run, tmp_path / "workspace" / "tiny")
    return Library()


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    """A job queue, closed at the end."""
    queue = JobQueue()
    yield queue
    queue.close(timeout_s=SOON)
