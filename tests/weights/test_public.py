"""The public surface of warp_core.weights."""

import subprocess
import sys

import warp_core.weights


def test_everything_public_exists_and_is_documented():
    for name in warp_core.weights.__all__:
        assert getattr(warp_core.weights, name).__doc__, name
    assert sorted(warp_core.weights.__all__) == warp_core.weights.__all__


def test_importing_it_does_not_import_heavy_libraries():
    code = "import sys, warp_core.weights; print([m for m in ('transformers', 'peft', 'plotly') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
