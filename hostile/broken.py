"""Break the project on purpose, and look whether its tests notice: `make broken`, or

    .venv/bin/python -m hostile.broken [P1 ...] [--keep] [--scratch FOLDER]

Every case of broken_cases.py is one change to a copy of the project, in which the tests that the README names for that
promise run. Each of them has to fail there, and to pass in a copy that is not broken, which is tried before. --keep
writes the outcomes to hostile/results/broken.json and into docs/reliability.md, in place of those of the same cases.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.document import with_part
from hostile.broken_cases import CASES, Broken
from hostile.document import PAGE, RESULTS, ROOT, place_here
from warp_core.workspace.publish import write_json_atomic, write_text_atomic

__all__ = ["Tried", "break_in", "failed_in", "page", "read_tried"]

LIMIT_S, LIMIT_PER_TEST_S = 900.0, 300.0
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
# What fails is not tried again, as it would be elsewhere: `flaky` is the marker of the plugin that is left out.
ONCE = ("-p", "no:rerunfailures", "-o", "markers=slow: takes minutes\nflaky: means nothing")
KEPT = RESULTS / "broken.json"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of one case: the tests that failed, as they had to, and those that did not; when, at which commit."""

    promise: str
    what: str
    file: str
    noticed: tuple[str, ...]
    unnoticed: tuple[str, ...]
    date: str
    commit: str

    @property
    def was_noticed(self) -> bool:
        """Whether every test that had to fail did."""
        return bool(self.noticed) and not self.unnoticed


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases; 0 where every change was noticed by every test that had to, else 1."""
    made = argparse.ArgumentParser(prog="python -m hostile.broken", description="Break copies of the project.")
    made.add_argument("promises", nargs="*", metavar="PROMISE", help="P1 ... P14 (default: all)")
    made.add_argument("--keep", action="store_true", help="write outcomes to hostile/results and docs/reliability.md")
    made.add_argument("--scratch", type=Path, help="folder for the copy (default: the system's)")
    options = made.parse_args(arguments)
    chosen = [case for case in CASES if not options.promises or case.promise in options.promises]
    if not chosen:
        made.error(f"no case breaks {', '.join(options.promises)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="broken-", dir=options.scratch) as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
        tried, sound = [], set[str]()
        for case in chosen:
            # Those of the whole promise at once: to start pytest takes longer than many a test.
            tests = {test for other in chosen if other.promise == case.promise for test in other.noticed_by} - sound
            if failing := failed_in(copy, sorted(tests)):
                print(f"these fail in a copy that is not broken: {', '.join(sorted(failing))}", file=sys.stderr)
                return 1
            sound |= tests
            tried.append(_try(copy, case))
            if options.keep:
                _keep(tried[-1])
    seconds = round(time.monotonic() - began, 1)
    missed = [one for one in tried if not one.was_noticed]
    print(f"{len(tried) - len(missed)} of {len(tried)} changes were noticed ({seconds:.0f} s)")
    return 1 if missed else 0


def _try(copy: Path, case: Broken) -> Tried:
    """Break the copy, run the tests, mend it."""
    file = copy / case.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(break_in(sound, case), encoding="utf-8")
    try:
        failed = failed_in(copy, case.noticed_by)
    finally:
        file.write_text(sound, encoding="utf-8")
    noticed = tuple(test for test in case.noticed_by if test in failed)
    unnoticed = tuple(test for test in case.noticed_by if test not in failed)
    here = place_here()
    one = Tried(
        promise=case.promise,
        what=case.what,
        file=case.file,
        noticed=noticed,
        unnoticed=unnoticed,
        date=here.date,
        commit=here.commit,
    )
    print(f"{one.promise:<4} {'noticed' if one.was_noticed else 'MISSED '} {one.what}", flush=True)
    for test in unnoticed:
        print(f"     {test} did not fail", flush=True)
    return one


def break_in(text: str, case: Broken) -> str:
    """Return the text of a file with the change of a case.

    Raises ValueError where what is to be changed does not stand there exactly once.
    """
    if text.count(case.old) != 1 or case.old == case.new:
        raise ValueError(f"{case.file}: {case.old!r} stands there {text.count(case.old)} times ({case.what})")
    return text.replace(case.old, case.new)


def failed_in(copy: Path, tests: Sequence[str]) -> set[str]:
    """Run tests in a copy of the project; which of them failed, or did not end in time.

    tests: ids without parameters, where any will do, or with them. Raises RuntimeError where pytest itself could not
    run, or one of the tests did not: that says nothing.
    """
    if not tests:
        return set()
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *tests, *ONCE, "--tb=no", "--junitxml", str(report)]
    # The copy comes before the project that is installed, for the programs that tests start, too.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "WARP_BROWSER_TESTS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(max(LIMIT_S, LIMIT_PER_TEST_S * len(tests)))
        except subprocess.TimeoutExpired:
            return set(tests)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        said.seek(0)
        if code not in (0, 1) or not report.exists():
            raise RuntimeError(f"pytest ended with {code}: {said.read()[-2000:]}")
    outcomes = _outcomes_in(report)
    asked = {test: [failed for name, failed in outcomes.items() if _is_of(name, test)] for test in tests}
    if silent := [test for test, found in asked.items() if not found]:
        raise RuntimeError(f"did not run: {', '.join(silent)}")
    return {test for test, found in asked.items() if any(found)}


def _outcomes_in(report: Path) -> dict[str, bool]:
    """The tests that ran, `module.Class.name[parameters]`, and whether they failed."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            name = f"{case.get('classname')}.{case.get('name')}"
            found[name] = found.get(name, False) or case.find("failure") is not None or case.find("error") is not None
    return found


def _is_of(name: str, test: str) -> bool:
    """Whether the name in a report is that of a test, with any parameters where none are asked for."""
    file, _, rest = test.partition("::")
    wanted = f"{file.removesuffix('.py').replace('/', '.')}.{rest.replace('::', '.')}"
    return name == wanted or name.startswith(f"{wanted}[")


def _keep(one: Tried) -> None:
    """Keep what came of a case, in place of what came of it before."""
    kept = {case.what: case for case in [*read_tried(), one]}
    write_json_atomic(KEPT, [asdict(kept[case.what]) for case in CASES if case.what in kept])
    write_text_atomic(PAGE, page())


def read_tried() -> list[Tried]:
    """Return what came of each case when it was last tried."""
    if not KEPT.exists():
        return []
    lists = ("noticed", "unnoticed")
    values = json.loads(KEPT.read_text(encoding="utf-8"))
    return [Tried(**one | {name: tuple(one[name]) for name in lists}) for one in values]


def page() -> str:
    """Return docs/reliability.md with the table of what was kept."""
    return with_part(PAGE, _table(read_tried()), name="broken")


def _table(tried: Sequence[Tried]) -> str:
    noticed = sum(one.was_noticed for one in tried)
    lines = [
        f"**{noticed} of {len(tried)} changes were noticed by every test that had to**; {len(CASES)} are written down.",
        "",
        "| promise | broken so | in | failed, as they had to | did not | tried |",
        "|---|---|---|---|---|---|",
    ]
    for one in tried:
        cells = [", ".join(f"`{_short(test)}`" for test in tests) for tests in (one.noticed, one.unnoticed)]
        when = f"{one.date[:10]}, {one.commit or 'unknown'}"
        lines.append(f"| {one.promise} | {one.what} | `{one.file}` | {cells[0]} | {cells[1] or '-'} | {when} |")
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    """How the page calls a test: an attack by its name."""
    name = test.rpartition("::")[2]
    return f"attack {name.partition('[')[2].rstrip(']')}" if name.startswith("test_everything_survives[") else name


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
