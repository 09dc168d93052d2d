"""The side-by-side area: prompt, settings, panes and votes."""

import streamlit as st

from app.engine import engine
from app.explore import actions
from app.explore.blind import reveal
from app.explore.fields import field_key
from app.explore.preview import draw_panes, latest_job, pane_choice
from app.explore.state import Desk, kept, selection_key
from app.explore.votes import draw_votes
from app.view import MAX_PROMPT, MAX_SEED, MAX_TOKENS, View, current_view, set_view
from warp_core.service.protocol import Job

__all__ = ["draw_side_by_side"]


def draw_side_by_side(desk: Desk) -> None:
    """Draw the area."""
    job = latest_job()
    _draw_prompt(desk, job)
    _draw_sides(desk.view)
    draw_panes(desk, job, show_differences=bool(st.session_state.get("explore_differences", True)))
    draw_votes(desk, job)


def _draw_prompt(desk: Desk, job: Job | None) -> None:
    view = desk.view
    prompts = kept(f"prompts {selection_key(desk.selection)}", lambda: tuple(engine().prompts(desk.selection))) or ()
    text, choice = st.columns([5, 3])
    prompt = actions.prompt_of(view)
    key = field_key("explore_prompt", prompt)
    text.text_area("Prompt", prompt, 118, MAX_PROMPT, key, on_change=_take_prompt, args=(key,))
    with choice:
        picked = view.prompt if view.prompt in prompts else None
        key = field_key("explore_pick", picked)
        st.selectbox(
            "Or one of the evaluation prompts",
            prompts,
            key=key,
            index=None if picked is None else prompts.index(picked),
            placeholder=f"{len(prompts)} prompts",
            on_change=_take_prompt,
            args=(key,),
        )
        _draw_buttons(view, job)


def _draw_buttons(view: View, job: Job | None) -> None:
    is_writing = job is not None and not job.state.is_final
    with st.container(horizontal=True, vertical_alignment="center", key="preview-buttons"):
        if is_writing and job is not None:
            st.button("Stop", key="stop", on_click=actions.cancel, args=(job.id,), width=104)
        else:
            st.button(
                "Generate", key="generate", type="primary", on_click=actions.preview, kwargs={"again": True}, width=104
            )
        st.button("Regenerate", key="regenerate", on_click=actions.regenerate, help="With the next seed.")
        with st.popover("Settings", key="preview-settings"):
            _draw_settings(view)


def _draw_settings(view: View) -> None:
    keys = {name: field_key(f"explore_{name}", getattr(view, name)) for name in ("tokens", "seed", "chat")}
    take = {name: {"on_change": _take_setting, "args": (name, key), "key": key} for name, key in keys.items()}
    st.number_input("Tokens per completion", 1, MAX_TOKENS, view.tokens, **take["tokens"])
    st.number_input(
        "Completions per model", 1, 4, key="explore_count", on_change=actions.preview, persist_state="session"
    )
    st.number_input("Seed", 0, MAX_SEED, view.seed, **take["seed"])
    st.toggle("Chat template", view.chat, **take["chat"])


def _draw_sides(view: View) -> None:
    pins = [str(index) for index in range(len(view.pins))]
    with st.container(horizontal=True, vertical_alignment="bottom", key="sides"):
        for side, label, options in (
            ("left", "Left pane", ["sft", *pins]),
            ("right", "Right pane", ["end", "sft", *pins]),
        ):
            shown = getattr(view, side) if getattr(view, side) in options else options[0]
            key = field_key(f"explore_{side}", shown)
            st.selectbox(
                label,
                options,
                key=key,
                index=options.index(shown),
                format_func=lambda which: pane_choice(view, which),
                on_change=_take_side,
                args=(side, key),
                width=220,
            )
        for key, label, default in (
            ("explore_auto", "Preview when a slider is let go", True),
            ("explore_differences", "Mark differences to the left", True),
        ):
            st.toggle(label, value=default, key=key, persist_state="session")
        st.toggle("Vote blind", key="explore_blind", on_change=_toggle_blind, persist_state="session")


def _take_prompt(key: str) -> None:
    """Take over what was written or picked; an emptied field goes back to the first prompt of the set."""
    set_view(prompt=str(st.session_state[key] or ""))
    actions.preview()


def _take_setting(name: str, key: str) -> None:
    set_view(**{name: st.session_state[key]})
    actions.preview()


def _take_side(side: str, key: str) -> None:
    set_view(**{side: st.session_state[key]})
    actions.preview()


def _toggle_blind() -> None:
    """Blind voting starts with new texts, since these have been seen with their names; its end shows all names."""
    if st.session_state["explore_blind"]:
        set_view(seed=current_view().seed + 1)
        actions.preview()
    else:
        reveal()
