"""Sweeps: each point is that of the merged weights, is measured once, and shares its random numbers with the others."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import make_adapter, make_model, make_policies
from warp_core.errors import MismatchError, RecipeError
from warp_core.evaluation import sweep as sweep_module
from warp_core.evaluation.evaluate import Subject, evaluation_of, measure
from warp_core.evaluation.points import Sample
from warp_core.evaluation.sweep import Ask, Hooks, Spot, Sweep
from warp_core.policy.model import load_policy
from warp_core.policy.speech import speech_id
from warp_core.rewards import load_reward
from warp_core.weights import compute_geometry, merge_to_folder, open_checkpoint
from warp_core.workspace.results import Results

PROMPTS = ("The film", "I thought that", "Never")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An SFT policy; two policies of it; a later init and two policies of that; two adapters over the SFT policy."""
    folder = tmp_path_factory.mktemp("models")
    sft = make_model("llama", folder / "sft")
    policies = make_policies(sft, folder, num=2, scale=0.05)
    (later,) = make_policies(sft, folder, num=1, seed=7, scale=0.03, names=("later",))
    later_policies = make_policies(later, folder, num=2, seed=9, scale=0.05, names=("later0", "later1"))
    adapters = [make_adapter(sft, folder / f"adapter{m}", seed=m, scale=1.0) for m in range(2)]
    (near,) = make_policies(sft, folder, num=1, seed=5, scale=1e-6, names=("near",))
    opened = {
        "sft": open_checkpoint(sft),
        "policies": [open_checkpoint(p) for p in policies],
        "later": open_checkpoint(later),
        "later_policies": [open_checkpoint(p) for p in later_policies],
        "adapters": [open_checkpoint(p) for p in adapters],
        "near": [open_checkpoint(near)],
    }
    return SimpleNamespace(**opened)


def ask_of(sft, *, seed=11, kl_estimator="exact"):
    reward = load_reward(["words", "uppercase:0.5"])
    evaluation = evaluation_of(
        PROMPTS,
        reward,
        samples_per_prompt=2,
        max_new_tokens=6,
        temperature=0.9,
        seed=seed,
        kl_estimator=kl_estimator,
        chat_template=False,
        anchor=sft.id,
        speech=speech_id(sft.path),
    )
    return Ask(prompts=PROMPTS, reward=reward, evaluation=evaluation)


def sweep_of(models, tmp_path, *, init=None, policies=None, store="results.sqlite", iteration=None, **ask):
    return Sweep(
        sft=models.sft,
        init=init or models.sft,
        policies=policies or models.policies,
        ask=ask_of(models.sft, **ask),
        store=Results(tmp_path / store),
        iteration=iteration,
    )


def samples_of(sweep, point):
    return [Sample.from_json(sample) for sample in sweep.store.samples(point.key)]


def assert_alike(got, want):
    """The same completions and rewards; the KL up to the rounding of float32."""
    assert [dataclasses.replace(s, kl=0.0) for s in got] == [dataclasses.replace(s, kl=0.0) for s in want]
    assert [s.kl for s in got] == pytest.approx([s.kl for s in want], rel=1e-4, abs=1e-5)


def never(*args, **kwargs):
    raise AssertionError("measured again, or a model loaded")


@pytest.mark.parametrize(
    ("init", "policies", "kl_estimator"),
    [("sft", "policies", "exact"), ("sft", "adapters", "mc"), ("later", "later_policies", "exact")],
)
def test_a_point_is_that_of_the_merged_folder(models, tmp_path, init, policies, kl_estimator):
    init, policies = getattr(models, init), getattr(models, policies)
    sweep = sweep_of(models, tmp_path, init=init, policies=policies, kl_estimator=kl_estimator)
    recipe = sweep.recipe(eta=0.6, weights=[0.25, 0.75])
    point = sweep.point(recipe)
    merge_to_folder(
        recipe,
        init=init,
        policies=policies,
        towards=sweep.towards,
        geometry=compute_geometry(init, policies),
        out=tmp_path / "merged",
    )
    subject = Subject(policy=load_policy(tmp_path / "merged"), reference=load_policy(models.sft.path))
    samples = measure(subject, PROMPTS, sweep.ask.reward, sweep.ask.evaluation)
    assert_alike(samples_of(sweep, point), samples)
    assert point.kl == pytest.approx(sum(s.kl for s in samples) / 6, rel=1e-5, abs=1e-6)
    assert point.reward == pytest.approx(sum(s.reward for s in samples) / 6)
    assert (point.kind, point.eta, point.method, point.n) == ("merge", 0.6, "slerp", 6)


def test_the_sft_policy_has_no_kl_and_is_measured_once(models, tmp_path, monkeypatch):
    sweep = sweep_of(models, tmp_path, iteration=1)
    sft = sweep.sft_point()
    assert (sft.kl, sft.kl_se, sft.kind, sft.policy, sft.iteration) == (0.0, 0.0, "sft", models.sft.id, None)
    monkeypatch.setattr(sweep_module, "measure_together", never)
    start = sweep.point(sweep.recipe(eta=0.0))
    assert (start.kl, start.reward, start.kind, start.eta, start.iteration) == (0.0, sft.reward, "merge", 0.0, 1)
    assert samples_of(sweep, start) == samples_of(sweep, sft)


def test_from_iteration_two_on_eta_zero_is_the_sft_policy_or_the_init(models, tmp_path):
    sweep = sweep_of(models, tmp_path, init=models.later, policies=models.later_policies, iteration=2)
    assert sweep.towards is models.sft
    assert sweep.point(sweep.recipe(eta=0.0)).kl == 0.0
    at_init = sweep.point(sweep.recipe(eta=0.0, to_init=True))
    subject = Subject(policy=load_policy(models.later.path), reference=load_policy(models.sft.path))
    assert_alike(samples_of(sweep, at_init), measure(subject, PROMPTS, sweep.ask.reward, sweep.ask.evaluation))
    assert at_init.kl > 0.01


def test_a_policy_point_is_that_policy(models, tmp_path):
    sweep = sweep_of(models, tmp_path, iteration=1)
    point = sweep.policy_point(2)
    subject = Subject(policy=load_policy(models.policies[1].path), reference=load_policy(models.sft.path))
    assert_alike(samples_of(sweep, point), measure(subject, PROMPTS, sweep.ask.reward, sweep.ask.evaluation))
    assert (point.kind, point.policy, point.run, point.iteration) == ("policy", models.policies[1].id, "policy-2", 1)


def test_what_is_stored_costs_nothing(models, tmp_path, monkeypatch):
    sweep = sweep_of(models, tmp_path)
    first = [sweep.sft_point(), sweep.policy_point(1), sweep.point(sweep.recipe(eta=0.5))]
    sweep.store.close()
    monkeypatch.setattr(sweep_module, "measure_together", never)
    monkeypatch.setattr(sweep_module, "load_policy", never)
    monkeypatch.setattr(sweep_module, "compute_geometry", never)
    again = sweep_of(models, tmp_path)
    assert [again.sft_point(), again.policy_point(1), again.point(again.recipe(eta=0.5))] == first


@pytest.mark.parametrize("change", [{"seed": 12}, {"kl_estimator": "mc"}])
def test_another_evaluation_is_measured_again(models, tmp_path, change):
    first = sweep_of(models, tmp_path)
    point = first.point(first.recipe(eta=1.0))
    other = sweep_of(models, tmp_path, **change)
    again = other.point(other.recipe(eta=1.0))
    assert again.key != point.key
    assert again.kl != point.kl
    assert [stored["kl"] for stored in other.store.list_points()] == [point.kl, again.kl]


def test_points_share_their_random_numbers(models, tmp_path):
    sweep = sweep_of(models, tmp_path, policies=models.near)
    texts = [s.completion for s in samples_of(sweep, sweep.sft_point())]
    assert len(set(texts)) > 3
    assert [s.completion for s in samples_of(sweep, sweep.policy_point(1))] == texts
    other = sweep_of(models, tmp_path, policies=models.near, seed=12)
    assert [s.completion for s in samples_of(other, other.policy_point(1))] != texts


def test_a_stored_point_takes_its_place_in_the_front_that_asks(models, tmp_path, monkeypatch):
    # The SFT policy of one front is a policy of another, and iteration and number differ.
    near = sweep_of(models, tmp_path, policies=[models.near[0], models.sft], iteration=3)
    alone = near.policy_point(2)
    assert (alone.kind, alone.run, alone.iteration) == ("policy", "policy-2", 3)
    near.store.close()
    monkeypatch.setattr(sweep_module, "measure_together", never)
    front = sweep_of(models, tmp_path, iteration=1)
    sft = front.sft_point()
    assert (sft.kind, sft.run, sft.iteration) == ("sft", None, None)
    assert dataclasses.replace(sft, kind="policy", run="policy-2", iteration=3) == alone


def test_the_model_in_memory_is_the_anchor_only_while_it_scores(models, tmp_path):
    sweep = sweep_of(models, tmp_path)
    recipe = sweep.recipe(eta=1.0)
    sweep.point(recipe)
    policy, _ = sweep._loaded()
    merge_to_folder(
        recipe,
        init=models.sft,
        policies=models.policies,
        geometry=sweep.geometry(),
        out=tmp_path / "merged",
    )
    merged = load_policy(tmp_path / "merged").model.state_dict()
    live = policy.model.state_dict()
    assert live.keys() == merged.keys()
    assert all(torch.equal(live[name], merged[name]) for name in live)


def test_a_model_whose_weights_could_not_be_put_back_is_not_used_again(models, tmp_path, monkeypatch):
    want = sweep_of(models, tmp_path, store="want.sqlite")
    want_point = want.point(want.recipe(eta=0.7))
    sweep = sweep_of(models, tmp_path)

    @contextmanager
    def without_memory(model, tensors):
        for name, parameter in model.named_parameters():
            parameter.data = tensors[name]
        raise MemoryError
        yield

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "pointed_at", without_memory)
        with pytest.raises(MemoryError):
            sweep.point(sweep.recipe(eta=0.3))
    assert sweep.point(sweep.recipe(eta=0.7)) == want_point


def test_checkpoints_that_do_not_mix_are_refused_before_anything_is_loaded(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "load_policy", never)
    other = open_checkpoint(make_model("llama", tmp_path / "wide", hidden_size=64))
    with pytest.raises(MismatchError, match="wide does not fit"):
        sweep_of(models, tmp_path, policies=[models.policies[0], other])
    with pytest.raises(MismatchError, match="adapters mix over one base"):
        sweep_of(models, tmp_path, init=models.later, policies=models.adapters)


def test_a_recipe_that_makes_no_sense_is_refused(models, tmp_path):
    sweep = sweep_of(models, tmp_path)
    with pytest.raises(RecipeError, match="eta"):
        sweep.recipe(eta=2.5)
    with pytest.raises(RecipeError, match="weights"):
        sweep.recipe(weights=[1.0])


def test_another_question_uses_the_model_in_memory(models, tmp_path, monkeypatch):
    want = [sweep_of(models, tmp_path, store=f"{seed}.sqlite", seed=seed).policy_point(1) for seed in (11, 12)]
    first = sweep_of(models, tmp_path, seed=11)
    assert first.policy_point(1) == want[0]
    monkeypatch.setattr(sweep_module, "load_policy", never)
    other = first.sharing(ask=ask_of(models.sft, seed=12), store=Results(tmp_path / "other.sqlite"))
    assert other.policy_point(1) == want[1]
    assert first.store.list_points() == [want[0].to_json()]
    half = dataclasses.replace(first.ask, evaluation=dataclasses.replace(first.ask.evaluation, dtype="bfloat16"))
    with pytest.raises(ValueError, match="float32"):
        first.sharing(ask=half, store=first.store)


def test_a_sweep_stops_between_two_tokens_and_stores_nothing_half(models, tmp_path):
    sweep = sweep_of(models, tmp_path)
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == 4:
            raise InterruptedError

    for measured in (sweep.sft_point, lambda **way: sweep.policy_point(1, **way)):
        calls.clear()
        with pytest.raises(InterruptedError):
            measured(between=stop)
    assert sweep.store.list_points() == []
    calls.clear()
    with pytest.raises(InterruptedError):
        sweep.point(sweep.recipe(eta=0.5), between=stop)
    assert sweep.store.list_points() == []
    assert sweep.point(sweep.recipe(eta=0.5), between=lambda: None).n == 6


def spots_of(sweep):
    """The SFT policy, both policies, and merges, one of which is the SFT policy."""
    recipes = [sweep.recipe(eta=eta) for eta in (0.0, 0.3, 0.7, 1.0, 1.3)]
    extra = [sweep.recipe(method="lerp", eta=0.5), sweep.recipe(method="slerp-weights", eta=0.5)]
    return [Spot(), Spot(policy=1), Spot(policy=2, name="last"), *(Spot(recipe=one) for one in [*recipes, *extra])]


@pytest.mark.parametrize("policies", ["policies", "adapters"])
@pytest.mark.parametrize("kl_estimator", ["exact", "mc"])
def test_points_together_are_those_one_by_one(models, tmp_path, policies, kl_estimator):
    asked = {"policies": getattr(models, policies), "kl_estimator": kl_estimator}
    alone = sweep_of(models, tmp_path, store="alone.sqlite", **asked)
    together = sweep_of(models, tmp_path, store="together.sqlite", **asked)
    spots = spots_of(alone)
    want = [alone.points([spot])[0] for spot in spots]
    got = together.points(spots)
    assert [point.key for point in got] == [point.key for point in want]
    assert [(p.kind, p.run, p.eta, p.method) for p in got] == [(p.kind, p.run, p.eta, p.method) for p in want]
    for one, other in zip(got, want, strict=True):
        assert_alike(samples_of(together, one), samples_of(alone, other))
        assert (one.kl, one.kl_se, one.reward, one.reward_se) == pytest.approx(
            (other.kl, other.kl_se, other.reward, other.reward_se), rel=1e-5, abs=1e-5
        )
    assert [point.kl for point in got[:4:3]] == [0.0, 0.0]
    assert min(abs(point.kl) for point in got[1:3] + got[4:]) > 1e-3


def test_merges_of_adapters_share_batches_and_are_heard_of_together(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "_TOGETHER", 4)
    sweep = sweep_of(models, tmp_path, policies=models.adapters)
    stored = sweep.policy_point(1)
    heard = []
    hooks = Hooks(
        started=lambda numbers: heard.append(("started", numbers)),
        progress=lambda done, total: heard.append(("progress", done, total)),
        found=lambda number, point: heard.append(("found", number, sweep.store.get_point(point.key) is not None)),
    )
    points = sweep.points(spots_of(sweep), hooks=hooks)
    assert points[1] == stored
    assert heard[0] == ("found", 1, True)
    # Eight are left (the merge at eta = 0 is the SFT policy), in two groups of four; 3 prompts, 2 samples of each.
    assert [entry[1] for entry in heard if entry[0] == "started"] == [[0, 2, 4, 5], [6, 7, 8, 9]]
    assert {entry[2] for entry in heard if entry[0] == "progress"} == {24}
    found = [entry[1] for entry in heard if entry[0] == "found"]
    assert sorted(found) == list(range(10))
    assert all(entry[2] for entry in heard if entry[0] == "found")


def test_a_sweep_that_is_stopped_keeps_the_groups_that_are_done(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "_TOGETHER", 2)
    sweep = sweep_of(models, tmp_path, policies=models.adapters)
    recipes = [Spot(recipe=sweep.recipe(eta=eta)) for eta in (0.2, 0.4, 0.6, 0.8)]

    def stop():
        if sweep.store.list_points():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sweep.points(recipes, hooks=Hooks(between=stop))
    assert [point["eta"] for point in sweep.store.list_points()] == [0.2, 0.4]
    assert [point.eta for point in sweep.points(recipes)] == [0.2, 0.4, 0.6, 0.8]


def test_no_weight_moves_for_adapters(models, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "ResidentMerge", never)
    sweep = sweep_of(models, tmp_path, policies=models.adapters)
    assert len(sweep.points(spots_of(sweep))) == 10


def test_adapters_of_experts_are_merged_in_place(models, tmp_path, monkeypatch):
    want = sweep_of(models, tmp_path, policies=models.adapters, store="bank.sqlite").policy_point(1)
    monkeypatch.setattr(sweep_module, "_computes", lambda bank, table: False)
    sweep = sweep_of(models, tmp_path, policies=models.adapters)
    done = []
    hooks = Hooks(progress=lambda now, total: done.append((now, total)))
    points = sweep.points([Spot(policy=1), Spot(recipe=sweep.recipe(eta=0.5))], hooks=hooks)
    assert points[0].kl == pytest.approx(want.kl, rel=1e-5)
    assert done == [(6, 12), (12, 12)]
