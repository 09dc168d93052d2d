"""A page with nothing but the pilot, for its tests: what the explorer does with it, in small.

Query: policies=M, points=N (so many more measured points), tick=S (draw again every S seconds, with one more point each
time), exact (a point whose weights have many digits), empty (nothing measured), blind (no geometry), hostile (names
that are markup). The last text is what Python knows, as JSON.
"""

import json
import sys
import time
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[3])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import streamlit as st  # noqa: E402

from app.components.pilot import PilotEvent, pilot, pilot_data  # noqa: E402
from app.view import Pin  # noqa: E402
from tests.browser.pilot.scene import Scene  # noqa: E402
from warp_core.service.protocol import Place  # noqa: E402

MARKUP = "<img src=http://example.org/x.png onerror=alert(1)><b>bold</b>"
PINS = (
    Pin(place=Place(eta=0.5), label="half way"),
    Pin(place=Place(iteration=2, weights=(0.8, 0.1, 0.1), eta=0.66), label="not measured"),
)
EXACT = Place(iteration=1, method="lerp", weights=(1 / 7, 2 / 7, 4 / 7), eta=0.9)

st.set_page_config(layout="wide", page_title="pilot")
query = st.query_params


def begin() -> None:
    """Begin anew, with another component: quicker than loading the page again."""
    st.session_state.scene = Scene(points=int(query.get("points", 0)), policies=int(query.get("policies", 3)))
    if "exact" in query:
        scene: Scene = st.session_state.scene
        scene.found.append(scene.point(EXACT, key="exact"))
    st.session_state.seen = PilotEvent(place=Place(iteration=2, eta=0.43))
    st.session_state.told = {"page": st.session_state.get("told", {"page": 0})["page"] + 1, "runs": 0, "events": []}


if "told" not in st.session_state:
    begin()


def take_over(event: PilotEvent) -> None:
    """Keep what the user did, and when it came."""
    st.session_state.seen = event
    st.session_state.told["events"].append(1000 * time.time())


tick = float(query.get("tick", 0))


@st.fragment(run_every=tick or None)
def live() -> None:
    """Draw the pilot and what is known of it."""
    scene: Scene = st.session_state.scene
    seen: PilotEvent = st.session_state.seen
    st.session_state.told["runs"] += 1
    if tick:
        scene.measure_another()
    is_known = "blind" not in query
    data = pilot_data(
        scene.front(is_empty="empty" in query),
        geometry=scene.geometry(seen.place.iteration) if is_known else None,
        prediction=scene.prediction(seen.place.iteration) if is_known and "empty" not in query else None,
        num_policies=scene.policies,
        policy_names=[MARKUP] * scene.policies if "hostile" in query else (),
        iterations=scene.iterations,
        **seen.model_dump(exclude={"seq", "place"}),
        place=seen.place,
        pins=[Pin(place=pin.place, label=MARKUP) for pin in PINS] if "hostile" in query else PINS,
    )
    pilot(data, key=f"pilot-{st.session_state.told['page']}", on_change=take_over)
    st.text(json.dumps(st.session_state.told | {"seen": seen.model_dump(mode="json")}))


live()
if st.button("Go to the middle"):
    st.session_state.seen = st.session_state.seen.model_copy(update={"place": Place(iteration=2, eta=0.5)})
    st.rerun()
st.button("Begin anew", on_click=begin)
