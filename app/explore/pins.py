"""The pins as a table that is linked with the plot: choose a row and the sliders go there."""

from typing import Any

import streamlit as st

from app import ui
from app.explore import actions
from app.explore.card import metrics_at, reference_of
from app.explore.differences import default_evaluation, point_at
from app.explore.fields import field_key
from app.explore.state import Desk
from app.explore.tables import pins_csv, points_csv
from app.view import Pin, current_view, set_view
from warp_core.service.documents import Metric
from warp_core.service.places import place_label, same_place

__all__ = ["draw_downloads", "draw_pins", "pin_table"]

_COLUMNS = ("reward", "kl", "length", "diversity")
_HEADS = {"reward": "Reward", "kl": "KL", "length": "Length", "diversity": "Diversity"}


def draw_pins(desk: Desk) -> None:
    """Draw the table, and what can be done with the pin that is chosen."""
    pins = desk.view.pins
    if not pins:
        ui.empty_state(
            "No pins yet",
            "Pin keeps the position of the sliders: here, on the plot, in the link, and as something to compare with.",
        )
    else:
        key = f"pins-{st.session_state.get('explore_pins_shape', 0)}-{len(pins)}"
        st.dataframe(
            pin_table(desk),
            hide_index=True,
            key=key,
            on_select=lambda: _choose(key),
            selection_mode="single-row",
            column_config={"Name": st.column_config.TextColumn(width="medium")},
        )
        chosen = _chosen(desk, key)
        if chosen is None:
            st.caption("Choose a row to move the sliders there, to rename the pin, or to remove it.")
        else:
            _tools(desk, chosen)


def pin_table(desk: Desk) -> dict[str, list[Any]]:
    """Return the pins' columns: names, recipes, metrics and their differences to the reference."""
    reference, name = reference_of(desk)
    evaluation = default_evaluation(desk.front)
    base_point = point_at(desk.front, reference, evaluation=evaluation) or point_at(desk.front, reference)
    base = dict(base_point.metrics) if base_point else metrics_at(desk, reference)
    table: dict[str, list[Any]] = {"Name": [], "Recipe": [], "State": []}
    for pin in desk.view.pins:
        point = point_at(desk.front, pin.place)
        metrics = dict(point.metrics) if point else metrics_at(desk, pin.place)
        table["Name"].append(pin.name)
        table["Recipe"].append(place_label(pin.place, policy_names=desk.policy_names))
        is_reference = same_place(pin.place, reference)
        kind = "measured" if point else "predicted" if metrics else "not measured"
        table["State"].append(f"{kind}, reference" if is_reference else kind)
        for metric in _COLUMNS:
            table.setdefault(_HEADS[metric], []).append(_cell(metrics.get(metric), is_predicted=point is None))
            gap = "" if is_reference else ui.difference(metrics.get(metric), base.get(metric))
            if metric in ("reward", "kl"):
                table.setdefault(f"{_HEADS[metric]} vs {name}", []).append(gap)
    return table


def _cell(metric: Metric | None, *, is_predicted: bool) -> str:
    text = ui.measured(metric)
    return f"\u2248 {text}" if is_predicted and metric is not None else text


def _rows(key: str) -> list[int]:
    state = st.session_state.get(key) or {}
    return list(state.get("selection", {}).get("rows", []))


def _choose(key: str) -> None:
    rows = _rows(key)
    pins = current_view().pins
    if rows and rows[0] < len(pins):
        actions.go_to(pins[rows[0]].place)


def _chosen(desk: Desk, key: str) -> int | None:
    """The pin whose row is selected, or else the one that the sliders are at."""
    rows = _rows(key)
    if rows and rows[0] < len(desk.view.pins):
        return rows[0]
    here = [index for index, pin in enumerate(desk.view.pins) if same_place(pin.place, desk.view.place)]
    return here[0] if here else None


def _tools(desk: Desk, index: int) -> None:
    view, one = desk.view, desk.view.pins[index]
    with st.container(horizontal=True, vertical_alignment="bottom", key="pin-tools"):
        key = field_key(f"pin-name-{index}", one.label)
        st.text_input(
            "Name of the chosen pin",
            one.label,
            key=key,
            max_chars=60,
            placeholder=place_label(one.place),
            on_change=_rename,
            args=(index, key),
            width=280,
        )
        st.button(
            "To the left pane", key="pin-left", disabled=view.left == str(index), on_click=_side, args=("left", index)
        )
        st.button(
            "To the right pane",
            key="pin-right",
            disabled=view.right == str(index),
            on_click=_side,
            args=("right", index),
        )
        is_reference = view.reference == index
        st.button(
            "Not the reference" if is_reference else "Make reference",
            key="pin-reference",
            on_click=_set_reference,
            args=(None if is_reference else index,),
        )
        st.button("Remove", key="pin-remove", on_click=_remove, args=(index,))


def _rename(index: int, key: str) -> None:
    actions.rename_pin(index, str(st.session_state[key]))


def _remove(index: int) -> None:
    actions.remove_pin(index)
    st.session_state["explore_pins_shape"] = st.session_state.get("explore_pins_shape", 0) + 1


def _side(side: str, index: int) -> None:
    set_view(**{side: str(index)})
    if actions.auto_preview():
        actions.preview()


def _set_reference(index: int | None) -> None:
    set_view(reference=index)


def draw_downloads(desk: Desk) -> None:
    """Draw the buttons that give pins and points as CSV."""
    name = desk.view.run or "models"
    pins: tuple[Pin, ...] = desk.view.pins
    with st.container(horizontal=True, key="downloads"):
        st.download_button(
            "Pins as CSV",
            data=lambda: pins_csv(pins, desk.front, desk.num_policies),
            file_name=f"{name}-pins.csv",
            mime="text/csv",
            key="pins-csv",
            disabled=not pins,
            on_click="ignore",
        )
        st.download_button(
            "All points as CSV",
            data=lambda: points_csv(desk.front, desk.num_policies),
            file_name=f"{name}-points.csv",
            mime="text/csv",
            key="points-csv",
            disabled=not desk.front.points,
            on_click="ignore",
        )
