"""The dated JSON document of a run, and the table of the newest one in bench/README.md."""

import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bench.rows import Row, read_rows, rows_to_json
from bench.running import ROOT, Outcome
from bench.settings import Settings
from bench.table import table_of
from warp_core.workspace.commit import commit_here

__all__ = [
    "Document",
    "begin_document",
    "newest",
    "pages",
    "read_document",
    "with_outcome",
    "with_part",
    "write_document",
]

RESULTS = ROOT / "bench" / "results"
README = ROOT / "bench" / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
PEERS = ("torch", "transformers", "mergekit", "trl")
PICTURE = "![Time against model size, policies and batch](results/scale.svg)"


@dataclass(frozen=True, kw_only=True)
class Document:
    """What one run has measured, on what.

    Attributes:
        date: when it began, UTC, ISO 8601.
        commit: of the project, with `+` where files differ from it; empty outside git.
        machine: processor, cores, memory, system.
        versions: of Python and packages; those of the peers' environment as `peer NAME`.
        quick: a smoke test, whose numbers mean little.
        threads: of torch and OpenMP.
        complete: all benches have run.
        limits: what limits.py measured, by name.
        rows: every number, in the order of the benches.
        problems: bench -> why it gave no rows.
    """

    date: str
    commit: str
    machine: dict[str, str | float]
    versions: dict[str, str]
    quick: bool
    threads: int
    complete: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def begin_document(settings: Settings) -> Document:
    """Return a document without rows, about this machine and now."""
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    return Document(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit_here(),
        machine=_machine(),
        versions=versions | _peer_versions(settings.peer_python),
        quick=settings.quick,
        threads=settings.threads,
    )


def with_outcome(document: Document, outcome: Outcome) -> Document:
    """Return the document with what a bench has found."""
    limits = document.limits
    if outcome.name == "limits":
        limits = {row.case: row.value for row in outcome.rows}
    problems = document.problems | ({outcome.name: outcome.problem} if outcome.problem else {})
    return replace(document, limits=limits, rows=[*document.rows, *outcome.rows], problems=problems)


def write_document(path: Path, document: Document) -> None:
    """Write the JSON, rows one field a line, so that two runs can be compared with diff."""
    values = {name: value for name, value in vars(document).items() if name != "rows"}
    values["rows"] = rows_to_json(document.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="ascii")
    temporary.replace(path)


def read_document(path: Path) -> Document:
    """Return the document of a JSON file."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return Document(**values | {"rows": read_rows(json.dumps(values["rows"]))})


def newest() -> Path | None:
    """Return the newest committed document; None where there is none."""
    return max(RESULTS.glob("20??-??-??.json"), default=None)


def pages(document: Document) -> dict[Path, str]:
    """Return the pages that show a run, as they should be: bench/README.md has all rows, docs/performance.md those with
    an aim.

    Raises ValueError where markers are missing.
    """
    aimed = replace(document, rows=[row for row in document.rows if row.aim])
    drawn = f"\n{PICTURE}\n" if any(row.bench == "scale" for row in document.rows) else ""
    return {README: with_part(README, summary(document) + drawn), PERFORMANCE: with_part(PERFORMANCE, summary(aimed))}


def with_part(path: Path, body: str, *, name: str = "results") -> str:
    """Return the text of a page with `body` between the markers of a name.

    Raises ValueError where they are missing.
    """
    begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->"
    before, found_begin, rest = path.read_text(encoding="ascii").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path.name} needs {begin.strip()} and {end}")
    return f"{before}{begin}{body}{end}{after}"


def summary(document: Document) -> str:
    """Return the run in Markdown: where it was made, then a table per bench."""
    machine, versions = document.machine, document.versions
    peers = ", ".join(f"{name.split()[1]} {version}" for name, version in versions.items() if name.startswith("peer "))
    facts = [
        f"{document.date[:10]}, commit `{document.commit or 'unknown'}`: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}; {document.threads} threads.",
        f"Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}; "
        f"peers: {peers or 'left out'}.",
    ]
    facts += [f"`{name}` gave no rows: {why}." for name, why in document.problems.items()]
    return "\n".join(facts) + "\n\n" + table_of(document.rows)


def _machine() -> dict[str, str | float]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = set(re.findall(r"\b(avx2|avx512f|avx512_bf16|amx_bf16)\b", text))
    return f"{name[1] if name else platform.machine()} ({', '.join(sorted(flags)) or platform.machine()})"


def _peer_versions(python: Path | None) -> dict[str, str]:
    if python is None:
        return {}
    code = f"from importlib.metadata import version; print(*(version(name) for name in {PEERS}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return {f"peer {name}": version for name, version in zip(PEERS, done.stdout.split(), strict=True)}
