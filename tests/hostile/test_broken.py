"""Copies that are broken on purpose: every change still fits, each test of the README has one, failures are seen."""

import re

import pytest

from hostile.broken import break_in, failed_in, page
from hostile.broken_cases import ATTACKS, CASES, Broken
from hostile.document import PAGE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
# It has a program of its own that does what must be noticed.
CONTROLLED = {f"{ATTACKS}[offline]"}


def named_in_the_readme() -> dict[str, set[str]]:
    """The tests that each row of the promises names."""
    rows = re.findall(r"^\| (P\d+) \|(.*)$", README, flags=re.MULTILINE)
    found = {}
    for promise, row in rows:
        attacks = re.findall(r"`tests/hostile/test_attacks\.py` \(([^)]*)\)", row)
        names = {f"{ATTACKS}[{name}]" for group in attacks for name in re.findall(r"`(\w+)`", group)}
        found[promise] = names | set(re.findall(r"`(tests/[^`]*::[^`]*)`", row))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_every_change_fits_and_is_noticed_by_tests_of_its_promise(case):
    text = (ROOT / case.file).read_text(encoding="utf-8")
    assert break_in(text, case) != text
    assert case.noticed_by
    assert set(case.noticed_by) <= named_in_the_readme()[case.promise]


def test_every_test_of_the_readme_has_a_change_that_it_notices():
    noticed = {(case.promise, test) for case in CASES for test in case.noticed_by}
    named = {(promise, test) for promise, tests in named_in_the_readme().items() for test in tests - CONTROLLED}
    assert named - noticed == set()
    assert {promise for promise, _ in noticed} == {f"P{number}" for number in range(1, 15)}


@pytest.mark.parametrize("text", ["nothing of it", "old and old"])
def test_a_change_that_does_not_fit_is_an_error(text):
    case = Broken(promise="P1", what="it", file="x.py", old="old", new="new", noticed_by=("tests/test_x.py::test_y",))
    with pytest.raises(ValueError, match=r"x\.py: 'old' stands there [02] times"):
        break_in(text, case)


TESTS = """
import pytest

def test_good(): pass

def test_bad(): assert False

@pytest.mark.parametrize("number", [1, 2])
def test_one_of_two(number): assert number == 1

@pytest.fixture
def broken(): raise OSError

def test_without_its_fixture(broken): pass

@pytest.mark.skip
def test_skipped(): pass

class TestInside:
    def test_bad(self): assert False
"""


def test_failures_are_those_of_the_tests_that_were_asked_for(tmp_path):
    copy = tmp_path / "copy"
    (copy / "tests").mkdir(parents=True)
    (copy / "tests" / "test_it.py").write_text(TESTS, encoding="utf-8")

    def failed(*names):
        found = failed_in(copy, [f"tests/test_it.py::{name}" for name in names])
        return {test.partition("::")[2] for test in found}

    every = ("test_good", "test_bad", "test_one_of_two", "test_without_its_fixture", "TestInside::test_bad")
    assert failed(*every) == set(every[1:])
    assert failed("test_one_of_two[1]", "TestInside::test_bad") == {"TestInside::test_bad"}
    for names, problem in ((("test_skipped",), "did not run"), (("test_absent",), "pytest ended with 4")):
        with pytest.raises(RuntimeError, match=problem):
            failed("test_good", *names)


def test_the_page_shows_what_was_kept():
    assert page() == PAGE.read_text(encoding="ascii")
