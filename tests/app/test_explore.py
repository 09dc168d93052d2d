"""The explore page with the made-up engine: selection, sliders, card, side by side."""

import time

import pytest
from streamlit.testing.v1 import AppTest

from app.view import Pin, View
from tests.app.conftest import OpenPage
from tests.app.explore_tools import data_of, field, finish, has, release, requests_of, view_of, words_of
from warp_core.service import protocol as p
from warp_core.service.fake import FakeEngine
from warp_core.service.fake_text import HOSTILE, PROMPTS
from warp_core.service.places import place_text

PLACE = p.Place(iteration=1, eta=0.42)
SIDES = ("left", "current", "right")


def panes_of(page: AppTest) -> dict[str, dict]:
    return {pane["id"]: pane for pane in data_of(page, "panes")["panes"]}


def text_of(page: AppTest, side: str) -> str:
    return panes_of(page)[side]["completions"][0]["text"]


@pytest.fixture
def page(open_page: OpenPage, fake: FakeEngine) -> AppTest:
    """The page on the bundled run, with its first texts."""
    return finish(fake, open_page("explore"))


class TestOpening:
    def test_the_models_are_asked_for_once_and_texts_come_by_themselves(self, page, fake):
        page.run()
        assert [request.selection.run for request in requests_of(fake, "prepare")] == ["demo-run"]
        first = requests_of(fake, "preview")
        assert [(request.prompt, request.seed) for request in first] == [(PROMPTS[0], 0)]
        assert requests_of(fake, "geometry") == []
        assert all(panes_of(page)[side]["state"] == "done" for side in SIDES)

    def test_without_a_selection_the_bundled_run_opens(self, open_page, fake):
        page = open_page("explore", view=View())
        assert view_of(page).run == "demo-run"
        assert page.query_params["run"] == ["demo-run"] or page.query_params["run"] == "demo-run"

    def test_unknown_geometry_is_asked_for_once_and_then_predicted_from(self, open_page, fake):
        fake._geometries.discard(("demo-run", 1))
        page = open_page("explore", view=View(run="demo-run", place=PLACE))
        assert "angles between the task vectors" in words_of(page)
        assert data_of(page, "pilot")["geometry"] is None
        assert data_of(page, "position-recipe")["recipe"]["badge"] == "not measured"
        finish(fake, page)
        page.run()
        assert len(requests_of(fake, "geometry")) == 1
        assert data_of(page, "pilot")["geometry"] is not None
        assert data_of(page, "position-recipe")["recipe"]["badge"] == "predicted"

    def test_a_run_in_its_first_iteration_can_be_watched_but_not_merged(self, open_page, fake):
        page = open_page("explore", view=View(run="training-now"))
        assert not page.exception
        assert "No iteration of this run is finished yet." in words_of(page)
        assert requests_of(fake, "preview") + requests_of(fake, "prepare") == []
        assert not has(page, "measure")
        assert not has(page, "panes")
        assert not page.download_button(key="points-csv").disabled
        before = len(data_of(page, "pilot")["points"])
        fake.advance(60)
        page.run()
        assert len(data_of(page, "pilot")["points"]) > before

    def test_an_iteration_that_ends_can_be_merged(self, open_page, fake):
        page = open_page("explore", view=View(run="training-now"))
        fake.advance(400)
        page.run()
        assert has(page, "measure")
        assert requests_of(fake, "prepare")[-1].selection.run == "training-now"

    def test_a_rerun_is_quick(self, page):
        """In time of this process: the machine may be busy with others."""
        page.run()
        times = []
        for _ in range(5):
            start = time.process_time()
            page.run()
            times.append(time.process_time() - start)
        assert min(times) < 0.15

    def test_a_rerun_asks_the_engine_for_little(self, page, fake):
        page.run()
        asked = []
        for name in ("runs", "run", "front", "samples", "geometry", "prediction", "prompts", "job", "jobs", "votes"):
            original = getattr(fake, name)
            setattr(fake, name, lambda *given, n=name, o=original: asked.append(n) or o(*given))
        page.run()
        assert sorted(asked) == ["front", "job", "jobs", "runs", "votes"]


class TestSelection:
    def test_another_run_opens_and_the_first_comes_back_as_it_was(self, page, fake):
        release(page, PLACE)
        page.button(key="pin").click().run()
        field(page.selectbox, "explore_run").set_value("training-now").run()
        assert (view_of(page).run, view_of(page).pins) == ("training-now", ())
        field(page.selectbox, "explore_run").set_value("demo-run").run()
        assert (view_of(page).place, len(view_of(page).pins)) == (PLACE, 1)

    def test_a_run_opens_at_its_latest_iteration(self, page):
        field(page.selectbox, "explore_run").set_value("training-now").run()
        page.session_state["explore_views"] = {}
        field(page.selectbox, "explore_run").set_value("demo-run").run()
        assert view_of(page).place == p.Place(iteration=2, eta=0.5)

    def test_a_run_is_described(self, page):
        assert "smollm2-135m, 3 policies, finished" in words_of(page)

    def test_a_place_that_the_run_does_not_have_is_fitted(self, open_page):
        page = open_page("explore", view=View(run="demo-run", place=p.Place(iteration=2, weights=(0.5, 0.5), eta=0.3)))
        assert not page.exception
        assert view_of(page).place == p.Place(iteration=2, eta=0.3)


class TestCheckpointsOnDisk:
    @pytest.fixture
    def form(self, page) -> AppTest:
        return field(page.selectbox, "explore_run").set_value("\0disk").run()

    def fill(self, page: AppTest, policies: str) -> AppTest:
        page.text_input(key="disk-init").set_value("models/init")
        return page.text_area(key="disk-policies").set_value(policies).run()

    def test_the_form_says_what_is_missing(self, form):
        assert "Name the init" in words_of(form)
        assert form.button(key="disk-check").disabled
        form.text_input(key="disk-init").set_value("models/init").run()
        assert "Name at least one policy." in words_of(form)

    def test_nothing_is_loaded_before_the_check(self, form, fake):
        count = len(requests_of(fake, "prepare"))
        self.fill(form, "models/a\nmodels/b")
        form.button(key="disk-check").click().run()
        finish(fake, form)
        assert len(requests_of(fake, "prepare")) == count
        assert requests_of(fake, "check")[0].selection.policies == ("models/a", "models/b")
        words = words_of(form)
        assert "These can be mixed." in words
        assert "Memory: about" in words
        assert list(form.dataframe[0].value["Name"]) == ["models/init", "models/a", "models/b"]
        form.button(key="disk-explore").click().run()
        assert view_of(form).selection == p.Selection(init="models/init", policies=("models/a", "models/b"))
        assert requests_of(fake, "prepare")[-1].selection == view_of(form).selection
        assert has(form, "pilot")
        assert data_of(form, "pilot")["policies"] == ["a", "b"]

    def test_a_failing_check_is_in_plain_words_and_goes_no_further(self, form, fake):
        self.fill(form, "models/a\nmodels/broken")
        form.button(key="disk-check").click().run()
        finish(fake, form)
        assert "Problem: models/broken: tensor" in words_of(form)
        assert form.button(key="disk-explore").disabled
        assert not has(form, "pilot")

    def test_a_changed_name_needs_a_new_check(self, form, fake):
        self.fill(form, "models/a")
        form.button(key="disk-check").click().run()
        finish(fake, form)
        assert has(form, "disk-explore")
        self.fill(form, "models/other")
        assert not has(form, "disk-explore")

    def test_a_link_to_checkpoints_loads_nothing_by_itself(self, open_page, fake):
        page = open_page("explore", view=View(init="i", policies=("a", "b")))
        assert page.text_area(key="disk-policies").value == "a\nb"
        assert not has(page, "pilot")
        assert fake.jobs() == []


class TestSliders:
    def test_release_samples_from_three_panes_with_one_seed(self, page, fake):
        release(page, PLACE)
        request = requests_of(fake, "preview")[-1]
        assert [(pane.id, place_text(pane.place)) for pane in request.panes] == [
            ("left", "i1.slerp.e0.sft"),
            ("current", "i1.slerp.e0.42.sft"),
            ("right", "i1.slerp.e1.sft"),
        ]
        assert (request.seed, request.max_new_tokens, request.temperature) == (0, 24, 0.9)
        assert page.query_params["at"] in ("i1.slerp.e0.42.sft", ["i1.slerp.e0.42.sft"])

    def test_the_latest_release_wins(self, page, fake):
        release(page, PLACE)
        release(page, p.Place(eta=0.77))
        states = [job.state for job in fake.jobs() if job.kind == "preview"]
        assert states[1] is p.JobState.CANCELLED
        finish(fake, page)
        assert panes_of(page)["current"]["recipe"] == "SLERP, eta 0.77"
        assert panes_of(page)["current"]["stale_recipe"] is None

    def test_axes_and_budget_change_the_view_without_a_preview(self, page, fake):
        count = len(requests_of(fake, "preview"))
        release(page, view_of(page).place, y="diversity", budget=8.0, hidden=["dominated"])
        assert (view_of(page).y, view_of(page).budget) == ("diversity", 8.0)
        assert data_of(page, "pilot")["hidden"] == ["dominated"]
        assert len(requests_of(fake, "preview")) == count

    def test_extrapolation_is_kept(self, page):
        release(page, p.Place(eta=1.4), extrapolate=True)
        assert view_of(page).extrapolate
        assert not page.exception

    def test_without_preview_on_release_the_text_is_stale_and_says_of_what(self, page, fake):
        release(page, PLACE)
        finish(fake, page)
        text = text_of(page, "current")
        page.toggle(key="explore_auto").set_value(False).run()
        count = len(requests_of(fake, "preview"))
        release(page, p.Place(eta=0.9))
        assert len(requests_of(fake, "preview")) == count
        panes = panes_of(page)
        assert panes["current"]["stale_recipe"] == "SLERP, eta 0.42"
        assert panes["left"]["stale_recipe"] is None
        assert text_of(page, "current") == text
        page.button(key="generate").click().run()
        finish(fake, page)
        assert panes_of(page)["current"]["stale_recipe"] is None
        assert text_of(page, "current") != text

    def test_a_place_that_cannot_be_merged_says_why(self, page, fake):
        release(page, p.Place(eta=1.99), extrapolate=True)
        finish(fake, page)
        assert "task vectors are opposite" in words_of(page)
        assert panes_of(page)["current"]["state"] == "error"


class TestSideBySide:
    def test_tokens_come_as_they_are_written(self, open_page, fake):
        page = open_page("explore")
        seen = []
        assert has(page, "stop")
        assert not has(page, "generate")
        for _ in range(6):
            page.run()
            seen.append(len(text_of(page, "current")) if panes_of(page)["current"]["completions"] else 0)
        assert seen == sorted(seen)
        assert len(set(seen)) > 2

    def test_done_panes_have_reward_and_kl(self, page):
        facts = dict(panes_of(page)["right"]["completions"][0]["facts"])
        assert set(facts) == {"reward", "KL", "tokens"}
        assert facts["tokens"] == "24"

    def test_a_text_that_will_come_again_stays_meanwhile(self, page, fake):
        before = panes_of(page)["left"]["completions"]
        release(page, PLACE)
        fake.advance(2)
        page.run()
        panes = panes_of(page)
        assert panes["left"]["completions"] == before
        assert panes["left"]["stale_recipe"] is None
        assert panes["left"]["state"] == "sampling"
        assert not panes["current"]["completions"][0]["done"]
        finish(fake, page)
        assert panes_of(page)["left"]["completions"] == before

    def test_stop(self, open_page, fake):
        page = open_page("explore")
        fake.advance(6)
        page.run()
        page.button(key="stop").click().run()
        assert fake.jobs()[0].state is p.JobState.CANCELLED
        assert panes_of(page)["left"]["state"] == "stopped"
        assert text_of(page, "left")
        assert has(page, "generate")

    def test_own_prompt_and_one_of_the_set(self, page, fake):
        field(page.text_area, "explore_prompt").set_value("A film about tea").run()
        assert requests_of(fake, "preview")[-1].prompt == "A film about tea"
        field(page.selectbox, "explore_pick").set_value(PROMPTS[3]).run()
        assert requests_of(fake, "preview")[-1].prompt == PROMPTS[3]
        assert field(page.text_area, "explore_prompt").value == PROMPTS[3]
        assert view_of(page).prompt == PROMPTS[3]

    def test_an_empty_prompt_goes_back_to_the_first_of_the_set(self, page, fake):
        field(page.text_area, "explore_prompt").set_value("").run()
        assert field(page.text_area, "explore_prompt").value == PROMPTS[0]

    def test_regenerate_takes_the_next_seed(self, page, fake):
        text = text_of(page, "left")
        page.button(key="regenerate").click().run()
        assert requests_of(fake, "preview")[-1].seed == 1
        assert panes_of(page)["left"]["stale_recipe"] in (None, "SFT policy, seed 0")
        finish(fake, page)
        assert text_of(page, "left") != text

    def test_settings(self, page, fake):
        field(page.number_input, "explore_tokens").set_value(48).run()
        page.number_input(key="explore_count").set_value(2).run()
        field(page.toggle, "explore_chat").set_value(True).run()
        request = requests_of(fake, "preview")[-1]
        assert (request.max_new_tokens, request.num_completions, request.chat_template) == (48, 2, True)
        finish(fake, page)
        data = data_of(page, "panes")
        assert len(data["panes"][0]["completions"]) == data["num_completions"] == 2
        assert data["lines"] > 3

    def test_a_pin_in_a_pane(self, open_page, fake):
        pins = (Pin(place=p.Place(eta=0.2), label="mild"), Pin(place=p.Place(eta=0.9), label="strong"))
        page = finish(fake, open_page("explore", view=View(run="demo-run", place=PLACE, pins=pins)))
        field(page.selectbox, "explore_left").set_value("0").run()
        field(page.selectbox, "explore_right").set_value("1").run()
        request = requests_of(fake, "preview")[-1]
        assert [pane.place.eta for pane in request.panes] == [0.2, 0.42, 0.9]
        assert [panes_of(page)[side]["title"] for side in SIDES] == ["mild", "Current merge", "strong"]
        assert data_of(page, "panes")["position"] is None

    def test_the_merge_lies_between_its_ends(self, page):
        release(page, PLACE)
        data = data_of(page, "panes")
        assert data["position"] == 0.42
        assert [pane["share"] for pane in data["panes"]] == [0.0, 0.42, 1.0]

    def test_hostile_text_reaches_nothing_but_the_component(self, page, fake):
        fake.hostile = True
        page.button(key="regenerate").click().run()
        finish(fake, page)
        assert HOSTILE.strip() in text_of(page, "current")
        assert "<script>" not in words_of(page)

    def test_jobs_of_another_session_are_not_shown(self, page, fake):
        other = p.PreviewRequest(
            session="other",
            selection=p.Selection(run="demo-run"),
            prompt="somebody else's",
            panes=(p.PaneRequest(id="current", place=p.Place(eta=0.9)),),
            num_completions=1,
        )
        before = text_of(page, "current")
        fake.submit(other)
        fake.submit(p.MeasureRequest(session="other", selection=other.selection, places=(p.Place(eta=0.66),)))
        fake.advance(5)
        page.run()
        assert text_of(page, "current") == before
        assert "somebody else" not in words_of(page)
        assert not page.button(key="sweep").disabled or view_of(page).place.eta == 0.5
        assert not any("measure-cancel" in (button.key or "") for button in page.button)

    def test_a_restarted_engine_knows_no_old_job(self, page, fake):
        text = text_of(page, "current")
        fake._queue._jobs.clear()
        page.run()
        assert not page.exception
        assert text_of(page, "current") == text
        page.button(key="generate").click().run()
        finish(fake, page)
        assert panes_of(page)["current"]["state"] == "done"


class TestAddress:
    def test_a_link_restores_everything(self, open_page, fake):
        query = {
            "run": ["demo-run"],
            "at": ["i2.slerp.w0.5-0.3-0.2.e0.3.init"],
            "pin": ["i1.slerp.e0.2.sft~mild", "i1.lerp.e0.9.sft"],
            "ref": ["0"],
            "x": ["length"],
            "y": ["diversity"],
            "budget": ["8"],
            "q": ["A film about tea"],
            "seed": ["7"],
            "n": ["32"],
            "left": ["0"],
            "right": ["1"],
            "chat": ["1"],
        }
        view = View.from_query(query)
        page = finish(fake, open_page("explore", view=view))
        assert not page.exception
        request = requests_of(fake, "preview")[-1]
        assert (request.prompt, request.seed, request.max_new_tokens) == ("A film about tea", 7, 32)
        assert request.chat_template
        assert [place_text(pane.place) for pane in request.panes] == [
            "i1.slerp.e0.2.sft",
            "i2.slerp.w0.5-0.3-0.2.e0.3.init",
            "i1.lerp.e0.9.sft",
        ]
        pilot = data_of(page, "pilot")
        assert (pilot["x"], pilot["y"], pilot["budget"], pilot["reference"]) == ("length", "diversity", 8.0, 0)
        assert view_of(page).to_query() == query

    def test_what_is_done_goes_into_the_address(self, page):
        release(page, PLACE)
        page.button(key="pin").click().run()
        field(page.text_area, "explore_prompt").set_value("Tea").run()
        restored = View.from_query(page.query_params)
        assert (restored.place, restored.prompt) == (PLACE, "Tea")
        assert restored.pins == (Pin(place=PLACE),)


class TestTrouble:
    def test_an_engine_that_went_away_while_something_was_pressed(self, page, fake):
        def refuse(request):
            from warp_core.errors import WorkspaceError

            raise WorkspaceError("the disk is full: make room in /workspace")

        fake.submit = refuse
        page.button(key="regenerate").click().run()
        assert not page.exception
        assert "the disk is full: make room in /workspace" in words_of(page)
