"""The pilot and the position card in one fragment that draws itself again while points may appear."""

import streamlit as st

from app import ui
from app.components.pilot import PilotEvent, pilot, pilot_data
from app.engine import engine
from app.explore import actions
from app.explore.card import draw_card
from app.explore.state import Desk, open_desk
from app.view import current_view, set_view
from warp_core.errors import EngineUnreachableError

__all__ = ["TICK_S", "draw_plot"]

TICK_S = 1.0
_HEIGHT = 510
_FRESH, _HIDDEN, _ITERATIONS = "explore_fresh_desk", "explore_hidden", "explore_iterations"
_LIVE_JOBS = ("measure", "geometry", "prepare")


def draw_plot(desk: Desk) -> None:
    """Draw pilot and card; live while points are being measured or the run is being trained."""
    st.session_state[_FRESH] = desk  # a run of the whole page has fetched it already
    st.session_state[_ITERATIONS] = desk.iterations
    every = TICK_S if _is_live(desk) else None
    st.fragment(run_every=every, key="explore-plot")(_tick)(every)


def _is_live(desk: Desk) -> bool:
    return bool(desk.active(*_LIVE_JOBS)) or desk.is_training


def _tick(every: float | None) -> None:
    desk: Desk | None = st.session_state.pop(_FRESH, None)
    try:
        desk = desk or open_desk(current_view(), engine().runs())
    except EngineUnreachableError as error:
        ui.error_box(error)  # the next tick tries again
        return
    view = desk.view
    with st.container(key="pilot-area"):
        pilot(
            pilot_data(
                desk.front,
                geometry=desk.geometry,
                prediction=desk.prediction,
                num_policies=desk.num_policies,
                iterations=max(1, desk.iterations),
                place=view.place,
                policy_names=desk.policy_names,
                extrapolate=view.extrapolate,
                x=view.x,
                y=view.y,
                budget=view.budget,
                pins=view.pins,
                reference=view.reference,
                hidden=st.session_state.get(_HIDDEN, ()),
            ),
            key="pilot",
            height=_HEIGHT,
            on_change=actions.rerun_page(_take_over),
        )
    if desk.can_merge:
        draw_card(desk)
    is_over = every is not None and not _is_live(desk)
    if is_over or desk.iterations != st.session_state[_ITERATIONS]:
        st.rerun()


def _take_over(event: PilotEvent) -> None:
    """Take what the user has set in the pilot; a new place is previewed."""
    st.session_state[_HIDDEN] = event.hidden
    changes = {"x": event.x, "y": event.y, "budget": event.budget, "extrapolate": event.extrapolate}
    if event.place == current_view().place:
        set_view(**changes)
    else:
        actions.go_to(event.place, **changes)
