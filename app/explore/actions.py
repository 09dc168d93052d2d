"""What buttons, sliders and links of the explore page do: change the view, ask the engine. No drawing.

Streamlit runs these before the script. They run inside callbacks, where an exception would replace the page, so a
`WarpError` is kept (`last_error`) and shown at the next draw.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, cast

import streamlit as st

from app.engine import engine, session_id
from app.view import MAX_PINS, Pin, View, current_view, set_view
from warp_core.errors import UnknownJobError, WarpError
from warp_core.service.places import same_place
from warp_core.service.protocol import (
    CheckRequest,
    Completion,
    Job,
    JobState,
    MeasureRequest,
    Pane,
    PaneRequest,
    Place,
    PreviewRequest,
    Selection,
)

__all__ = [
    "ETAS",
    "SIDES",
    "Shown",
    "Written",
    "auto_preview",
    "cancel",
    "check",
    "curve",
    "errors_kept",
    "go_to",
    "last_error",
    "make_reference",
    "measure",
    "num_completions",
    "pin",
    "preview",
    "prompt_of",
    "regenerate",
    "remove_pin",
    "rename_pin",
    "rerun_page",
    "shown",
    "texts",
    "wanted",
]

P = ParamSpec("P")
ETAS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
"""What `Sweep this curve` measures."""
SIDES = ("left", "current", "right")
_ERROR, _SHOWN, _TEXTS = "explore_error", "explore_shown", "explore_texts"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The latest preview that this session has asked for."""

    job_id: str
    selection: Selection
    prompt: str
    chat: bool
    seed: int
    tokens: int
    num_completions: int
    places: tuple[Place, Place, Place]
    """Left, current, right."""
    blind: bool = False
    """Whether its panes are under letters until the votes are in."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The latest text of a pane, kept while a newer one is on its way."""

    shown: Shown
    """The preview it is from."""
    place: Place
    completions: tuple[Completion, ...]


@contextmanager
def errors_kept() -> Iterator[None]:
    """Keep a WarpError of the block, to be shown when the page is drawn."""
    try:
        yield
        st.session_state.pop(_ERROR, None)
    except WarpError as error:
        st.session_state[_ERROR] = error


def last_error() -> WarpError | None:
    """Return what went wrong in the latest action, once."""
    return cast(WarpError | None, st.session_state.pop(_ERROR, None))


def rerun_page(action: Callable[P, Any]) -> Callable[P, None]:
    """Make a callback of a widget inside a fragment run the whole page, not the fragment alone."""

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        action(*args, **kwargs)
        st.rerun()

    return run


def auto_preview() -> bool:
    """Whether a preview follows each move of the sliders."""
    return bool(st.session_state.get("explore_auto", True))


def num_completions() -> int:
    """How many completions a pane shows."""
    return int(st.session_state.get("explore_count", 1))


def prompt_of(view: View) -> str:
    """Return the prompt: the view's, or else the first of the selection's."""
    return view.prompt or str(st.session_state.get("explore_first_prompt", ""))


def go_to(place: Place, **changes: Any) -> None:
    """Move the sliders; a preview follows where the user wants that."""
    view = current_view()
    set_view(place=place, extrapolate=changes.pop("extrapolate", view.extrapolate) or place.eta > 1, **changes)
    if auto_preview():
        preview()


def wanted() -> Shown:
    """Return the preview that the view asks for, without a job."""
    view = current_view()
    return Shown(
        job_id="",
        selection=view.selection,
        prompt=prompt_of(view),
        chat=view.chat,
        seed=view.seed,
        tokens=view.tokens,
        num_completions=num_completions(),
        places=(view.side(view.left), view.place, view.side(view.right)),
        blind=bool(st.session_state.get("explore_blind", False)),
    )


def preview(*, again: bool = False) -> None:
    """Sample from the three panes' models; unless exactly that is shown or on its way, and not asked for `again`."""
    asked = wanted()
    if not asked.prompt.strip():
        return
    with errors_kept():
        if not again and _is_there(asked):
            return
        job = engine().submit(
            PreviewRequest(
                session=session_id(),
                selection=asked.selection,
                prompt=asked.prompt,
                panes=tuple(PaneRequest(id=side, place=place) for side, place in zip(SIDES, asked.places, strict=True)),
                chat_template=asked.chat,
                seed=asked.seed,
                num_completions=asked.num_completions,
                max_new_tokens=asked.tokens,
                temperature=float(st.session_state.get("explore_temperature", 0.9)),
            )
        )
        st.session_state[_SHOWN] = replace(asked, job_id=job.id)


def regenerate() -> None:
    """Sample again with the next seed."""
    set_view(seed=current_view().seed + 1)
    preview()


def shown() -> Shown | None:
    """Return the latest preview of this session, if it was of the present selection."""
    found = cast(Shown | None, st.session_state.get(_SHOWN))
    return found if found and found.selection == current_view().selection else None


def texts(job: Job | None = None) -> dict[str, Written]:
    """Return the latest text of every pane; first take over those of the job, which is the latest preview.

    A pane whose model, prompt and seed are as before will get the same text again: its complete one stays meanwhile.
    """
    store = cast(dict[str, Written], st.session_state.setdefault(_TEXTS, {}))
    latest = shown()
    for pane in job.panes if job is not None and latest is not None else ():
        if latest is None or not any(completion.text for completion in pane.completions):
            continue
        if pane.state == "done" or not _is_same_again(store.get(pane.id), latest, pane):
            store[pane.id] = Written(shown=latest, place=pane.place, completions=pane.completions)
    return store


def _is_same_again(written: Written | None, latest: Shown, pane: Pane) -> bool:
    if written is None or latest.blind or not all(completion.done for completion in written.completions):
        return False  # blind, a text that stays would tell whose it is
    before = replace(written.shown, job_id="", places=latest.places, blind=latest.blind)
    return before == replace(latest, job_id="") and same_place(written.place, pane.place)


def measure(places: Sequence[Place]) -> None:
    """Measure points: one, or those of a curve."""
    view = current_view()
    with errors_kept():
        engine().submit(MeasureRequest(session=session_id(), selection=view.selection, places=tuple(places)))


def curve(place: Place) -> list[Place]:
    """Return the places of `ETAS` along the curve of a place."""
    return [place.model_copy(update={"eta": eta}) for eta in ETAS]


def check(selection: Selection) -> None:
    """Ask whether checkpoints can be mixed."""
    with errors_kept():
        job = engine().submit(CheckRequest(session=session_id(), selection=selection))
        st.session_state["explore_check"] = (selection, job.id)


def cancel(job_id: str) -> None:
    """Take a job from the queue, or ask it to end."""
    with errors_kept():
        engine().cancel(job_id)


def pin(place: Place, label: str = "") -> int | None:
    """Keep a place; return its index, None if there is no room. A place that is pinned already is not pinned twice."""
    pins = current_view().pins
    for index, one in enumerate(pins):
        if same_place(one.place, place):
            return index
    if len(pins) >= MAX_PINS:
        return None
    set_view(pins=(*pins, Pin(place=place, label=label)))
    return len(pins)


def make_reference(place: Place) -> None:
    """Pin a place and let differences be to it."""
    index = pin(place)
    if index is not None:
        set_view(reference=index)


def rename_pin(index: int, label: str) -> None:
    """Give a pin another name; an empty one is the place's own."""
    pins = list(current_view().pins)
    clean = " ".join(label.replace("~", " ").split())[:60]
    pins[index] = Pin(place=pins[index].place, label=clean)
    set_view(pins=tuple(pins))


def remove_pin(index: int) -> None:
    """Drop a pin; reference and panes that showed it go back to their defaults, later pins move up."""
    view = current_view()
    pins = tuple(pin for i, pin in enumerate(view.pins) if i != index)
    reference = view.reference
    if reference is not None:
        reference = None if reference == index else reference - (reference > index)
    set_view(
        pins=pins,
        reference=reference,
        left=_side_without(view.left, index, "sft"),
        right=_side_without(view.right, index, "end"),
    )


def _side_without(side: str, index: int, default: str) -> str:
    if not side.isdecimal():
        return side
    return default if int(side) == index else str(int(side) - (int(side) > index))


def _is_there(asked: Shown) -> bool:
    """Whether the very same texts are shown, or being written."""
    found = shown()
    if found is None or replace(found, job_id="") != asked:
        return False
    try:
        return engine().job(found.job_id).state not in (JobState.FAILED, JobState.CANCELLED)
    except UnknownJobError:
        return False
