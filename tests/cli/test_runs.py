"""train, demo, front RUN, export: a run is kept, resumed, read without a trace, moved, and exported as it was seen."""

import hashlib
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.cli.conftest import settings
from tests.rounding import rounded
from tests.tiny import load_model, logits_of, read_json
from warp_core.cli import main
from warp_core.commands import progress
from warp_core.evaluation import sweep as sweep_module
from warp_core.policy.model import load_policy
from warp_core.training import policy_run
from warp_core.training.warp import reopen, sources_of
from warp_core.weights import ResidentMerge, coefficients, compute_geometry, make_recipe

SAME = ("reward", "reward_se", "rewards", "kl", "kl_se", "length", "n", "seed")


def never(*args, **kwargs):
    raise AssertionError("trained or measured again, or a model loaded")


def forbid_work(monkeypatch):
    for module, name in [
        (policy_run, "load_policy"),
        (sweep_module, "load_policy"),
        (sweep_module, "measure_together"),
        (sweep_module, "compute_geometry"),
    ]:
        monkeypatch.setattr(module, name, never)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A run of two iterations with its fronts measured; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    config = folder / "run.toml"
    config.write_text("[warp]\npolicies = 2\niterations = 2\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_CACHE", str(folder / "cache"))
        assert main(["train", str(config), "--out", str(folder / "run"), *settings(tiny.init)]) == 0
        assert main(["front", str(folder / "run"), "--to-init", "--json"]) == 0
    return SimpleNamespace(run=folder / "run", config=config)


def bytes_of(folder):
    return {
        str(file.relative_to(folder)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_train_says_what_it_made(cli, tiny, tmp_path):
    (tmp_path / "run.toml").write_text("[warp]\npolicies = 2\n", encoding="utf-8")
    argv = ("train", tmp_path / "run.toml", "--out", tmp_path / "run", *settings(tiny.init))
    said = cli(*argv, "--json")
    policies = [tmp_path / "run" / "iteration-1" / f"policy-{m}" / "checkpoint" for m in (1, 2)]
    assert said.json == {"out": str(tmp_path / "run"), "iterations": [1], "policies": [str(p) for p in policies]}
    lines = said.err.splitlines()
    assert len(lines) == 2 * 2 * 2  # policies, steps, a line for each step and one for its evaluation
    assert lines[0].startswith("policy 1/2, step 1/2: reward +")
    assert lines[1].startswith("policy 1/2, step 1/2: held-out reward ")
    assert [cli("check", policy, "--init", tiny.init).code for policy in policies] == [0, 0]
    taken = cli(*argv)
    assert taken.code == 2
    assert "--resume" in taken.err
    again = cli(*argv, "--resume")
    assert (again.code, again.err) == (0, "")


def test_the_fronts_of_a_run(cli, made, tiny):
    found = cli("front", made.run, "--to-init", "--json").json
    points = found["points"]
    assert [p["kind"] for p in points].count("sft") == 1
    assert [(p["iteration"], p["run"]) for p in points if p["kind"] == "policy"] == [
        (i, f"policy-{m}") for i in (1, 2) for m in (1, 2)
    ]
    merges = sorted((p["iteration"], p["recipe"]["towards"] is None, p["eta"]) for p in points if p["kind"] == "merge")
    assert merges == [(i, init, eta) for i, init in ((1, True), (2, False), (2, True)) for eta in (0.0, 0.5, 1.0)]
    assert [(p["iteration"], p["run"], p["step"]) for p in found["training"]] == [
        (i, f"policy-{m}", step) for i in (1, 2) for m in (1, 2) for step in (1, 2)
    ]
    at_sft = [p["kl"] for p in points if p["eta"] == 0 and (p["iteration"] == 1 or p["recipe"]["towards"])]
    assert at_sft == [0.0, 0.0]
    only = cli("front", made.run, "--iteration", 2, "--etas", 1, "--json").json["points"]
    assert {p["iteration"] for p in only} == {None, 2}


def test_a_run_is_read_without_a_trace(cli, made, monkeypatch, tmp_path):
    run = shutil.copytree(made.run, tmp_path / "demo-run")
    first = cli("front", made.run, "--json").json
    before = bytes_of(run)
    forbid_work(monkeypatch)
    assert cli("front", run, "--json").json == first
    assert bytes_of(run) == before
    assert "results.sqlite" in before
    assert not any(name.startswith("results.sqlite-") for name in before)
    monkeypatch.undo()
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    assert cli("export", run, "--eta", 0.5, "--out", tmp_path / "out").code == 0
    assert bytes_of(run) == before


def test_a_run_may_be_moved_and_be_named_in_the_workspace(cli, made, monkeypatch, tmp_path):
    first = cli("front", made.run, "--json").json
    shutil.copytree(made.run, tmp_path / "workspace" / "mine")
    forbid_work(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert cli("front", "mine", "--json").json == first
    assert cli("front", "workspace/mine", "--json").json == first


def test_a_run_whose_sft_policy_has_moved_is_told_where_it_is(cli, tiny, made, tmp_path):
    run = shutil.copytree(made.run, tmp_path / "run")
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(tiny.init), str(tmp_path / "elsewhere")))
    first = cli("front", made.run, "--json").json
    lost = cli("front", run)
    assert lost.code == 2
    assert str(tmp_path / "elsewhere") in lost.err
    shutil.copytree(tiny.init, tmp_path / "new place")
    assert cli("front", run, "--base", tmp_path / "new place", "--json").json == first
    assert cli("export", run, "--base", tmp_path / "new place", "--eta", 1, "--out", tmp_path / "out").code == 0
    other = cli("front", run, "--base", tiny.policies[0])
    assert other.code == 2
    assert "put the original weights back" in other.err


def test_a_run_can_be_measured_otherwise_than_it_says(cli, made, tmp_path):
    run = shutil.copytree(made.run, tmp_path / "run")
    how = ("--iteration", 1, "--etas", 0.5)
    usual = cli("front", run, *how, "--json").json
    other = cli(
        "front", run, *how, "--kl", "mc", "--samples", 1, "--num-prompts", 2, "--max-new-tokens", 3, "--seed", 7,
        "--reward", "length", "--temperature", 0.5, "--weights", 0.25, 0.75, "--granularity", "tensor", "--json",
    ).json  # fmt: skip
    point = other["points"][-1]
    assert (point["kl_estimator"], point["n"], point["seed"], list(point["rewards"])) == ("mc", 2, 7, ["length"])
    assert (point["evaluation"]["max_new_tokens"], point["evaluation"]["temperature"]) == (3, 0.5)
    assert (point["recipe"]["weights"], point["recipe"]["granularity"]) == ([0.25, 0.75], "tensor")
    # The curves of training were measured with another reward.
    assert len(usual["training"]) == 4
    assert {point["iteration"] for point in usual["training"]} == {1}, "only what was asked"
    assert other["training"] == []
    assert cli("front", run, *how, "--json").json == usual


@pytest.mark.parametrize("iteration", [1, 2])
def test_an_export_is_the_point_of_the_front(cli, made, tiny, tmp_path, iteration):
    points = cli("front", made.run, "--iteration", iteration, "--etas", 0.5, "--json").json["points"]
    done = cli("export", made.run, "--iteration", iteration, "--eta", 0.5, "--out", tmp_path / "out", "--json").json
    assert done["recipe"] == points[-1]["recipe"]
    run, config = reopen(made.run)
    asked = (
        "--prompts", run.prompts_file("evaluation"), "--num-prompts", 3, "--samples", 2, "--max-new-tokens", 4,
        "--reward", "words", "--reward", "uppercase:0.5", "--seed", config.evaluation.seed,
    )  # fmt: skip
    alone = cli("evaluate", "--policy", tmp_path / "out", "--anchor", tiny.init, *asked, "--json").json
    assert {name: alone[name] for name in SAME} == rounded({name: points[-1][name] for name in SAME})
    assert alone["kl"] > 0


def greedy(model, tokens):
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_says_what_the_resident_merge_says(cli, made, tiny, tmp_path, dtype):
    out = tmp_path / "out"
    options = ("--dtype", dtype, "--max-shard-size", "60KB")
    assert cli("export", made.run, "--eta", 1.4, *options, "--out", out).code == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    run, config = reopen(made.run)
    sources = sources_of(run, config, 2)
    policy = load_policy(tiny.init, dtype=getattr(torch, dtype))
    resident = ResidentMerge(policy.model, init=sources.init, policies=sources.policies, towards=sources.towards)
    recipe = make_recipe(sources.init, sources.policies, eta=1.4, towards=sources.towards)
    resident.move(coefficients(recipe, compute_geometry(sources.init, sources.policies)))
    exported = load_model(out, dtype=getattr(torch, dtype))
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, exported.state_dict()[name]), name
    tokens = torch.randint(0, 256, (4, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(greedy(policy.model, tokens), greedy(exported, tokens))


def test_an_export_as_an_adapter_loads_in_peft(cli, made, tiny, tmp_path):
    assert cli("export", made.run, "--eta", 0.8, "--as", "adapter", "--out", tmp_path / "adapter").code == 0
    assert cli("export", made.run, "--eta", 0.8, "--out", tmp_path / "full").code == 0
    adapter, full = load_model(tmp_path / "adapter", base=tiny.init), load_model(tmp_path / "full")
    assert torch.allclose(logits_of(adapter), logits_of(full), atol=1e-4)
    assert not torch.allclose(logits_of(full), logits_of(load_model(tiny.init)), atol=1e-3)


def test_the_ends_of_an_export_are_the_sft_policy_and_the_init(cli, made, tiny, tmp_path):
    assert cli("export", made.run, "--eta", 0, "--out", tmp_path / "sft").code == 0
    assert torch.equal(logits_of(load_model(tmp_path / "sft")), logits_of(load_model(tiny.init)))
    assert cli("export", made.run, "--eta", 0, "--to-init", "--out", tmp_path / "init").code == 0
    init = load_model(made.run / "iteration-2" / "init", base=tiny.init)
    assert torch.allclose(logits_of(load_model(tmp_path / "init")), logits_of(init), atol=1e-4)
    recipe = read_json(tmp_path / "init" / "warp_recipe.json")
    assert recipe["recipe"]["towards"] is None


def demo_options(tiny):
    return ("demo", "--headless", *settings(tiny.init))


def test_the_demo_is_kept(cli, tiny, tmp_path, monkeypatch):
    first = cli(*demo_options(tiny), "--json")
    run = tmp_path / "workspace" / "demo"
    assert first.json["out"] == str(run)
    assert first.json["hypervolume"] >= 0
    assert [p["eta"] for p in first.json["points"] if p["kind"] == "merge"] == [0.0, 0.5, 1.0]
    assert "Ctrl-C keeps what is done" in first.err.splitlines()[0]
    assert read_json(run / "front.json")["points"] == first.json["points"]
    assert (run / "front.csv").is_file()
    assert (run / "front.html").is_file()
    forbid_work(monkeypatch)
    again = cli(*demo_options(tiny), "--json")
    assert again.json == first.json
    assert " left" not in again.err  # nothing is left to do
    text = cli(*demo_options(tiny))
    assert f"plot:  {run / 'front.html'}" in text.out


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "step 1/2: reward"), (signal.SIGTERM, "SFT policy")])
def test_an_interrupted_demo_goes_on_where_it_was(cli, tiny, tmp_path, monkeypatch, number, when):
    whole = cli(*demo_options(tiny), "--out", tmp_path / "whole", "--json").json
    print_line = progress.say

    def say_and_interrupt(message):
        print_line(message)
        if when in message:
            os.kill(os.getpid(), number)

    for module in ("progress", "run", "front"):
        monkeypatch.setattr(f"warp_core.commands.{module}.say", say_and_interrupt)
    monkeypatch.setattr(progress, "say", say_and_interrupt)
    stopped = cli(*demo_options(tiny), "--out", tmp_path / "parts", "--json")
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.splitlines()[-1] == "warp-core: interrupted; what was done is kept"
    assert "Traceback" not in stopped.err
    monkeypatch.undo()
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    resumed = cli(*demo_options(tiny), "--out", tmp_path / "parts", "--json").json
    for part in ("points", "training", "hypervolume", "reference"):
        assert resumed[part] == rounded(whole[part])


def test_two_signals_end_training_at_once(cli, tiny, tmp_path, monkeypatch):
    def interrupt(message):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, "say", interrupt)
    before = signal.getsignal(signal.SIGINT)
    said = cli(*demo_options(tiny), "--set", "training.steps=100000", "--json")
    assert (said.code, said.out) == (130, "")
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["reward.terms=sentimnt"], "did you mean 'sentiment'"),
        (["model.name=nowhere/at/all"], "nowhere/at/all"),
        (["prompts.train=nowhere.txt"], "nowhere.txt"),
        (["prompts.evaluation=nowhere.txt"], "nowhere.txt"),
        (["model.chat_template=true"], "chat template"),
        (["reward.terms=python:nowhere.at_all"], "nowhere"),
    ],
)
def test_a_mistake_leaves_no_folder_that_holds_it(cli, tiny, tmp_path, wrong, named):
    init = shutil.copytree(tiny.init, tmp_path / "init")
    (init / "chat_template.jinja").unlink()
    said = cli("train", os.devnull, "--out", tmp_path / "run", *settings(init), "--set", *wrong)
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert named in said.err
    assert not (tmp_path / "run").exists()
