"""Preferences: the matrix of all votes, the matrix of a reward model as judge beside it, and how far they agree."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import charts, ui
from app.compare.comparison import JUDGE_KEY, OTHER_JUDGE, REPORT_KEY, Comparison, errors_kept, judge_of
from app.compare.files import votes_csv
from app.compare.judges import Grading, Judge, agreement_with, judge_names, judgements_of, thresholds
from app.compare.models import CompareModel
from app.engine import engine, session_id
from warp_core.errors import UnknownJobError, UserError
from warp_core.evaluation.preferences import Preference, Thresholds, preference_matrix
from warp_core.service.documents import JudgeReport
from warp_core.service.protocol import Job, JobState, JudgeRequest

__all__ = ["verdicts"]

Matrix = Sequence[Sequence[Preference | None]]
_TERMS, _JOB, _GRADING = "compare_terms", "compare_judge_job", "compare_grading"
POLL_S = 0.5
CELL_PX, MIN_CELL_PX, MAP_PX = 92, 44, 600
ROOM_FOR_INTERVALS = 5
"""Models; with more of them the map shows scores alone, and the table below it the intervals."""
MAX_TERMS, MAX_TERMS_CHARS = 8, 400
# From the second model's side to the first's: orange to blue, told apart by the colour-blind too.
_COLORS = [[0.0, "#B35806"], [0.25, "#F1A340"], [0.5, "#BDBDBD"], [0.75, "#67A9CF"], [1.0, "#2166AC"]]


def verdicts(comparison: Comparison) -> None:
    """Draw the section; needs two models, and completions for a judge."""
    letters = [model.letter for model in comparison.models]
    human = preference_matrix(comparison.index.judgements, letters)
    left, right = st.columns(2, gap="large")
    with left:
        _human(comparison)
    with right:
        judge, limits = _judge(comparison)
    left, right = st.columns(2, gap="large")
    with left:
        if comparison.index.judgements:
            _heat_map(comparison.models, human, key="compare_votes_map", alt="Preference scores of the votes")
        else:
            ui.empty_state("No votes yet", "Vote on pairs under Vote, or side by side in Explore.")
    with right:
        scored = _judge_matrix(comparison, judge, limits)
    if judge is not None:
        _agreement(comparison, judge, limits)
    _pairs_table(comparison.models, human, scored)
    if comparison.votes:
        st.download_button(
            "Votes as CSV",
            data=lambda: votes_csv(comparison.votes),
            file_name="votes.csv",
            mime="text/csv",
            key="compare_votes_csv",
            on_click="ignore",
            icon=":material/download:",
        )


def _human(comparison: Comparison) -> None:
    st.subheader("Votes", anchor=False)
    count, others = len(comparison.index.judgements), comparison.index.num_others
    more = f", {others} more on other models" if others else ""
    st.text(f"{count} {'vote' if count == 1 else 'votes'} on these models{more}. Scores run from {ui.MINUS}1.5 to 1.5.")


def _judge(comparison: Comparison) -> tuple[Judge | None, Thresholds | None]:
    """Choose the judge and how it grades; return it, None while it has not scored these models."""
    st.subheader("Reward model as judge", anchor=False)
    names = [*judge_names(comparison.rows), OTHER_JUDGE]
    if st.session_state.get(JUDGE_KEY) not in names:
        st.session_state[JUDGE_KEY] = names[0]
    who, how = st.columns(2)
    name = who.selectbox("Judge", names, key=JUDGE_KEY, persist_state="session")
    grading = how.selectbox(
        "Grades",
        list(Grading),
        key=_GRADING,
        persist_state="session",
        help="Quarters: the quarter of pairs whose scores differ least are ties, the next slightly better, then better,"
        " then much better. Better or worse: 1 or -1 by the sign of the difference.",
    )
    if name == OTHER_JUDGE:
        _other_judge(comparison)
    judge = judge_of(comparison) if len(comparison.measured) > 1 and comparison.rows else None
    return judge, thresholds(judge, grading) if judge else None


def _other_judge(comparison: Comparison) -> None:
    """Ask the engine for the scores of another reward."""
    with st.form("compare_judge_form", border=False):
        text, go_on = st.columns([3, 1], vertical_alignment="bottom")
        text.text_input(
            "Reward terms",
            key=_TERMS,
            placeholder="sentiment, length:-0.01 or the folder of a classifier",
            max_chars=MAX_TERMS_CHARS,
            help="As for `--reward`: a built-in name, a folder or Hub id of a sequence classifier, each with :WEIGHT if"
            " it is not 1. Commas between several.",
            persist_state="session",
        )
        go_on.form_submit_button("Score", on_click=_ask, args=(comparison,), width="stretch")
    running = st.session_state.get(_JOB)
    if running:
        st.fragment(run_every=POLL_S)(_watch)(running)
    elif isinstance(report := st.session_state.get(REPORT_KEY), JudgeReport):
        state = "" if judge_of(comparison) else " It has not scored all of these models: score again."
        st.text(f"Scored by {report.judge}.{state}")


def _ask(comparison: Comparison) -> None:
    with errors_kept():
        terms = tuple(term.strip() for term in str(st.session_state.get(_TERMS, "")).split(",") if term.strip())
        if not terms:
            raise UserError("no reward was named: write a built-in name, or the folder of a classifier")
        if len(terms) > MAX_TERMS:
            raise UserError(f"{len(terms)} reward terms: give at most {MAX_TERMS}")
        keys = tuple(model.point.key for model in comparison.measured if model.point)
        request = JudgeRequest(session=session_id(), selection=comparison.selection, keys=keys, reward=terms)
        st.session_state[_JOB] = engine().submit(request).id


def _watch(job_id: str) -> None:
    """Follow the judge; at its end the page runs again."""
    with ui.errors_shown():
        try:
            job: Job | None = engine().job(job_id)
        except UnknownJobError:
            job = None
        if job is not None and not job.state.is_final:
            ui.job_progress(job, key="compare-judge")
            return
        with errors_kept():
            st.session_state[_JOB] = None
            if job is None or job.state is JobState.FAILED:
                raise UserError((job and job.error) or "the engine was restarted while it scored: score again")
            if job.state is JobState.DONE and job.result is not None:
                st.session_state[REPORT_KEY] = JudgeReport.model_validate(job.result)
        st.rerun()


def _judge_matrix(comparison: Comparison, judge: Judge | None, limits: Thresholds | None) -> Matrix | None:
    if judge is None:
        ui.empty_state("No verdicts yet", "Measure at least two of the models, and let the judge score them.")
        return None
    letters = [model.letter for model in comparison.models]
    matrix = preference_matrix(judgements_of(judge, comparison.rows, limits), letters)
    _heat_map(comparison.models, matrix, key="compare_judge_map", alt="Preference scores of the judge")
    if limits is not None:
        edges = ", ".join(ui.number(limit) for limit in limits)
        st.caption(f"Grades begin at score differences of {edges} (quartiles over all pairs).")
    return matrix


def _heat_map(models: Sequence[CompareModel], matrix: Matrix, *, key: str, alt: str) -> None:
    """Rows over columns: blue where the row's model is preferred."""
    names = [charts.plain(_short(model.name)) for model in models]
    letters = [model.letter for model in models]
    heat = go.Heatmap(
        z=[[None if cell is None else cell.score for cell in row] for row in matrix],
        x=letters,
        y=names,
        text=[["" if cell is None else _cell_text(cell, len(models)) for cell in row] for row in matrix],
        customdata=[["" if cell is None else _counts(cell) for cell in row] for row in matrix],
        texttemplate="%{text}",
        textfont={"size": 13},
        hovertemplate="%{y} over %{x}: %{text}<br>%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=_COLORS,
        zmin=-1.5,
        zmax=1.5,
        xgap=2,
        ygap=2,
        showscale=False,
    )
    cell_px = max(MIN_CELL_PX, min(CELL_PX, MAP_PX // len(models)))
    figure = charts.figure(heat, height=60 + cell_px * max(2, len(models)), x="over", y="", legend=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, fixedrange=True)
    figure.update_xaxes(side="top", showgrid=False, fixedrange=True)
    st.plotly_chart(figure, key=key, config={"displayModeBar": False}, alt=alt)


def _cell_text(cell: Preference, num_models: int) -> str:
    if cell.low is None or num_models > ROOM_FOR_INTERVALS:
        return f"<b>{ui.number(cell.score)}</b>"
    return f"<b>{ui.number(cell.score)}</b><br>{ui.number(cell.low)} to {ui.number(cell.high)}"


def _counts(cell: Preference) -> str:
    return f"{cell.wins} won, {cell.ties} tied, {cell.losses} lost, {cell.num_prompts} prompts"


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:31] + "\u2026"


def _agreement(comparison: Comparison, judge: Judge, limits: Thresholds | None) -> None:
    """How far judge and votes agree, on the votes about these completions."""
    found = agreement_with(judge, comparison.rows, comparison.index, limits)
    with st.container(border=True, key="compare-agreement"):
        share, kappa, basis = st.columns([1, 1, 2], vertical_alignment="center")
        share.metric(
            "Same preference",
            ui.number(None) if found.share is None else f"{found.share:.0%}",
            help="Of the pairs that neither calls a tie, how many judge and vote decide the same way.",
        )
        kappa.metric(
            "Cohen's kappa",
            ui.number(found.kappa),
            help="Agreement beyond chance over better, tie, worse: 1 is perfect, 0 what chance gives.",
        )
        if found.n:
            basis.text(f"{found.n} votes on these completions, {found.num_decided} pairs that neither calls a tie")
        else:
            basis.text("No votes on these completions yet: vote to see how far the judge agrees.")


def _pairs_table(models: Sequence[CompareModel], human: Matrix, scored: Matrix | None) -> None:
    """All pairs with their numbers."""
    lines = []
    for i, first in enumerate(models):
        for j, second in enumerate(models[i + 1 :], start=i + 1):
            votes, judge = human[i][j], scored[i][j] if scored else None
            if votes or judge:
                lines.append(
                    {
                        "Pair": f"{first.letter} over {second.letter}",
                        **_numbers("Votes", votes),
                        **_numbers("Judge", judge),
                    }
                )
    if lines:
        st.dataframe(
            pd.DataFrame(lines),
            hide_index=True,
            key="compare_pairs_table",
            alt="Preference scores of all pairs",
            placeholder="\u2013",
        )


def _numbers(who: str, cell: Preference | None) -> dict[str, str | None]:
    titles = [f"{who}: {title}" for title in ("score", "95 % interval", "won / tied / lost")]
    if cell is None:
        return dict.fromkeys(titles)
    interval = None if cell.low is None else f"{ui.number(cell.low)} to {ui.number(cell.high)}"
    return dict(
        zip(titles, (ui.number(cell.score), interval, f"{cell.wins} / {cell.ties} / {cell.losses}"), strict=True)
    )
