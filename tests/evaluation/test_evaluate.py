"""Measuring a policy: fixed prompts, random streams by place and number, KL to the SFT policy, batch-size free."""

import pytest
import torch

from tests.tiny import make_model
from tests.toy import CPU, all_completions, toy_policy
from tests.training.helpers import letters, make_trainable, reward_of
from warp_core.errors import DivergedError
from warp_core.evaluation.evaluate import Subject, completion_kl, evaluation_of, measure
from warp_core.policy.logprobs import token_logprobs
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.sampling import sample as draw

PROMPTS = ["a", "the film was", "in the end I think that", "no"]
ASKED = {
    "samples_per_prompt": 3,
    "max_new_tokens": 6,
    "temperature": 0.9,
    "seed": 5,
    "kl_estimator": "exact",
    "chat_template": False,
    "anchor": "sft",
    "speech": "s",
}


def ask(prompts=PROMPTS, **changes):
    return evaluation_of(prompts, reward_of(), **(ASKED | changes))


def two_models(tmp_path):
    return [load_policy(make_model("llama", tmp_path / f"m{seed}", seed=seed), device=CPU) for seed in (1, 2)]


def test_samples_come_prompt_by_prompt_with_their_rewards(tmp_path):
    policy, sft = two_models(tmp_path)
    seen = []
    samples = measure(
        Subject(policy=policy, reference=sft),
        PROMPTS,
        reward_of(),
        ask(),
        batch_size=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [sample.prompt for sample in samples] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert all(sample.reward == letters("", sample.completion) == sample.rewards["scored"] for sample in samples)
    assert len({sample.completion for sample in samples}) == 12
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("kl_estimator", ["exact", "mc"])
def test_the_batch_size_changes_nothing_but_rounding(kl_estimator, tmp_path):
    policy, sft = two_models(tmp_path)
    found = [
        measure(
            Subject(policy=policy, reference=sft), PROMPTS, reward_of(), ask(kl_estimator=kl_estimator), batch_size=size
        )
        for size in (1, 4, 7, 100)
    ]
    for other in found[1:]:
        assert [sample.completion for sample in other] == [sample.completion for sample in found[0]]
        assert [sample.kl for sample in other] == pytest.approx([sample.kl for sample in found[0]], rel=1e-3, abs=1e-4)


def test_a_prompt_keeps_its_samples_when_others_follow(tmp_path):
    """The first half of the prompts alone, and fewer samples of each: the same completions."""
    policy, sft = two_models(tmp_path)
    subject = Subject(policy=policy, reference=sft)
    whole = measure(subject, PROMPTS, reward_of(), ask())
    half = measure(subject, PROMPTS[:2], reward_of(), ask(PROMPTS[:2], samples_per_prompt=2))
    assert [sample.completion for sample in half] == [whole[i].completion for i in (0, 1, 3, 4)]


def test_the_seed_counts(tmp_path):
    policy, sft = two_models(tmp_path)
    one, other = (
        measure(Subject(policy=policy, reference=sft), PROMPTS, reward_of(), ask(seed=seed)) for seed in (5, 6)
    )
    assert [sample.completion for sample in one] != [sample.completion for sample in other]


def test_mc_is_the_log_ratio_of_the_sampled_tokens(tmp_path):
    policy, sft = toy_policy(seed=0), toy_policy(seed=1)
    every = all_completions(policy, prompt="a", length=4, temperature=0.9)
    with torch.no_grad():
        ratio = (every.logp_BT - token_logprobs(sft, every, temperature=0.9)).sum(1)
    by_text = {}
    for text, length, value in zip(every.texts, every.num_tokens, ratio.tolist(), strict=True):
        by_text[text, length] = value
    samples = measure(
        Subject(policy=policy, reference=sft),
        ["a"] * 6,
        reward_of(),
        ask(["a"] * 6, samples_per_prompt=4, max_new_tokens=4, kl_estimator="mc"),
    )
    for sample in samples:
        assert sample.kl == pytest.approx(by_text[sample.completion, sample.num_tokens], abs=1e-4)


def test_both_estimators_agree_on_the_mean_and_with_enumeration():
    policy, sft = toy_policy(seed=0), toy_policy(seed=1)
    every = all_completions(policy, prompt="a", length=4, temperature=0.9)
    with torch.no_grad():
        ratio = (every.logp_BT - token_logprobs(sft, every, temperature=0.9)).double().sum(1)
    kl = float((every.logp_BT.double().sum(1).exp() * ratio).sum())
    for kl_estimator in ("exact", "mc"):
        asked = ask(["a"], samples_per_prompt=600, max_new_tokens=4, kl_estimator=kl_estimator)
        samples = measure(Subject(policy=policy, reference=sft), ["a"], reward_of(), asked, batch_size=600)
        values = torch.tensor([sample.kl for sample in samples], dtype=torch.float64)
        assert abs(float(values.mean()) - kl) < 4 * float(values.std()) / 600**0.5
        assert kl > 0.2


def test_a_policy_is_at_no_distance_from_itself(tmp_path):
    policy, _ = two_models(tmp_path)
    for kl_estimator in ("exact", "mc"):
        samples = measure(Subject(policy=policy), PROMPTS, reward_of(), ask(kl_estimator=kl_estimator))
        assert [sample.kl for sample in samples] == [0.0] * 12


def test_one_model_that_can_be_both_equals_two_models(tmp_path):
    """A LoRA policy in memory that becomes the SFT policy, against its two halves as models of their own."""
    folder = make_model("llama", tmp_path / "m")
    trainable = make_trainable(folder)
    with torch.no_grad():
        for index, master in enumerate(trainable.masters.values()):
            master.add_(0.2 * torch.randn(master.shape, generator=torch.Generator().manual_seed(index)))
    both = Subject(policy=trainable.policy, measured=trainable.sampling, anchor=trainable.at_sft)
    two = Subject(policy=trainable.policy, reference=load_policy(folder, device=CPU))
    one, other = (measure(subject, PROMPTS, reward_of(), ask()) for subject in (both, two))
    assert [sample.completion for sample in one] == [sample.completion for sample in other]
    assert [sample.kl for sample in one] == pytest.approx([sample.kl for sample in other], rel=1e-3, abs=1e-4)
    assert sum(sample.kl for sample in one) > 1


def test_more_rows_than_are_scored_at_once(tmp_path, monkeypatch):
    policy, sft = two_models(tmp_path)
    whole = measure(Subject(policy=policy, reference=sft), PROMPTS, reward_of(), ask())
    monkeypatch.setattr("warp_core.evaluation.divergence.SCORED_ROWS", 2)
    parts = measure(Subject(policy=policy, reference=sft), PROMPTS, reward_of(), ask())
    assert [sample.kl for sample in parts] == pytest.approx([sample.kl for sample in whole], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kl_estimator", ["exact", "mc"])
def test_a_policy_that_computes_nan_is_said_to(kl_estimator, tmp_path):
    policy, sft = two_models(tmp_path)
    with torch.no_grad():
        policy.model.get_submodule("model.norm").weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"the KL of completion 0 is nan"):
        measure(Subject(policy=policy, reference=sft), PROMPTS, reward_of(), ask(kl_estimator=kl_estimator))


def test_the_evaluation_names_what_was_asked():
    one = ask()
    assert one.num_prompts == 4
    assert one.anchor == "sft"
    ids = {
        ask(**change).id for change in ({}, {"seed": 6}, {"temperature": 1.0}, {"kl_estimator": "mc"}, {"anchor": "x"})
    }
    assert len(ids) == 5
    assert ask(PROMPTS[::-1]).id != one.id == ask().id


@pytest.mark.parametrize(
    ("num_prompts", "k", "batch_size", "expected"),
    [
        (3, 2, 4, [(range(0, 2), range(0, 2)), (range(2, 3), range(0, 2))]),
        (2, 5, 2, [(range(p, p + 1), numbers) for p in (0, 1) for numbers in (range(0, 2), range(2, 4), range(4, 5))]),
        (2, 1, 64, [(range(0, 2), range(0, 1))]),
    ],
)
def test_no_batch_is_larger_than_asked(num_prompts, k, batch_size, expected):
    from warp_core.evaluation.evaluate import _batches

    batches = list(_batches(num_prompts, k, batch_size))
    assert batches == expected
    assert max(len(places) * len(numbers) for places, numbers in batches) <= batch_size


def test_other_work_between_two_tokens_changes_no_number_and_can_end_the_measurement(tmp_path):
    policy, sft = two_models(tmp_path)
    subject = Subject(policy=policy, reference=sft)
    want = measure(subject, PROMPTS, reward_of(), ask(), batch_size=6)
    events = []

    def other_work() -> None:
        events.append("between")
        if len(events) % 5 == 0:
            measure(Subject(policy=policy), ["x"], reward_of(), ask(["x"], samples_per_prompt=1, max_new_tokens=2))

    got = measure(
        subject,
        PROMPTS,
        reward_of(),
        ask(),
        batch_size=6,
        progress=lambda done, total: events.append(f"{done} of {total}"),
        between=other_work,
    )
    assert got == want
    assert [event for event in events if event != "between"] == ["6 of 12", "12 of 12"]
    per_batch = events.index("6 of 12")
    assert per_batch >= 6 + 2, "each of up to 6 tokens, the scoring, the batch"

    def stop() -> None:
        events.append("stop")
        if len(events) == 3:
            raise InterruptedError

    events.clear()
    with pytest.raises(InterruptedError):
        measure(subject, PROMPTS, reward_of(), ask(), between=stop)
    assert events == ["stop"] * 3


def test_the_kl_of_completions_with_and_without_their_distributions(tmp_path):
    policy, sft = two_models(tmp_path)
    batch = encode_prompts(PROMPTS, policy.tokenizer, chat_template=False, device=CPU).repeat(2)
    settings = {"seeds": list(range(8)), "max_new_tokens": 5, "temperature": 0.9}
    kept, plain = (draw(policy, batch, **settings, keep_distributions=keep) for keep in (True, False))
    subject = Subject(policy=policy, reference=sft)
    kls = [completion_kl(subject, completions, temperature=0.9) for completions in (kept, plain)]
    torch.testing.assert_close(kls[0], kls[1], rtol=1e-3, atol=1e-4)
    assert kls[0].min() > 0
    assert completion_kl(Subject(policy=policy), plain, temperature=0.9).eq(0).all()
