"""Attack: `make soak`, or with an environment that is there already

    .venv/bin/python -m hostile [NAME ...] [--quick | --keep] [--scratch FOLDER]

Without names every attack runs, in the order of ATTACKS, each in a process of its own. Outcomes are printed as they
come; --keep also writes those of each attack to hostile/results/NAME.json and into the table of docs/reliability.md.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hostile.document import PAGE, ROOT, Ran, keep, page, place_here, read_kept
from hostile.outcomes import Outcome
from warp_core.workspace.publish import write_text_atomic

# name -> minutes after which an attack is taken for hanging
ATTACKS = {
    "system_calls": 120,
    "resume": 60,
    "writers": 40,
    "disk": 40,
    "surroundings": 60,
    "races": 30,
    "headers": 20,
    "models": 20,
    "configs": 40,
    "names": 10,
    "misuse": 40,
    "prompts": 10,
    "rewards": 40,
    "numbers": 90,
    "memory": 60,
    "exports": 40,
    "files": 60,
    "signals": 90,
    "processes": 60,
    "access": 10,
    "offline": 60,
    "http": 40,
    "texts": 60,
    "sessions": 120,
    "jobs": 60,
    "sweep": 60,
    "mixed": 150,
}
KEPT_LINES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run attacks; 0 where everything survived, 1 otherwise, 130 interrupted."""
    made = argparse.ArgumentParser(prog="python -m hostile", description="Attack the engine, its store and the app.")
    made.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ATTACKS))
    how = made.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a part of each, as the tests run it: seconds per attack")
    how.add_argument("--keep", action="store_true", help="write outcomes to hostile/results and docs/reliability.md")
    made.add_argument("--scratch", type=Path, help="folder for what the attacks write (default: the system's)")
    made.add_argument("--alone", metavar="NAME", help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    unknown = [name for name in [*options.names, options.alone or ""] if name and name not in ATTACKS]
    if unknown:
        made.error(f"no attack is called {unknown[0]!r}: {', '.join(ATTACKS)}")
    if options.alone:
        return alone(options.alone, quick=options.quick, scratch=options.scratch)
    return run(options.names or list(ATTACKS), options)


def alone(name: str, *, quick: bool, scratch: Path | None) -> int:
    """Run one attack in this process and print every outcome as a line of JSON."""
    module = importlib.import_module(f"hostile.{name}")
    place = Path(tempfile.mkdtemp(prefix=f"hostile-{name}-", dir=scratch))
    # An attack must not find what a person has cached, and must not change it.
    os.environ |= {"WARP_CACHE": str(place / "cache"), "WARP_WORKSPACE": str(place / "workspace")}
    try:
        for outcome in module.attack(place, quick=quick):
            print(json.dumps(outcome.to_json()), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def run(names: Sequence[str], options: argparse.Namespace) -> int:
    """Run attacks one after the other; the exit code."""
    failed = False
    try:
        for name in names:
            ran = attacked(name, options)
            failed |= ran.failed
            tell(ran)
            if options.keep:
                keep(ran)
                write_text_atomic(PAGE, page(read_kept(list(ATTACKS)), list(ATTACKS)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 1 if failed else 0


def attacked(name: str, options: argparse.Namespace) -> Ran:
    """Run one attack as a process of its own, with an end in any case."""
    command = [sys.executable, "-m", "hostile", "--alone", name, *(["--quick"] if options.quick else [])]
    command += ["--scratch", str(options.scratch)] if options.scratch else []
    began, limit_s, problem, place = time.monotonic(), 60 * ATTACKS[name], "", place_here()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=errors, start_new_session=True)
        try:
            child.wait(limit_s)
        except subprocess.TimeoutExpired:
            problem = f"no end within {limit_s // 60} minutes"
        finally:
            end(child)
        said.seek(0)
        outcomes = [Outcome(**json.loads(line)) for line in said if line.startswith("{")]
        errors.seek(0)
        last = errors.read().splitlines()[-KEPT_LINES:]
    if not problem and child.returncode:
        problem = f"ended with {child.returncode}: {last[-1] if last else 'and said nothing'}"
        print("\n".join(last), file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    return Ran(name=name, place=place, seconds=seconds, outcomes=outcomes, problem=problem)


def end(child: "subprocess.Popen[bytes]") -> None:
    """Kill what an attack has started; nothing of it may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def tell(ran: Ran) -> None:
    """Print what an attack has found."""
    for one in ran.outcomes:
        mark = "FAILED" if one.failed else "ok"
        print(f"{ran.name:<14}{mark:<8}{one.survived}/{one.tried}  {one.case}  {one.measured}".rstrip(), flush=True)
        for line in one.failures:
            print(f"{'':<22}{line}", flush=True)
    print(f"{ran.name:<14}{ran.problem or 'done'} ({ran.seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
