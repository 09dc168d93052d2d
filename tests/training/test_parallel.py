"""Runs side by side: the bytes of one after the other, what is heard of them, how their ends are told."""

import json
import shutil
import signal

import pytest

from tests.tiny import make_model
from tests.training.runs import CPU, metrics, stored_points, tiny_config, trained_bytes
from warp_core.errors import UserError, WarpError
from warp_core.training import parallel as module
from warp_core.training.warp import prepare_run, train_warp
from warp_core.workspace.runs import RunFolder


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "sft")


def test_two_workers_give_the_bytes_of_one_after_the_other(model, tmp_path, monkeypatch):
    """The same device twice: two processes side by side, and the same files."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = [{"training": {"steps": 3}}, {}]
    config = tiny_config(
        tmp_path, model, warp={"policies": 2, "iterations": 2}, training={"steps": 2, "evaluate_every": 2}, runs=runs
    )
    train_warp(config, tmp_path / "one", devices=[CPU])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for m in (1, 2):
        shutil.rmtree(RunFolder(tmp_path / "two").policy(2, m))
    started, heard = [], []
    inner = module._start

    def start(*arguments):
        worker = inner(*arguments)
        started.append((worker.process, [other.poll() is None for other, _ in started]))
        return worker

    monkeypatch.setattr(module, "_start", start)
    train_warp(config, tmp_path / "two", resume=True, devices=[CPU, CPU], hear=heard.append)
    assert [alive for _, alive in started] == [[], [True]], "the second did not start while the first was running"
    assert trained_bytes(tmp_path / "two") == trained_bytes(tmp_path / "one")
    assert metrics(tmp_path / "two", 2, 2) == metrics(tmp_path / "one", 2, 2)
    places = sorted((one.iteration, one.policy, one.step, one.steps, one.point is not None) for one in heard)
    assert places == [
        (2, 1, 1, 3, False),
        (2, 1, 2, 3, True),
        (2, 1, 3, 3, True),
        (2, 2, 1, 2, False),
        (2, 2, 2, 2, True),
    ]
    kept = {(p["iteration"], p["run"], p["step"]): p["kl"] for p in stored_points(tmp_path / "one")}
    assert all(one.point.kl == kept[2, f"policy-{one.policy}", one.step] for one in heard if one.point)


def write_rows(path, steps, *, time, note=""):
    path.write_text("".join(json.dumps({"step": step, "time": time, "note": note}) + "\n" for step in steps))


def test_rows_are_told_once_although_a_resume_cuts_the_log(tmp_path):
    """Rows of an earlier session, a shorter log in its place, new rows of other lengths at the same offsets."""
    log = tmp_path / "metrics.jsonl"
    write_rows(log, range(1, 11), time=100.0)
    worker = module._Worker(policy=1, process=None, metrics=log, log=log, started_s=200.0)
    assert list(worker.new_rows()) == []
    cut = tmp_path / "cut"
    write_rows(cut, range(1, 9), time=100.0)
    with cut.open("a") as file:
        for step in (9, 10, 11):
            file.write(json.dumps({"step": step, "time": 200.1, "note": "x" * 7 * step}) + "\n")
    cut.replace(log)
    assert [row["step"] for row in worker.new_rows()] == [9, 10, 11]
    with log.open("a") as file:
        file.write('{"step": 12, "time": 201.0}\n{"step": 13, "ti')
    assert [row["step"] for row in worker.new_rows()] == [12]
    with log.open("a") as file:
        file.write('me": 202.0}\n')
    assert [row["step"] for row in worker.new_rows()] == [13]
    assert list(worker.new_rows()) == []


class _Process:
    """A worker that has ended with a code."""

    def __init__(self, code: int) -> None:
        self.returncode = code
        self.terminated = False

    def poll(self):
        return self.returncode

    def terminate(self):
        self.terminated = True

    def wait(self):
        return self.returncode


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (2, UserError, "reward 'x' is unknown"),
        (1, WarpError, "reward 'x' is unknown"),
        (-9, WarpError, "reward 'x' is unknown"),
        (130, KeyboardInterrupt, "^$"),
        (-signal.SIGINT, KeyboardInterrupt, "^$"),
    ],
)
def test_what_a_worker_ends_with(code, error, message, model, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, model, warp={"policies": 2})
    run = prepare_run(config, tmp_path / "run", resume=False)
    others = []

    class _Running(_Process):
        def poll(self):
            return None

    def start(run, iteration, policy, device):
        folder = run.policy(iteration, policy)
        folder.mkdir(parents=True)
        (folder / "worker.log").write_text("noise\nreward 'x' is unknown\n")
        process = _Process(code) if policy == 1 else _Running(0)
        if policy != 1:
            others.append(process)
        return module._Worker(
            policy=policy, process=process, metrics=folder / "m", log=folder / "worker.log", started_s=0.0
        )

    monkeypatch.setattr(module, "_start", start)
    with pytest.raises(error, match=message) as caught:
        train_warp(config, run.path, resume=True, devices=[CPU, CPU])
    assert isinstance(caught.value, UserError) == (code == 2)
    assert others[0].terminated
