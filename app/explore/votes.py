"""Votes on pairs of texts beside each other, and the preference scores over all votes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import streamlit as st

from app import ui
from app.engine import engine, session_id
from app.explore.actions import SIDES, Shown, Written, errors_kept, shown, texts, wanted
from app.explore.blind import LETTERS, hidden_order, order_of, reveal
from app.explore.state import Desk, selection_key
from app.view import current_view
from warp_core.evaluation.preferences import SCALE, Judgement, Preference, preference
from warp_core.service.places import full_weights, is_sft, place_label, place_text, same_place
from warp_core.service.protocol import Job, JobState, Place, Selection, Vote

__all__ = ["Pair", "draw_summary", "draw_votes", "pairs_of", "score_words", "summary"]

_CAST = "explore_cast"
_DEGREES = {1.5: "much better", 1.0: "better", 0.5: "slightly better"}
_ROW, _QUESTION = 44, 140
_SHORT = ("Left", "Merge", "Right")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two texts to choose between."""

    preview: Shown
    first: int
    """0 left, 1 current, 2 right."""
    second: int
    completion: int
    first_name: str
    second_name: str
    hidden: bool

    @property
    def is_same(self) -> bool:
        """Whether both texts are of one model."""
        return same_place(self.preview.places[self.first], self.preview.places[self.second])

    @property
    def key(self) -> str:
        """The same for the same texts."""
        return f"{self.preview.job_id}.{self.first}.{self.second}.{self.completion}"


def score_words(score: float, first: str, second: str) -> str:
    """Return a score in words: `Left much better`, `Tie`."""
    if score == 0:
        return "Tie"
    return f"{first if score > 0 else second} {_DEGREES[abs(score)]}"


def pairs_of(preview: Shown, *, completion: int, is_hidden: bool) -> list[Pair]:
    """Return the two pairs of neighbouring panes."""
    order = order_of(preview)
    names = [f"Model {letter}" for letter in LETTERS] if is_hidden else [_SHORT[index] for index in order]
    return [
        Pair(
            preview=preview,
            first=order[i],
            second=order[i + 1],
            completion=completion,
            first_name=names[i],
            second_name=names[i + 1],
            hidden=is_hidden,
        )
        for i in range(len(order) - 1)
    ]


def draw_votes(desk: Desk, job: Job | None) -> None:
    """Draw a row of seven answers for each pair; what was voted on shows its vote, and can be undone.

    The rows are there all the time, so that nothing moves; they answer once the texts are complete.
    """
    preview = shown() or wanted()
    is_open = job is not None and job.state is JobState.DONE
    completion = 0
    if preview.num_completions > 1:
        numbers = range(preview.num_completions)
        completion = st.segmented_control(
            "Completion", numbers, default=0, required=True, format_func=lambda k: str(k + 1), key="explore_completion"
        )
    hidden = hidden_order(preview) is not None
    with st.container(gap=None, key="vote-rows"):
        for number, pair in enumerate(pairs_of(preview, completion=completion, is_hidden=hidden)):
            _row(desk, pair, number, is_open=is_open)
    if hidden:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Reveal", key="reveal", on_click=reveal, type="tertiary")
            st.caption("Names appear when every pair has a vote.")


def _row(desk: Desk, pair: Pair, number: int, *, is_open: bool) -> None:
    voted = _cast().get(pair.key)
    second = pair.second_name if pair.hidden else pair.second_name.lower()
    question = f"{pair.first_name} or {second}?"
    with st.container(
        horizontal=True, vertical_alignment="center", key=f"vote-row-{number}", height=_ROW, border=False
    ):
        st.caption(question, width=_QUESTION)
        if pair.is_same:
            st.caption("Both are the same model.")
        elif voted is None:
            key = f"vote-{number}-{pair.key}"
            st.segmented_control(
                question,
                SCALE,
                format_func=lambda score: score_words(score, pair.first_name, pair.second_name),
                key=key,
                label_visibility="collapsed",
                disabled=not is_open,
                on_change=_vote,
                args=(desk.selection, pair, key),
            )
        else:
            words = score_words(voted.score, pair.first_name, pair.second_name)
            st.caption(f"Your vote: {words.lower() if voted.score == 0 else words}.", width="content")
            st.button("Undo", key=f"undo-{number}", type="tertiary", on_click=_undo, args=(desk.selection, pair))


# Streamlit keeps the arguments of every control that a session has ever drawn: a desk, with its front and its jobs,
# would be half a megabyte for each preview.
def _vote(selection: Selection, pair: Pair, key: str) -> None:
    score = st.session_state.get(key)
    written = texts()
    first, second = (written.get(SIDES[index]) for index in (pair.first, pair.second))
    if score is None or first is None or second is None:
        return
    with errors_kept():
        _cast()[pair.key] = engine().vote(
            selection,
            Vote(
                session=session_id(),
                prompt=pair.preview.prompt,
                first=pair.preview.places[pair.first],
                second=pair.preview.places[pair.second],
                first_text=_text(first, pair.completion),
                second_text=_text(second, pair.completion),
                score=score,
                blind=pair.hidden,
            ),
        )
    pairs = pairs_of(pair.preview, completion=pair.completion, is_hidden=pair.hidden)
    if pair.hidden and all(one.is_same or one.key in _cast() for one in pairs):
        reveal()


def _undo(selection: Selection, pair: Pair | None = None) -> None:
    """Take back the vote on a pair, or the latest vote of this session."""
    key = pair.key if pair is not None else list(_cast())[-1]
    with errors_kept():
        engine().undo_vote(selection, _cast()[key].id)
        del _cast()[key]


def _cast() -> dict[str, Vote]:
    """The votes of this session on the present selection, by pair of texts."""
    key = f"{_CAST} {selection_key(current_view().selection)}"
    return cast(dict[str, Vote], st.session_state.setdefault(key, {}))


def _hidden_ids() -> set[str]:
    """Votes on texts whose names are still hidden: the scores would tell them."""
    preview = shown()
    if preview is None or hidden_order(preview) is None:
        return set()
    return {vote.id for key, vote in _cast().items() if key.startswith(f"{preview.job_id}.")}


def _text(written: Written, completion: int) -> str:
    return written.completions[completion].text if completion < len(written.completions) else ""


def summary(votes: Sequence[Vote], num_policies: int) -> list[tuple[Place, Place, Preference]]:
    """Return the preference of every pair of models that was voted on, those with most votes first. Pure."""
    models: dict[str, Place] = {}
    judgements: list[Judgement] = []
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for vote in votes:
        first, second = (_model_key(place, num_policies) for place in (vote.first, vote.second))
        if first == second:
            continue
        models.setdefault(first, vote.first)
        models.setdefault(second, vote.second)
        pairs.setdefault(frozenset((first, second)), (first, second))
        judgements.append(Judgement(first=first, second=second, score=vote.score, prompt=vote.prompt))
    found = [(pair, preference(judgements, *pair)) for pair in pairs.values()]
    rows = [(models[first], models[second], result) for (first, second), result in found if result is not None]
    return sorted(rows, key=lambda row: -row[2].n)


def _model_key(place: Place, num_policies: int) -> str:
    """One text per model, however its weights are written."""
    if is_sft(place):
        return "sft"
    weights = full_weights(place, num_policies)
    even = max(weights) - min(weights) < 1e-6
    towards = "sft" if place.iteration == 1 or place.eta == 1 else place.towards
    return place_text(place.model_copy(update={"weights": () if even else weights, "towards": towards}))


def draw_summary(desk: Desk) -> None:
    """Draw the preference scores over all votes on this selection."""
    with st.container(key="vote-summary"):
        hidden = _hidden_ids()
        votes = [vote for vote in engine().votes(desk.selection) if vote.id not in hidden]
        rows = summary(votes, desk.num_policies)
        if not rows:
            empty = "No votes yet on these models. Scores with intervals appear here with the first one."
            st.caption("Scores appear when the names do." if hidden else empty)
            return
        st.dataframe(_table(rows, desk.policy_names), hide_index=True, key="preferences")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(
                "Means over all votes: 1.5 much better, 1 better, 0.5 slightly better, 0 tie; negative where the "
                "second is preferred. Intervals cover 95 %, prompts being what varies.",
                width="stretch",
            )
            if _cast():
                st.button(
                    "Undo my latest vote", key="undo-latest", type="tertiary", on_click=_undo, args=(desk.selection,)
                )


def _table(rows: Sequence[tuple[Place, Place, Preference]], names: Sequence[str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {
        name: [] for name in ("First", "Second", "Score", "95 % interval", "First / tie / second", "Votes", "Prompts")
    }
    for first, second, result in rows:
        interval = (
            "needs more prompts"
            if result.low is None or result.high is None
            else f"{ui.number(result.low)} to {ui.number(result.high)}"
        )
        values = (
            place_label(first, policy_names=names),
            place_label(second, policy_names=names),
            round(result.score, 2),
            interval,
            f"{result.wins} / {result.ties} / {result.losses}",
            result.n,
            result.num_prompts,
        )
        for column, value in zip(table.values(), values, strict=True):
            column.append(value)
    return table
