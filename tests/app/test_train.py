"""The Train page: the form and its TOML, presets, starting, the list of runs, the curves of the one that is watched."""

import dataclasses
import tomllib

import pytest

from app.train.state import NEW, RUNS, TAB
from app.train.watching import axis_end, charts_of, front_so_far
from app.train.widgets import BUILT_IN_REWARDS
from app.view import View
from tests.app.pages_seen import button, choose, codes, component, press, seen
from warp_core.errors import WorkspaceError
from warp_core.rewards import known_rewards
from warp_core.service.documents import Curve, Example, FrontDocument, RunState
from warp_core.service.fake_text import HOSTILE
from warp_core.service.protocol import Selection, TrainRequest
from warp_core.training.config import config_from_mapping

CURVES = "train-curves"


@pytest.fixture
def form(open_page):
    return open_page("train", **{TAB: NEW})


def switch(page, which: str):
    """Press the switch between list and form."""
    control = next(one for one in page.button_group if one.key.startswith(f"{TAB}."))
    return control.set_value(which).run()


def widget(page, field: str):
    """The widget of a field; its key begins with the generation of the form."""
    found = [*page.number_input, *page.text_input, *page.selectbox, *page.text_area]
    return next(one for one in found if one.key and one.key.partition(".")[2] == field)


def toml_of(page) -> dict:
    return tomllib.loads(codes(page)[0])


class TestForm:
    def test_it_begins_with_valid_defaults_and_a_free_name(self, form):
        assert not form.exception
        assert config_from_mapping(toml_of(form)) == config_from_mapping({})
        assert widget(form, "name").value == "run"
        assert not button(form, "train-start").disabled

    def test_a_change_is_in_the_toml_at_once(self, form):
        widget(form, "training.beta").set_value(0.1).run()
        widget(form, "training.steps").set_value("40, 12").run()
        widget(form, "warp.policies").set_value(3).run()
        toml = toml_of(form)
        assert toml["training"]["beta"] == 0.1
        assert toml["training"]["steps"] == [40, 12]
        assert toml["warp"]["policies"] == 3
        assert "3 policies x 1 iteration: 120 steps in all" in seen(form)

    def test_steps_of_later_iterations_count(self, form):
        widget(form, "training.steps").set_value("40, 12").run()
        widget(form, "warp.iterations").set_value(3).run()
        assert "2 policies x 3 iterations: 128 steps in all" in seen(form)

    def test_a_problem_stands_at_its_field_and_blocks_the_start(self, form):
        widget(form, "training.steps").set_value("20, x").run()
        assert "Input should be a valid integer" in seen(form)
        assert "1 field to mend: training.steps" in seen(form)
        assert button(form, "train-start").disabled
        widget(form, "training.steps").set_value("20").run()
        assert "to mend" not in seen(form)
        assert not button(form, "train-start").disabled

    def test_a_problem_between_two_fields_is_shown_too(self, form):
        widget(form, "merge.weights").set_value("0.5 0.2 0.3").run()
        assert "3 numbers for warp.policies = 2" in seen(form)
        assert button(form, "train-start").disabled

    def test_the_help_is_that_of_the_schema(self, form):
        help_text = widget(form, "training.mu").help.replace("\\", "")
        assert help_text.startswith("EMA rate of the anchor.")
        assert "training.mu" in help_text

    def test_full_training_has_no_adapter_fields(self, form):
        widget(form, "adapter.kind").set_value("full").run()
        assert not any(one.key.endswith(".adapter.rank") for one in form.number_input)
        assert "there is no adapter to configure" in seen(form)
        assert toml_of(form)["adapter"]["kind"] == "full"
        widget(form, "adapter.kind").set_value("lora").run()
        assert widget(form, "adapter.rank").value == 16

    def test_what_was_written_survives_another_page(self, form):
        widget(form, "merge.eta").set_value(0.7).run()
        widget(form, "name").set_value("mine").run()
        switch(form, RUNS)
        switch(form, NEW)
        assert widget(form, "merge.eta").value == 0.7
        assert toml_of(form)["merge"]["eta"] == 0.7
        assert widget(form, "name").value == "mine"

    @pytest.mark.parametrize(
        ("name", "problem"), [("../x", "is not safe"), ("demo-run", "a run of that name already"), ("con", "a device")]
    )
    def test_a_name_that_cannot_be(self, form, name, problem):
        widget(form, "name").set_value(name).run()
        assert problem in seen(form)
        assert button(form, "train-start").disabled

    def test_seeds_larger_than_a_browser_counts(self, form):
        widget(form, "training.seed").set_value(str(2**60)).run()
        assert toml_of(form)["training"]["seed"] == 2**60

    def test_the_policies_may_differ(self, form):
        widget(form, "runs").set_value("[[runs]]\n[[runs]]\ntraining.beta = 0.5").run()
        assert toml_of(form)["runs"][1] == {"training": {"beta": 0.5}}
        widget(form, "runs").set_value("[[runs").run()
        assert "not valid TOML" in seen(form)
        assert button(form, "train-start").disabled

    def test_the_command_line_names_the_file_and_the_folder(self, form):
        assert codes(form)[1] == "warp-core train run.toml --out runs/run"


class TestReward:
    def test_terms_are_added_weighted_and_removed(self, form):
        press(form, "train-add-term")
        assert toml_of(form)["reward"]["terms"] == ["sentiment", "length"]
        widget(form, "weight-2").set_value(-0.0005).run()
        assert toml_of(form)["reward"]["terms"] == ["sentiment", "length:-0.0005"]
        press(form, "train-remove-1")
        assert toml_of(form)["reward"]["terms"] == ["length:-0.0005"]
        assert button(form, "train-remove-2") is None, "the last term cannot be removed"

    @pytest.mark.parametrize("name", ["python:my.module.score", "/models/reward#good", "owner/model"])
    def test_any_reward_can_be_named(self, open_page, fake, name):
        config = config_from_mapping({"reward": {"terms": [name, f"{name}2:0.5"]}})
        fake.train(TrainRequest(name="mine", config=dataclasses.asdict(config) | {"runs": []}))
        page = open_page("train")
        press(page, "train-use-config")
        assert toml_of(page)["reward"]["terms"] == [name, f"{name}2:0.5"]
        assert widget(page, "weight-3").value == 0.5


def test_the_list_of_rewards_is_that_of_the_engine():
    assert set(BUILT_IN_REWARDS) == set(known_rewards())


class TestPresets:
    def test_the_demo_is_the_file_that_ships(self, form):
        press(form, "train-preset-demo")
        training = toml_of(form)["training"]
        assert (training["steps"], training["learning_rate"], training["max_new_tokens"]) == ([20], 0.003, 16)

    def test_the_paper_and_back_to_the_defaults(self, form):
        press(form, "train-preset-paper")
        assert toml_of(form)["reward"]["terms"] == ["sentiment", "length:-0.0005"]
        assert toml_of(form)["adapter"]["kind"] == "full"
        assert "2 policies x 5 iterations: 62000 steps in all" in seen(form)
        press(form, "train-preset-defaults")
        assert config_from_mapping(toml_of(form)) == config_from_mapping({})

    def test_pasted_toml_fills_the_form(self, form):
        form.text_area(key="train-paste").set_value("[training]\nsteps = 7\n[warp]\npolicies = 4").run()
        press(form, "train-use-toml")
        assert widget(form, "warp.policies").value == 4
        assert widget(form, "training.steps").value == "7"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[training", "not valid TOML"),
            ("[training]\nstep = 7", "unknown field"),
            ("[merge]\neta = 5", "merge.eta"),
        ],
    )
    def test_pasted_nonsense_is_named_and_changes_nothing(self, form, text, problem):
        widget(form, "merge.eta").set_value(0.7).run()
        form.text_area(key="train-paste").set_value(text).run()
        press(form, "train-use-toml")
        assert problem in seen(form)
        assert toml_of(form)["merge"]["eta"] == 0.7


class TestEstimate:
    def test_none_without_a_run_of_the_same_work(self, form):
        assert "there is no estimate" in seen(form)

    def test_seconds_per_step_come_from_a_run_that_did_the_same_work(self, open_page):
        page = open_page("train")
        press(page, "train-watch-demo-run")
        press(page, "train-use-config")
        # 8 x 4 completions of about 19.4 tokens at about 40.7 tokens a second, 156 steps.
        assert "15.2 s a step" in seen(page) or "15.3 s a step" in seen(page) or "15 s a step" in seen(page)
        assert "as measured in" in seen(page)

    def test_another_batch_is_other_work(self, open_page):
        page = open_page("train")
        press(page, "train-watch-demo-run")
        press(page, "train-use-config")
        widget(page, "training.prompts_per_step").set_value(16).run()
        assert "there is no estimate" in seen(page)


class TestStart:
    def test_it_starts_and_is_watched(self, form, fake):
        widget(form, "name").set_value("mine").run()
        widget(form, "training.beta").set_value(0.2).run()
        press(form, "train-start")
        assert fake.run("mine").config["training"]["beta"] == 0.2
        assert fake.runs()[0].state is RunState.RUNNING
        assert form.session_state[TAB] == RUNS
        assert "Training curves of mine" in seen(form)
        assert [toast.value for toast in form.toast] == ["mine has been started"]

    def test_the_next_run_gets_another_name(self, form):
        press(form, "train-start")
        switch(form, NEW)
        assert widget(form, "name").value == "run-2"

    def test_what_the_engine_refuses_is_said(self, form, fake, monkeypatch):
        def refuse(request):
            raise WorkspaceError("/workspace/runs/run is in the way and is no run: choose another name")

        monkeypatch.setattr(fake, "train", refuse)
        press(form, "train-start")
        assert "is in the way" in seen(form)
        assert form.session_state[TAB] == NEW


class TestList:
    def test_every_run_with_state_progress_and_what_can_be_done(self, open_page):
        page = open_page("train")
        assert not page.exception
        text = seen(page)
        for words in ("training-now", "demo-run", "running", "finished", "bundled", "policy 2, step", "left"):
            assert words in text
        assert len(page.get("progress")) == 1
        assert button(page, "train-stop-training-now") is not None
        assert button(page, "train-stop-demo-run") is None

    def test_stop_and_resume(self, open_page, fake):
        page = open_page("train")
        press(page, "train-stop-training-now")
        assert fake.run("training-now").summary.state is RunState.STOPPED
        page.run()
        press(page, "train-resume-training-now")
        assert fake.run("training-now").summary.state is RunState.RUNNING

    def test_a_failed_run_says_why(self, open_page, fake):
        fake._runs["training-now"].state = RunState.FAILED
        fake._runs["training-now"].error = "model.name: <b>no</b> such folder"
        page = open_page("train")
        assert "model.name: <b>no</b> such folder" in [one.value for one in page.text]
        assert button(page, "train-resume-training-now") is not None

    def test_a_problem_of_an_action_is_said(self, open_page, fake, monkeypatch):
        def refuse(name):
            raise WorkspaceError("the run 'training-now' is trained by another user's process 7: stop it there")

        monkeypatch.setattr(fake, "stop", refuse)
        page = open_page("train")
        press(page, "train-stop-training-now")
        assert "another user's process 7" in seen(page)

    def test_no_run_at_all(self, open_page, fake):
        fake._runs.clear()
        page = open_page("train", view=View(), **{TAB: RUNS})
        assert "No run yet" in seen(page)

    def test_the_first_visit_without_runs_is_the_form(self, open_page, fake):
        fake._runs.clear()
        page = open_page("train", view=View())
        assert page.session_state[TAB] == NEW

    def test_a_long_list_is_cut(self, open_page, fake):
        config = fake.run("demo-run").config
        for place in range(12):
            fake.train(TrainRequest(name=f"more-{place}", config=config))
        page = open_page("train")
        assert len([one for one in page.button if str(one.key).startswith("train-watch-")]) == 8
        page.toggle(key="train-all-runs").set_value(True).run()
        assert len([one for one in page.button if str(one.key).startswith("train-watch-")]) == 14

    def test_its_configuration_can_be_used_again(self, open_page):
        page = open_page("train")
        press(page, "train-watch-demo-run")
        assert any("max_new_tokens = 20" in code for code in codes(page))
        press(page, "train-use-config")
        assert page.session_state[TAB] == NEW
        assert widget(page, "name").value == "demo-run-2"
        assert toml_of(page)["training"]["max_new_tokens"] == 20

    def test_a_name_in_markdown_is_text(self, open_page, fake):
        run = fake._runs["demo-run"]
        fake._runs = {"a_b_[x](http://evil.example)": dataclasses.replace(run, name="a_b_[x](http://evil.example)")}
        page = open_page("train", view=View())
        assert all("[x](http" not in one.value for one in page.markdown)


class TestWatching:
    def test_curves_of_the_running_run_come_first(self, open_page):
        page = open_page("train")
        drawn = component(page, CURVES)
        assert [chart["id"] for chart in drawn["charts"]] == [
            "reward",
            "kl_anchor",
            "length",
            "entropy",
            "tokens_per_s",
        ]
        assert [line["name"] for line in drawn["charts"][0]["series"]] == ["policy 1", "policy 2"]
        assert drawn["x_max"] == 40, "the axis reaches to the planned end"

    def test_where_the_axis_of_a_running_run_ends(self):
        assert [axis_end(last, 40) for last in (1, 40)] == [40, 40]
        assert [axis_end(last, 9000) for last in (1, 50, 51, 150, 8000)] == [50, 50, 100, 200, 9000]
        assert axis_end(45, 40) == 45

    def test_new_steps_come_in_the_same_chart(self, open_page, fake):
        page = open_page("train")
        before = component(page, CURVES)["charts"][0]["series"][1]["x"]
        fake.advance(5)
        page.run()
        after = component(page, CURVES)["charts"][0]["series"][1]["x"]
        assert after[: len(before)] == before
        assert len(after) >= len(before) + 5

    def test_smoothing_and_more_metrics(self, open_page):
        page = open_page("train")
        assert "raw" in component(page, CURVES)["charts"][0]["series"][0]
        choose(page, "train-smooth", "none")
        assert "raw" not in component(page, CURVES)["charts"][0]["series"][0]
        page.toggle(key="train-more").set_value(True).run()
        titles = [chart["title"] for chart in component(page, CURVES)["charts"]]
        assert {"Gradient norm", "Learning rate", "Reward part sentiment"} <= set(titles)

    def test_the_iteration_can_be_chosen(self, open_page):
        page = open_page("train")
        press(page, "train-watch-demo-run")
        assert (component(page, CURVES)["x_max"], component(page, CURVES)["of"]) == (12, "demo-run 2")
        choose(page, "train-iteration-demo-run", 1)
        assert (component(page, CURVES)["x_max"], component(page, CURVES)["of"]) == (40, "demo-run 1")

    def test_the_latest_completion_is_text(self, open_page, fake, monkeypatch):
        curves = fake.curves

        def with_example(name):
            example = Example(step=7, prompt="A film", completion=HOSTILE, reward=1.25)
            return [curve.model_copy(update={"example": example}) for curve in curves(name)]

        monkeypatch.setattr(fake, "curves", with_example)
        page = open_page("train")
        assert HOSTILE.strip() in [code.strip() for code in codes(page)]
        assert all("evil.example" not in one.value for one in (*page.markdown, *page.caption))
        assert "Policy 1, step 7, reward 1.25" in seen(page)

    def test_a_run_that_is_being_prepared(self, open_page, fake, monkeypatch):
        def nothing_yet(name):
            raise WorkspaceError(f"there is no run {name!r}")

        monkeypatch.setattr(fake, "curves", nothing_yet)
        monkeypatch.setattr(fake, "run", nothing_yet)
        page = open_page("train")
        assert not page.exception
        assert "The first step comes when" in seen(page)
        assert "did not work" not in seen(page)

    def test_a_run_that_ended_before_its_first_step(self, open_page, fake):
        fake._runs["training-now"].steps_done = 0
        fake._runs["training-now"].state = RunState.FAILED
        fake._runs["training-now"].error = "no model folder at '/gone'"
        page = open_page("train")
        assert "It ended before its first step." in seen(page)
        assert "no model folder at '/gone'" in seen(page)
        assert button(page, "train-explore-training-now").disabled

    def test_the_front_so_far(self, fake):
        words = front_so_far(fake.front(Selection(run="demo-run")))
        assert words.startswith("Measured so far: ")
        assert "nats" in words
        empty = FrontDocument(revision="0", points=(), evaluations=())
        assert front_so_far(empty) == "No point of the front has been measured yet."

    def test_a_metric_that_is_missing_leaves_an_empty_chart(self):
        curve = Curve(iteration=1, policy=2, step_S=(1, 2), metrics={"reward": (0.5, None)})
        charts = charts_of([curve], with_more=False)
        assert charts[0].lines[0].y_S == (0.5, None)
        assert charts[0].lines[0].number == 2
        assert charts[1].lines == ()

    def test_explore_opens_the_run(self, open_page):
        page = open_page("train", view=View(run="demo-run", prompt="kept"))
        press(page, "train-explore-training-now")
        assert page.session_state["view"].run == "training-now"
        assert page.session_state["view"].prompt == ""

    def test_explore_leaves_the_open_run_as_it_is(self, open_page):
        page = open_page("train", view=View(run="demo-run", prompt="kept", budget=9.0))
        press(page, "train-explore-demo-run")
        assert (page.session_state["view"].prompt, page.session_state["view"].budget) == ("kept", 9.0)
