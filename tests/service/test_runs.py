"""Runs as they are listed: states, progress, time left, curves, from the files of a run alone."""

import json

import pytest

from tests.tiny import make_model
from tests.training.runs import CPU, tiny_config
from warp_core.errors import WorkspaceError
from warp_core.service.documents import RunState
from warp_core.service.library import Library
from warp_core.service.runs import SHOWN_STEPS, Runs
from warp_core.service.trainings import Trainings
from warp_core.training.warp import prepare_run, train_warp

ROW = {"reward": 1.5, "rewards": {"fine": 2.0}, "kl_anchor": 0.25, "entropy": 2.0, "length": 4.0, "num_tokens": 30}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "runs"))
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    make_model("llama", tmp_path / "sft")
    return tmp_path / "runs"


@pytest.fixture
def runs(workspace):
    return Runs(Library(), Trainings(workspace))


def prepared(workspace, name="half", **changes):
    config = tiny_config(workspace.parent, workspace.parent / "sft", reward={"terms": ["length"]}, **changes)
    return prepare_run(config, workspace / name, resume=False)


def write_metrics(run, rows, *, iteration=1, policy=1):
    folder = run.policy(iteration, policy)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(step, time, **changes):
    return ROW | {"step": step, "time": time, "seconds": {"sampling": 1.0, "update": 2.0}} | changes


def test_a_run_that_stands_still_says_how_far_it_came(runs, workspace):
    run = prepared(workspace, warp={"policies": 2, "iterations": 2}, training={"steps": [4, 2]})
    write_metrics(run, [row(step, 100.0 + 2 * step) for step in range(1, 5)])
    (run.checkpoint(1, 1)).mkdir()
    write_metrics(run, [row(1, 110.0), row(2, 113.0)], policy=2)
    found = runs.summary("half")
    assert (found.state, found.finished_iterations, found.error) == (RunState.STOPPED, 0, None)
    assert found.progress == pytest.approx(6 / 12)
    assert found.message == "iteration 1, policy 2, step 2 of 4"
    assert found.seconds_left is None, "nobody is working on it"
    assert (found.policies, found.iterations) == (2, 2)


def test_a_run_in_training_says_how_long_it_still_takes(runs, workspace):
    run = prepared(workspace, warp={"policies": 1}, training={"steps": [10]})
    # Steps of 3 s, one with an evaluation of 9 s on top, and a night between two sessions.
    times = [1000.0, 1003.0, 1006.0, 50_000.0, 50_003.0, 50_015.0]
    write_metrics(run, [row(step, time) for step, time in enumerate(times, start=1)])
    with run.held_for_training():
        found = runs.summary("half")
    assert found.state is RunState.RUNNING
    assert found.seconds_left == pytest.approx(4 * (3 + 3 + 3 + 12) / 4)
    assert runs.summaries()[0].name == "half", "what runs comes first"


def test_curves_follow_the_file_as_it_grows(runs, workspace):
    run = prepared(workspace, training={"steps": [10]})
    example = {"prompt": "it is", "completion": "<b>fine</b>", "reward": 0.5}
    write_metrics(run, [row(1, 10.0), row(2, 13.0, kl_anchor=None, example=example)])
    (curve,) = runs.curves("half")
    assert (curve.iteration, curve.policy, curve.step_S) == (1, 1, (1, 2))
    assert curve.metrics["reward"] == (1.5, 1.5)
    assert curve.metrics["kl_anchor"] == (0.25, None)
    assert curve.metrics["tokens_per_s"] == (10.0, 10.0)
    assert curve.metrics["reward:fine"] == (2.0, 2.0)
    assert "grad_norm" not in curve.metrics
    assert curve.example.model_dump() == {"step": 2} | example
    with (run.policy(1, 1) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(3, 16.0, reward=float("nan"))) + "\n" + '{"step": 4, "rew')
    (curve,) = runs.curves("half")
    assert curve.step_S == (1, 2, 3), "the line on its way is left for the next time"
    assert curve.metrics["reward"] == (1.5, 1.5, None)


def test_long_curves_are_thinned_out_and_keep_the_latest_step(runs, workspace):
    run = prepared(workspace, training={"steps": [9000]})
    write_metrics(run, [row(step, float(step)) for step in range(1, 4502)])
    (curve,) = runs.curves("half")
    assert len(curve.step_S) <= SHOWN_STEPS
    assert curve.step_S[-1] == 4501
    assert {b - a for a, b in zip(curve.step_S, curve.step_S[1:], strict=False)} == {3}


def test_a_finished_run_with_its_configuration(runs, workspace):
    config = tiny_config(workspace.parent, workspace.parent / "sft", reward={"terms": ["length"]})
    train_warp(config, workspace / "done", devices=[CPU])
    detail = runs.detail("done")
    assert detail.summary.state is RunState.FINISHED
    assert (detail.summary.progress, detail.summary.finished_iterations, detail.summary.message) == (1.0, 1, "")
    assert detail.config["reward"] == {"terms": ["length"]}
    assert "[training]" in detail.toml
    (curve,) = runs.curves("done")
    assert curve.step_S == (1, 2, 3, 4)
    assert all(value > 0 for value in curve.metrics["tokens_per_s"])


def test_the_bundled_run_is_there_and_a_damaged_one_says_so(runs, workspace):
    (workspace / "odd").mkdir()
    (workspace / "odd/run.json").write_text("{")
    found = {run.name: run for run in runs.summaries()}
    assert found["demo-run"].is_bundled
    assert found["demo-run"].state is RunState.FINISHED
    assert (found["demo-run"].policies, found["demo-run"].iterations) == (3, 2)
    assert found["odd"].state is RunState.FAILED
    assert "is not a run" in found["odd"].error
    with pytest.raises(WorkspaceError, match="no run"):
        runs.summary("nowhere")
