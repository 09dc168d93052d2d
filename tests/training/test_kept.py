"""Checkpoints kept on the way and EMA weights beside them: right numbers, whole after a resume, all else the same."""

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import make_model
from tests.training.runs import CPU, tiny_config, trained_bytes
from warp_core.training.policy_run import fingerprint_of
from warp_core.training.warp import train_warp
from warp_core.weights import open_checkpoint
from warp_core.workspace.runs import RunFolder

STEPS = {"steps": 4, "mu": 0.25, "evaluate_every": 0}
KEEPING = STEPS | {"keep_every": 1, "keep_ema": True}


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "sft")


def weights(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def train(config, out, **options):
    return train_warp(config, out, devices=[CPU], **options)


def moved(name):
    """Frozen A is the same everywhere."""
    return "lora_A" not in name


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_ema_that_is_kept_is_the_average_of_the_policies_that_are_kept(kind, model, tmp_path):
    run = train(tiny_config(tmp_path, model, kind=kind, training=KEEPING), tmp_path / "run")
    policies = [weights(run.kept(1, 1, step)) for step in (1, 2, 3)] + [weights(run.checkpoint(1, 1))]
    start = weights(model) if kind == "full" else {name: torch.zeros_like(t) for name, t in policies[0].items()}
    for name in filter(moved, policies[0]):
        ema = start[name].double()
        for step, policy in enumerate(policies, start=1):
            ema = 0.75 * ema + 0.25 * policy[name].double()
            kept = weights(run.kept(1, 1, step, ema=True))[name]
            torch.testing.assert_close(kept.double(), ema, rtol=1e-4, atol=1e-6)
    assert not run.kept(1, 1, 4).exists(), "the last one is the checkpoint"
    assert any((policies[0][name] != policies[3][name]).any() for name in filter(moved, policies[0]))
    base = model if kind == "lora" else None
    ids = {open_checkpoint(run.kept(1, 1, step, ema=ema), base=base).id for step in (1, 2, 3) for ema in (False, True)}
    assert len(ids) == 6


def test_only_what_is_asked_for_is_kept(model, tmp_path):
    every_other = train(tiny_config(tmp_path, model, training=STEPS | {"keep_every": 2}), tmp_path / "two")
    ema_alone = train(tiny_config(tmp_path, model, training=STEPS | {"keep_ema": True}), tmp_path / "ema")
    nothing = train(tiny_config(tmp_path, model, training=STEPS), tmp_path / "none")
    kept = [
        sorted(path.name for path in (run.policy(1, 1) / "kept").glob("*")) for run in (every_other, ema_alone, nothing)
    ]
    assert kept == [["step-2"], ["step-4-ema"], []]


def test_a_run_without_an_ema_keeps_policies_alone(model, tmp_path):
    run = train(tiny_config(tmp_path, model, training=KEEPING | {"anchor": "sft"}), tmp_path / "run")
    assert sorted(path.name for path in (run.policy(1, 1) / "kept").iterdir()) == ["step-1", "step-2", "step-3"]


def test_keeping_changes_no_byte_of_the_run_and_a_stopped_run_keeps_the_same(model, tmp_path):
    keeping = tiny_config(tmp_path, model, training=KEEPING)
    assert fingerprint_of(keeping) == fingerprint_of(tiny_config(tmp_path, model, training=STEPS))
    plain = train(tiny_config(tmp_path, model, training=STEPS), tmp_path / "plain").path
    at_once = train(keeping, tmp_path / "at-once").path
    stopped = tmp_path / "stopped"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(keeping, stopped, resume=stopped.exists(), should_stop=lambda: True)
    train(keeping, stopped, resume=True)
    assert trained_bytes(stopped) == trained_bytes(at_once)
    checkpoint = "iteration-1/policy-1/checkpoint/adapter_model.safetensors"
    assert trained_bytes(plain)[checkpoint] == trained_bytes(at_once)[checkpoint]
    assert RunFolder(stopped).kept(1, 1, 3, ema=True).is_dir()
