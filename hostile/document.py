"""What each attack found when it last ran whole: a JSON file per attack, and the table of docs/reliability.md."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench.document import with_part
from hostile.outcomes import Outcome
from warp_core.workspace.commit import commit_here
from warp_core.workspace.publish import write_json_atomic

__all__ = ["PAGE", "RESULTS", "ROOT", "Place", "Ran", "keep", "page", "place_here", "read_kept"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "hostile" / "results"
PAGE = ROOT / "docs" / "reliability.md"
PACKAGES = ("torch", "transformers", "safetensors", "streamlit")


@dataclass(frozen=True, kw_only=True)
class Place:
    """When an attack ran, on what.

    Attributes:
        date: UTC, ISO 8601.
        commit: of the project, with `+` where files differ from it; empty outside git.
        machine: system and cores.
        versions: of Python and packages.
    """

    date: str
    commit: str
    machine: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One attack: its outcomes, and why it did not come to its end where it did not."""

    name: str
    place: Place
    seconds: float
    outcomes: list[Outcome]
    problem: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything did not survive, or nothing is known."""
        return bool(self.problem) or not self.outcomes or any(one.failed for one in self.outcomes)


def place_here() -> Place:
    """Return what this machine is, and now."""
    own = [path.relative_to(ROOT).as_posix() for path in (PAGE, RESULTS)]
    return Place(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit_here(apart_from=own),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    )


def keep(ran: Ran, *, results: Path = RESULTS) -> None:
    """Write the JSON of an attack in place of that of an earlier time, whole or not at all."""
    values = vars(ran) | {"place": vars(ran.place), "outcomes": [one.to_json() for one in ran.outcomes]}
    write_json_atomic(results / f"{ran.name}.json", values)


def read_kept(names: Sequence[str], *, results: Path = RESULTS) -> list[Ran]:
    """Return what was kept, in the order of `names`."""
    found = []
    for path in (results / f"{name}.json" for name in names):
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))
            outcomes = [Outcome(**one | {"failures": tuple(one["failures"])}) for one in values["outcomes"]]
            found.append(Ran(**values | {"place": Place(**values["place"]), "outcomes": outcomes}))
    return found


def page(rans: Sequence[Ran], names: Sequence[str]) -> str:
    """Return docs/reliability.md with the table of what was kept.

    Raises ValueError where its markers are missing.
    """
    return with_part(PAGE, _table(rans, names))


def _table(rans: Sequence[Ran], names: Sequence[str]) -> str:
    tried = sum(one.tried for ran in rans for one in ran.outcomes)
    survived = sum(one.survived for ran in rans for one in ran.outcomes)
    absent = [f"`{name}`" for name in names if name not in {ran.name for ran in rans}]
    places = {f"{ran.place.machine}; {_versions(ran.place)}": None for ran in rans}
    lines = [
        f"**{survived:,} of {tried:,} tries survived.** {' / '.join(places)}.",
        f"Not run whole yet: {', '.join(absent) or 'none'}.",
        "",
        "| attack | case | promise | survived | figures |",
        "|---|---|---|---|---|",
    ]
    for ran in rans:
        when = f"`{ran.name}`<br>{ran.place.date[:10]}, {ran.place.commit or 'unknown'}, {ran.seconds / 60:.1f} min"
        if ran.problem:
            lines.append(f"| {when} | **{_cell(ran.problem)}** | | | |")
            when = ""
        for one in ran.outcomes:
            counts = f"{one.survived:,} of {one.tried:,}"
            lines.append(
                f"| {when} | {_cell(one.case)} | {one.promise} | {f'**{counts}**' if one.failed else counts} |"
                f" {_cell(one.measured)} |"
            )
            when = ""
    failures = [
        f"- `{ran.name}`, {_cell(one.case)}: {_cell(line)}"
        for ran in rans
        for one in ran.outcomes
        for line in one.failures
    ]
    return "\n".join([*lines, *(["", "What did not survive:", "", *failures] if failures else [])]) + "\n"


def _versions(place: Place) -> str:
    return ", ".join(f"{name} {version}" for name, version in place.versions.items())


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").encode("ascii", "backslashreplace").decode()
