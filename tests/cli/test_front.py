"""front of models: points, domination, hypervolume, and that a point is the model that merge writes."""

import csv
import json

import moocore
import numpy as np
import pytest

from tests.cli.conftest import PROMPTS, SHORT
from tests.tiny import make_model, make_policies
from warp_core.evaluation import sweep as sweep_module
from warp_core.weights import open_checkpoint

ETAS = ("--etas", 0, 0.5, 1.5)


def never(*args, **kwargs):
    raise AssertionError("measured again, or a model loaded")


@pytest.fixture
def asked(tiny):
    reward = ("--reward", "words", "--reward", "uppercase:-20")
    return ("--prompts", tiny.prompts, *reward, "--samples", 2, "--seed", 3, *SHORT)


@pytest.fixture
def front(tiny, asked):
    return ("front", "--init", tiny.init, "--policies", *tiny.policies, *ETAS, *asked)


def by_hand(points):
    """Domination by its definition."""
    pairs = [(p["kl"], p["reward"]) for p in points]
    return [any(k <= kl and r >= reward and (k, r) != (kl, reward) for k, r in pairs) for kl, reward in pairs]


def test_a_front_has_the_sft_policy_every_policy_and_every_merge(cli, front, tiny):
    said = cli(*front, "--method", "slerp", "--method", "lerp", "--json")
    found = said.json
    points = found["points"]
    assert [(p["kind"], p["method"], p["eta"]) for p in points] == [
        ("sft", None, None),
        ("policy", None, None),
        ("policy", None, None),
        *(("merge", method, eta) for method in ("slerp", "lerp") for eta in (0.0, 0.5, 1.5)),
    ]
    assert all(
        {"iteration", "dominated", "reward_se", "kl_se", "length", "diversity", "seed"} <= p.keys() for p in points
    )
    assert points[0]["policy"] == open_checkpoint(tiny.init).id
    assert [p["policy"] for p in points[1:3]] == [open_checkpoint(p).id for p in tiny.policies]
    assert {p["n"] for p in points} == {2 * len(PROMPTS)}
    assert [p["dominated"] for p in points] == by_hand(points)
    assert len(said.err.splitlines()) == len(points)
    assert found["training"] == []


def test_the_hypervolume_is_that_of_an_independent_library(cli, front):
    found = cli(*front, "--json").json
    kl, reward = found["reference"]
    assert reward == found["points"][0]["reward"]
    assert kl > max(p["kl"] for p in found["points"])
    losses = np.array([(p["kl"], -p["reward"]) for p in found["points"]])
    assert found["hypervolume"] == pytest.approx(moocore.hypervolume(losses, ref=np.array([kl, -reward])))
    assert found["hypervolume"] > 0


@pytest.mark.parametrize("kind", ["policies", "adapters"])
def test_a_point_is_what_merge_writes_and_evaluate_measures(cli, tiny, asked, tmp_path, kind):
    how = ("--init", tiny.init, "--policies", *getattr(tiny, kind), "--weights", 0.25, 0.75, "--granularity", "model")
    points = cli("front", *how, "--etas", 0.5, *asked, "--json").json["points"]
    done = cli("merge", *how, "--eta", 0.5, "--out", tmp_path / "out", "--json").json
    alone = cli("evaluate", "--policy", tmp_path / "out", "--anchor", tiny.init, *asked, "--json").json
    assert points[-1]["recipe"] == done["recipe"]
    same = ("reward", "reward_se", "rewards", "length", "diversity", "n", "evaluation")
    assert {name: points[-1][name] for name in same} == {name: alone[name] for name in same}
    # A sweep over adapters adds what the merge has added up already: the same completions, the KL up to rounding.
    closeness = 1e-5 if kind == "adapters" else 0.0
    for name in ("kl", "kl_se"):
        assert points[-1][name] == pytest.approx(alone[name], rel=closeness, abs=0.0)
    assert points[-1]["kl"] > 0.01


def test_a_front_that_is_stored_costs_nothing(cli, front, monkeypatch):
    first = cli(*front, "--json")
    for name in ("load_policy", "compute_geometry"):
        monkeypatch.setattr(sweep_module, name, never)
    again = cli(*front, "--json")
    assert again.json == first.json
    # What is measured together is said together; what is stored, in the order of the front.
    assert sorted(again.err.splitlines()) == sorted(first.err.splitlines())


def test_evaluate_and_front_find_each_other_s_points(cli, tiny, front, asked, monkeypatch):
    alone = cli("evaluate", "--policy", tiny.init, "--anchor", tiny.init, *asked, "--json").json
    points = cli(*front, "--json").json["points"]
    assert (alone["kind"], points[0]["kind"]) == ("policy", "sft")
    assert points[0]["reward"] == alone["reward"]
    monkeypatch.setattr("warp_core.commands.measure.measure", never)
    second = cli("evaluate", "--policy", tiny.policies[1], "--anchor", tiny.init, *asked, "--json").json
    assert (second["kind"], second["run"], second["kl"]) == ("policy", None, points[2]["kl"])


def test_another_anchor_is_where_the_curve_starts(cli, tiny, asked, tmp_path):
    (later,) = make_policies(tiny.init, tmp_path, num=1, seed=8, scale=0.03, names=("later",))
    policies = make_policies(later, tmp_path, num=2, seed=9, scale=0.03, names=("p0", "p1"))
    how = ("--init", later, "--policies", *policies, "--anchor", tiny.init, "--etas", 0, 1)
    points = cli("front", *how, *asked, "--to-init", "--json").json["points"]
    towards = [(p["eta"], p["recipe"]["towards"] is None, p["kl"] == 0) for p in points if p["kind"] == "merge"]
    assert sorted(towards) == [(0.0, False, True), (0.0, True, False), (1.0, False, False), (1.0, True, False)]
    # Both curves end at the merged policies.
    ends = [(p["kl"], p["reward"]) for p in points if p["eta"] == 1.0]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_the_plot_and_the_table_are_written_where_asked(cli, front, tmp_path):
    html, table = tmp_path / "new" / "front.html", tmp_path / "front.csv"
    said = cli(*front, "--html", html, "--csv", table)
    assert said.code == 0
    assert "Hypervolume" in said.out
    page = html.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "SLERP" in page
    found = cli(*front, "--json").json["points"]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl"]) for row in rows] == [p["kl"] for p in found]
    assert [row["dominated"] for row in rows] == [json.dumps(p["dominated"]) for p in found]


def test_every_point_is_compared_on_the_same_prompts(cli, front, tiny):
    found = cli(*front, "--json").json["points"]
    by_key = {point["key"]: point for point in found}
    sft, merges = found[0], [point for point in found if point["kind"] == "merge"]
    assert sft["to_reference"] is None
    for point in found[1:]:
        beside = point["to_reference"]
        assert beside["to"] == sft["key"]
        assert beside["reward"] == pytest.approx(point["reward"] - sft["reward"], abs=1e-12)
        assert beside["kl"] == pytest.approx(point["kl"], abs=1e-12)
        assert beside["kl_se"] == pytest.approx(point["kl_se"], abs=1e-12)  # the KL of the SFT policy is 0 everywhere
    assert [by_key[point["to_previous"]["to"]]["eta"] for point in merges[1:]] == [0.0, 0.5]
    # At eta = 0 the merge is the SFT policy, with the same samples: nothing differs, and that is certain.
    assert [merges[0]["to_reference"][name] for name in ("reward", "reward_se", "kl", "kl_se")] == [0, 0, 0, 0]
    assert merges[1]["to_reference"]["reward_se"] > 0


def test_another_point_to_compare_with(cli, front, tmp_path):
    found = cli(*front, "--reference", "slerp:0.5", "--json", "--csv", tmp_path / "front.csv").json["points"]
    (base,) = (point for point in found if point["eta"] == 0.5)
    assert base["to_reference"] is None
    assert {point["to_reference"]["to"] for point in found if point is not base} == {base["key"]}
    with (tmp_path / "front.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl_to_reference"] or 0) for row in rows] == pytest.approx([p["kl"] - base["kl"] for p in found])
    said = cli(*front, "--reference", "policy-2").out
    assert "Differences on the same prompts and noise: less policy 2; step: less the point before." in said
    wrong = cli(*front, "--reference", "slerp:0.7")
    assert wrong.code == 2
    named = "sft, policy-1, policy-2, slerp:0, slerp:0.5, slerp:1.5"
    assert wrong.err.splitlines()[-1].endswith(f"--reference slerp:0.7: no point of this front: choose from {named}")


def test_models_in_half_precision_have_a_front(cli, tmp_path, asked):
    import torch

    init = make_model("qwen2", tmp_path / "init", dtype=torch.bfloat16)
    policies = make_policies(init, tmp_path, num=2, scale=0.05)
    points = cli("front", "--init", init, "--policies", *policies, "--etas", 1, *asked, "--json").json["points"]
    assert points[0]["kl"] == 0
    assert points[-1]["kl"] > 0
