"""Side by side: one prompt, the same seeds, three models, and their texts as they are written."""

from collections.abc import Mapping, Sequence

import streamlit as st

from app import ui
from app.components.panes import CompletionView, PaneState, PaneView, lines_for, panes
from app.engine import engine
from app.explore import actions
from app.explore.actions import SIDES, Shown, Written
from app.explore.blind import LETTERS, hidden_order
from app.explore.card import PALETTE
from app.explore.state import Desk
from app.view import View, current_view
from warp_core.errors import UnknownJobError, WarpError
from warp_core.service.places import is_sft, place_label, same_place
from warp_core.service.protocol import Completion, Job, JobState, Pane, Place

__all__ = ["TICK_S", "draw_panes", "latest_job", "pane_choice", "pane_views", "side_name"]

TICK_S = 0.2
_FRESH = "explore_fresh_job"
Texts = Mapping[str, Written]
_ROLES = {"left": "left", "current": "middle", "right": "right"}


def draw_panes(desk: Desk, job: Job | None, *, show_differences: bool) -> None:
    """Draw the panes of the latest preview, and again and again while something is being written."""
    st.session_state[_FRESH] = job  # a run of the whole page has asked for it already
    every = TICK_S if job is not None and not job.state.is_final else None
    st.fragment(run_every=every, key="explore-panes")(_tick)(desk, show_differences, every)


def _tick(desk: Desk, show_differences: bool, every: float | None) -> None:
    latest = actions.shown()
    try:
        job = st.session_state.pop(_FRESH) if _FRESH in st.session_state else latest_job()
    except WarpError as error:
        ui.error_box(error)
        return
    view = current_view()
    texts = actions.texts(job)
    views = pane_views(view, wanted=actions.wanted(), latest=latest, job=job, texts=texts, names=desk.policy_names)
    order = hidden_order(latest)
    position = min(1.0, view.place.eta) if order is None and view.right == "end" and view.left == "sft" else None
    panes(
        _blinded(views, order),
        key="panes",
        show_differences=show_differences,
        lines=lines_for(view.tokens),
        num_completions=actions.num_completions(),
        position=position,
        position_label=f"The current merge is at eta {ui.number(view.place.eta)} between the two ends",
        end_color=PALETTE[(view.iteration - 1) % len(PALETTE)],
    )
    if job is not None and job.state is JobState.FAILED:
        st.text(f"That did not work: {job.error}")
    if every is not None and (job is None or job.state.is_final):
        st.rerun()


def pane_views(
    view: View, *, wanted: Shown, latest: Shown | None, job: Job | None, texts: Texts, names: Sequence[str]
) -> list[PaneView]:
    """Return what the three panes show. Pure.

    Args:
        view: titles and colours.
        wanted: the preview as it would be asked for now.
        latest, job: the latest preview of this session, None where there is none (any more).
        texts: the latest text of each pane, possibly of an earlier preview.
        names: of the policies.
    """
    found = []
    for index, (side, place) in enumerate(zip(SIDES, wanted.places, strict=True)):
        pane = next((pane for pane in job.panes if pane.id == side), None) if job else None
        written = texts.get(side)
        is_coming = latest is not None and _why_stale(latest, wanted, index) is None
        why = _why_stale(written.shown, wanted, index) if written else None
        title, label = side_name(view, side), _name(place, names)
        state = _state(job, pane) if is_coming else "done" if written else "empty"
        found.append(
            PaneView(
                id=side,
                title=title,
                role=_ROLES[side],
                recipe="" if label == title else label,
                state=state,
                status=_status(job, pane, wanted) if is_coming else "",
                share=_share(view, side),
                is_current=side == "current",
                stale_recipe=None if written is None or why is None else _name(written.place, names) + why,
                hint=_hint(job, state, wanted.prompt),
                completions=tuple(_completion(one) for one in written.completions) if written else (),
            )
        )
    return found


def side_name(view: View, side: str) -> str:
    """Return what a pane is called."""
    if side == "current":
        return "Current merge"
    return pane_choice(view, view.left if side == "left" else view.right)


def pane_choice(view: View, which: str) -> str:
    """Return what `sft`, `end` or the index of a pin is called."""
    if which == "end":
        return "Other end, eta 1"
    if which.isdecimal() and int(which) < len(view.pins):
        return view.pins[int(which)].name
    return "SFT policy"


def latest_job() -> Job | None:
    """Return the latest preview of this session as the engine knows it; None where there is none (any more)."""
    latest = actions.shown()
    if latest is None:
        return None
    try:
        return engine().job(latest.job_id)
    except UnknownJobError:
        return None


def _name(place: Place, names: Sequence[str]) -> str:
    return place_label(place, policy_names=names)


def _why_stale(written: Shown, wanted: Shown, index: int) -> str | None:
    """What sets a preview's pane apart from what is wanted now, beside its recipe; None: nothing does."""
    if written.prompt != wanted.prompt:
        return ", another prompt"
    if not same_place(written.places[index], wanted.places[index]):
        return ""
    if written.seed != wanted.seed:
        return f", seed {written.seed}"
    ours, theirs = ((one.chat, one.tokens, one.num_completions) for one in (written, wanted))
    return None if ours == theirs else ", other settings"


def _state(job: Job | None, pane: Pane | None) -> PaneState:
    if job is None:
        return "empty"
    if job.state is JobState.FAILED:
        return "error"
    if job.state is JobState.CANCELLED:
        return "stopped"
    if job.state is JobState.QUEUED or pane is None:
        return "waiting"
    return pane.state


def _status(job: Job | None, pane: Pane | None, wanted: Shown) -> str:
    if job is None:
        return ""
    if job.state is JobState.QUEUED and job.position:
        return f"waiting, {job.position} before it"
    if job.state is JobState.RUNNING and pane is not None and pane.state == "sampling":
        tokens = max((completion.num_tokens for completion in pane.completions), default=0)
        return f"{tokens} of {wanted.tokens} tokens"
    return ""


def _hint(job: Job | None, state: PaneState, prompt: str) -> str:
    if not prompt.strip():
        return "Write a prompt, or pick one of the set."
    if job is None:
        return "Move a slider, or press Generate."
    return {"error": "No text.", "stopped": "Stopped before the first word."}.get(state, "")


def _share(view: View, side: str) -> float:
    if side == "current":
        return min(1.0, view.place.eta)
    place = view.side(view.left if side == "left" else view.right)
    return 0.0 if is_sft(place) else min(1.0, place.eta)


def _completion(completion: Completion) -> CompletionView:
    facts = []
    if completion.reward is not None:
        facts.append(("reward", ui.number(completion.reward)))
    if completion.kl is not None:
        facts.append(("KL", ui.number(completion.kl)))
    if completion.done:
        facts.append(("tokens", str(completion.num_tokens)))
    return CompletionView(text=completion.text.lstrip(), done=completion.done, facts=tuple(facts))


def _blinded(views: Sequence[PaneView], order: Sequence[int] | None) -> list[PaneView]:
    """The panes in a hidden order under letters, without anything that tells which is which."""
    if order is None:
        return list(views)
    found = []
    for letter, index in zip(LETTERS, order, strict=True):
        view = views[index]
        texts = tuple(CompletionView(text=one.text, done=one.done) for one in view.completions)
        found.append(
            PaneView(
                id=f"blind-{letter}",
                title=f"Model {letter}",
                state=view.state,
                status=view.status,
                stale_recipe="an earlier recipe" if view.stale_recipe else None,
                hint=view.hint,
                completions=texts,
            )
        )
    return found
