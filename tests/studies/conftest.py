"""All eleven studies at smoke scale, run once for all tests; a workspace and a cache of their own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from warp_core.cli import main


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What `study all --scale smoke` left: `out`, `workspace`, `cache`, and the JSON of each study."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_WORKSPACE", str(folder / "workspace"))
        patch.setenv("WARP_CACHE", str(folder / "cache"))
        code = main(["study", "all", "--scale", "smoke", "--out", str(folder / "out")])
    assert code == 0
    documents = {path.parent.name: json.loads(path.read_text()) for path in (folder / "out").glob("*/smoke.json")}
    return SimpleNamespace(
        out=folder / "out", workspace=folder / "workspace", cache=folder / "cache", documents=documents
    )


@pytest.fixture
def beside(smoke, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The same workspace and cache again."""
    monkeypatch.setenv("WARP_WORKSPACE", str(smoke.workspace))
    monkeypatch.setenv("WARP_CACHE", str(smoke.cache))
    return smoke


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace and cache."""
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    return tmp_path
