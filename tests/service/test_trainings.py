"""Training as processes: started, found again by another engine, stopped, resumed, and their ends told apart."""

import errno
import json
import os
import shutil
import time

import psutil
import pytest

from tests.tiny import make_model
from tests.training.runs import metrics, tiny_config, trained_bytes
from warp_core.errors import ConfigError, WorkspaceError
from warp_core.service.documents import RunState
from warp_core.service.library import Library
from warp_core.service.runs import Runs
from warp_core.service.trainings import SILENT, Trainings
from warp_core.training.config import WarpConfig, config_to_mapping, kept_config
from warp_core.workspace.runs import RunFolder

PATIENCE_S = 120


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "work space"))
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "work space"


@pytest.fixture
def trainings(workspace):
    made = Trainings(workspace)
    yield made
    made.close()
    for file in workspace.glob(".training/*/process.json"):
        pid = json.loads(file.read_text())["pid"]
        if pid != os.getpid() and psutil.pid_exists(pid):
            psutil.Process(pid).kill()


def mapping(tmp_path, **training):
    model = tmp_path / "sft"
    if not model.exists():
        make_model("llama", model)
    return config_to_mapping(tiny_config(tmp_path, model, reward={"terms": ["length"]}, training=training))


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


def state(trainings, name, workspace):
    run = RunFolder(workspace / name)
    return trainings.state_of(name, run) if run.about_file.exists() else (trainings.summary_of_start(name).state, None)


def test_a_run_trains_in_a_process_that_another_engine_finds_stops_and_resumes(trainings, workspace, tmp_path):
    config = mapping(tmp_path, steps=[600], evaluate_every=0)
    trainings.start("long", config)
    assert Trainings(workspace).summary_of_start("long").state is RunState.RUNNING, "another engine, before its folder"
    run = RunFolder(workspace / "long")
    wait_for(lambda: (run.policy(1, 1) / "metrics.jsonl").exists() and len(metrics(run.path)) > 2)
    with pytest.raises(WorkspaceError, match="exists already"):
        trainings.start("long", config)

    trainings.close()
    later = Trainings(workspace)  # the engine was restarted
    assert later.state_of("long", run) == (RunState.RUNNING, None)
    with pytest.raises(WorkspaceError, match="being trained already"):
        later.resume("long", run)
    later.stop("long", run)
    wait_for(lambda: later.state_of("long", run)[0] is not RunState.RUNNING)
    assert later.state_of("long", run) == (RunState.STOPPED, None)
    steps = len(metrics(run.path))
    assert 2 < steps < 600
    with pytest.raises(WorkspaceError, match="not being trained"):
        later.stop("long", run)

    later.resume("long", run)
    wait_for(lambda: len(metrics(run.path)) > steps)
    pid = wait_for(run.trainer)
    psutil.Process(pid).kill()
    wait_for(lambda: later.state_of("long", run)[0] is not RunState.RUNNING)
    assert later.state_of("long", run) == (RunState.STOPPED, SILENT)
    assert trained_bytes(run.path), "a killed run leaves its state"
    assert not psutil.pid_exists(pid), "its end is collected: no zombie is left"


def test_the_process_of_a_finished_run_is_collected_though_nobody_looks(trainings, workspace, tmp_path):
    trainings.start("short", mapping(tmp_path, steps=[1], evaluate_every=0))
    wait_for((workspace / "short" / "iteration-1" / "policy-1" / "checkpoint").is_dir)
    pid = json.loads((workspace / ".training/short/process.json").read_text())["pid"]
    wait_for(lambda: not psutil.pid_exists(pid))
    assert trainings.names() == []


def test_a_run_that_cannot_begin_is_listed_with_the_reason_and_can_be_started_again(trainings, workspace, tmp_path):
    broken = mapping(tmp_path) | {"model": {"name": str(tmp_path / "nothing here")}}
    trainings.start("broken", broken)
    assert trainings.names() == ["broken"]
    summary = wait_for(lambda: (s := trainings.summary_of_start("broken")).state is not RunState.RUNNING and s)
    assert summary.state is RunState.FAILED
    assert "nothing here" in summary.error
    assert "\n" not in summary.error
    assert summary.model.endswith("nothing here")
    make_model("llama", tmp_path / "nothing here")
    file = workspace / ".training/broken/config.toml"
    whole = file.read_text()
    file.write_text(whole[: whole.index("[reward]")])
    with pytest.raises(ConfigError, match=r"config\.toml was cut short"):
        trainings.start_again("broken")
    file.write_text(whole)
    trainings.start_again("broken")
    wait_for((workspace / "broken/run.json").exists)
    assert trainings.names() == []


def test_a_start_that_is_removed_while_the_runs_are_listed_is_left_out(trainings, workspace, tmp_path, monkeypatch):
    trainings.start("gone", mapping(tmp_path) | {"model": {"name": str(tmp_path / "nothing here")}})
    wait_for(lambda: trainings.summary_of_start("gone").state is RunState.FAILED)
    runs = Runs(Library(workspace), trainings)
    assert "gone" in [summary.name for summary in runs.summaries()]
    started = Trainings._started

    def remove_once_read(self, name):
        config = started(self, name)
        shutil.rmtree(workspace / ".training" / name)
        return config

    monkeypatch.setattr(Trainings, "_started", remove_once_read)
    assert "gone" not in [summary.name for summary in runs.summaries()]


@pytest.mark.parametrize("name", ["../out", "", "a/b", "con", ".hidden", "x" * 101])
def test_names_do_not_leave_the_workspace(trainings, name, tmp_path):
    with pytest.raises(WorkspaceError):
        trainings.start(name, {})


def test_a_configuration_that_is_wrong_starts_nothing(trainings, workspace):
    with pytest.raises(ConfigError, match=r"training\.mu"):
        trainings.start("wrong", {"training": {"mu": 7}})
    assert not (workspace / ".training").exists()


@pytest.mark.parametrize("fails", ["write_text_atomic", "subprocess.Popen", "write_json_atomic"])
def test_a_start_that_is_refused_leaves_nothing_to_list_and_no_process(trainings, workspace, monkeypatch, fails):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    before = set(psutil.Process().children())  # a browser of other tests, say
    monkeypatch.setattr(f"warp_core.service.trainings.{fails}", refuse)
    with pytest.raises(OSError, match="No space left"):
        trainings.start("refused", {})
    assert trainings.names() == []
    assert not (workspace / ".training" / "refused").exists()
    assert set(psutil.Process().children()) - before == set()


def test_a_folder_that_is_no_run_is_left_alone(trainings, workspace):
    (workspace / "thesis").mkdir(parents=True)
    (workspace / "thesis/thesis.tex").write_text("x")
    with pytest.raises(WorkspaceError, match="in the way"):
        trainings.start("thesis", {})


def test_the_id_of_a_process_that_is_gone_is_not_taken_for_the_run(trainings, workspace, tmp_path):
    folder = workspace / ".training/old"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(kept_config(WarpConfig()))
    (folder / "process.json").write_text(json.dumps({"pid": psutil.Process().pid, "born": 12.0}))
    assert trainings.summary_of_start("old").state is RunState.STOPPED
    with pytest.raises(WorkspaceError, match="not being trained"):
        trainings.stop("old", None)
    with pytest.raises(WorkspaceError, match="no run called"):
        trainings.summary_of_start("never")
