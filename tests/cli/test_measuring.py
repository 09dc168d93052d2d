"""evaluate and sample."""

import dataclasses
import shutil

import pytest

from tests.cli.conftest import SHORT
from tests.tiny import make_adapter, make_model
from warp_core.commands import measure as commands
from warp_core.evaluation.points import Point
from warp_core.policy.loading import load_checkpoint
from warp_core.weights import open_checkpoint

REWARDS = ("--reward", "words", "--reward", "length:-0.5")


def never(*args, **kwargs):
    raise AssertionError("measured again, or a model loaded")


@pytest.fixture
def asked(tiny):
    return ("--anchor", tiny.init, "--prompts", tiny.prompts, *REWARDS, *SHORT)


def test_evaluate_prints_one_point(cli, tiny, asked):
    point = cli("evaluate", "--policy", tiny.policies[0], *asked, "--samples", 3, "--seed", 5, "--json").json
    assert (point["n"], point["seed"], point["kl_estimator"], point["kind"]) == (12, 5, "exact", "policy")
    assert point["policy"] == open_checkpoint(tiny.policies[0]).id
    assert point["recipe"] is None
    assert point["reward"] == pytest.approx(point["rewards"]["words"] - 0.5 * point["rewards"]["length"])
    assert point["rewards"]["length"] == point["length"] <= 6
    assert point["kl"] > 0
    assert point["kl_se"] > 0
    assert point["reward_se"] > 0
    assert 0 <= point["diversity"] <= 1
    assert Point.from_json(point).evaluation.samples_per_prompt == 3


def test_the_anchor_has_no_kl_to_itself(cli, tiny, asked):
    for estimator in ("exact", "mc"):
        assert cli("evaluate", "--policy", tiny.init, *asked, "--kl", estimator, "--json").json["kl"] == 0.0


def test_the_estimators_look_at_the_same_completions(cli, tiny, asked):
    exact, mc = (
        cli("evaluate", "--policy", tiny.policies[0], *asked, "--kl", kl, "--json").json for kl in ("exact", "mc")
    )
    assert exact["kl"] != mc["kl"]
    assert exact["reward"] == mc["reward"]


def test_an_evaluation_is_stored_and_then_costs_nothing(cli, tiny, asked, monkeypatch):
    first = cli("evaluate", "--policy", tiny.policies[0], *asked, "--json")
    monkeypatch.setattr(commands, "load_checkpoint", never)
    monkeypatch.setattr(commands, "measure", never)
    again = cli("evaluate", "--policy", tiny.policies[0], *asked, "--json")
    assert again.json == first.json
    assert again.err == ""
    text = cli("evaluate", "--policy", tiny.policies[0], *asked)
    assert text.out.startswith(f"reward {first.json['reward']:.2f} +- ")


def test_only_the_first_prompts_are_measured_if_so_asked(cli, tiny, asked):
    found = cli("evaluate", "--policy", tiny.policies[0], *asked, "--num-prompts", 1, "--json").json
    assert found["n"] == 2
    assert found["kl_se"] is None


def test_an_adapter_is_measured_as_its_merged_model(cli, tiny, asked, tmp_path):
    out = tmp_path / "full"
    assert cli("merge", "--init", tiny.init, "--policies", tiny.adapters[0], "--out", out).code == 0
    adapter, full = (cli("evaluate", "--policy", p, *asked, "--json").json for p in (tiny.adapters[0], out))
    assert adapter["policy"] != full["policy"]
    del adapter["policy"], full["policy"]
    assert adapter == full


def test_an_adapter_that_has_lost_its_base_is_told_where_it_is(cli, tiny, asked, tmp_path):
    base = shutil.copytree(tiny.init, tmp_path / "gone")
    adapter = make_adapter(base, tmp_path / "adapter", seed=3)
    shutil.rmtree(base)
    assert cli("evaluate", "--policy", adapter, *asked).code == 2
    assert cli("evaluate", "--policy", adapter, "--base", tiny.init, *asked).code == 0


def test_a_chat_template_changes_what_is_said(cli, tiny, asked):
    plain = cli("evaluate", "--policy", tiny.policies[0], *asked, "--json").json
    chat = cli("evaluate", "--policy", tiny.policies[0], *asked, "--chat", "--json").json
    assert chat["evaluation"]["chat_template"]
    assert chat["kl"] != plain["kl"]


def test_the_bundled_reward_is_the_default(cli, tiny):
    options = ("--anchor", tiny.init, "--num-prompts", 2, "--samples", 1, *SHORT)
    found = cli("evaluate", "--policy", tiny.policies[0], *options, "--json").json
    assert list(found["rewards"]) == ["sentiment"]
    assert found["n"] == 2


def test_two_models_with_one_tokenizer_can_be_compared_though_they_cannot_be_mixed(cli, tiny, asked):
    found = cli("evaluate", "--policy", tiny.gpt2, *asked, "--json").json
    assert found["kl"] > 0.1


def test_sample_draws_completions(cli, tiny):
    options = ("--policy", tiny.policies[0], "--prompt", "The film", "--n", 3, *SHORT)
    found = cli("sample", *options, "--json").json["completions"]
    assert len(found) == 3
    assert all(set(one) == {"text", "num_tokens"} and 1 <= one["num_tokens"] <= 6 for one in found)
    assert len({one["text"] for one in found}) == 3
    assert cli("sample", *options, "--json").json["completions"] == found
    assert cli("sample", *options, "--seed", 9, "--json").json["completions"] != found
    # The first of three is what one alone would be.
    alone = cli("sample", "--policy", tiny.policies[0], "--prompt", "The film", *SHORT, "--json").json["completions"]
    assert alone == found[:1]


def test_sample_scores_if_asked(cli, tiny):
    options = ("--policy", tiny.adapters[0], "--prompt", "The film", "--n", 2, *SHORT, "--reward", "length:-0.5")
    found = cli("sample", *options, "--json").json["completions"]
    assert [one["reward"] for one in found] == [-0.5 * one["num_tokens"] for one in found]
    said = cli("sample", *options)
    assert f"[2] reward {found[1]['reward']:+.2f}\nThe film" in said.out


def test_a_completion_that_the_terminal_cannot_show_is_escaped(cli, tiny, monkeypatch):
    text = "na\u00efve \u2603 \ud800 \x1b[31mred\n\tdone"

    def strange(*args, **kwargs):
        found = draw(*args, **kwargs)
        return dataclasses.replace(found, texts=tuple(text for _ in found.texts))

    draw = commands.draw
    monkeypatch.setattr(commands, "draw", strange)
    options = ("--policy", tiny.init, "--prompt", "x", *SHORT)
    said = cli("sample", *options)
    assert said.code == 0
    assert "na\u00efve \u2603 \\ud800 \\x1b[31mred\n\tdone" in said.out
    assert cli("sample", *options, "--json").json["completions"][0]["text"] == text


def test_a_policy_in_another_precision_is_loaded_too(cli, tmp_path, tiny):
    import torch

    half = make_model("llama", tmp_path / "half", dtype=torch.bfloat16)
    assert load_checkpoint(open_checkpoint(half)).dtype == torch.float32
    assert cli("sample", "--policy", half, "--prompt", "x", *SHORT).code == 0


def test_a_prompt_in_another_encoding_is_refused(cli, tiny):
    # What Python makes of a byte of the command line that is not UTF-8.
    said = cli("sample", "--policy", tiny.init, "--prompt", "caf\udce9", *SHORT)
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert "UTF-8" in said.err
