"""What runs cache (hashes, Gram matrices) goes to a folder of the test; the resume tests have one forkserver."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
