"""One RL run in its folder: stopped, killed and resumed to the same bytes; refused and diverged runs leave it whole."""

import json
import os
import random
import signal
import time

import pytest
import torch

from tests.tiny import make_model
from tests.training.runs import CPU, in_a_process, metrics, stored_points, tiny_config, trained_bytes
from warp_core.errors import DivergedError, RewardError, UserError, WorkspaceError
from warp_core.evaluation.evaluate import Subject, measure
from warp_core.evaluation.points import Evaluation
from warp_core.policy.loading import load_checkpoint
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import read_prompts
from warp_core.rewards import load_reward
from warp_core.training.config import config_from_mapping, config_to_mapping
from warp_core.training.policy_run import fingerprint_of
from warp_core.training.reinforce import Learner
from warp_core.training.warp import train_warp
from warp_core.weights import open_checkpoint
from warp_core.workspace.runs import RunFolder


def train(config, out, **options):
    return train_warp(config, out, devices=[CPU], **options)


def stop_after(calls: int):
    """A should_stop that says so from its `calls`-th question on."""
    left = [calls]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return should_stop


def train_with_stops(config, out, every: int) -> int:
    """Train, stopped after every `every` steps and resumed; returns how often it was stopped."""
    stops = 0
    while True:
        try:
            train(config, out, resume=stops > 0, should_stop=stop_after(every))
        except KeyboardInterrupt:
            stops += 1
            assert stops < 30
            continue
        return stops


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "sft")


def assert_same_run(one, other):
    assert trained_bytes(one) == trained_bytes(other)
    assert metrics(one) == metrics(other)
    points = [
        [(p["key"] if "key" in p else (p["policy"], p["step"]), p) for p in stored_points(r)] for r in (one, other)
    ]
    assert points[0] == points[1]


@pytest.mark.parametrize(
    ("kind", "dtype", "train_what"),
    [
        ("lora", "float32", "b"),
        ("lora", "float32", "both"),
        ("lora", "bfloat16", "b"),
        ("full", "float32", "b"),
        ("full", "bfloat16", "b"),
    ],
)
def test_a_run_that_is_stopped_and_resumed_gives_the_same_bytes(kind, dtype, train_what, model, tmp_path):
    config = tiny_config(
        tmp_path,
        model,
        kind=kind,
        model={"dtype": dtype},
        adapter={"train": train_what},
        training={"steps": 5, "save_every": 3},
    )
    train(config, tmp_path / "straight")
    # Stops at steps 2 and 4, of which neither is due to be saved, and at the last step.
    assert train_with_stops(config, tmp_path / "stopped", every=2) == 2
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    names = trained_bytes(tmp_path / "straight")
    assert len(names) == 1
    assert "checkpoint" in next(iter(names))
    assert [row["step"] for row in metrics(tmp_path / "stopped")] == [1, 2, 3, 4, 5]
    assert [point["step"] for point in stored_points(tmp_path / "stopped")] == [2, 4, 5]


def test_the_state_holds_ema_and_adam_and_they_matter(model, tmp_path, monkeypatch):
    import warp_core.training.policy_run as module
    from warp_core.training.state import load_state

    monkeypatch.setattr(module, "drop_state", lambda *of, **policy: None)
    config = tiny_config(tmp_path, model)
    train(config, tmp_path / "run")
    fingerprint = f"{fingerprint_of(config)}-{load_reward(config.reward.terms).id}"
    state = load_state(tmp_path / "run/iteration-1/policy-1/state", fingerprint=fingerprint)
    assert state.step == 4
    for name, master in state.masters.items():
        assert not torch.equal(state.ema[name], master)
        assert state.exp_avg[name].abs().max() > 0
        assert state.exp_avg_sq[name].max() > 0


@pytest.mark.parametrize(("kind", "save_every"), [("lora", 0), ("full", 3)])
def test_a_run_that_is_killed_at_random_moments_gives_the_same_bytes(kind, save_every, model, tmp_path):
    """SIGKILL, five times at most: between steps, within one, while the state or the checkpoint is saved."""
    config = tiny_config(
        tmp_path, model, kind=kind, training={"steps": 10, "save_every": save_every, "evaluate_every": 4}
    )
    train(config, tmp_path / "straight")
    out, chance, killed = tmp_path / "killed", random.Random(7), 0
    log = RunFolder(out).policy(1, 1) / "metrics.jsonl"
    for _ in range(5):
        process = in_a_process(config, out)
        aim = chance.randrange(1, 10)
        deadline = time.monotonic() + 30
        while process.is_alive() and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") >= aim:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        assert process.exitcode in (0, -9)
    train(config, out, resume=(out / "run.json").exists())
    assert killed >= 1
    assert_same_run(tmp_path / "straight", out)
    assert not list(out.rglob(".state.*")), "what a killed save left behind is not cleared away"


def test_a_finished_run_is_left_alone(model, tmp_path):
    config = tiny_config(tmp_path, model)
    train(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train(config, tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("at_end", [True, False], ids=["finished run", "finished policy"])
def test_what_a_finished_policy_was_resumed_from_is_removed_by_the_next_start(at_end, model, tmp_path, monkeypatch):
    """A kill or a failing disk may come between the checkpoint and the end of removing its state."""
    import warp_core.training.policy_run as module

    config = tiny_config(tmp_path, model, warp={"policies": 1 if at_end else 2})
    with monkeypatch.context() as patch:
        patch.setattr(module, "drop_state", lambda *of, **policy: None)
        try:
            train(config, tmp_path / "run", should_stop=stop_after(config.training.steps[0] + 1))
        except KeyboardInterrupt:
            assert not at_end
    folder = tmp_path / "run/iteration-1/policy-1"
    assert (folder / "checkpoint").is_dir()
    (folder / "state" / "state.json").unlink()
    (folder / ".state.tmp-1999999999-0123abcd").mkdir()
    train(config, tmp_path / "run", resume=True)
    assert sorted(path.name for path in folder.iterdir() if "state" in path.name) == []


def test_the_summary_is_there_as_soon_as_the_checkpoint_is(model, tmp_path, monkeypatch):
    """A crash between the two must not leave a run that is never opened again without its summary."""
    import warp_core.training.policy_run as module

    seen = []
    inner = module._publish

    def publish(checkpoint, *arguments):
        seen.append(json.loads((checkpoint.parent / "summary.json").read_text()))
        inner(checkpoint, *arguments)

    monkeypatch.setattr(module, "_publish", publish)
    train(tiny_config(tmp_path, model), tmp_path / "run")
    assert seen == [{"steps": 4, "ended": "steps"}]


def test_metrics_survive_a_line_cut_short_and_steps_that_were_not_saved(model, tmp_path):
    config = tiny_config(tmp_path, model)
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=stop_after(2))
    log = tmp_path / "run/iteration-1/policy-1/metrics.jsonl"
    third = json.loads(log.read_text().splitlines()[1]) | {"step": 3}
    log.write_text(log.read_text() + json.dumps(third) + "\n" + '{"step": 4, "rew')
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_step_is_on_the_disk_in_the_log_before_its_state_is(model, tmp_path, monkeypatch):
    """A power cut between the two must not leave a state whose steps the log does not know."""
    import warp_core.training.policy_run as module

    log, events = tmp_path / "run/iteration-1/policy-1/metrics.jsonl", []
    real_sync, real_save = os.fsync, module.save_state

    def sync(descriptor):
        if log.exists() and os.path.samestat(os.fstat(descriptor), log.stat()):
            events.append(f"log of {log.read_text().count(chr(10))}")
        real_sync(descriptor)

    def save(folder, state):
        events.append(f"state of {state.step}")
        real_save(folder, state)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(module, "save_state", save)
    train(tiny_config(tmp_path, model, training={"steps": 2}), tmp_path / "run")
    assert events == ["log of 1", "state of 1", "log of 2", "state of 2"]


def test_a_policy_is_trained_by_one_process_at_a_time(model, tmp_path):
    """Two writers of one state: a resume beside a run that is alive, or beside a worker whose parent was killed."""
    config = tiny_config(tmp_path, model, training={"steps": 12, "evaluate_every": 0})
    process = in_a_process(config, tmp_path / "run")
    log = RunFolder(tmp_path / "run").policy(1, 1) / "metrics.jsonl"
    while process.is_alive() and not (log.exists() and log.stat().st_size):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(WorkspaceError, match="is being trained by another process"):
            train(config, tmp_path / "run", resume=True)
    finally:
        process.kill()
        process.join()
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "straight")
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_without_evaluations_the_end_is_measured(model, tmp_path):
    train(tiny_config(tmp_path, model, training={"evaluate_every": 0}), tmp_path / "run")
    assert [point["step"] for point in stored_points(tmp_path / "run")] == [4]


def test_each_step_is_told(model, tmp_path):
    heard = []
    train(tiny_config(tmp_path, model), tmp_path / "run", hear=heard.append)
    assert [(one.iteration, one.policy, one.step, one.steps) for one in heard] == [
        (1, 1, step, 4) for step in (1, 2, 3, 4)
    ]
    assert [one.point is not None for one in heard] == [False, True, False, True]
    assert all(one.record.step == one.step for one in heard)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_last_point_is_that_of_the_published_policy(kind, model, tmp_path):
    """The checkpoint opened afresh, against the SFT policy as a model of its own: same samples, reward and KL."""
    config = tiny_config(tmp_path, model, kind=kind)
    train(config, tmp_path / "run")
    point = stored_points(tmp_path / "run")[-1]
    assert (point["step"], point["kind"], point["policy"]) == (4, "training", "iteration-1/policy-1")
    policy = load_checkpoint(
        open_checkpoint(tmp_path / "run/iteration-1/policy-1/checkpoint", base=model if kind == "lora" else None),
        device=CPU,
    )
    samples = measure(
        Subject(policy=policy, reference=load_policy(model, device=CPU)),
        read_prompts(config.prompts.evaluation),
        load_reward(config.reward.terms),
        Evaluation.from_json(point["evaluation"]),
    )
    assert sum(sample.kl for sample in samples) / 6 == pytest.approx(point["kl"], rel=1e-3)
    assert sum(sample.reward for sample in samples) / 6 == pytest.approx(point["reward"], rel=1e-5)
    assert point["kl"] > 1e-4


def test_a_kl_ceiling_ends_a_run(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": 9, "kl_ceiling": 1e-5})
    train(config, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert [row["ended"] for row in rows] == ["steps", "kl-ceiling"]
    assert rows[1]["evaluation"]["kl"] >= 1e-5
    assert json.loads((tmp_path / "run/iteration-1/policy-1/summary.json").read_text()) == {
        "steps": 2,
        "ended": "kl-ceiling",
    }
    assert (tmp_path / "run/iteration-1/policy-1/checkpoint/adapter_model.safetensors").is_file()


def test_a_run_at_its_ceiling_does_not_go_on_when_it_is_resumed(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": 9, "kl_ceiling": 1e-5})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=stop_after(2))
    train(config, tmp_path / "run", resume=True)
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(("reward", "error"), [("nan_on_request", RewardError), ("huge_on_request", DivergedError)])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bad_numbers_leave_the_last_good_state_and_the_run_goes_on_from_it(
    kind, reward, error, model, tmp_path, monkeypatch
):
    """The same run without the fault is the reference: nothing of it may remain."""
    monkeypatch.setenv("WARP_TEST_NAN", str(tmp_path / "fault"))
    config = tiny_config(
        tmp_path,
        model,
        kind=kind,
        reward={"terms": [f"python:tests.training.rewards.{reward}"]},
        training={"evaluate_every": 0, "save_every": 1},
    )
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=stop_after(2))
    state = tmp_path / "run/iteration-1/policy-1/state/state.safetensors"
    before = state.read_bytes()
    (tmp_path / "fault").touch()
    with pytest.raises(error):
        train(config, tmp_path / "run", resume=True)
    assert state.read_bytes() == before
    assert not (tmp_path / "run/iteration-1/policy-1/checkpoint").exists()
    (tmp_path / "fault").unlink()
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_that_blow_up_stop_the_run_before_anything_is_saved(kind, model, tmp_path, monkeypatch):
    step = Learner.step

    def blow_up(learner):
        record = step(learner)
        with torch.no_grad():
            next(iter(learner.trainable.masters.values())).view(-1)[0] = torch.inf
        return record

    config = tiny_config(tmp_path, model, kind=kind, training={"evaluate_every": 0, "save_every": 1})
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=stop_after(2))
    state = tmp_path / "run/iteration-1/policy-1/state/state.safetensors"
    before = state.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", blow_up)
        with pytest.raises(DivergedError, match=r"weight .* is not finite"):
            train(config, tmp_path / "run", resume=True)
    assert state.read_bytes() == before
    assert not (tmp_path / "run/iteration-1/policy-1/checkpoint").exists()
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_full_disk_or_no_permission_is_the_users_to_mend(model, tmp_path, monkeypatch):
    import warp_core.training.policy_run as module

    def full(*_arguments):
        raise UserError("the disk is full")

    config = tiny_config(tmp_path, model)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", full)
        with pytest.raises(UserError):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_that_vanishes_is_one_line_for_the_user(model, tmp_path):
    config, out = tiny_config(tmp_path, model, training={"evaluate_every": 0}), tmp_path / "run"
    with pytest.raises(WorkspaceError, match=r"metrics\.jsonl: cannot be written"):
        train(config, out, hear=lambda progress: out.rename(tmp_path / "elsewhere"))
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    train(config, out, resume=True)
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4]


def test_the_fingerprint_is_of_what_decides_the_weights(model, tmp_path):
    config = tiny_config(tmp_path, model)
    same = [{"evaluation": {"etas": [0.5]}}, {"training": {"save_every": 7}}, {"evaluation": {"samples_per_prompt": 9}}]
    other = [
        {"training": {"seed": 1}},
        {"training": {"beta": 0.2}},
        {"adapter": {"rank": 3}},
        {"model": {"dtype": "bfloat16"}},
    ]

    def changed(changes):
        mapping = config_to_mapping(config)
        for section, fields in changes.items():
            mapping[section] |= fields
        return fingerprint_of(config_from_mapping(mapping))

    assert {changed(changes) for changes in same} == {fingerprint_of(config)}
    assert len({changed(changes) for changes in other} | {fingerprint_of(config)}) == 5
