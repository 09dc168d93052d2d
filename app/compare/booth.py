"""Blind voting over the set: two unlabelled texts, seven grades by button or key, skip, undo, stop at any time."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import streamlit as st

from app import ui
from app.compare.comparison import Comparison, errors_kept, show_kept_error
from app.compare.models import CompareModel
from app.compare.rows import lines_of, shown_text
from app.compare.votes import VoteIndex
from app.compare.voting import GRADES, Ballot, Grade, Progress, ballots, next_ballot, progress, vote_of
from app.components.panes import CompletionView, PaneView, panes
from app.engine import engine, session_id
from warp_core.errors import UserError

__all__ = ["is_voting", "voting"]

_STATE, _PAIRS = "compare_booth", "compare_pairs"
ALL_PAIRS = "All pairs"
MIN_LOOK_S = 0.3
"""A grade that comes sooner after its pair was drawn is a key held down, or meant for the pair before."""


@dataclass
class Booth:
    """What a session has done; the votes themselves are with the engine."""

    is_open: bool = False
    skipped: list[str] = field(default_factory=list)
    """Ids of ballots, the latest last."""
    done: list[tuple[str, str | None]] = field(default_factory=list)
    """(ballot, vote) of what can be undone; no vote: it was skipped."""
    drawn: str = ""
    """The ballot on the page."""
    drawn_at: float = 0.0
    """By `time.monotonic`; of the latest grade that came too soon, if one did."""


def voting(comparison: Comparison) -> None:
    """Draw the section; needs two measured models."""
    booth = _booth()
    if booth.is_open:
        st.fragment(_ballot_paper)(comparison)
    else:
        _entrance(comparison)


def is_voting() -> bool:
    """Whether the session is in the middle of it."""
    return _booth().is_open


def _booth() -> Booth:
    found: Booth = st.session_state.setdefault(_STATE, Booth())
    return found


def _ballots(comparison: Comparison) -> tuple[list[Ballot], int]:
    return ballots(comparison.rows, _pairs(comparison.measured)[_pairs_choice(comparison)], seed=session_id())


def _pairs(models: Sequence[CompareModel]) -> dict[str, list[tuple[CompareModel, CompareModel]]]:
    """What can be voted on, by its name."""
    every = [(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]
    found = {ALL_PAIRS: every}
    if len(models) > 2:
        found |= {f"{model.letter} against each other": [pair for pair in every if model in pair] for model in models}
        found |= {f"{a.letter} and {b.letter}": [(a, b)] for a, b in every}
    return found


def _pairs_choice(comparison: Comparison) -> str:
    choice = st.session_state.get(_PAIRS)
    return choice if choice in _pairs(comparison.measured) else ALL_PAIRS


def _entrance(comparison: Comparison) -> None:
    """What voting is about, and the start button."""
    with st.container(border=True, key="compare-entrance"):
        st.text(
            "You see a prompt and two completions without the names of their models, in random order, and say which is"
            " better. Votes are stored at once; stop whenever you like."
        )
        names = list(_pairs(comparison.measured))
        st.session_state[_PAIRS] = _pairs_choice(comparison)
        st.selectbox("Vote on", names, key=_PAIRS, persist_state="session", width=320, disabled=len(names) == 1)
        found, num_equal = _ballots(comparison)
        now = progress(found, comparison.index, skipped=_booth().skipped)
        _progress_line(now)
        if num_equal:
            st.caption(f"{num_equal} pairs of equal texts are left out.")
        label = "Start voting" if now.voted == 0 else "Go on voting"
        st.button(label, type="primary", key="compare_start", on_click=_open, disabled=now.voted == now.total)


def _progress_line(now: Progress) -> None:
    skipped = f", {now.skipped} skipped" if now.skipped else ""
    text = f"{now.voted} of {now.total} voted{skipped}"
    st.progress(now.voted / now.total if now.total else 0.0, text=text)


def _open() -> None:
    _booth().is_open = True


def _ballot_paper(comparison: Comparison) -> None:
    """One pair; a vote runs this alone, not the page."""
    with ui.errors_shown():
        show_kept_error()
        votes = VoteIndex(engine().votes(comparison.selection), comparison.models)
        booth = _booth()
        found, _ = _ballots(comparison)
        ballot = next_ballot(found, votes, skipped=booth.skipped)
        with st.container(key="compare-booth", border=True):
            _progress_line(progress(found, votes, skipped=booth.skipped))
            if ballot is None:
                st.text("Every pair has a vote. The preferences show what they add up to.")
            else:
                if booth.drawn != ballot.id:
                    booth.drawn, booth.drawn_at = ballot.id, time.monotonic()
                _texts(comparison, ballot)
                _grade_buttons(comparison, ballot)
            _other_buttons(comparison, ballot)


def _texts(comparison: Comparison, ballot: Ballot) -> None:
    """The prompt and the two texts, in boxes that fit the longest of the set: nothing moves from one to the next."""
    st.text(ballot.row.prompt)
    views = [
        PaneView(
            id=side.lower(),
            title=side,
            state="done",
            status=" ",
            completions=(CompletionView(text=shown_text(text), done=True),),
        )
        for side, text in zip(("Left", "Right"), ballot.texts, strict=True)
    ]
    longest = max(len(cell.completion) for row in comparison.rows for cell in row.cells.values())
    panes(views, key="compare_booth_panes", show_differences=False, lines=lines_of(longest))


def _grade_buttons(comparison: Comparison, ballot: Ballot) -> None:
    for grade, column in zip(GRADES, st.columns(len(GRADES), gap="small"), strict=True):
        column.button(
            grade.label,
            key=f"compare_grade_{grade.key}",
            shortcut=grade.key,
            on_click=_cast,
            args=(comparison, ballot, grade),
            width="stretch",
            wrap=True,
        )


def _other_buttons(comparison: Comparison, ballot: Ballot | None) -> None:
    with st.container(horizontal=True, key="compare-booth-other"):
        if ballot is not None:
            st.button("Skip", key="compare_skip", shortcut="S", on_click=_skip, args=(ballot,))
        st.button(
            "Undo", key="compare_undo", shortcut="U", on_click=_undo, args=(comparison,), disabled=not _booth().done
        )
        if st.button("Stop", key="compare_stop", shortcut="Esc"):
            _booth().is_open = False
            st.rerun()


def _cast(comparison: Comparison, ballot: Ballot, grade: Grade) -> None:
    """Store a vote, unless it comes too soon to be about this ballot."""
    booth = _booth()
    now = time.monotonic()
    if booth.drawn != ballot.id or now - booth.drawn_at < MIN_LOOK_S:
        booth.drawn_at = now
        return
    with errors_kept():
        stored = engine().vote(comparison.selection, vote_of(ballot, grade, session=session_id()))
        booth.done.append((ballot.id, stored.id))


def _skip(ballot: Ballot) -> None:
    booth = _booth()
    booth.skipped = [one for one in booth.skipped if one != ballot.id] + [ballot.id]
    booth.done.append((ballot.id, None))


def _undo(comparison: Comparison) -> None:
    """Take the latest vote or skip back; its ballot comes again."""
    booth = _booth()
    if not booth.done:
        return
    name, vote = booth.done[-1]
    with errors_kept():
        if vote is not None:
            with suppress(UserError):  # gone already, taken back in another window
                engine().undo_vote(comparison.selection, vote)
        booth.done.pop()
        booth.skipped = [one for one in booth.skipped if one != name]
