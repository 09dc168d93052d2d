"""Comparing what was computed twice: alone and beside others in a batch, which rounds sums differently."""

from typing import Any

import pytest


def rounded(want: Any) -> Any:
    """Return `want` with every float in it, however deep, made approximate; all else is compared as it is."""
    if isinstance(want, float):
        return pytest.approx(want, rel=1e-4, abs=1e-5)
    if isinstance(want, dict):
        return {key: rounded(value) for key, value in want.items()}
    if isinstance(want, list | tuple):
        return type(want)(rounded(value) for value in want)
    return want
