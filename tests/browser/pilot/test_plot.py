"""The pilot's plot in a browser: points, axes, switches, looks."""

import math
import re

import pytest

from tests.browser.pilot.driver import OpenPilot, Pilot


def test_a_click_on_a_point_takes_its_place(pilot: Pilot):
    x, y = pilot.point("i1.slerp.e0.8.sft")
    pilot.page.mouse.click(x + 3, y - 2)
    told = pilot.wait_event(1)
    place = {"iteration": 1, "method": "slerp", "weights": [], "eta": 0.8, "towards": "sft"}
    assert told["seen"]["place"] == place
    assert pilot.state() == "measured, n = 128"
    assert math.dist(pilot.marker(), (x, y)) < 1
    assert pilot.page.get_by_role("radio", name="1").is_checked()
    pilot.page.mouse.click(x - 1, y)  # there already: nothing to tell
    pilot.page.mouse.click(*pilot.point("i2.p3"))
    told = pilot.wait_event(2)
    assert told["seen"]["place"]["weights"] == [0, 0, 1]
    assert pilot.slider("weight of policy 3").input_value() == "1"
    pilot.page.mouse.click(*pilot.point("sft"))
    told = pilot.wait_event(3)  # the other sliders stay: every place with eta 0 is the SFT policy
    assert told["seen"]["place"] | {"towards": ""} == {
        "iteration": 2,
        "method": "lerp",
        "weights": [0, 0, 1],
        "eta": 0,
        "towards": "",
    }


def test_pins_can_be_clicked_even_where_nothing_was_measured(pilot: Pilot):
    ring = pilot.page.locator(".pins circle").nth(2).bounding_box()
    assert ring
    pilot.page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    place = pilot.wait_event(1)["seen"]["place"]
    assert (place["eta"], place["weights"]) == (0.66, [0.8, 0.1, 0.1])
    assert pilot.state().startswith("predicted")


def test_points_can_be_reached_and_chosen_by_keys(pilot: Pilot):
    stop = pilot.page.locator(".points [tabindex='0']")
    assert stop.count() == 1
    stop.focus()
    pilot.page.keyboard.press("Home")
    focused = pilot.page.locator(".points path:focus")
    assert focused.get_attribute("data-key") == "sft"
    assert (focused.get_attribute("aria-label") or "").startswith("SFT policy, reward")
    pilot.page.keyboard.press("ArrowRight")
    key = focused.get_attribute("data-key")
    assert key != "sft"
    assert pilot.page.locator(".tip.shown strong").inner_text() != "SFT policy"
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    assert focused.get_attribute("data-key") == key


def test_axes_can_be_other_metrics(pilot: Pilot):
    options = pilot.page.get_by_label("Vertical axis").locator("option").all_inner_texts()
    assert options[:2] == ["KL to the SFT policy (nats per completion)", "reward"]
    assert "reward: sentiment" in options
    pilot.page.get_by_label("Vertical axis").select_option("diversity")
    assert pilot.wait_event(1)["seen"]["y"] == "diversity"
    assert 0.7 < pilot.value("Diversity") < 0.95
    assert pilot.page.locator(".front-line").first.get_attribute("d") == ""
    pilot.page.get_by_label("Vertical axis").select_option("reward:length")  # not predicted
    pilot.wait_event(2)
    assert not pilot.page.locator(".live .marker").is_visible()


def test_series_are_switched_off_and_stay_off(pilot: Pilot):
    num_points = pilot.page.locator(".points path").count()
    pilot.legend("i1.slerp").click()
    assert pilot.wait_event(1)["seen"]["hidden"] == ["i1.slerp"]
    assert pilot.legend("i1.slerp").get_attribute("aria-pressed") == "false"
    assert pilot.page.locator(".points path").count() == num_points - 5
    pilot.button("Hide dominated").click()
    assert pilot.wait_event(2)["seen"]["hidden"] == ["i1.slerp", "dominated"]
    assert pilot.page.locator(".points .dominated").count() == 0
    pilot.legend("predicted").click()
    pilot.wait_event(3)
    assert pilot.page.locator(".live .predicted").get_attribute("d") == ""
    pilot.legend("i1.slerp").click()
    assert pilot.wait_event(4)["seen"]["hidden"] == ["dominated", "predicted"]


def test_hovering_tells_what_a_point_and_the_curve_are(pilot: Pilot):
    tip = pilot.page.locator(".tip.shown")
    pilot.page.mouse.move(*pilot.point("i1.slerp.e1.sft"))
    assert tip.locator("strong").inner_text() == "SLERP, eta 1"
    assert re.fullmatch(r"reward \d\.\d\d \u00b1 0\.\d\d", tip.locator("span").first.inner_text())
    assert "n = 128" in tip.inner_text()
    path = pilot.page.locator(".live .predicted")
    x, y = path.evaluate(
        "(path) => { const at = path.getPointAtLength(0.65 * path.getTotalLength()); return [at.x, at.y]; }"
    )
    corner = pilot.page.locator(".canvas").bounding_box()
    assert corner
    pilot.page.mouse.move(corner["x"] + x, corner["y"] + y)
    assert tip.locator("strong").inner_text().startswith("predicted at eta 0.")
    pilot.page.mouse.move(5, 5)
    tip.wait_for(state="detached")


def test_a_box_zooms_and_stays_until_it_is_reset(open_pilot: OpenPilot):
    pilot = open_pilot("tick=0.4")
    ticks = pilot.page.locator(".grid text.y")
    whole = ticks.all_inner_texts()
    box = pilot.page.locator(".canvas").bounding_box()
    assert box
    pilot.page.mouse.move(box["x"] + 300, box["y"] + 330)
    pilot.page.mouse.down()
    pilot.page.mouse.move(box["x"] + 400, box["y"] + 300)
    pilot.page.mouse.move(box["x"] + 500, box["y"] + 150)
    pilot.page.mouse.up()
    pilot.button("Reset zoom").wait_for()
    zoomed = ticks.all_inner_texts()
    assert zoomed != whole
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 1)
    assert ticks.all_inner_texts() == zoomed
    assert pilot.told()["seen"]["seq"] == 0
    pilot.button("Reset zoom").click()
    pilot.button("Reset zoom").wait_for(state="hidden")


def test_without_geometry_the_sliders_work_and_nothing_is_predicted(open_pilot: OpenPilot):
    pilot = open_pilot("blind")
    assert pilot.state() == "No prediction yet: the geometry is being computed"
    assert not pilot.page.locator(".live .marker").is_visible()
    pilot.number("eta, as a number").fill("0.8")
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    assert pilot.state() == "measured, n = 128"
    assert pilot.page.locator(".live .marker").is_visible()


def test_with_nothing_measured_the_plot_says_what_to_do(open_pilot: OpenPilot):
    pilot = open_pilot("empty")
    assert pilot.page.locator(".empty").inner_text() == "Nothing measured yet: Measure puts the first point here."
    assert pilot.state() == "No prediction yet: it needs four measured points"
    assert pilot.page.locator(".grid text").count() == 0


def test_names_are_never_markup(open_pilot: OpenPilot):
    pilot = open_pilot("hostile")
    assert pilot.page.locator(".pilot img, .pilot b:not(.parts b)").count() == 0
    assert "<img" in (pilot.page.locator(".pins").text_content() or "")
    assert "<img" in pilot.page.locator(".parts").inner_text()


@pytest.mark.parametrize("size", [(1440, 800), (760, 1300)])
def test_nothing_jumps(pilot: Pilot, size: tuple[int, int]):
    pilot.page.set_viewport_size({"width": size[0], "height": size[1]})
    pilot.page.wait_for_timeout(200)
    place = pilot.page.locator(".pilot")
    before = place.bounding_box()
    plot, controls = (pilot.page.locator(name).bounding_box() for name in (".plot", ".controls"))
    assert plot
    assert controls
    assert (controls["x"] > plot["x"] + 300) == (size[0] > 900)
    pilot.button("KL budget").click()
    pilot.wait_event(1)
    pilot.number("eta, as a number").fill("7")
    pilot.page.keyboard.press("Enter")
    pilot.button("Hide dominated").click()
    pilot.wait_event(2)
    assert place.bounding_box() == before


def test_it_follows_the_theme(pilot: Pilot):
    pilot.legend("i1.lerp").click()
    pilot.wait_event(1)
    light = ring_and_text(pilot)
    pilot.page.emulate_media(color_scheme="dark")
    pilot.page.wait_for_function("() => matchMedia('(prefers-color-scheme: dark)').matches")
    pilot.page.wait_for_timeout(300)
    dark = ring_and_text(pilot)
    assert light[1] < 200 < 550 < dark[1]
    assert [ring for ring, _ in (light, dark)] == pytest.approx([text for _, text in (light, dark)], abs=3)
    assert pilot.legend("i1.lerp").get_attribute("aria-pressed") == "false"


def ring_and_text(pilot: Pilot) -> tuple[float, float]:
    """Brightness of the marker and of the text."""
    script = "(node, name) => getComputedStyle(node)[name].match(/[0-9.]+/g).slice(0, 3).map(Number)"
    ring = sum(pilot.page.locator(".live .ring").evaluate(script, "stroke"))
    return ring, sum(pilot.page.locator(".pilot .columns").evaluate(script, "color"))


def test_circles_are_round(pilot: Pilot):
    circle = pilot.page.locator(".live .ring").bounding_box()
    assert circle
    assert circle["width"] == pytest.approx(circle["height"], abs=0.01)
