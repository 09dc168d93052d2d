"""The outcomes of a run as a dated JSON document, and as the table of docs/reliability.md."""

import os
import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.document import commit_here, with_part
from hostile.outcomes import Outcome
from warp_core.workspace.publish import write_json_atomic

__all__ = ["PAGE", "RESULTS", "ROOT", "Document", "Ran", "begin_document", "publish", "table_of", "write_document"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "hostile" / "results"
PAGE = ROOT / "docs" / "reliability.md"
PACKAGES = ("torch", "transformers", "safetensors", "streamlit")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One attack: its outcomes, and why it did not come to its end where it did not."""

    name: str
    seconds: float
    outcomes: list[Outcome]
    problem: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything did not survive, or nothing is known."""
        return bool(self.problem) or not self.outcomes or any(one.failed for one in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class Document:
    """What one run has found, on what."""

    date: str
    commit: str
    machine: str
    versions: dict[str, str]
    quick: bool
    attacks: list[Ran] = field(default_factory=list)


def begin_document(*, quick: bool) -> Document:
    """Return a document without outcomes, about this machine and now."""
    return Document(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit_here(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        quick=quick,
    )


def write_document(path: Path, document: Document) -> None:
    """Write the JSON, whole or not at all."""
    values: dict[str, Any] = vars(document) | {
        "attacks": [vars(ran) | {"outcomes": [one.to_json() for one in ran.outcomes]} for ran in document.attacks]
    }
    write_json_atomic(path, values)


def publish(document: Document) -> None:
    """Keep a whole run: its dated JSON and its table in docs/reliability.md."""
    write_document(RESULTS / f"{document.date[:10]}.json", document)
    PAGE.write_text(with_part(PAGE, table_of(document)), encoding="ascii")


def table_of(document: Document) -> str:
    """The outcomes as Markdown, after a line that says what they were found on."""
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
    tried = sum(one.tried for ran in document.attacks for one in ran.outcomes)
    survived = sum(one.survived for ran in document.attacks for one in ran.outcomes)
    lines = [
        f"{document.date[:10]}, commit {document.commit}, {document.machine}; {versions}.",
        f"**{survived:,} of {tried:,} tries survived.**",
        "",
        "| attack | case | promise | survived | figures | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for ran in document.attacks:
        seconds = f"{ran.seconds:.0f}"
        if ran.problem:
            lines.append(f"| `{ran.name}` | **{_cell(ran.problem)}** | | | | {seconds} |")
        for one in ran.outcomes:
            counts = f"{one.survived:,} of {one.tried:,}"
            counts = f"**{counts}**" if one.failed else counts
            name, measured = f"`{ran.name}`", _cell(one.measured)
            lines.append(f"| {name} | {_cell(one.case)} | {one.promise} | {counts} | {measured} | {seconds} |")
            seconds = ""
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").encode("ascii", "backslashreplace").decode()
