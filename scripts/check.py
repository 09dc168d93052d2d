"""Check everything: `make check` runs this with the Python of .venv; so does CI.

    .venv/bin/python scripts/check.py [ARGUMENT FOR PYTEST ...]

A step that passes is one line; one that fails shows its output. The tests run last, and only if all before them pass.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = (
    ("format", ["ruff", "format", "--check"]),
    ("lint", ["ruff", "check", "--quiet"]),
    ("types", ["mypy", "--no-error-summary"]),
    # Without conftest.py: it would import torch, which this does not need.
    ("import direction", ["pytest", "--noconftest", "tests/test_imports.py"]),
)


def main(arguments: Sequence[str]) -> int:
    """Run the steps, then the tests; 0 where everything passes."""
    failed = [name for name, command in STEPS if not passes(name, command)]
    if failed:
        print(f"failed: {', '.join(failed)} (the tests were not run)", flush=True)
        return 1
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def passes(name: str, command: Sequence[str]) -> bool:
    """Run one step and report it; whether it passed."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    seconds = time.monotonic() - started
    print(f"{name:<18}{'FAILED' if done.returncode else 'ok':<8}{seconds:.1f} s", flush=True)
    if done.returncode:
        print(done.stdout.rstrip(), flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
