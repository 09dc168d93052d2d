"""The pins: a table that moves the sliders, names, removal, CSV."""

import pytest
from streamlit.testing.v1 import AppTest

from app.view import MAX_PINS, Pin, View
from tests.app.conftest import OpenPage
from tests.app.explore_tools import choose_row, data_of, element, field, has, release, view_of, words_of
from warp_core.service import protocol as p
from warp_core.service.fake import FakeEngine

MILD, STRONG = p.Place(eta=0.3), p.Place(iteration=2, method="lerp", eta=0.9)
PINS = (Pin(place=MILD, label="mild"), Pin(place=STRONG))


@pytest.fixture
def page(open_page: OpenPage, fake: FakeEngine) -> AppTest:
    """The page with two pins."""
    opened = open_page("explore", view=View(run="demo-run", place=p.Place(eta=0.6), pins=PINS))
    fake.advance(60)
    return opened.run()


def key_of(page: AppTest) -> str:
    """The key of the pins' table."""
    return next(one.key for one in page.dataframe if one.key)


def table_of(page: AppTest):
    return element(page, key_of(page)).value


def choose(page: AppTest, row: int) -> AppTest:
    return choose_row(page, key_of(page), row)


def test_without_pins_the_page_says_what_they_are_for(open_page):
    page = open_page("explore")
    assert "No pins yet" in words_of(page)
    assert page.download_button(key="pins-csv").disabled
    assert not page.download_button(key="points-csv").disabled


def test_the_table_has_metrics_and_differences(page):
    table = table_of(page)
    assert list(table["Name"]) == ["mild", "LERP, eta 0.9 to SFT, iteration 2"]
    assert list(table["State"]) == ["measured", "not measured"]
    assert table["Reward"][0].count("\u00b1") == 1
    assert table["Reward vs SFT policy"][0].startswith("+")


def test_unmeasured_pins_of_the_iteration_looked_at_are_predicted(page):
    release(page, STRONG.model_copy(update={"eta": 0.5}))
    assert list(table_of(page)["State"]) == ["measured", "predicted"]
    assert table_of(page)["KL"][1].startswith("\u2248")


def test_choosing_a_row_moves_the_sliders_and_previews(page, fake):
    choose(page, 1)
    assert view_of(page).place == STRONG
    assert data_of(page, "pilot")["place"]["iteration"] == 2
    latest = next(job for job in fake._queue.newest_first(None) if job.request.kind == "preview")
    assert latest.request.panes[1].place == STRONG


def test_the_chosen_pin_can_be_renamed(page):
    choose(page, 1)
    field(page.text_input, "pin-name-1").set_value("  bold ~ one ").run()
    assert view_of(page).pins[1].label == "bold one"
    assert View.from_query(page.query_params).pins[1].label == "bold one"
    field(page.text_input, "pin-name-1").set_value("").run()
    assert view_of(page).pins[1].name == "LERP, eta 0.9 to SFT, iteration 2"


def test_removal_moves_panes_and_reference_along(open_page, fake):
    view = View(run="demo-run", place=MILD, pins=PINS, reference=1, left="0", right="1")
    page = open_page("explore", view=view)
    assert has(page, "pin-tools")
    page.button(key="pin-remove").click().run()
    now = view_of(page)
    assert (now.pins, now.reference, now.left, now.right) == (PINS[1:], 0, "sft", "0")
    assert not page.exception


def test_removal_of_the_reference_goes_back_to_the_sft_policy(open_page):
    page = open_page("explore", view=View(run="demo-run", place=MILD, pins=PINS, reference=0))
    page.button(key="pin-remove").click().run()
    assert view_of(page).reference is None
    assert data_of(page, "position-metrics")["metrics"]["reference"] == "SFT policy"


def test_reference_and_panes_from_the_table(page):
    choose(page, 0)
    page.button(key="pin-reference").click().run()
    assert view_of(page).reference == 0
    assert list(table_of(page)["State"]) == ["measured, reference", "not measured"]
    assert "Reward vs mild" in table_of(page)
    page.button(key="pin-reference").click().run()
    assert view_of(page).reference is None
    page.button(key="pin-left").click().run()
    page.button(key="pin-right").click().run()
    assert (view_of(page).left, view_of(page).right) == ("0", "0")
    assert page.button(key="pin-left").disabled


def test_pinning_what_is_pinned_changes_nothing(page):
    release(page, MILD)
    assert page.button(key="pin").label == "Pinned"
    assert page.button(key="pin").disabled
    page.button(key="make-reference").click().run()
    assert (len(view_of(page).pins), view_of(page).reference) == (2, 0)


def test_there_is_room_for_so_many_pins(open_page):
    pins = tuple(Pin(place=p.Place(eta=index / 20)) for index in range(1, MAX_PINS + 1))
    page = open_page("explore", view=View(run="demo-run", place=p.Place(eta=0.99), pins=pins))
    assert len(view_of(page).pins) == MAX_PINS
    assert page.button(key="pin").disabled
    assert page.button(key="make-reference").disabled
    choose(page, 0)
    page.button(key="pin-remove").click().run()
    assert not page.button(key="pin").disabled


def test_a_hostile_label_stays_text(open_page):
    label = "![x](http://evil.example/a.png) <b>x</b>"
    page = open_page(
        "explore", view=View(run="demo-run", place=MILD, pins=(Pin(place=MILD, label=label),), reference=0)
    )
    assert not page.exception
    assert list(table_of(page)["Name"]) == [label]
    assert data_of(page, "position-metrics")["metrics"]["reference"] == label
    assert not any(label in str(one.value) for one in page.markdown)
    assert not any(label in button.label for button in page.button)
