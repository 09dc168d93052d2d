"""The app for one browser session: navigation, the engine's status, the page, errors in plain words.

`entry/warp.py` calls `main` on every run of the script.
"""

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app import status, ui, view
from app.engine import engine
from warp_core.errors import WarpError
from warp_core.service.documents import RunSummary

__all__ = ["PAGES", "import_pages", "main"]

PAGES = {
    "explore": ("Explore", ":material/explore:"),
    "train": ("Train", ":material/model_training:"),
    "geometry": ("Geometry", ":material/square_foot:"),
    "compare": ("Compare", ":material/compare:"),
    "export": ("Export", ":material/save_alt:"),
    "studies": ("Studies", ":material/science:"),
    "help": ("Help", ":material/help:"),
}
"""Module of app.pages, which is the path of its address, too: title and icon of Streamlit's own font."""

NEEDS_NO_ENGINE = "help"
APP = Path(__file__).resolve().parent
log = logging.getLogger("warp.app")


def main() -> None:
    """Draw the app for this session."""
    st.set_page_config(
        page_title="WARP",
        page_icon=str(APP / "static" / "icon.png"),
        layout="wide",
        initial_sidebar_state=216,
        menu_items={"Get help": None, "Report a bug": None, "About": None},
    )
    st.html(APP / "static" / "style.css")
    st.logo(str(APP / "static" / "logo.svg"), size="large")
    pages = [
        st.Page(_runner(name), title=title, icon=icon, url_path=name, default=name == "explore")
        for name, (title, icon) in PAGES.items()
    ]
    chosen = st.navigation(pages, position="sidebar")
    view.follow_address()
    try:
        _open_selection()
        chosen.run()
    except WarpError as error:
        ui.error_box(error)
        if chosen.url_path == NEEDS_NO_ENGINE:
            chosen.run()
    except Exception as error:
        log.exception("a page failed")
        ui.error_box(error)
    with st.sidebar:
        status.strip()


def import_pages() -> None:
    """Import every page, so that the first visitor does not wait for it."""
    for name in PAGES:
        importlib.import_module(f"app.pages.{name}")


def _runner(name: str) -> Callable[[], None]:
    def render() -> None:
        importlib.import_module(f"app.pages.{name}").render()

    render.__name__ = name
    return render


def _open_selection() -> None:
    """See to it that the view is of a run that there is, and say what of a link could not be used."""
    runs = {run.name: run for run in engine().runs()}
    now = view.current_view()
    if not now.has_selection or (now.run is not None and now.run not in runs):
        lost = [f"There is no run {now.run[:60]!r} here."] if now.run else []
        now = view.set_view(run=view.choose_run(list(runs.values())), notes=(*now.notes, *lost))
        _start_at(runs.get(now.run or ""))
    now = view.current_view()
    if now.run is not None or now.policies:
        counts = (runs[now.run].policies, runs[now.run].iterations) if now.run else (len(now.policies), 1)
        fitted = now.fitted(num_policies=counts[0], iterations=counts[1])
        if fitted is not now:
            st.session_state["view"] = fitted
    view.keep_address()
    _show_notes(view.current_view().notes)


def _start_at(run: RunSummary | None) -> None:
    """Put the sliders of a run that is opened afresh half way along its last merge."""
    if run is not None and view.current_view().place == view.START:
        view.set_view(place=view.START.model_copy(update={"iteration": max(1, run.finished_iterations)}))


def _show_notes(notes: tuple[str, ...]) -> None:
    if not notes:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.text("\n".join(notes))
        if st.button("Dismiss", key="dismiss-notes", type="tertiary"):
            view.set_view(notes=())
            st.rerun()
