"""The pilot: the sliders and the reward-versus-KL plot as one component that moves in the browser, not in Python.

    data = pilot_data(front, geometry=geometry, prediction=prediction, num_policies=3, iterations=2, place=view.place)
    event = pilot(data, key="pilot", on_change=take_over)

While something is dragged nothing runs here: the browser mixes coefficients and predicts metrics by itself, with the
formulas of `warp_core.weights.coefficients` and `documents.Prediction` (pilot/maths.js). On release it sends the state
`view` once, a `PilotEvent`. It numbers its events (`seq`), and takes from Python no position that is older than its
latest event; hence `on_change` must put the event into what the next `pilot_data` is made from: it runs before the
script does.

The scripts in pilot/ and axes.js are one module: `_SCRIPTS` names them in the order in which they are joined, and their
top level names are shared. Streamlit sends code and data whenever the data changed, and neither when nothing did (its
cache of messages), so parts of the data carry a revision only to spare the browser redrawing what is as it was.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypedDict

import streamlit as st

from app.components.ordered import ordered
from warp_core.service.documents import FrontDocument, FrontPoint, GeometryDocument, Prediction
from warp_core.service.protocol import Finite, Model, Place

__all__ = ["PilotData", "PilotEvent", "PinLike", "metric_names", "pilot", "pilot_data", "pilot_script"]

_FOLDER = Path(__file__).parent / "pilot"
_SCRIPTS = (
    *("../axes", "maths", "format", "points", "model"),
    *("dom", "drawing", "live", "legend", "plot"),
    *("fields", "readout", "controls", "main"),
)
_FIRST_METRICS = ("kl", "reward", "length", "diversity")


class PinLike(Protocol):
    """A pinned place, such as `app.view.Pin`."""

    @property
    def place(self) -> Place:
        """Where it is."""

    @property
    def name(self) -> str:
        """What to write beside it."""


class PilotData(TypedDict):
    """What the component draws: JSON. Made by `pilot_data`."""

    points: list[dict[str, Any]]
    """Front points; `metrics` as {name: [mean, standard error or null]}, rounded to six digits."""
    points_revision: str
    evaluations: list[dict[str, Any]]
    metrics: list[str]
    """Metrics that an axis can show."""
    geometry: dict[str, Any] | None
    geometry_revision: str
    prediction: dict[str, Any] | None
    prediction_revision: str
    policies: list[str]
    iterations: int
    place: dict[str, Any]
    extrapolate: bool
    x: str
    y: str
    budget: float | None
    pins: list[dict[str, Any]]
    reference: int | None
    hidden: list[str]
    height: int
    seq: int


class PilotEvent(Model):
    """Where the user has put everything, once it was let go."""

    place: Place
    budget: Finite | None = None
    """KL in nats per completion; None: no budget."""
    x: str = "kl"
    y: str = "reward"
    hidden: tuple[str, ...] = ()
    """Ids of series that are switched off, and "dominated"."""
    extrapolate: bool = False
    """Whether eta goes to 2."""
    seq: int = 0
    """Number of the event."""


def pilot_data(
    front: FrontDocument,
    *,
    geometry: GeometryDocument | None,
    prediction: Prediction | None,
    num_policies: int,
    iterations: int,
    place: Place,
    policy_names: Sequence[str] = (),
    extrapolate: bool = False,
    x: str = "kl",
    y: str = "reward",
    budget: float | None = None,
    pins: Sequence[PinLike] = (),
    reference: int | None = None,
    hidden: Sequence[str] = (),
) -> PilotData:
    """Return what the component draws. Pure.

    geometry, prediction: of `place.iteration` and per layer; None while they are not known: then the sliders work and
    nothing is predicted. reference: index of a pin, None for the SFT policy. An axis that no point has is drawn empty.
    """
    geometry_json = _geometry_json(geometry)
    prediction_json = None if prediction is None else prediction.model_dump(mode="json")
    names = list(policy_names) or [f"policy {m}" for m in range(1, num_policies + 1)]
    return PilotData(
        points=[_point_json(point) for point in front.points],
        points_revision=front.revision,
        evaluations=[note.model_dump(mode="json") for note in front.evaluations],
        metrics=metric_names(front),
        geometry=geometry_json,
        geometry_revision=_revision(geometry_json),
        prediction=prediction_json,
        prediction_revision=_revision(prediction_json),
        policies=names,
        iterations=iterations,
        place=place.model_dump(mode="json"),
        extrapolate=extrapolate,
        x=x,
        y=y,
        budget=budget,
        pins=[{"place": pin.place.model_dump(mode="json"), "label": pin.name} for pin in pins],
        reference=reference,
        hidden=list(hidden),
        height=0,
        seq=0,
    )


def pilot(
    data: PilotData,
    *,
    key: str,
    height: int = 560,
    on_change: Callable[[PilotEvent], None] | None = None,
) -> PilotEvent | None:
    """Show the pilot. Returns the latest event, None before the first.

    height: pixels, of the two columns; where they do not fit side by side the sliders come below the plot.
    on_change: called with each event before the script (or fragment) runs.

    Raises:
        ValidationError: what the browser sent is no event.
    """
    latest = _latest(key)
    sent: PilotData = {**data, "height": height, "seq": latest.seq if latest else 0}

    def tell() -> None:
        event = _latest(key)
        if event is not None and on_change is not None:
            on_change(event)

    _component()(key=key, data=dict(sent), on_view_change=tell)
    return _latest(key)


def metric_names(front: FrontDocument) -> list[str]:
    """Return the metrics that at least one measured point has: kl, reward, length, diversity, then parts by name."""
    found = {name for point in front.points for name in point.metrics} | {"kl", "reward"}
    return [name for name in _FIRST_METRICS if name in found] + sorted(found.difference(_FIRST_METRICS))


def pilot_script(*names: str) -> str:
    """Return the joined source of the component's scripts, or of those named: what the browser tests evaluate."""
    return "\n".join((_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in names or _SCRIPTS)


@cache
def _component() -> Callable[..., Any]:
    html, css = ((_FOLDER / f"pilot.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    return ordered("warp_pilot", html=html, css=css, js=pilot_script())


def _latest(key: str) -> PilotEvent | None:
    state = st.session_state.get(key)
    value = state.get("view") if state else None
    return None if value is None else PilotEvent.model_validate(value)


def _point_json(point: FrontPoint) -> dict[str, Any]:
    known = point.model_dump(mode="json", exclude_none=True, exclude={"metrics"})
    return known | {"metrics": {name: [_short(m.mean), _short(m.se)] for name, m in point.metrics.items()}}


def _geometry_json(geometry: GeometryDocument | None) -> dict[str, Any] | None:
    fields = {"iteration", "layers", "num_params", "has_sft_column", "gram_LKK"}
    return None if geometry is None else geometry.model_dump(mode="json", include=fields)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _revision(document: dict[str, Any] | None) -> str:
    return hashlib.blake2s(json.dumps(document).encode(), digest_size=8).hexdigest()
