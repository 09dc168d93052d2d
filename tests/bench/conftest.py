"""Settings and rows for the tests of the benches."""

import pytest

from bench.rows import Row
from bench.settings import Settings


@pytest.fixture
def settings(tmp_path):
    """A smoke test without peers on one thread; SmolLM2 is not there."""
    return Settings(quick=True, threads=1, scratch=tmp_path, peer_python=None, smollm2=tmp_path / "smollm2")


@pytest.fixture
def rows():
    """One row with everything and one with what is needed."""
    return [
        Row(
            bench="merge",
            case="135M | fp32",
            quantity="wall time",
            value=1.25,
            unit="s",
            peer="mergekit",
            ratio=6.5,
            aim=">= 6 x",
            meets=True,
            note="two\nlines",
        ),
        Row(bench="front", case="11 etas", quantity="wall time", value=30.0, unit="s"),
    ]
