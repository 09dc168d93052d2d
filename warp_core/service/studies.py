"""The studies that `warp-core study` has written: read again at every look, so that a running one is seen to grow."""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from warp_core.errors import WorkspaceError
from warp_core.service.documents import StudyClaim, StudyDocument, StudyLine, StudyPanel, StudySummary
from warp_core.workspace.assets import assets_root
from warp_core.workspace.paths import workspace_root

__all__ = ["find_study", "read_studies", "study_folders"]

LARGEST_BYTES = 20_000_000
_LOG = logging.getLogger(__name__)


def study_folders() -> list[Path]:
    """Where studies lie: the folders of WORKSPACE/studies, then docs/studies of the project."""
    own = workspace_root() / "studies"
    found = sorted(folder for folder in own.glob("*") if folder.name != "runs") if own.is_dir() else []
    return [*found, assets_root().parent / "docs" / "studies"]


def read_studies(folders: Sequence[Path]) -> list[StudyDocument]:
    """Return every study once per scale, in the order of the paper's figures; what is damaged is logged and skipped."""
    found: dict[tuple[str, str], StudyDocument] = {}
    for path in _documents(folders):
        try:
            stat = path.stat()
            study = _read(path, stat.st_mtime_ns, stat.st_size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _LOG.warning("%s is no study and is left out (%s)", path, type(error).__name__)
            continue
        if study is not None:
            found.setdefault((study.summary.name, study.summary.scale), study)
    return sorted(found.values(), key=lambda one: (_in_paper(one.summary.figure), one.summary.name, one.summary.scale))


def find_study(studies: Sequence[StudyDocument], name: str, scale: str) -> StudyDocument:
    """Return a study.

    Raises:
        WorkspaceError: there is none of that name and scale.
    """
    for study in studies:
        if (study.summary.name, study.summary.scale) == (name, scale):
            return study
    raise WorkspaceError(f"there is no study {name[:60]!r} of scale {scale[:60]!r} here: run `warp-core study`")


def _documents(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.glob("*/*.json")):
            if path.is_file() and path.stat().st_size <= LARGEST_BYTES:
                yield path


@lru_cache(maxsize=128)
def _read(path: Path, _changed_ns: int, _size_bytes: int) -> StudyDocument | None:
    """The study in a file; None where the file is something else."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or "study" not in stored or "panels" not in stored:
        return None
    try:
        return _document(stored, path.parent)
    except ValidationError as error:
        raise ValueError(str(error)) from error


def _document(stored: dict[str, Any], folder: Path) -> StudyDocument:
    return StudyDocument(
        summary=StudySummary(
            name=stored["study"],
            scale=stored["scale"],
            title=stored["title"],
            figure=stored["paper"]["figure"],
            observation=stored["observation"],
            verdict=stored["verdict"],
            sentence=stored["sentence"],
            is_complete=stored["complete"],
            date=stored["date"],
        ),
        claims=_claims(stored["claims"]),
        judge=_claims(stored["judge"]),
        panels=tuple(_panel(panel) for panel in stored["panels"]),
        made=stored["made"],
        folder=str(folder),
        files=tuple(stored["files"].values()),
    )


def _claims(stored: Sequence[dict[str, Any]]) -> tuple[StudyClaim, ...]:
    return tuple(StudyClaim(verdict=one["verdict"], sentence=one["sentence"], counts=one["counts"]) for one in stored)


def _panel(stored: dict[str, Any]) -> StudyPanel:
    lines = tuple(
        StudyLine(
            name=line["name"],
            color=line["color"],
            dash=line["dash"],
            x_P=line["x"],
            y_P=line["y"],
            y_se_P=line["y_se"],
            notes_P=line["notes"],
            in_legend=line["in_legend"],
        )
        for line in stored["lines"]
    )
    return StudyPanel(x_label=stored["x_label"], y_label=stored["y_label"], lines=lines)


def _in_paper(figure: str) -> tuple[bool, str]:
    """Figures before tables, by their first number."""
    number = "".join(letter for letter in figure.split(",")[0] if letter.isdigit())
    return figure.startswith("Table"), number.zfill(3)
