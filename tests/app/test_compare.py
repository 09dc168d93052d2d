"""The Compare page with a made-up engine: choosing and measuring models, the table of completions."""

import pytest

from app.view import Pin, View
from tests.app.compare_page import FULL, HALF, RUN, UNMEASURED, chips, component, frame, pinned, shown, texts
from tests.app.conftest import OpenPage
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import Place

# Models


def test_without_a_selection_it_says_what_to_do(open_page: OpenPage):
    page = open_page("compare", view=View())
    assert not page.exception
    assert "Choose a run or checkpoints in Explore, or train a run." in texts(page)


def test_without_pins_it_offers_every_measured_point(open_page: OpenPage):
    page = open_page("compare")
    assert any("Pin a position in Explore" in text for text in texts(page))
    assert list(frame(page, "Model")["Model"]) == ["A: SFT policy"]
    choice = page.multiselect(key="compare_models")
    assert "SLERP, eta 0.5" in choice.options
    assert "policy 2" in choice.options
    assert "SFT policy" not in choice.options
    assert not page.tabs
    choice.set_value(["i1.slerp.e0.5.sft", "i1.lerp.w0-1-0.e1.init"]).run()
    assert [pin.place.eta for pin in page.session_state["view"].pins] == [0.5, 1.0]
    assert list(frame(page, "Model")["Model"]) == ["A: SFT policy", "B: SLERP, eta 0.5", "C: policy 2"]
    assert page.query_params["pin"] == ["i1.slerp.e0.5.sft", "i1.lerp.w0-1-0.e1.init"]


def test_taking_a_model_out_moves_what_refers_to_the_others(open_page: OpenPage):
    view = pinned(HALF, FULL, Place(eta=0.3), reference=2, left="1", right="0")
    page = open_page("compare", view=view)
    page.multiselect(key="compare_models").set_value(["i1.slerp.e1.sft", "i1.slerp.e0.3.sft"]).run()
    now: View = page.session_state["view"]
    assert [pin.place.eta for pin in now.pins] == [1.0, 0.3]
    assert (now.reference, now.left, now.right) == (1, "0", "end")
    page.multiselect(key="compare_models").set_value([]).run()
    assert (page.session_state["view"].pins, page.session_state["view"].reference) == ((), None)


def test_pins_of_one_name_and_of_one_place(open_page: OpenPage):
    pins = (Pin(place=HALF, label="x"), Pin(place=FULL, label="x"), Pin(place=HALF, label="again"))
    page = open_page("compare", view=View(run="demo-run", pins=pins))
    assert not page.exception
    assert list(frame(page, "Model")["Model"]) == [
        "A: SFT policy",
        "B: x (SLERP, eta 0.5)",
        "C: x (SLERP, eta 1)",
    ]


def test_a_model_that_was_not_measured_is_measured_here(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(HALF, UNMEASURED))
    assert "C: SLERP, eta 0.42 has not been measured with these prompts yet." in texts(page)
    assert list(frame(page, "Model")["Completions"]) == ["128", "128", "not measured yet"]
    assert "A: SFT policy" in frame(page, "Reward gain").columns
    page.button(key="compare_measure_C").click().run()
    assert "Measure SLERP, eta 0.42" in texts(page)
    assert "compare_measure_C" not in [button.key for button in page.button]
    fake.advance(20)
    page.run()
    assert list(frame(page, "Model")["Completions"]) == ["128", "128", "128"]
    assert "Reward C" in frame(page, "Reward gain").columns
    assert not page.exception


def test_several_are_measured_one_after_the_other_and_can_be_cancelled(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(UNMEASURED, Place(eta=0.43)))
    page.button(key="compare_measure_all").click().run()
    assert len(fake.jobs()) == 2
    second = next(button for button in page.button if button.label == "Cancel" and "job-2" in str(button.key))
    second.click().run()
    fake.advance(20)
    page.run()
    page.run()
    assert list(frame(page, "Model")["Completions"]) == ["128", "128", "not measured yet"]
    assert "compare_measure_C" in [button.key for button in page.button]


def test_a_measurement_that_fails_says_why_and_can_be_tried_again(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(HALF, Place(eta=1.99)))
    page.button(key="compare_measure_C").click().run()
    fake.advance(3)
    page.run()
    page.run()
    assert any("the task vectors are opposite" in text for text in texts(page))
    page.button(key="compare_measure_C").click().run()
    assert not any("the task vectors are opposite" in text for text in texts(page))


def test_a_measurement_that_the_engine_has_forgotten_can_be_asked_for_again(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF, UNMEASURED), compare_jobs={"i1.slerp.e0.42.sft": "lost"})
    assert "compare_measure_C" in [button.key for button in page.button]
    assert page.session_state["compare_jobs"] == {}


def test_with_nothing_measured_every_section_says_so(open_page: OpenPage):
    view = View(init="a", policies=("b", "c"), pins=(Pin(place=HALF),))
    for section in ("Completions", "Vote"):
        page = open_page("compare", view=view, compare_section=section)
        assert "Measure at least two of the models above." in texts(page)
        assert {"compare_measure_A", "compare_measure_B", "compare_measure_all"} <= {b.key for b in page.button}
    page = open_page("compare", view=view, compare_section="Preferences")
    assert any(text.startswith("Measure at least two of the models, and") for text in texts(page))
    assert not page.exception


def test_points_of_another_evaluation_are_compared_among_themselves(open_page: OpenPage, fake: FakeEngine):
    from warp_core.service.protocol import MeasureRequest

    fake.submit(MeasureRequest(session="x", selection=RUN, places=(HALF,), num_prompts=8))
    fake.advance(20)
    page = open_page("compare", view=pinned(HALF, FULL))
    assert "Reward B" in frame(page, "Reward gain").columns
    page.selectbox(key="compare_evaluation").set_value("8 prompts x 2").run()
    assert list(frame(page, "Model")["Completions"]) == ["not measured yet", "128", "not measured yet"]
    assert any("can only be measured anew as the run is configured" in text for text in texts(page))
    assert "compare_measure_A" not in [button.key for button in page.button]


# Completions


def test_the_two_models_stand_first_with_their_numbers(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(HALF, FULL))
    table = frame(page, "Reward gain")
    assert shown(page) == "32 of 32 shown"
    assert list(table.columns[:6]) == ["#", "Prompt", "A: SFT policy", "B: SLERP, eta 0.5", "Reward gain", "Vote"]
    rows = {key: fake.samples(RUN, key) for key in ("sft", "i1.slerp.e0.5.sft")}
    assert list(table["B: SLERP, eta 0.5"]) == [row.completion.strip() for row in rows["i1.slerp.e0.5.sft"]]
    gains = [b.reward - a.reward for a, b in zip(rows["sft"], rows["i1.slerp.e0.5.sft"], strict=True)]
    assert list(table["Reward gain"]) == gains
    assert {"KL C", "Length C", "C: SLERP, eta 1"} <= set(table.columns)


def test_the_reference_of_the_view_is_the_reference_here(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF, FULL, reference=1))
    assert page.selectbox(key="compare_reference").value == "C"
    assert page.selectbox(key="compare_model").value == "A"
    page.selectbox(key="compare_reference").set_value("A").run()
    assert page.selectbox(key="compare_model").value == "B"
    assert not page.exception


def test_chips_text_slice_and_order_choose_the_rows(open_page: OpenPage):
    page = open_page("compare", view=pinned(Place(eta=0.1)))
    gains = frame(page, "Reward gain")["Reward gain"]
    higher, lower = int((gains > 0).sum()), int((gains < 0).sum())
    assert 0 < lower < 32
    assert shown(chips(page, "Reward lower")) == f"{lower} of 32 shown"
    assert shown(chips(page, "Reward lower", "Reward higher")) == f"{higher + lower} of 32 shown"
    chips(page)
    page.text_input(key="compare_text").set_value("CLOCKMAKER").run()
    assert shown(page) == "2 of 32 shown"
    chips(page, "Longer")
    assert shown(page) == "0 of 32 shown"
    assert any("Take a chip off" in text for text in texts(page))
    chips(page)
    page.text_input(key="compare_text").set_value("").run()
    page.selectbox(key="compare_slice").set_value("Reference reward: low").run()
    some = frame(page, "Reward gain")
    page.selectbox(key="compare_slice").set_value("All rows").run()
    assert 8 <= len(some) <= 13
    assert some["Reward A"].max() < frame(page, "Reward gain")["Reward A"].quantile(0.45)
    page.selectbox(key="compare_sort").set_value("Reward difference, largest first").run()
    assert frame(page, "Reward gain")["Reward gain"].is_monotonic_decreasing


def test_slices_are_summed_up(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF))
    table = frame(page, "Slice")
    assert list(table["Slice"][:2]) == ["All rows", "Reference reward: low"]
    assert table["Rows"][0] == 32
    everything = frame(page, "Reward gain")["Reward gain"]
    assert table["Reward difference"][0] == pytest.approx(everything.mean())
    assert table["Reward higher"][0] == pytest.approx(100 * (everything > 0).mean())


def test_a_row_is_read_in_full_and_the_next_one_by_key(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(HALF, FULL), compare_row=3)
    assert "Row 4, completion 2 of its prompt" in texts(page)
    left, right = component(page)["panes"]
    assert (left["title"], right["title"]) == ("A: SFT policy", "B: SLERP, eta 0.5")
    row = fake.samples(RUN, "i1.slerp.e0.5.sft")[3]
    assert right["completions"][0]["text"] == row.completion.strip()
    assert ["tokens", "20"] in right["completions"][0]["facts"]
    assert component(page)["show_differences"] is True
    page.button(key="compare_next").click().run()
    assert "Row 5, completion 1 of its prompt" in texts(page)
    page.button(key="compare_previous").click().run()
    page.button(key="compare_previous").click().run()
    assert "Row 3, completion 1 of its prompt" in texts(page)
    page.text_input(key="compare_text").set_value("vineyard").run()
    assert "Row 5, completion 1 of its prompt" in texts(page)
    assert page.button(key="compare_previous").disabled
    assert not page.button(key="compare_next").disabled


def test_a_click_in_the_table_chooses_the_row_whatever_its_order(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF))
    page.selectbox(key="compare_sort").set_value("Reward difference, smallest first").run()
    number = int(frame(page, "Reward gain")["#"][5])
    page.session_state["compare_row"] = number - 1  # what the callback of a click remembers
    page.run()
    assert any(text.startswith(f"Row {number},") for text in texts(page))
    assert page.session_state["compare_table"]["selection"]["rows"] == [5]


def test_completions_come_as_a_file(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF))
    (button,) = page.get("download_button")
    assert button.label == "CSV"
