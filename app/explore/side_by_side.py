"""The side-by-side area: prompt, settings, panes and votes."""

import streamlit as st

from app import ui
from app.engine import engine
from app.explore import actions
from app.explore.blind import reveal
from app.explore.preview import draw_panes, latest_job, pane_choice
from app.explore.state import Desk, kept, selection_key
from app.explore.votes import draw_votes
from app.view import MAX_PROMPT, MAX_SEED, MAX_TOKENS, View, current_view, set_view
from warp_core.service.protocol import Job

__all__ = ["draw_side_by_side"]


def draw_side_by_side(desk: Desk) -> None:
    """Draw the area; a run that has no policies yet has nothing to sample from."""
    if not desk.can_merge:
        ui.empty_state("No texts yet", "This run's first iteration is being trained; its policies can be sampled then.")
        return
    job = latest_job()
    _draw_prompt(desk, job)
    _draw_sides(desk.view)
    draw_panes(desk, job, show_differences=bool(st.session_state.get("explore_differences", True)))
    draw_votes(desk, job)


def _draw_prompt(desk: Desk, job: Job | None) -> None:
    view = desk.view
    prompts = kept(f"prompts {selection_key(desk.selection)}", lambda: tuple(engine().prompts(desk.selection))) or ()
    text, choice = st.columns([5, 3])
    st.session_state["explore_prompt"] = actions.prompt_of(view)
    text.text_area("Prompt", key="explore_prompt", height=106, max_chars=MAX_PROMPT, on_change=_take_prompt)
    with choice:
        st.session_state["explore_pick"] = view.prompt if view.prompt in prompts else None
        st.selectbox(
            "Or one of the evaluation prompts",
            prompts,
            key="explore_pick",
            index=None,
            placeholder=f"{len(prompts)} prompts",
            on_change=_pick_prompt,
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
    st.session_state["explore_tokens"] = view.tokens
    st.session_state["explore_seed"] = view.seed
    st.session_state["explore_chat"] = view.chat
    st.session_state.setdefault("explore_count", 1)
    st.number_input("Tokens per completion", 1, MAX_TOKENS, key="explore_tokens", on_change=_take_settings)
    st.number_input("Completions per model", 1, 4, key="explore_count", on_change=_take_settings)
    st.number_input("Seed", 0, MAX_SEED, key="explore_seed", on_change=_take_settings)
    st.toggle("Chat template", key="explore_chat", on_change=_take_settings)


def _draw_sides(view: View) -> None:
    pins = [str(index) for index in range(len(view.pins))]
    with st.container(horizontal=True, vertical_alignment="bottom", key="sides"):
        for side, label, options in (
            ("left", "Left pane", ["sft", *pins]),
            ("right", "Right pane", ["end", "sft", *pins]),
        ):
            key = f"explore_{side}"
            st.session_state[key] = getattr(view, side)
            st.selectbox(
                label,
                options,
                key=key,
                format_func=lambda which: pane_choice(view, which),
                on_change=_take_side,
                args=(side,),
                width=220,
            )
        for key, label, default in (
            ("explore_auto", "Preview when a slider is let go", True),
            ("explore_differences", "Mark differences to the left", True),
        ):
            st.session_state.setdefault(key, default)
            st.toggle(label, key=key)
        st.toggle("Vote blind", key="explore_blind", on_change=_toggle_blind)


def _take_prompt() -> None:
    set_view(prompt=str(st.session_state["explore_prompt"]))
    actions.preview()


def _pick_prompt() -> None:
    picked = st.session_state["explore_pick"]
    if picked is not None:
        set_view(prompt=str(picked))
        actions.preview()


def _take_settings() -> None:
    state = st.session_state
    set_view(tokens=int(state["explore_tokens"]), seed=int(state["explore_seed"]), chat=bool(state["explore_chat"]))
    actions.preview()


def _take_side(side: str) -> None:
    set_view(**{side: st.session_state[f"explore_{side}"]})
    actions.preview()


def _toggle_blind() -> None:
    """Blind voting starts with new texts, since these have been seen with their names; its end shows all names."""
    if st.session_state["explore_blind"]:
        set_view(seed=current_view().seed + 1)
        actions.preview()
    else:
        reveal()
