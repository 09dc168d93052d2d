"""The quick part of every attack, as `make soak` runs it: nothing may fail, and something must have been tried."""

import argparse
import os
import shutil
import sys
from pathlib import Path

import pytest

from hostile.__main__ import ATTACKS, attacked
from hostile.document import PAGE, ROOT, Place, Ran, keep, page, read_kept
from hostile.outcomes import Outcome, Tally

NEEDS = {"system_calls": "strace", "offline": "strace", "texts": "chromium", "sessions": "chromium"}


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


def test_the_page_shows_what_was_kept():
    assert page(read_kept(list(ATTACKS)), list(ATTACKS)) == PAGE.read_text(encoding="ascii")


def test_a_failure_names_no_folder_of_this_machine():
    tally = Tally("one", promise="P1", holds="it")
    seen = f'File "{sys.base_prefix}/lib/os.py", File "{sys.prefix}/lib/x.py", {ROOT}/hostile/a.py, {Path.home()}/b'
    tally.check(False, seen)
    (kept,) = tally.outcome().failures
    assert not [place for place in (sys.base_prefix, sys.prefix, ROOT, Path.home()) if f"{place}/" in kept]
    assert "/lib/os.py" in kept
    assert "PROJECT/hostile/a.py" in kept


def test_what_was_kept_is_shown_with_its_failures(tmp_path):
    place = Place(date="2026-01-02T03:04:05+00:00", commit="abc", machine="Linux, 2 cores", versions={"torch": "2"})
    good = Outcome(case="one|two", promise="P1", tried=3, survived=3, holds="it")
    bad = Outcome(case="more", promise="", tried=2, survived=1, holds="it", failures=("left\n caf\u00e9",))
    for ran in (
        Ran(name="disk", place=place, seconds=90.0, outcomes=[good, bad]),
        Ran(name="names", place=place, seconds=60.0, outcomes=[], problem="no end within 1 minutes"),
    ):
        keep(ran, results=tmp_path)
        assert read_kept([ran.name], results=tmp_path) == [ran]
    text = page(read_kept(["names", "races", "disk"], results=tmp_path), ["names", "races", "disk"])
    assert "**4 of 5 tries survived.** Linux, 2 cores; torch 2." in text
    assert "Not run whole yet: `races`." in text
    assert "| `names`<br>2026-01-02, abc, 1.0 min | **no end within 1 minutes** | | | |" in text
    assert "| `disk`<br>2026-01-02, abc, 1.5 min | one\\|two | P1 | 3 of 3 |  |" in text
    assert "|  | more |  | **1 of 2** |  |" in text
    assert "- `disk`, more: left caf\\xe9" in text
