"""One step of Algorithm 1 on tiny models: its gradient against a plain second implementation, and what it may touch."""

import copy
import math
import time

import pytest
import torch

from tests.tiny import make_model
from tests.training.helpers import copies, equal, make_learner, make_trainable, reward_of
from warp_core.errors import DivergedError, RewardError
from warp_core.policy.lora import lora_layers, target_modules
from warp_core.rewards import RewardSum
from warp_core.rewards.function import FunctionReward
from warp_core.rewards.specs import RewardSpec
from warp_core.training.reinforce import Learner, prompts_of_step

TEMPERATURE = 0.9


def record_gradients(learner: Learner) -> list[dict[str, torch.Tensor]]:
    """Let every optimizer step leave a copy of the gradient it used."""
    seen: list[dict[str, torch.Tensor]] = []
    step = learner.optimizer.step

    def recorded() -> None:
        seen.append(copies({name: master.grad for name, master in learner.trainable.masters.items()}))
        step()

    learner.optimizer.step = recorded
    return seen


def record_samples(learner: Learner) -> list:
    seen = []
    inner = learner._sample

    def recorded():
        seen.append(inner())
        return seen[-1]

    learner._sample = recorded
    return seen


def frozen_part(folder, *, rank=2):
    generator = torch.Generator().manual_seed(5)
    model = make_trainable(folder, kind="full").policy.model
    return {
        name: (
            0.1 * torch.randn(layer.weight.shape[0], rank, generator=generator),
            0.3 * torch.randn(rank, layer.weight.shape[1], generator=generator),
        )
        for name, layer in target_modules(model, ["all-linear"]).items()
    }


def plain_logprobs(model, completions, row: int) -> torch.Tensor:
    """log p of the tokens of one row, from a forward over the row alone, in float64 from the logits on."""
    prompt = completions.prompts.ids_BP[row][completions.prompts.mask_BP[row].bool()]
    tokens = completions.tokens_BT[row][completions.mask_BT[row]]
    logits = model(input_ids=torch.cat([prompt, tokens]).unsqueeze(0)).logits[0].double() / TEMPERATURE
    logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logp.gather(1, tokens.unsqueeze(1)).sum()


def plain_gradient(model, anchor, completions, *, beta: float, k: int) -> dict[str, torch.Tensor]:
    """Algorithm 1, lines 7 and 8, written again row by row, with leave-one-out."""
    reward = reward_of()._rewards[0].function
    rows = range(len(completions.texts))
    logp = [plain_logprobs(model, completions, row) for row in rows]
    with torch.no_grad():
        anchor_logp = [plain_logprobs(anchor, completions, row) for row in rows]
    returns = [
        reward(completions.prompts.texts[row], completions.texts[row])
        - beta * float(logp[row].detach() - anchor_logp[row])
        for row in rows
    ]
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:
        group = [other for other in rows if other // k == row // k and other != row]
        loss = loss - (returns[row] - sum(returns[other] for other in group) / len(group)) * logp[row] / len(rows)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [0, 1, 4], ids=["whole", "one", "cut-groups"])
def test_the_gradient_is_that_of_a_plain_implementation(kind, micro_batch, tmp_path):
    """At the second step, where policy, anchor and init all differ."""
    folder = make_model("llama", tmp_path / "m")
    learner = make_learner(folder, kind=kind, micro_batch=micro_batch, max_grad_norm=1e9, beta=0.5)
    gradients, drawn = record_gradients(learner), record_samples(learner)
    learner.step()
    model, anchor = (copy.deepcopy(learner.trainable.policy.model) for _ in range(2))
    with torch.no_grad():
        for name, tensor in learner.ema.items():
            anchor.get_parameter(name).copy_(tensor)
    learner.step()
    expected = plain_gradient(model, anchor, drawn[1], beta=0.5, k=3)
    assert expected.keys() == gradients[1].keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=2e-3, atol=2e-4)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.05


def test_the_anchor_matters_to_that_gradient(tmp_path):
    """The test above would see an anchor that is left out: with beta = 0 the gradient is another."""
    folder = make_model("llama", tmp_path / "m")
    found = []
    for beta in (0.0, 0.5):
        learner = make_learner(folder, beta=beta, max_grad_norm=1e9, learning_rate=0.05)
        gradients = record_gradients(learner)
        learner.step()
        learner.step()
        found.append(gradients)
    # At step 1 policy and anchor are the same.
    apart = [
        max(float((zero[name] - half[name]).abs().max()) for name in zero) for zero, half in zip(*found, strict=True)
    ]
    assert apart[0] < 1e-4
    assert apart[1] > 1e-2


@pytest.mark.parametrize("train", ["b", "both"])
def test_a_step_touches_the_trained_factors_alone(train, tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"), train=train)
    everything = dict(learner.trainable.policy.model.named_parameters())
    before = copies(everything)
    for _ in range(2):
        learner.step()
    moved = {name for name in everything if not torch.equal(everything[name], before[name])}
    assert moved == set(learner.trainable.masters)
    assert any(name.endswith("a_RI") for name in moved) == (train == "both")
    assert len(moved) == (14 if train == "b" else 28)


def test_full_fine_tuning_moves_every_weight(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"), kind="full")
    before = copies(learner.trainable.masters)
    learner.step()
    assert all(not torch.equal(before[name], master) for name, master in learner.trainable.masters.items())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("full", "float32"), ("full", "bfloat16")]
)
def test_the_anchor_starts_at_the_init_and_follows_at_mu(kind, dtype, tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"), kind=kind, dtype=dtype, mu=0.25)
    init = copies(learner.trainable.masters)
    assert equal(learner.ema, init)
    assert all(tensor.dtype == torch.float32 for tensor in [*learner.ema.values(), *learner.trainable.masters.values()])
    expected = copies(init)
    for _ in range(3):
        learner.step()
        for name, master in learner.trainable.masters.items():
            expected[name] = 0.75 * expected[name] + 0.25 * master.detach()
            torch.testing.assert_close(learner.ema[name], expected[name], rtol=1e-5, atol=1e-7)
            assert learner.ema[name].data_ptr() != master.data_ptr()
    moved = max(float((learner.ema[name] - init[name]).abs().max()) for name in init)
    behind = max(
        float((learner.ema[name] - master.detach()).abs().max()) for name, master in learner.trainable.masters.items()
    )
    assert moved > 1e-3
    assert behind > 1e-3


def test_a_fixed_anchor_stays(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"), anchor="sft")
    before = copies(learner.ema)
    learner.step()
    assert equal(learner.ema, before)


def test_the_anchor_model_is_the_ema(tmp_path):
    """kl_anchor of step 2 against the plain implementation with a copy of the EMA."""
    learner = make_learner(make_model("llama", tmp_path / "m"), learning_rate=0.05)
    drawn = record_samples(learner)
    assert learner.step().kl_anchor == pytest.approx(0.0, abs=1e-4)
    ema = copies(learner.ema)
    model, anchor = (copy.deepcopy(learner.trainable.policy.model) for _ in range(2))
    record = learner.step()
    with torch.no_grad():
        for name, tensor in ema.items():
            anchor.get_parameter(name).copy_(tensor)
        gaps = [float(plain_logprobs(model, drawn[1], row) - plain_logprobs(anchor, drawn[1], row)) for row in range(6)]
    assert abs(sum(gaps)) > 0.05
    assert record.kl_anchor == pytest.approx(sum(gaps) / 6, abs=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_sft_anchor_of_a_later_iteration_is_the_sft_policy_not_the_init(kind, tmp_path):
    sft = make_model("llama", tmp_path / "sft")
    if kind == "lora":
        learner = make_learner(sft, anchor="sft", frozen=frozen_part(sft))
    else:
        learner = make_learner(make_model("llama", tmp_path / "init", seed=3), kind="full", anchor="sft", sft=sft)
    drawn = record_samples(learner)
    model = copy.deepcopy(learner.trainable.policy.model)
    anchor = make_trainable(sft, kind="full").policy.model
    record = learner.step()
    with torch.no_grad():
        gaps = [float(plain_logprobs(model, drawn[0], row) - plain_logprobs(anchor, drawn[0], row)) for row in range(6)]
    assert abs(sum(gaps)) > 0.3
    assert record.kl_anchor == pytest.approx(sum(gaps) / 6, abs=1e-4)


@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_without_a_kl_no_anchor_is_computed(anchor, tmp_path, monkeypatch):
    learner = make_learner(make_model("llama", tmp_path / "m"), beta=0, anchor=anchor)

    def never(*_args):
        raise AssertionError("the anchor was computed")

    monkeypatch.setattr(learner.trainable, "at_anchor", never)
    monkeypatch.setattr(learner.trainable, "at_sft", never)
    assert learner.step().kl_anchor is None
    assert learner.ema == {}, "an anchor that nobody asks is neither held nor saved"


def test_gradients_are_clipped_to_the_norm_and_the_record_has_it_before(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    free = make_learner(folder, max_grad_norm=1e9)
    whole = record_gradients(free)
    norm = free.step().grad_norm
    clipped = make_learner(folder, max_grad_norm=norm / 10)
    seen = record_gradients(clipped)
    assert clipped.step().grad_norm == pytest.approx(norm, rel=1e-6)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in whole[0].values())), rel=1e-5)
    for name, gradient in seen[0].items():
        torch.testing.assert_close(gradient, whole[0][name] / 10, rtol=1e-4, atol=1e-7)


def test_the_rate_warms_up(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"), warmup_steps=4, learning_rate=0.008)
    assert [learner.step().learning_rate for _ in range(5)] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008])


def test_dropout_is_off_while_training(tmp_path):
    folder = make_model("gpt2", tmp_path / "m", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    for kind in ("lora", "full"):
        learner = make_learner(folder, kind=kind)
        assert learner.step().sampling_gap < 1e-4
        assert learner.step().sampling_gap < 1e-4


def test_the_gap_is_seen_when_sampler_and_update_disagree(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"))
    inner = learner._sample

    def wrong():
        drawn = inner()
        drawn.logp_BT.sub_(0.5 * drawn.mask_BT)
        return drawn

    learner._sample = wrong
    assert learner.step().sampling_gap == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype", "rate", "spread", "reached"),
    [
        ("lora", "float32", 0.08, 0.6, 0.7),
        ("lora", "bfloat16", 0.08, 0.6, 0.7),
        ("full", "float32", 0.03, 0.1, 0.95),
        ("full", "bfloat16", 0.03, 0.1, 0.95),
    ],
)
def test_training_raises_an_easy_reward(kind, dtype, rate, spread, reached, tmp_path):
    """Share of bytes below 128 in the completion: about one half for a random model."""

    def share(_prompt: str, completion: str) -> float:
        return sum(letter.isascii() for letter in completion) / max(1, len(completion))

    learner = make_learner(
        make_model("llama", tmp_path / "m", initializer_range=spread),
        kind=kind,
        dtype=dtype,
        reward=reward_of(share),
        learning_rate=rate,
        prompts_per_step=4,
        completions_per_prompt=4,
        max_new_tokens=6,
        beta=0.01,
    )
    rewards = [learner.step().reward for _ in range(20)]
    assert sum(rewards[:3]) / 3 < 0.68
    assert sum(rewards[-4:]) / 4 > reached


def test_bfloat16_masters_keep_what_bfloat16_weights_would_lose(tmp_path):
    """Ten steps of 1e-6 on weights near 1: far below bfloat16's spacing of 2^-8, kept in the masters."""
    learner = make_learner(make_model("llama", tmp_path / "m"), kind="full", dtype="bfloat16", learning_rate=1e-6)
    masters, live = learner.trainable.masters, learner.trainable.live
    before, before_live = copies(masters), copies(live)
    for _ in range(3):
        learner.step()
    name = "model.layers.0.input_layernorm.weight"
    assert live[name].dtype == torch.bfloat16
    assert torch.equal(live[name], before_live[name])
    assert 5e-7 < float((masters[name].detach() - before[name]).abs().max()) < 4e-6
    assert all(torch.equal(live[name], master.to(torch.bfloat16)) for name, master in masters.items())


def test_every_epoch_has_every_prompt_once():
    prompts = [f"p{index}" for index in range(7)]
    row = [prompt for step in range(14) for prompt in prompts_of_step(prompts, step=step, count=3, seed=5)]
    epochs = [row[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == prompts for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "epochs repeat their order"
    other = [prompt for step in range(14) for prompt in prompts_of_step(prompts, step=step, count=3, seed=6)]
    assert other != row


def test_more_prompts_than_there_are():
    assert sorted(prompts_of_step(["a", "b"], step=0, count=5, seed=0))[:2] == ["a", "a"]
    assert len(prompts_of_step(["a"], step=3, count=4, seed=0)) == 4


def snapshot(learner: Learner) -> dict[str, torch.Tensor]:
    tensors = {f"master/{name}": tensor for name, tensor in learner.trainable.masters.items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in learner.ema.items()}
    tensors |= {f"model/{name}": tensor for name, tensor in learner.trainable.policy.model.named_parameters()}
    for name, master in learner.trainable.masters.items():
        tensors |= {f"adam/{part}/{name}": value for part, value in learner.optimizer.state[master].items()}
    return copies(tensors)


@pytest.mark.parametrize(("kind", "dtype"), [("lora", "float32"), ("full", "float32"), ("full", "bfloat16")])
@pytest.mark.parametrize("fault", ["loss", "gradient", "anchor"])
def test_numbers_that_are_not_finite_stop_the_step_before_the_update(fault, kind, dtype, tmp_path, monkeypatch):
    learner = make_learner(make_model("llama", tmp_path / "m"), kind=kind, dtype=dtype, micro_batch=3)
    learner.step()
    before = snapshot(learner)
    if fault == "loss":
        # finite for the reward's own check, infinite as a float32 advantage
        learner.reward = reward_of(lambda prompt, completion: 1e300 * (len(completion) + ord(completion[0])))
        message = "step 2: the loss is"
    elif fault == "gradient":
        trained = next(one for one in learner.trainable.policy.model.parameters() if one.requires_grad)
        trained.register_hook(lambda gradient: gradient * float("nan"))
        message = "step 2: the gradient's norm is nan"
    else:
        inner = learner._anchor_logprobs
        monkeypatch.setattr(learner, "_anchor_logprobs", lambda completions: inner(completions) * float("nan"))
        message = "step 2: the loss is nan"
    with pytest.raises(DivergedError, match=message):
        learner.step()
    assert equal(snapshot(learner), before)
    assert learner.steps_done == 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda count: [math.nan, *[1.0] * (count - 1)], "gave nan to completion 0"),
        (lambda count: [*[1.0] * (count - 1), math.inf], "gave inf to completion 5"),
        (lambda count: [1.0, -math.inf, *[1.0] * (count - 2)], "gave -inf to completion 1"),
        (lambda count: [1.0, None, *[1.0] * (count - 2)], "gave None to completion 1"),
        (lambda count: [1.0] * (count - 1), "returned 5 numbers for 6 completions"),
        (lambda count: [1.0] * (count + 1), "returned 7 numbers for 6 completions"),
        (lambda count: [1 / 0], "raised ZeroDivisionError"),
        (lambda count: time.sleep(3) or [1.0] * count, "gave no answer"),
    ],
)
def test_a_bad_reward_never_reaches_the_weights(scores, message, tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"))
    learner.step()
    before = snapshot(learner)
    bad = FunctionReward(lambda prompts, completions: scores(len(completions)), name="bad", timeout_s=0.1)
    learner.reward = RewardSum([(RewardSpec(name="bad"), bad)])
    with pytest.raises(RewardError, match=message):
        learner.step()
    assert equal(snapshot(learner), before)
    assert learner.steps_done == 1


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"))
    learner.step()
    name, master = next(iter(learner.trainable.masters.items()))
    with torch.no_grad():
        master[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=f"step 1: weight {name} is not finite"):
        learner.state("f")


def test_a_weight_without_gradient_is_saved_and_restored(tmp_path):
    """A layer that no token goes through (an expert never chosen): Adam counts its steps like the others'."""
    folder = make_model("llama", tmp_path / "m")
    learners = []
    for _ in range(2):
        trainable = make_trainable(folder, kind="full")
        idle = torch.nn.Parameter(torch.ones(3))
        trainable.policy.model.register_parameter("idle", idle)
        trainable.live["idle"] = idle
        learners.append(make_learner(folder, trainable=trainable))
    straight, resumed = learners
    straight.step()
    resumed.restore(copy.deepcopy(straight.state("f")))
    assert straight.trainable.masters["idle"].tolist() == [1, 1, 1]
    straight.step()
    resumed.step()
    assert equal(snapshot(straight), snapshot(resumed))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("full", "float32"), ("full", "bfloat16")]
)
def test_restored_learners_go_on_bit_for_bit(kind, dtype, tmp_path):
    folder = make_model("llama", tmp_path / "m")
    straight, resumed = (make_learner(folder, kind=kind, dtype=dtype) for _ in range(2))
    for _ in range(2):
        straight.step()
    resumed.restore(copy.deepcopy(straight.state("f")))
    assert resumed.steps_done == 2
    one, other = straight.step(), resumed.step()
    assert equal(snapshot(straight), snapshot(resumed))
    assert (one.reward, one.kl_anchor, one.grad_norm) == (other.reward, other.kl_anchor, other.grad_norm)


def test_the_record_counts_tokens_and_means(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"))
    drawn = record_samples(learner)
    record = learner.step()
    reward = reward_of()._rewards[0].function
    rewards = [reward("", text) for text in drawn[0].texts]
    assert record.reward == pytest.approx(sum(rewards) / 6)
    assert record.rewards == {"scored": pytest.approx(sum(rewards) / 6)}
    assert record.num_tokens == sum(drawn[0].num_tokens)
    assert record.length == pytest.approx(record.num_tokens / 6)
    assert record.entropy == pytest.approx(-float(drawn[0].logp_BT.sum()) / record.num_tokens, rel=1e-5)
    assert record.step == 1
    assert set(record.seconds) == {"sampling", "reward", "anchor", "update"}


def test_sampling_leaves_the_layers_as_they_were(tmp_path):
    learner = make_learner(make_model("llama", tmp_path / "m"))
    learner.step()
    layers = lora_layers(learner.trainable.policy.model)
    assert all(layer.mode == "lora" for layer in layers)
