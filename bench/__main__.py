"""Measure: `make bench`, or with an environment that is there already

    .venv/bin/python -m bench [NAME ...] [--quick] [--out FILE] [--peers PYTHON] [--scratch FOLDER]

Without names every bench runs, in the order of BENCHES; the limits of the machine are measured first in any case. Each
bench is a process of its own. Tables are printed as they come; JSON is written after every bench, so that an
interrupted run keeps what it has measured.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.document import (
    RESULTS,
    Document,
    begin_document,
    pages,
    with_outcome,
    write_document,
)
from bench.models import default_scratch
from bench.running import ROOT, Outcome, run_bench
from bench.settings import Settings
from bench.table import table_of
from warp_core.workspace.sources import embedded_model

# In this order; `limits` comes first, because the others compare with it.
BENCHES = (
    "limits",
    "merge",
    "geometry",
    "resident",
    "sampling",
    "training",
    "front",
    "precision",
    "first_token",
    "serving",
    "scale",
)
PEERS = ROOT / ".venv-bench" / "bin" / "python"
LONGEST_S = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benches; 0 where all that were asked for gave rows, 1 otherwise, 130 interrupted."""
    made = parser()
    options = made.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        made.error(f"no bench is called {unknown[0]!r}: {', '.join(BENCHES)}")
    return run(options.names or BENCHES, settings_of(options), options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m bench", description="Measure the engine, its peers and the machine.")
    made.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    made.add_argument("--quick", action="store_true", help="a smoke test: seconds per bench, numbers of no meaning")
    made.add_argument("--out", type=Path, help="JSON file (default: bench/results/DATE.json, for a full run only)")
    made.add_argument("--peers", default=str(PEERS), help="Python of the peers' environment; 'none' leaves them out")
    made.add_argument("--scratch", type=Path, default=default_scratch(), help="for inputs and outputs, up to 20 GB")
    made.add_argument("--threads", type=int, help="of torch and OpenMP; default: one per core")
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what the benches are given: the options, and what this machine has."""
    import psutil

    peers = Path(options.peers) if options.peers != "none" else None
    if peers is not None and not peers.exists():
        say(f"no peers: {peers} does not exist (`make bench` makes it)")
        peers = None
    scratch = options.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    return Settings(quick=options.quick, threads=threads, scratch=scratch, peer_python=peers, smollm2=embedded_model())


def run(names: Sequence[str], settings: Settings, options: argparse.Namespace) -> int:
    """Run benches one after the other and keep their rows; the exit code."""
    document = begin_document(settings)
    whole = set(names) == set(BENCHES) and not settings.quick
    partial = RESULTS / f"{document.date[:10]}.partial.json"
    out = options.out or (partial if whole else None)
    try:
        for name in ["limits", *(name for name in names if name != "limits")]:
            began = time.monotonic()
            outcome = run_bench(name, replace(settings, limits=document.limits), timeout_s=LONGEST_S)
            tell(outcome, time.monotonic() - began)
            document = with_outcome(document, outcome)
            save(document, out)
    except KeyboardInterrupt:
        say("interrupted: " + (f"what was measured is in {out}" if out else "the tables above are what was measured"))
        return 130
    if whole:
        document = replace(document, complete=True)
        save(document, options.out)
        finish(document, partial)
    return 1 if document.problems else 0


def save(document: Document, out: Path | None) -> None:
    """Write what was measured so far, where it is to be kept."""
    if out is not None:
        write_document(out, document)


def finish(document: Document, partial: Path) -> None:
    """Publish a whole run: its dated JSON, and its tables in the pages."""
    path = RESULTS / f"{document.date[:10]}.json"
    write_document(path, document)
    partial.unlink(missing_ok=True)
    for page, text in pages(document).items():
        page.write_text(text, encoding="ascii")
    say(f"wrote {path}, and its tables into bench/README.md and docs/performance.md")


def tell(outcome: Outcome, seconds: float) -> None:
    """Print what a bench has found."""
    print(table_of(outcome.rows) if outcome.rows else f"### {outcome.name}\n", flush=True)
    say(f"{outcome.name}: {outcome.problem or 'done'} ({seconds:.0f} s)")


def say(text: str) -> None:
    """Write a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
