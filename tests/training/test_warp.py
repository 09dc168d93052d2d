"""Algorithm 1 from end to end: merges recomputed in float64, overrides, moved and foreign folders, workers."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import make_model
from tests.training.runs import CPU, HELD_OUT, TRAIN, metrics, stored_points, tiny_config, trained_bytes
from tests.weights import oracle
from warp_core.errors import ConfigError, PromptError, UserError, WorkspaceError
from warp_core.training import warp
from warp_core.training.config import config_from_mapping, config_to_mapping, load_config
from warp_core.training.warp import prepare_run, run_config, sources_of, train_warp
from warp_core.weights import open_checkpoint
from warp_core.workspace.runs import RunFolder, open_run


def train(config, out, **options):
    return train_warp(config, out, **({"devices": [CPU]} | options))


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "sft")


def dense(folder, base):
    """float64 weights of a full folder, or of an adapter over `base`, without any code of ours."""
    if (folder / "model.safetensors").exists():
        return oracle.read_folder(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    factors = load_file(folder / "adapter_model.safetensors")
    weights = dict(base)
    for name, b in factors.items():
        if name.endswith(".lora_B.weight"):
            a = factors[name.replace("lora_B", "lora_A")]
            assert config["lora_alpha"] == config["r"] == a.shape[0]
            path = name.removeprefix("base_model.model.").replace(".lora_B.weight", ".weight")
            weights[path] = weights[path] + b.double().numpy() @ a.double().numpy()
    return weights


def worst(one, other):
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


MERGES = {
    "slerp": {"method": "slerp", "eta": 0.3},
    "lerp-weighted": {"method": "lerp", "eta": 0.7, "weights": [0.25, 0.75]},
    "slerp-model": {"method": "slerp", "eta": 1.2, "granularity": "model"},
}


@pytest.mark.parametrize(
    ("kind", "merge"), [("lora", "slerp"), ("lora", "slerp-model"), ("full", "slerp"), ("full", "lerp-weighted")]
)
def test_two_iterations_of_two_runs(kind, merge, model, tmp_path):
    """Each init is LITI of the merge, recomputed from the files alone; each run starts at its iteration's init."""
    rate = 1e-2 if kind == "lora" else 1e-3
    config = tiny_config(
        tmp_path,
        model,
        kind=kind,
        warp={"policies": 2, "iterations": 2},
        merge=MERGES[merge],
        training={"steps": [3, 2], "learning_rate": rate, "warmup_steps": 0},
    )
    run = train(config, tmp_path / "run")
    assert sorted(path.name for path in run.path.iterdir() if not path.name.startswith("results")) == [
        ".running",
        "config.toml",
        "iteration-1",
        "iteration-2",
        "prompts-evaluation.jsonl",
        "prompts-train.jsonl",
        "run.json",
    ]
    assert sorted(path.name for path in run.iteration(1).iterdir()) == ["policy-1", "policy-2"]
    assert sorted(path.name for path in run.iteration(2).iterdir()) == ["init", "policy-1", "policy-2"]
    assert run.finished_iterations(2) == [1, 2]
    assert [len(metrics(run.path, i, m)) for i in (1, 2) for m in (1, 2)] == [3, 3, 2, 2]

    sft = oracle.read_folder(model)
    one, other = (dense(run.checkpoint(1, m), sft) for m in (1, 2))
    assert worst(one, sft) > 1e-4
    assert worst(one, other) > 1e-4
    settings = {"granularity": "layer"} | MERGES[merge]
    expected = oracle.merge(sft, [one, other], **settings)
    init = dense(run.init(2), sft)
    assert worst(init, expected) < 2e-6
    assert worst(init, sft) > 1e-4
    for m in (1, 2):
        policy = dense(run.checkpoint(2, m), sft)
        assert worst(policy, init) > 1e-5
        if kind == "full":
            # Adam moves a weight by at most about its rate a step: the run began at the init, not at the SFT policy.
            assert worst(policy, init) < 2 * 1.2 * rate


def test_a_later_adapter_carries_its_init_exactly(model, tmp_path):
    config = tiny_config(tmp_path, model, warp={"policies": 2, "iterations": 2}, training={"steps": 2})
    run = train(config, tmp_path / "run")
    init = load_file(run.init(2) / "adapter_model.safetensors")
    policies = [load_file(run.checkpoint(2, m) / "adapter_model.safetensors") for m in (1, 2)]
    for name, tensor in init.items():
        dim = 0 if "lora_A" in name else 1
        assert tensor.shape[dim] == 2, "A is shared and frozen: the rank of the merge is that of one run"
        for policy in policies:
            assert policy[name].shape[dim] == 4
            assert torch.equal(policy[name].narrow(dim, 0, 2), tensor)
        if "lora_A" in name:
            assert torch.equal(policies[0][name], policies[1][name])
            assert not torch.equal(policies[0][name][2:], tensor)


def test_a_trained_a_is_merged_by_concatenation(model, tmp_path):
    config = tiny_config(
        tmp_path,
        model,
        adapter={"train": "both"},
        warp={"policies": 2, "iterations": 2},
        training={"steps": 3, "warmup_steps": 0},
    )
    run = train(config, tmp_path / "run")
    sft = oracle.read_folder(model)
    policies = [dense(run.checkpoint(1, m), sft) for m in (1, 2)]
    assert worst(dense(run.init(2), sft), oracle.merge(sft, policies, eta=0.3)) < 2e-6
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert load_file(run.init(2) / "adapter_model.safetensors")[name].shape[0] == 4


def test_bfloat16_adapters_are_merged_from_what_is_on_disk(model, tmp_path):
    config = tiny_config(
        tmp_path,
        model,
        adapter={"save_dtype": "bfloat16"},
        warp={"policies": 2, "iterations": 2},
        training={"steps": 3},
    )
    run = train(config, tmp_path / "run")
    tensors = load_file(run.checkpoint(2, 1) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert tensors[name].shape[0] == 4, "rounding keeps the shared A shared"
    sft = oracle.read_folder(model)
    policies = [dense(run.checkpoint(1, m), sft) for m in (1, 2)]
    apart = worst(dense(run.init(2), sft), oracle.merge(sft, policies, eta=0.3))
    assert apart < 1e-4


def test_the_runs_differ_in_prompts_and_draws_and_the_seed_decides(model, tmp_path):
    config = tiny_config(tmp_path, model, warp={"policies": 2}, training={"evaluate_every": 0})
    train(config, tmp_path / "run")
    train(config, tmp_path / "again")
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "again")
    prompts = [[row["example"]["prompt"] for row in metrics(tmp_path / "run", 1, m)] for m in (1, 2)]
    assert prompts[0] != prompts[1]
    assert set(prompts[0] + prompts[1]) <= set(TRAIN)
    other = tiny_config(tmp_path, model, warp={"policies": 2}, training={"evaluate_every": 0, "seed": 1})
    train(other, tmp_path / "other")
    assert trained_bytes(tmp_path / "run") != trained_bytes(tmp_path / "other")


def test_overrides_of_a_run_take_effect(model, tmp_path):
    runs = [
        {"training": {"beta": 0.0, "steps": 2}},
        {"reward": {"terms": "length"}, "training": {"learning_rate": 0.005}},
    ]
    config = tiny_config(tmp_path, model, warp={"policies": 2}, runs=runs, training={"warmup_steps": 0})
    run = train(config, tmp_path / "run")
    first, second = (metrics(run.path, 1, m) for m in (1, 2))
    assert [len(first), len(second)] == [2, 4]
    assert {row["kl_anchor"] for row in first} == {None}
    assert any(row["kl_anchor"] != 0 for row in second)
    assert {row["learning_rate"] for row in first} == {0.01}
    assert {row["learning_rate"] for row in second} == {0.005}
    assert set(second[0]["rewards"]) == {"length"}
    assert second[0]["reward"] == second[0]["length"]
    # The points of both are measured with the reward of the whole.
    assert {frozenset(point["rewards"]) for point in stored_points(run.path)} == {
        frozenset({"python:tests.training.rewards.fine", "length"})
    }


def test_reward_weights_are_kept_to_the_last_digit(model, tmp_path):
    terms = ["length:-0.123456789012", "ascii:1e-12", "words"]
    runs = [{"reward": {"terms": ["length:-0.00051234567"]}}, {}]
    config = tiny_config(tmp_path, model, reward={"terms": terms}, warp={"policies": 2}, runs=runs)
    run = prepare_run(config, tmp_path / "run", resume=False)
    assert run_config(run).reward.terms == tuple(terms)
    assert run_config(run).for_run(0).reward.terms == ("length:-0.00051234567",)


def test_the_run_keeps_its_prompts(model, tmp_path):
    config = tiny_config(tmp_path, model)
    run = train(config, tmp_path / "run")
    kept = [json.loads(line)["prompt"] for line in run.prompts_file("train").read_text().splitlines()]
    assert kept == TRAIN
    assert [json.loads(line)["prompt"] for line in run.prompts_file("evaluation").read_text().splitlines()] == HELD_OUT


def test_prompts_that_change_do_not_change_a_resumed_run(model, tmp_path):
    config = tiny_config(tmp_path, model)
    train(config, tmp_path / "straight")
    calls = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=lambda: next(calls))
    (tmp_path / "train.txt").write_text("something else\n")
    train(config, tmp_path / "run", resume=True)
    assert trained_bytes(tmp_path / "run") == trained_bytes(tmp_path / "straight")


def test_a_run_may_be_moved(model, tmp_path, monkeypatch):
    """Started with relative paths, moved, and opened from elsewhere."""
    monkeypatch.chdir(tmp_path)
    mapping = config_to_mapping(
        tiny_config(tmp_path, model, warp={"policies": 2, "iterations": 2}, training={"steps": 2})
    )
    mapping["model"]["name"] = "sft"
    mapping["prompts"] = {"train": "train.txt", "evaluation": "evaluation.txt"}
    train(config_from_mapping(mapping), tmp_path / "run")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "run", moved)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = open_run(moved)
    config = run_config(run)
    for iteration in (1, 2):
        sources = sources_of(run, config, iteration)
        assert len(sources.policies) == 2
        assert (sources.towards is None) == (iteration == 1)
    assert open_checkpoint(run.checkpoint(1, 1)).base is not None
    train_warp(config, moved, resume=True, devices=[CPU])


def test_only_a_finished_iteration_has_sources(model, tmp_path):
    config = tiny_config(tmp_path, model, warp={"policies": 2}, training={"steps": 1})
    run = train(config, tmp_path / "run")
    shutil.rmtree(run.checkpoint(1, 2))
    with pytest.raises(WorkspaceError, match="policy 2 of iteration 1 is not trained yet"):
        sources_of(run, config, 1)
    assert run.finished_iterations(2) == []


def test_a_taken_folder_is_refused_and_left_alone(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": 1})
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(WorkspaceError, match="exists and is not a run"):
            train(config, taken, resume=resume)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match="exists and is not a run"):
        train(config, tmp_path / "file")
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
    train(config, tmp_path / "run")
    with pytest.raises(WorkspaceError, match="holds a run already: add --resume"):
        train(config, tmp_path / "run")


def test_resuming_with_other_settings_is_refused(model, tmp_path):
    train(tiny_config(tmp_path, model, training={"steps": 1}), tmp_path / "run")
    other = tiny_config(tmp_path, model, training={"steps": 2})
    with pytest.raises(WorkspaceError, match=r"was started with other settings: resume it with .*config\.toml"):
        train(other, tmp_path / "run", resume=True)
    train(load_config(tmp_path / "run" / "config.toml"), tmp_path / "run", resume=True)


def test_a_run_whose_configuration_was_cut_short_is_refused(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": 1})
    run = RunFolder(tmp_path / "run")
    train(config, run.path)
    whole = run.config_file.read_text()
    for left in ("", whole[: whole.index("[merge]")]):
        run.config_file.write_text(left)
        with pytest.raises(ConfigError, match=r"config\.toml was cut short"):
            run_config(run)
        with pytest.raises(ConfigError, match=r"config\.toml was cut short"):
            train(config, run.path, resume=True)
        assert run.config_file.read_text() == left
    about = json.loads(run.about_file.read_text())
    run.about_file.write_text(json.dumps(about | {"format": 1}))
    run.config_file.write_text(whole.removesuffix("# end of the configuration\n"))
    assert run_config(run).training == config.training


def test_resuming_on_another_sft_policy_is_refused(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": 3})
    calls = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", should_stop=lambda: next(calls))
    make_model("llama", model, seed=9)
    with pytest.raises(WorkspaceError, match="put the original weights back"):
        train(config, tmp_path / "run", resume=True)
    make_model("llama", model, seed=0)
    train(config, tmp_path / "run", resume=True)


def test_a_mistake_before_the_start_leaves_no_folder(model, tmp_path):
    config = tiny_config(tmp_path, model)
    missing = config_from_mapping(config_to_mapping(config) | {"model": {"name": str(tmp_path / "nothing")}})
    (tmp_path / "evaluation.txt").unlink()
    with pytest.raises(UserError, match="nothing"):
        train(missing, tmp_path / "run")
    with pytest.raises(PromptError, match=r"evaluation\.txt"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".run*"))


def test_the_dtype_that_is_chosen_stays_the_runs(model, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, model, model={"dtype": "auto"})
    monkeypatch.setattr(warp, "choose_dtype", lambda device: "bfloat16")
    run = prepare_run(config, tmp_path / "run", resume=False)
    assert run_config(run).model.dtype == "bfloat16"
    monkeypatch.setattr(warp, "choose_dtype", lambda device: "float32")
    assert run_config(prepare_run(config, tmp_path / "run", resume=True)).model.dtype == "bfloat16"
    assert run_config(prepare_run(config, tmp_path / "other", resume=False)).model.dtype == "float32"


def test_an_empty_folder_may_be_used(model, tmp_path):
    (tmp_path / "run").mkdir()
    train(tiny_config(tmp_path, model, training={"steps": 1}), tmp_path / "run")


def test_a_newer_or_broken_run_is_not_opened(model, tmp_path):
    run = prepare_run(tiny_config(tmp_path, model), tmp_path / "run", resume=False)
    about = run.about()
    run.about_file.write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(WorkspaceError, match="newer version"):
        open_run(run.path)
    run.about_file.write_text("{")
    with pytest.raises(WorkspaceError, match="is not a run"):
        open_run(run.path)
    with pytest.raises(WorkspaceError, match="is not a run"):
        open_run(tmp_path / "none")


def test_a_damaged_merge_is_made_again(model, tmp_path):
    """The init of an iteration is published whole: without it, a resume makes the same one."""
    config = tiny_config(tmp_path, model, warp={"policies": 2, "iterations": 2}, training={"steps": 1})
    train(config, tmp_path / "run")
    before = trained_bytes(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/iteration-2/init")
    train(config, tmp_path / "run", resume=True)
    assert trained_bytes(tmp_path / "run") == before


def test_one_policy_and_no_merging_is_a_run_too(model, tmp_path):
    """M = 1: LITI between the init and the one policy."""
    config = tiny_config(
        tmp_path,
        model,
        warp={"policies": 1, "iterations": 2},
        training={"steps": 2, "warmup_steps": 0},
        merge={"eta": 0.5},
    )
    run = train(config, tmp_path / "run")
    sft = oracle.read_folder(model)
    policy = dense(run.checkpoint(1, 1), sft)
    expected = {name: 0.5 * sft[name] + 0.5 * policy[name] for name in sft}
    assert worst(dense(run.init(2), sft), expected) < 1e-6


def test_a_resume_takes_on_how_it_is_to_be_measured(model, tmp_path):
    config = tiny_config(tmp_path, model)
    run = train(config, tmp_path / "run")
    otherwise = tiny_config(tmp_path, model, evaluation={"prompts": 2, "etas": [0.0, 2.0]})
    train(otherwise, tmp_path / "run", resume=True)
    assert run_config(run).evaluation == otherwise.evaluation
    assert run_config(run).training == config.training


def test_a_run_says_which_process_trains_it_and_lets_no_other(model, tmp_path):
    config = tiny_config(tmp_path, model, training={"steps": [2]})
    seen = []

    def hear(progress):
        run = RunFolder(tmp_path / "run")
        seen.append(run.trainer())
        with pytest.raises(WorkspaceError, match="is being trained by another process"):
            train_warp(config, run.path, resume=True)

    run = train_warp(config, tmp_path / "run", hear=hear)
    assert set(seen) == {os.getpid()}
    assert run.trainer() is None
    assert not (run.path / "process.json").exists()
