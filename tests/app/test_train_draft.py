"""What is being written: reward terms, differences between policies, names; and how long it would take."""

import tomllib

import pytest

from app.train.draft import Draft, Term, free_name, name_problem, read_toml
from app.train.estimate import estimate, seconds_per_step, steps_in_all
from app.train.fields import fields_of
from warp_core.errors import ConfigError
from warp_core.service.documents import Curve, RunState
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import TrainRequest
from warp_core.training.config import config_from_mapping, config_to_mapping, json_schema


@pytest.fixture
def draft() -> Draft:
    return Draft(fields=fields_of(json_schema()), values={})


class TestTerms:
    @pytest.mark.parametrize(
        ("spec", "name", "weight"),
        [
            ("sentiment", "sentiment", 1.0),
            ("length:-0.0005", "length", -0.0005),
            ("python:m.f", "python:m.f", 1.0),
            ("python:m.f:0.3", "python:m.f", 0.3),
            ("/models/r#good:2", "/models/r#good", 2.0),
            ("C:/models/r", "C:/models/r", 1.0),
            ("thing:1e-20", "thing", 1e-20),
        ],
    )
    def test_specs_are_read_and_written_back(self, draft, spec, name, weight):
        draft.load({"reward": {"terms": [spec]}})
        (term,) = draft.terms
        assert (term.name, term.weight) == (name, weight)
        assert term.spec == spec

    def test_a_name_that_ends_in_a_number_keeps_its_weight(self):
        assert Term(id=1, name="a:2").spec == "a:2:1"

    def test_ids_are_never_used_twice(self, draft):
        draft.load({"reward": {"terms": ["a", "b"]}})
        draft.add_term("c")
        draft.remove_term(draft.terms[0].id)
        draft.load({"reward": {"terms": ["d"]}})
        assert draft.terms[0].id == 4

    def test_a_single_term_may_stand_alone(self, draft):
        draft.load({"reward": {"terms": "length"}})
        assert draft.config()["reward"]["terms"] == ["length"]


class TestRuns:
    def test_differences_survive(self, draft):
        runs = [
            {"reward": {"terms": ["length", 'a "quoted" \\ \U0001f600 name']}},
            {"training": {"beta": 1e-20, "seed": 7, "anchor": "sft"}, "reward": {}},
        ]
        draft.load({"runs": runs})
        written = draft.config()["runs"]
        assert written == [runs[0], {"training": runs[1]["training"]}]
        assert config_from_mapping(draft.config()).for_run(1).training.anchor == "sft"

    def test_every_configuration_that_is_valid_survives(self, draft):
        config = config_from_mapping(
            {"warp": {"policies": 3}, "runs": [{}, {"training": {"steps": [4, 5]}}, {"reward": {"terms": ["words"]}}]}
        )
        draft.load(config_to_mapping(config))
        assert config_from_mapping(draft.config()) == config

    def test_nonsense_is_an_error_with_its_place(self, draft):
        draft.load({})
        draft.runs = "[[runs]]\nbeta = ?\n"
        with pytest.raises(ConfigError, match=r"runs: not valid TOML: .*line 2"):
            draft.config()

    def test_toml_that_is_none(self):
        assert read_toml("a = 1", what="x") == tomllib.loads("a = 1")
        with pytest.raises(ConfigError, match="the text: not valid TOML"):
            read_toml("= 1", what="the text")


class TestNames:
    def test_the_first_free_name(self):
        assert free_name("run", []) == "run"
        assert free_name("run", ["run", "RUN-2"]) == "run-3"
        assert free_name("run-2", ["run", "run-2"]) == "run-3"
        assert free_name("-7", []) == "run"

    def test_what_is_wrong_with_a_name(self):
        assert name_problem("mine", ["other"]) is None
        assert "already" in name_problem("Mine", ["mine"])
        assert "empty" in name_problem("", [])
        assert "not safe" in name_problem("a/b", [])


def curve(lengths, rates) -> Curve:
    steps = tuple(range(1, len(lengths) + 1))
    return Curve(iteration=1, policy=1, step_S=steps, metrics={"length": lengths, "tokens_per_s": rates})


class TestEstimate:
    def test_steps_of_all_runs(self):
        config = config_to_mapping(
            config_from_mapping({"training": {"steps": [40, 12]}, "warp": {"policies": 3, "iterations": 4}})
        )
        assert steps_in_all(config) == 3 * (40 + 12 + 12 + 12)

    def test_the_median_time_of_a_step(self):
        # 32 completions of 20 tokens at 64 tokens a second: 10 s.
        assert seconds_per_step([curve((20.0,) * 3, (64.0, 64.0, 6.4))], completions=32) == pytest.approx(10.0)
        assert seconds_per_step([curve((20.0, None), (None, 64.0))], completions=32) is None
        assert seconds_per_step([], completions=32) is None

    def test_the_time_of_a_run_that_did_the_same_work(self):
        engine = FakeEngine()
        config = engine.run("demo-run").config
        known: dict = {}
        found = estimate(engine, config, engine.runs(), known=known)
        assert found.seconds == pytest.approx(found.seconds_per_step * 156)
        assert 14.0 < found.seconds_per_step < 17.0
        assert "training-now" not in known, "a running run is looked at again"

    def test_other_settings_of_learning_are_the_same_work_and_another_rank_is_not(self):
        engine = FakeEngine()
        config = engine.run("demo-run").config
        gentle = config | {"training": config["training"] | {"beta": 9.0, "steps": [1]}}
        assert estimate(engine, gentle, engine.runs(), known={}) is not None
        larger = config | {"adapter": config["adapter"] | {"rank": 64}}
        assert estimate(engine, larger, engine.runs(), known={}) is None

    def test_a_run_is_asked_for_once(self, monkeypatch):
        engine, known = FakeEngine(), {}
        runs = [run for run in engine.runs() if run.state is RunState.FINISHED]
        config = engine.run("demo-run").config
        first = estimate(engine, config, runs, known=known)
        monkeypatch.setattr(engine, "curves", None)
        assert estimate(engine, config, runs, known=known) == first

    def test_runs_that_cannot_be_read_and_runs_without_steps_are_passed_over(self):
        engine = FakeEngine()
        config = engine.run("demo-run").config
        fresh = engine.train(TrainRequest(name="new", config=config))
        gone = fresh.model_copy(update={"name": "gone"})
        done = next(run for run in engine.runs() if run.name == "demo-run")
        engine._runs["new"].steps_done = 0
        engine._runs["new"].state = RunState.STOPPED
        assert estimate(engine, config, [gone, fresh, done], known={}).run == "demo-run"
