"""What the page shows, read from the engine once per run of the script: models, aligned completions, votes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import streamlit as st

from app import ui
from app.compare.judges import Judge, from_report, judge_names, stored
from app.compare.models import CompareModel
from app.compare.rows import Row, aligned
from app.compare.votes import VoteIndex
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.documents import FrontDocument, JudgeReport, SampleRow
from warp_core.service.interface import Engine
from warp_core.service.protocol import Selection, Vote

__all__ = ["JUDGE_KEY", "OTHER_JUDGE", "REPORT_KEY", "Comparison", "errors_kept", "judge_of", "load", "show_kept_error"]

OTHER_JUDGE = "Another reward"
JUDGE_KEY, REPORT_KEY = "compare_judge", "compare_report"
"""Of the session: name of the chosen judge, latest report of another reward."""
_SAMPLES, _ERROR = "compare_samples", "compare_error"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The models side by side."""

    selection: Selection
    models: tuple[CompareModel, ...]
    """All of them, measured or not."""
    measured: tuple[CompareModel, ...]
    """Those with completions."""
    rows: tuple[Row, ...]
    votes: tuple[Vote, ...]
    index: VoteIndex

    def model(self, letter: str) -> CompareModel:
        """Return the model with a letter."""
        return next(model for model in self.models if model.letter == letter)


def load(engine: Engine, selection: Selection, front: FrontDocument, models: Sequence[CompareModel]) -> Comparison:
    """Read completions and votes.

    Raises:
        WarpError: the engine does not answer, or cannot.
    """
    measured = tuple(model for model in models if model.point is not None)
    votes = tuple(engine.votes(selection))
    samples = {
        model.letter: _samples(engine, selection, model.point.key, front.revision) for model in measured if model.point
    }
    return Comparison(
        selection=selection,
        models=tuple(models),
        measured=measured,
        rows=tuple(aligned(samples)),
        votes=votes,
        index=VoteIndex(votes, models),
    )


def _samples(engine: Engine, selection: Selection, key: str, revision: str) -> Sequence[SampleRow]:
    """The completions of a point; those of this revision of the front are kept in the session."""
    owner = (selection.model_dump_json(), revision)
    kept = st.session_state.get(_SAMPLES)
    if kept is None or kept[0] != owner:
        kept = st.session_state[_SAMPLES] = (owner, {})
    found = cast(dict[str, Sequence[SampleRow]], kept[1])
    if key not in found:
        found[key] = engine.samples(selection, key)
    return found[key]


def judge_of(comparison: Comparison) -> Judge | None:
    """Return the judge that was chosen on the page; None where another reward has not scored all models yet."""
    name = st.session_state.get(JUDGE_KEY)
    if name == OTHER_JUDGE:
        report = st.session_state.get(REPORT_KEY)
        return from_report(comparison.rows, comparison.measured, report) if isinstance(report, JudgeReport) else None
    names = judge_names(comparison.rows)
    return stored(comparison.rows, comparison.measured, name if name in names else names[0])


@contextmanager
def errors_kept() -> Iterator[None]:
    """For what a click does before the page is drawn: keep a WarpError for `show_kept_error`."""
    try:
        yield
    except WarpError as error:
        st.session_state[_ERROR] = error


def show_kept_error() -> None:
    """Show the error that was kept, once."""
    error = st.session_state.pop(_ERROR, None)
    if isinstance(error, EngineUnreachableError):
        st.warning("The engine did not answer, so nothing was stored or started. Please try again.")
    elif error is not None:
        ui.error_box(error)
