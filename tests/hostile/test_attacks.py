"""The quick part of every attack, as `make soak` runs it: nothing may fail, and something must have been tried."""

import argparse
import os
import shutil

import pytest

from hostile.__main__ import ATTACKS, attacked
from hostile.document import ROOT

NEEDS = {"system_calls": "strace", "texts": "chromium"}


@pytest.mark.parametrize("name", ATTACKS)
def test_everything_survives(name, tmp_path):
    program = NEEDS.get(name)
    if program and not shutil.which(program) and not os.environ.get("WARP_BROWSER_TESTS"):
        pytest.skip(f"{program} is not installed")
    ran = attacked(name, argparse.Namespace(quick=True, scratch=tmp_path))
    assert ran.problem == ""
    assert ran.outcomes
    assert not [(one.case, one.survived, one.tried, one.failures) for one in ran.outcomes if one.failed]


def test_every_attack_is_explained():
    page = (ROOT / "hostile" / "README.md").read_text(encoding="ascii")
    assert [name for name in ATTACKS if f"`{name}`" not in page] == []
