"""One policy of a run as a process: what it trains, says and returns."""

import signal

import pytest

from tests.tiny import make_model
from tests.training.runs import CPU, metrics, tiny_config, trained_bytes
from warp_core.training.warp import prepare_run, train_warp
from warp_core.training.worker import main as worker


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "sft")


def run_worker(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return worker(arguments)


def test_a_worker_trains_one_policy(model, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, model, warp={"policies": 2}, training={"steps": 2})
    train_warp(config, tmp_path / "one", devices=[CPU])
    run = prepare_run(config, tmp_path / "two", resume=False)
    assert run_worker(monkeypatch, str(run.path), "1", "2", "cpu") == 0
    assert not run.checkpoint(1, 1).exists()
    name = "iteration-1/policy-2/checkpoint/adapter_model.safetensors"
    assert trained_bytes(run.path)[name] == trained_bytes(tmp_path / "one")[name]


def test_a_worker_says_what_went_wrong_in_its_last_line(model, tmp_path, monkeypatch, capsys):
    assert run_worker(monkeypatch, str(tmp_path / "none"), "1", "1", "cpu") == 2
    assert "is not a run" in capsys.readouterr().err.splitlines()[-1]
    config = tiny_config(tmp_path, model, training={"learning_rate": 1e30, "warmup_steps": 0, "evaluate_every": 1})
    run = prepare_run(config, tmp_path / "run", resume=False)
    assert run_worker(monkeypatch, str(run.path), "1", "1", "cpu") == 1
    assert capsys.readouterr().err.strip()


def test_a_worker_that_is_told_to_stop_saves_and_says_130(model, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, model, kind="full", training={"steps": 5, "save_every": 5})
    run = prepare_run(config, tmp_path / "run", resume=False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler(number, None))
    assert worker([str(run.path), "1", "1", "cpu"]) == 130
    assert (run.policy(1, 1) / "state" / "state.safetensors").is_file()
    assert len(metrics(run.path)) == 1
