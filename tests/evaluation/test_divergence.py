"""The KL of completions: rows of several models, kept or recomputed distributions, any architecture."""

import dataclasses
from functools import partial

import pytest
import torch

from tests.tiny import make_adapter, make_model
from tests.toy import CPU
from warp_core.evaluation import divergence
from warp_core.evaluation.divergence import Subject, completion_kl
from warp_core.evaluation.kl import exact_kl, mc_kl
from warp_core.policy.bank import AdapterBank
from warp_core.policy.logprobs import completion_logits, token_logprobs
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts
from warp_core.policy.sampling import sample
from warp_core.weights import coefficients, compute_geometry, make_recipe, open_checkpoint

PROMPTS = ["a", "the film was", "in the end"]
T = 0.9


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A subject of three models, the second of them the SFT policy, and the completions of all."""
    folder = tmp_path_factory.mktemp("sides")
    base = open_checkpoint(make_model("llama", folder / "base"))
    adapters = [open_checkpoint(make_adapter(base.path, folder / f"a{m}", seed=m, scale=1.0)) for m in range(2)]
    bank = AdapterBank(load_policy(base.path, device=CPU), base)
    bank.load(adapters)
    geometry = compute_geometry(base, adapters)
    recipes = [make_recipe(base, adapters, method="slerp", eta=eta) for eta in (0.5, 1.0)]
    half, whole = (bank.mix(coefficients(recipe, geometry), [base, *adapters]) for recipe in recipes)
    table = bank.table([half, None, whole])
    subject = Subject(
        policy=bank.policy,
        measured=partial(bank.at, table),
        anchor=partial(bank.at, None),
        models=3,
        sft_models=frozenset({1}),
    )
    batch = encode_prompts(PROMPTS, bank.policy.tokenizer, chat_template=False, device=CPU).repeat(2)
    beside = PromptBatch(
        texts=batch.texts * 3, ids_BP=batch.ids_BP.repeat(3, 1), mask_BP=batch.mask_BP.repeat(3, 1), group=2
    )
    with subject.measured():
        completions = sample(
            bank.policy,
            beside,
            seeds=[*range(6)] * 3,
            max_new_tokens=7,
            temperature=T,
            keep_distributions=True,
        )
    return subject, completions


def expected(subject, completions, estimator="exact"):
    with subject.measured():
        own = completion_logits(subject.policy, completions, temperature=T)
    with subject.anchor():
        anchor = completion_logits(subject.policy, completions, temperature=T)
        anchor_logp = token_logprobs(subject.policy, completions, temperature=T)
    if estimator == "exact":
        return exact_kl(own, anchor, completions.mask_BT)
    return mc_kl(completions.logp_BT, anchor_logp, completions.mask_BT)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5, 6, 12, 100])
@pytest.mark.parametrize("keep", [True, False])
def test_models_side_by_side(sides, monkeypatch, rows, keep):
    subject, completions = sides
    monkeypatch.setattr(divergence, "SCORED_ROWS", rows)
    given = completions if keep else dataclasses.replace(completions, logps_BTV=None)
    with subject.measured():
        kl_B = completion_kl(subject, given, temperature=T)
    want_B = expected(subject, completions)
    torch.testing.assert_close(kl_B, want_B, rtol=1e-4, atol=1e-5)
    assert kl_B[6:12].eq(0).all()
    assert kl_B[:6].min() > 0.1


@torch.no_grad()
def test_the_monte_carlo_estimate_takes_what_the_sampler_saw(sides):
    subject, completions = sides
    given = dataclasses.replace(completions, logps_BTV=None)
    with subject.measured():
        kl_B = completion_kl(subject, given, temperature=T, kl_estimator="mc")
    want_B = expected(subject, completions, "mc")
    want_B[6:12] = 0
    torch.testing.assert_close(kl_B, want_B, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_architecture_that_is_not_known(sides, monkeypatch):
    subject, completions = sides
    with subject.measured():
        known_B = completion_kl(subject, completions, temperature=T)
        monkeypatch.setattr(divergence, "completion_states", lambda *args, **kwargs: None)
        other_B = completion_kl(subject, completions, temperature=T)
    torch.testing.assert_close(known_B, other_B, rtol=1e-4, atol=1e-5)


def test_a_subject_without_an_anchor_is_at_no_distance(sides):
    subject, completions = sides
    alone = Subject(policy=subject.policy)
    assert alone.is_the_anchor
    assert not subject.is_the_anchor
    assert completion_kl(alone, completions, temperature=T).eq(0).all()
    everyone = dataclasses.replace(subject, sft_models=frozenset(range(3)))
    assert everyone.is_the_anchor
