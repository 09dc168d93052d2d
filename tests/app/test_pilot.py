"""What the pilot is given and what it gives back, without a browser."""

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError
from streamlit.testing.v1 import AppTest

from app.components import pilot as module
from app.components.pilot import PilotEvent, metric_names, pilot_data, pilot_script
from app.view import Pin
from tests.browser.pilot.scene import Scene
from warp_core.service.documents import FrontDocument, FrontPoint, Metric
from warp_core.service.protocol import SFT, Place

PLACE = Place(iteration=2, eta=0.43)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def data_of(scene: Scene, **changes: Any) -> dict[str, Any]:
    iteration = changes.get("place", PLACE).iteration
    fields: dict[str, Any] = {
        "geometry": scene.geometry(iteration),
        "prediction": scene.prediction(iteration),
        "num_policies": scene.policies,
        "iterations": scene.iterations,
        "place": PLACE,
    }
    return dict(pilot_data(scene.front(), **fields | changes))


def test_everything_is_json_and_small(scene: Scene):
    text = json.dumps(data_of(scene), allow_nan=False)
    assert json.loads(text) == data_of(scene)
    assert len(text) < 150_000


def test_points_keep_what_is_drawn_and_drop_what_is_not_known(scene: Scene):
    points = {point["key"]: point for point in data_of(scene)["points"]}
    assert len(points) == len(scene.found)
    sft = points["sft"]
    assert sft["metrics"]["kl"] == [0.0, 0.0]
    assert sft["place"] == SFT.model_dump(mode="json")
    assert "policy" not in sft
    moment = points["i1.p2.s20"]
    assert (moment["kind"], moment["step"], moment["policy"]) == ("training", 20, 2)
    assert "place" not in moment


def test_measured_numbers_are_sent_with_six_digits():
    metrics = {"reward": Metric(mean=1.23456789, se=None), "kl": Metric(mean=1e-9, se=0.000123456789)}
    point = FrontPoint(key="a", kind="merge", label="a", evaluation="e", metrics=metrics)
    front = FrontDocument(revision="1", points=(point,), evaluations=())
    data = pilot_data(front, geometry=None, prediction=None, num_policies=1, iterations=1, place=SFT)
    assert data["points"][0]["metrics"] == {"reward": [1.23457, None], "kl": [1e-9, 0.000123457]}
    assert (data["geometry"], data["prediction"], data["policies"]) == (None, None, ["policy 1"])


def test_geometry_and_prediction_are_sent_exactly(scene: Scene):
    data, prediction = data_of(scene), scene.prediction(2)
    assert prediction is not None
    assert data["geometry"] == {
        "iteration": 2,
        "layers": list(scene.geometry(2).layers),
        "num_params": list(scene.geometry(2).num_params),
        "has_sft_column": True,
        "gram_LKK": json.loads(scene.geometry(2).model_dump_json())["gram_LKK"],
    }
    assert data["prediction"] == json.loads(prediction.model_dump_json())


def test_a_revision_changes_with_its_part_alone(scene: Scene):
    now, later = data_of(scene), data_of(scene, place=Place(iteration=2, eta=0.9), budget=3.0)
    revisions = [key for key in now if key.endswith("_revision")]
    assert [now[key] for key in revisions] == [later[key] for key in revisions]
    other = data_of(scene, place=Place(iteration=1, eta=0.9))
    assert other["points_revision"] == now["points_revision"]
    assert other["geometry_revision"] != now["geometry_revision"]
    assert other["prediction_revision"] != now["prediction_revision"]
    assert data_of(scene, geometry=None)["geometry_revision"] != now["geometry_revision"]


def test_pins_names_and_switches_are_passed_on(scene: Scene):
    pins = (Pin(place=PLACE, label="mine"), Pin(place=SFT))
    data = data_of(scene, pins=pins, reference=1, policy_names=("a", "b", "c"), hidden=("i1.slerp",), y="length")
    assert [pin["label"] for pin in data["pins"]] == ["mine", "SFT policy"]
    assert data["pins"][0]["place"]["eta"] == 0.43
    assert (data["reference"], data["policies"], data["hidden"]) == (1, ["a", "b", "c"], ["i1.slerp"])
    assert (data["x"], data["y"]) == ("kl", "length")


def test_axes_are_the_metrics_that_were_measured(scene: Scene):
    assert metric_names(scene.front()) == ["kl", "reward", "length", "diversity", "reward:length", "reward:sentiment"]
    assert metric_names(FrontDocument(revision="", points=(), evaluations=())) == ["kl", "reward"]


@pytest.mark.parametrize(
    "value",
    [
        {"place": {"eta": 3}},
        {"place": {"eta": 0.5, "method": "blend"}},
        {"place": {"eta": 0.5}, "budget": float("nan")},
        {"place": {"eta": 0.5}, "more": 1},
        {"seq": 1},
    ],
)
def test_an_event_is_checked(value: dict[str, Any]):
    with pytest.raises(ValidationError):
        PilotEvent.model_validate(value)


def test_scripts_are_joined_into_one_module_without_markup_or_addresses():
    script = pilot_script()
    assert script.isascii()
    assert len(re.findall(r"^export ", script, flags=re.MULTILINE)) == 1
    assert "import " not in script
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch("):
        assert forbidden not in script
    assert re.findall(r"https?://[^\s\"]+", script) == ["http://www.w3.org/2000/svg"]
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, flags=re.MULTILINE)
    assert len(names) == len(set(names))  # top level names are shared
    assert pilot_script("maths").startswith("// From a position")


def test_every_file_of_the_folder_is_used_and_no_longer_than_is_readable():
    folder = module._FOLDER
    scripts = {path.stem for path in folder.glob("*.js")}
    assert {"../axes", *scripts} == set(module._SCRIPTS)
    for path in folder.iterdir():
        lines = path.read_text(encoding="ascii").splitlines()
        assert len(lines) < 500, path
        assert max(map(len, lines)) <= 120, path


def page() -> None:
    """A page with the pilot, as a script."""
    import streamlit as st

    from app.components.pilot import pilot, pilot_data
    from tests.browser.pilot.scene import Scene
    from warp_core.service.protocol import Place

    def keep(event: object) -> None:
        st.session_state.kept = event

    data = pilot_data(
        Scene(policies=2).front(), geometry=None, prediction=None, num_policies=2, iterations=2, place=Place(eta=0.5)
    )
    event = pilot(data, key="pilot", height=510, on_change=keep)
    st.text("none" if event is None else f"{event.seq}: {event.place.eta}")


def component(app: AppTest) -> dict[str, Any]:
    """What the component on the page was given."""
    protos = [element.proto for element in app.main if element.type == "bidi_component"]
    return dict(json.loads(protos[0].json))


def test_the_component_is_mounted_with_its_height_and_no_event_yet():
    app = AppTest.from_function(page).run()
    assert not app.exception
    assert app.text[0].value == "none"
    given = component(app)
    assert (given["height"], given["seq"], given["place"]["eta"]) == (510, 0, 0.5)


def test_the_number_of_the_latest_event_is_sent_back():
    app = AppTest.from_function(page)
    app.session_state["pilot"] = {"view": {"place": {"eta": 0.7}, "seq": 4}}
    app.run()
    assert not app.exception
    assert app.text[0].value == "4: 0.7"
    assert component(app)["seq"] == 4
