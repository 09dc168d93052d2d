"""A link restores the view; nonsense in it costs a note and nothing else."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.view import MAX_PINS, Pin, View, choose_run
from warp_core.service.documents import RunState, RunSummary
from warp_core.service.places import place_text, same_place
from warp_core.service.protocol import SFT, Place

PLACES = st.builds(
    Place,
    iteration=st.integers(1, 9),
    method=st.sampled_from(["slerp", "lerp"]),
    weights=st.sampled_from([(), (0.5, 0.5), (0.25, 0.75), (1.0, 0.0)]),
    eta=st.sampled_from([0.0, 0.05, 0.3, 1.0, 1.5]),
    towards=st.sampled_from(["sft", "init"]),
)
TEXTS = st.text(max_size=40).filter(lambda text: text == "" or "\x00" not in text)
NAMES = st.text(min_size=1, max_size=40)


@st.composite
def views(draw: st.DrawFn) -> View:
    pins = tuple(draw(st.lists(st.builds(Pin, place=PLACES, label=st.text(max_size=60)), max_size=4)))
    run = draw(st.none() | NAMES)
    loose = {} if run is not None else {"init": draw(NAMES), "policies": tuple(draw(st.lists(NAMES, min_size=1)))[:16]}
    place = draw(PLACES)
    sides = st.sampled_from(["sft", "end", *map(str, range(len(pins)))])
    return View(
        run=run,
        **loose,
        place=place,
        extrapolate=draw(st.booleans()) or place.eta > 1,
        x=draw(st.sampled_from(["kl", "length", "reward:sentiment"])),
        y=draw(st.sampled_from(["reward", "diversity", "reward:a/b"])),
        budget=draw(st.none() | st.sampled_from([0.0, 10.0, 12.5])),
        pins=pins,
        reference=draw(st.none() | st.integers(0, len(pins) - 1)) if pins else None,
        prompt=draw(TEXTS),
        seed=draw(st.integers(0, 2**31 - 1)),
        chat=draw(st.booleans()),
        tokens=draw(st.integers(1, 256)),
        left=draw(sides),
        right=draw(sides),
    )


@given(views())
def test_a_link_restores_the_view(view: View):
    back = View.from_query(view.to_query())
    assert back == view
    assert back.notes == ()
    assert back.to_query() == view.to_query()


PARAMETERS = ["run", "at", "q", "n", "x", "y", "seed", "pin", "ref", "budget", "left", "right", "init", "policy"]


@given(st.dictionaries(st.sampled_from(PARAMETERS), st.lists(st.text(max_size=30), max_size=4)))
def test_no_link_is_an_error(query: dict[str, list[str]]):
    view = View.from_query(query)
    again = View.from_query(view.to_query())
    assert again == view
    assert again.notes == ()


def test_a_readable_link():
    view = View(
        run="demo-run",
        place=Place(iteration=2, eta=0.3),
        pins=(Pin(place=Place(eta=0.5), label="half way"), Pin(place=SFT)),
        budget=10,
        prompt="The film",
        seed=3,
    )
    assert view.to_query() == {
        "run": ["demo-run"],
        "at": ["i2.slerp.e0.3.sft"],
        "pin": ["i1.slerp.e0.5.sft~half way", "i1.slerp.e0.sft"],
        "budget": ["10"],
        "q": ["The film"],
        "seed": ["3"],
    }


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ({"at": "i1.slerp.e7.sft"}, "less than or equal to 2"),
        ({"at": "<script>"}, "is no place"),
        ({"seed": "-1"}, "seed='-1'"),
        ({"seed": "1e3"}, "seed='1e3'"),
        ({"seed": "99999999999"}, "seed="),
        ({"n": "0"}, "n='0'"),
        ({"n": "257"}, "n='257'"),
        ({"budget": "nan"}, "budget='nan'"),
        ({"budget": "-2"}, "budget='-2'"),
        ({"x": "price"}, "x='price'"),
        ({"left": "middle"}, "left='middle'"),
        ({"q": "x" * 5000}, "q="),
        ({"pin": ["nowhere~mine"]}, "is no place"),
    ],
)
def test_nonsense_is_left_out_and_noted(query: dict[str, str | list[str]], note: str):
    view = View.from_query({"run": "r"} | query)
    assert dataclasses.replace(view, notes=()) == View(run="r")
    assert len(view.notes) == 1
    assert note in view.notes[0]
    assert "\n" not in view.notes[0]
    assert len(view.notes[0]) < 250


def test_unknown_parameters_are_nobodys_business():
    assert View.from_query({"utm_source": "x", "embed": "true"}) == View()
    assert View.from_query({"utm_source": "x"}).notes == ()


def test_a_run_goes_before_loose_models():
    view = View.from_query({"run": "r", "init": "a", "policy": ["b", "c"]})
    assert (view.run, view.init, view.policies) == ("r", None, ())
    loose = View.from_query({"init": "a", "policy": ["b", "c"], "base": "d"})
    assert loose.selection.model_dump() == {"run": None, "init": "a", "policies": ("b", "c"), "base": "d"}
    assert loose.has_selection
    assert not View.from_query({"init": "a"}).has_selection


def test_pins_have_a_limit_and_a_reference_must_exist():
    many = {"run": "r", "pin": [place_text(Place(eta=i / 20)) for i in range(20)], "ref": "30"}
    view = View.from_query(many)
    assert len(view.pins) == MAX_PINS
    assert view.reference is None
    assert View.from_query(many | {"ref": "2"}).reference == 2


def test_eta_beyond_one_opens_the_slider():
    assert View.from_query({"run": "r", "at": "i1.slerp.e1.2.sft"}).extrapolate
    assert not View.from_query({"run": "r", "at": "i1.slerp.e1.sft"}).extrapolate


def test_names_of_pins():
    assert Pin(place=SFT).name == "SFT policy"
    assert Pin(place=SFT, label="start").name == "start"


def test_sides():
    view = View(run="r", place=Place(eta=0.2), pins=(Pin(place=Place(eta=0.7)),))
    assert view.side("sft") == SFT
    assert view.side("end") == Place(eta=1)
    assert view.side("0") == Place(eta=0.7)
    assert view.side("5") == SFT


def test_a_view_is_fitted_to_its_selection():
    three = (0.2, 0.3, 0.5)
    view = View(
        run="r",
        place=Place(iteration=4, weights=three, eta=0.4),
        pins=(Pin(place=Place(weights=three)), Pin(place=Place(eta=0.5)), Pin(place=Place(iteration=3))),
        reference=1,
        left="0",
        right="1",
    )
    fitted = view.fitted(num_policies=2, iterations=2)
    assert fitted.place == Place(iteration=2, eta=0.4)
    assert [pin.place for pin in fitted.pins] == [Place(eta=0.5)]
    assert (fitted.reference, fitted.left, fitted.right) == (0, "sft", "0")
    assert [note.split(" is left out")[0] for note in fitted.notes] == ["The position", "Pin 1", "Pin 3"]
    assert "3 weights for 2 policies" in fitted.notes[0]
    assert view.fitted(num_policies=3, iterations=4) is view
    gone = dataclasses.replace(view, reference=0).fitted(num_policies=2, iterations=2)
    assert gone.reference is None


def summary(name: str, *, finished: int = 1, bundled: bool = False) -> RunSummary:
    return RunSummary(
        name=name,
        state=RunState.FINISHED,
        model="m",
        policies=2,
        iterations=2,
        finished_iterations=finished,
        progress=1,
        is_bundled=bundled,
    )


def test_the_run_to_open(monkeypatch: pytest.MonkeyPatch):
    young, old, bundled = summary("young", finished=0), summary("old"), summary("bundled", bundled=True)
    monkeypatch.delenv("WARP_APP_RUN", raising=False)
    assert choose_run([young, old, bundled]) == "bundled"
    assert choose_run([young, old]) == "old"
    assert choose_run([young]) == "young"
    assert choose_run([]) is None
    monkeypatch.setenv("WARP_APP_RUN", "young")
    assert choose_run([young, old, bundled]) == "young"
    monkeypatch.setenv("WARP_APP_RUN", "gone")
    assert choose_run([young, old, bundled]) == "bundled"


def address_script() -> None:
    import streamlit as st

    from app.view import current_view, follow_address, keep_address, set_view

    follow_address()
    if st.button("next"):
        set_view(seed=current_view().seed + 1)
    keep_address()
    st.text(f"seed {current_view().seed}")


def asked(page: AppTest, name: str) -> list[str]:
    value = page.query_params[name]
    return value if isinstance(value, list) else [value]


def seed_of(page: AppTest) -> str:
    assert not page.exception
    return page.text[0].value


def test_the_address_follows_the_view_and_the_view_the_back_button(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("app.view.time.monotonic", lambda: now[0])
    page = AppTest.from_function(address_script)
    page.query_params["run"] = "demo-run"
    page.query_params["seed"] = "4"
    assert seed_of(page.run()) == "seed 4"
    page.button[0].click().run()
    assert asked(page, "seed") == ["5"]
    now[0] += 60
    page.query_params["seed"] = "4"  # as Back does
    assert seed_of(page.run()) == "seed 4"
    assert asked(page, "seed") == ["4"]
    page.button[0].click().run()
    now[0] += 0.2
    page.query_params["seed"] = "4"  # the browser had not heard of the change when it asked for this run
    assert seed_of(page.run()) == "seed 5"
    assert asked(page, "seed") == ["5"]


def test_a_page_switch_clears_the_address_and_it_comes_back():
    page = AppTest.from_function(address_script)
    page.query_params["run"] = "demo-run"
    page.query_params["at"] = "i2.lerp.e0.8.init"
    page.run()
    page.query_params.clear()
    page.run()
    assert asked(page, "run") == ["demo-run"]
    assert same_place(page.session_state["view"].place, Place(iteration=2, method="lerp", eta=0.8, towards="init"))
