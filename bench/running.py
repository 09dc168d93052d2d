"""Run one bench in a process of its own: its memory and threads are its own, and its failure ends nothing else.

python -m bench.running NAME FOLDER    reads FOLDER/settings.json, writes FOLDER/rows.json
"""

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.rows import Row, read_rows, write_rows
from bench.settings import Settings, read_settings, settings_json

__all__ = ["Outcome", "run_bench"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a bench: its rows, or why there are none."""

    name: str
    rows: list[Row]
    problem: str | None = None


def run_bench(name: str, settings: Settings, *, timeout_s: float) -> Outcome:
    """Run bench/NAME.py; what it prints goes to stderr. Never raises for what the bench does."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "settings.json").write_bytes(settings_json(settings))
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.running", name, folder],
            cwd=ROOT,
            env=settings.environment(),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Outcome(name=name, rows=[], problem=f"took longer than {timeout_s:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        written = place / "rows.json"
        if code or not written.exists():
            return Outcome(name=name, rows=[], problem=f"ended with code {code}; the reason stands above")
        return Outcome(name=name, rows=read_rows(written.read_bytes()))


def main() -> None:
    """Be the process of one bench."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    settings = read_settings((folder / "settings.json").read_bytes())
    rows = importlib.import_module(f"bench.{name}").measure(settings)
    write_rows(folder / "rows.json", rows)


if __name__ == "__main__":
    main()
