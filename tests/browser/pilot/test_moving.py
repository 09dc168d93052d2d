"""The pilot in a browser: what moves, what is sent, what stays."""

import math
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.pilot.driver import OpenPilot, Pilot
from tests.browser.pilot.scene import Scene
from warp_core.service.protocol import Place

FRAMES = """
() => {
  window.frames_ = [];
  const step = (now) => { window.frames_.push(now); window.loop_ = requestAnimationFrame(step); };
  window.loop_ = requestAnimationFrame(step);
}
"""


def test_a_drag_runs_nothing_and_its_end_runs_the_script_once(open_pilot: OpenPilot):
    pilot = open_pilot("points=100")
    x, y = pilot.grab("eta")
    before, marker = pilot.told(), pilot.marker()
    pilot.page.evaluate(FRAMES)
    for step in range(1, 41):
        pilot.page.mouse.move(x + 2 * step, y)
        pilot.page.wait_for_timeout(8)
    frames = pilot.page.evaluate("() => { cancelAnimationFrame(window.loop_); return window.frames_; }")
    assert pilot.told() == before
    assert math.dist(pilot.marker(), marker) > 40
    assert pilot.state().startswith("predicted")
    gaps = sorted(b - a for a, b in pairwise(frames))
    assert gaps[len(gaps) // 2] < 50, gaps  # 60 a second on a machine that has nothing else to do
    pilot.page.mouse.up()
    told = pilot.wait_event(1)
    assert told["runs"] == before["runs"] + 1
    assert told["seen"]["place"]["eta"] == pytest.approx(float(pilot.slider("eta").input_value()))
    assert told["seen"]["place"]["eta"] > 0.6


def test_what_is_shown_while_dragging_is_what_python_predicts(pilot: Pilot):
    pilot.number("weight of policy 1, as a number").fill("0.5")
    pilot.page.keyboard.press("Enter")
    told = pilot.wait_event(1)
    assert told["seen"]["place"]["weights"] == [0.5, 0.25, 0.25]
    scene, place = Scene(), Place.model_validate(told["seen"]["place"])
    surface = scene.prediction(2)
    c_LK = scene.world.coefficients(place)
    assert surface is not None
    kl = predicted(scene, surface, c_LK, "kl")
    assert pilot.value("KL") == pytest.approx(kl, abs=0.006)
    assert pilot.value("Reward") == pytest.approx(predicted(scene, surface, c_LK, "reward"), abs=0.006)


def predicted(scene: Scene, prediction: Any, c_LK: Any, name: str) -> float:
    """The formula of the prediction document, written out."""

    def d2(other_LK: Any) -> float:
        total = 0.0
        for gram, mine, other in zip(scene.geometry(2).gram_LKK, c_LK, other_LK, strict=True):
            gap = [a - b for a, b in zip(mine, other, strict=True)]
            total += sum(gap[i] * gram[i][j] * gap[j] for i in range(len(gap)) for j in range(len(gap)))
        return total / prediction.scale

    surface, u = prediction.surfaces[name], math.sqrt(d2(prediction.sft_LK))
    trend = sum(beta * u**power for power, beta in enumerate(surface.beta))
    pulls = zip(surface.alpha, prediction.points_PLK, strict=True)
    return trend + sum(alpha * math.exp(-d2(point) / (2 * surface.lengthscale**2)) for alpha, point in pulls)


def test_the_marker_itself_can_be_dragged_along_the_curve(pilot: Pilot):
    x, y = pilot.marker()
    target = pilot.point("i2.slerp.e0.8.sft")
    pilot.page.mouse.move(x, y)
    pilot.page.mouse.down()
    for share in (0.3, 0.6, 1.0):
        pilot.page.mouse.move(x + share * (target[0] - x), y + share * (target[1] - y) + 30)
    pilot.page.wait_for_timeout(60)
    assert pilot.told()["seen"]["seq"] == 0
    pilot.page.mouse.up()
    eta = pilot.wait_event(1)["seen"]["place"]["eta"]
    assert 0.7 < eta < 0.9
    assert float(pilot.slider("eta").input_value()) == pytest.approx(eta)


def test_a_point_keeps_its_weights_to_the_last_digit(open_pilot: OpenPilot):
    pilot = open_pilot("exact")
    pilot.page.mouse.click(*pilot.point("exact"))
    weights = [1 / 7, 2 / 7, 4 / 7]
    assert pilot.wait_event(1)["seen"]["place"]["weights"] == weights
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("ArrowLeft")
    assert pilot.wait_event(2)["seen"]["place"]["weights"] == weights
    pilot.slider("weight of policy 1").focus()
    pilot.page.keyboard.press("ArrowRight")
    mixed = pilot.wait_event(3)["seen"]["place"]["weights"]
    assert mixed == [round(weight, 4) for weight in mixed]
    assert sum(mixed) == pytest.approx(1, abs=1e-9)


def test_keys_move_a_slider_and_send_once_when_they_rest(pilot: Pilot):
    slider = pilot.slider("eta")
    slider.focus()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowRight", "PageDown", "ArrowLeft"):
        pilot.page.keyboard.press(key)
    expect(slider).to_have_attribute("aria-valuetext", "0.44")
    assert pilot.wait_event(1)["seen"]["place"]["eta"] == 0.44
    pilot.page.keyboard.press("End")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 1
    pilot.page.keyboard.press("Home")
    pilot.page.keyboard.press("Tab")  # leaving does not wait
    assert pilot.wait_event(3)["seen"]["place"]["eta"] == 0
    assert pilot.page.locator(".announcement").inner_text().startswith("eta 0.00, measured, n = 128: reward")


def test_a_typed_number_is_taken_and_nonsense_refused(pilot: Pilot):
    field = pilot.number("eta, as a number")
    field.fill("1.5")
    field.press("Enter")
    assert pilot.page.get_by_role("status").inner_text() == "eta takes a number from 0 to 1"
    assert field.get_attribute("aria-invalid") == "true"
    field.fill("a half")
    field.press("Enter")
    assert field.input_value() == "a half"
    assert pilot.told()["seen"]["seq"] == 0
    field.press("Escape")
    assert (field.input_value(), field.get_attribute("aria-invalid")) == ("0.43", None)
    field.fill("0,125")
    field.press("Enter")
    assert pilot.wait_event(1)["seen"]["place"]["eta"] == 0.125
    assert pilot.page.get_by_role("status").inner_text() == ""


def test_weights_add_up_and_a_double_click_makes_them_alike(pilot: Pilot):
    x, y = pilot.grab("weight of policy 2")
    pilot.page.mouse.move(x + 30, y)
    pilot.page.mouse.move(x + 60, y)
    pilot.page.mouse.up()
    weights = pilot.wait_event(1)["seen"]["place"]["weights"]
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert weights[1] > 0.5
    assert weights[0] == pytest.approx(weights[2], abs=2e-4)
    pilot.slider("weight of policy 1").dblclick()
    pilot.wait(lambda told: told["seen"]["place"]["weights"] == [])
    assert pilot.number("weight of policy 2, as a number").input_value() == "0.333"


def test_methods_iterations_and_ends_are_sent(pilot: Pilot):
    for seq, (name, field, value) in enumerate(
        [("LERP", "method", "lerp"), ("init", "towards", "init"), ("1", "iteration", 1)], start=1
    ):
        pilot.page.locator("label", has=pilot.page.get_by_role("radio", name=name, exact=True)).click()
        assert pilot.wait_event(seq)["seen"]["place"][field] == value
        pilot.page.locator(".state.predicted, .state.measured").wait_for()
    assert pilot.page.get_by_role("radio", name="init").is_disabled()  # the init of iteration 1 is the SFT policy


def test_two_policies_have_one_lambda_and_slerp_shares_above_one(open_pilot: OpenPilot):
    pilot = open_pilot("policies=2")
    assert pilot.slider("lambda, share of policy 2").input_value() == "0.5"
    pilot.number("eta, as a number").fill("1")
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    shares = [float(text) for text in pilot.page.locator(".parts b").all_inner_texts()]
    assert shares == pytest.approx([math.sqrt(0.5)] * 2, abs=0.03)
    assert pilot.page.locator(".formula").inner_text().startswith("\u03b8 = 0.00 \u03b8")
    pilot.slider("lambda, share of policy 2").focus()
    pilot.page.keyboard.press("Shift+ArrowRight")
    assert pilot.wait_event(2)["seen"]["place"]["weights"] == [0.4, 0.6]
    pilot.page.locator("label", has=pilot.page.get_by_role("radio", name="LERP", exact=True)).click()
    pilot.wait_event(3)
    assert pilot.page.locator(".parts b").all_inner_texts() == ["0.40", "0.60"]


def test_one_policy_alone_has_no_weights(open_pilot: OpenPilot):
    pilot = open_pilot("policies=1")
    assert pilot.page.get_by_role("slider").count() == 1
    assert pilot.page.locator(".parts li").count() == 1


def test_extrapolation_is_on_demand(pilot: Pilot):
    pilot.button("extrapolate to 2").click()
    assert pilot.wait_event(1)["seen"]["extrapolate"] is True
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("End")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 2
    pilot.button("extrapolate to 2").click()
    told = pilot.wait_event(3)
    assert (told["seen"]["extrapolate"], told["seen"]["place"]["eta"]) == (False, 1)


def test_a_budget_sets_the_largest_eta_within_it(pilot: Pilot):
    pilot.button("KL budget").click()
    first = pilot.wait_event(1)["seen"]
    assert first["budget"] == pytest.approx(pilot.value("KL") + 0.1, abs=0.15)
    assert first["place"]["eta"] == 0.43  # a line at first, which moves nothing
    assert pilot.page.locator(".field.budget .note").inner_text().endswith(" nats left")
    line = pilot.page.locator(".live .budget .grip").bounding_box()
    assert line
    x, y = line["x"] + line["width"] / 2, line["y"] + 150
    pilot.page.mouse.move(x, y)
    pilot.page.mouse.down()
    pilot.page.mouse.move(x + 50, y)
    pilot.page.mouse.move(x + 100, y)
    pilot.page.wait_for_timeout(60)
    assert pilot.told()["seen"]["seq"] == 1
    assert float(pilot.slider("eta").input_value()) > first["place"]["eta"]
    pilot.page.mouse.up()
    second = pilot.wait_event(2)["seen"]
    assert second["budget"] > first["budget"]
    assert pilot.value("KL") <= second["budget"] + 0.1
    pilot.number("KL budget in nats").fill("3")
    pilot.page.keyboard.press("Enter")
    third = pilot.wait_event(3)["seen"]
    assert (third["budget"], pilot.value("KL") <= 3) == (3, True)
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("PageUp")
    pilot.wait_event(4)
    assert "over by" in pilot.page.locator(".field.budget .note").inner_text()
    pilot.page.get_by_label("Horizontal axis").select_option("length")
    pilot.wait_event(5)
    assert not pilot.page.locator(".live .budget").is_visible()
    pilot.button("KL budget").click()
    assert pilot.wait_event(6)["seen"]["budget"] is None


def test_new_points_come_during_a_drag_and_disturb_nothing(open_pilot: OpenPilot):
    pilot = open_pilot("tick=0.25")
    pilot.legend("front").click()
    pilot.wait_event(1)
    field = pilot.number("weight of policy 1, as a number")
    field.fill("0.7")  # not yet entered
    num_points = pilot.page.locator(".points path").count()
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert field.input_value() == "0.7"
    assert field.evaluate("(field) => field.getRootNode().activeElement === field")
    assert pilot.page.locator(".points path").count() > num_points
    field.press("Escape")
    x, y = pilot.grab("eta")
    pilot.page.mouse.move(x + 40, y)
    pilot.page.mouse.move(x + 60, y)
    runs, held = pilot.told()["runs"], pilot.slider("eta").input_value()
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert pilot.slider("eta").input_value() == held
    assert pilot.told()["seen"]["seq"] == 1
    pilot.page.mouse.up()
    pilot.wait_event(2)
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert pilot.slider("eta").input_value() == held
    assert pilot.legend("front").get_attribute("aria-pressed") == "false"


def test_python_can_move_the_sliders(pilot: Pilot):
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("End")
    pilot.wait_event(1)
    pilot.page.get_by_role("button", name="Go to the middle").click()
    pilot.wait(lambda told: told["seen"]["place"]["eta"] == 0.5)
    expect(pilot.number("eta, as a number")).to_have_value("0.50")
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("ArrowRight")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 0.51
