"""What is trained: LoRA on a shared base and full fine-tuning, and what they leave as it was."""

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import logits_of, make_model
from tests.toy import CPU
from tests.training.helpers import copies, equal, make_learner, make_trainable
from warp_core.policy.lora import target_modules
from warp_core.policy.model import load_policy
from warp_core.training.config import AdapterConfig
from warp_core.training.trainable import LoraTrainable
from warp_core.weights import open_checkpoint
from warp_core.weights.model_files import write_model_files


def move(trainable, *, scale=0.1):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for master in trainable.masters.values():
            master.add_(scale * torch.randn(master.shape, generator=generator))
    trainable.spread_masters()


def frozen_part(model, *, rank=2):
    generator = torch.Generator().manual_seed(5)
    return {
        name: (
            0.1 * torch.randn(layer.weight.shape[0], rank, generator=generator),
            0.3 * torch.randn(rank, layer.weight.shape[1], generator=generator),
        )
        for name, layer in target_modules(model, ["all-linear"]).items()
    }


def test_base_weights_are_untouched_bit_for_bit(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    learner = make_learner(folder, frozen=frozen_part(load_policy(folder, device=CPU).model))
    base = {n: p for n, p in learner.trainable.policy.model.named_parameters() if n not in learner.trainable.masters}
    frozen = {name: layer.frozen for name, layer in learner.trainable.layers.items()}
    before = copies(base)
    kept = {name: tuple(part.clone() for part in pair) for name, pair in frozen.items()}
    for _ in range(3):
        learner.step()
        with learner.trainable.sampling(), learner.trainable.at_sft():
            logits_of(learner.trainable.policy.model)
    assert equal(copies(base), before)
    assert all(torch.equal(a, b) for name in kept for a, b in zip(kept[name], frozen[name], strict=True))


@pytest.mark.parametrize("with_frozen", [False, True], ids=["first", "later"])
def test_lora_becomes_anchor_and_sft_and_comes_back(with_frozen, tmp_path):
    folder = make_model("llama", tmp_path / "m")
    plain = load_policy(folder, device=CPU).model
    frozen = frozen_part(plain) if with_frozen else None
    trainable = make_trainable(folder, frozen=frozen)
    model = trainable.policy.model
    init, ema = logits_of(model), copies(trainable.masters)
    move(trainable)
    moved = logits_of(model)
    assert (moved - init).abs().max() > 0.05
    with trainable.at_anchor(ema):
        torch.testing.assert_close(logits_of(model), init, rtol=0, atol=0)
    with trainable.at_sft():
        assert torch.equal(logits_of(model), logits_of(plain))
    with trainable.sampling():
        torch.testing.assert_close(logits_of(model), moved, atol=5e-5, rtol=1e-4)
        with trainable.at_sft():
            assert torch.equal(logits_of(model), logits_of(plain))
    assert torch.equal(logits_of(model), moved)
    assert torch.equal(init, logits_of(plain)) == (not with_frozen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_becomes_anchor_and_sft_and_comes_back(dtype, tmp_path):
    sft, init = make_model("llama", tmp_path / "sft", seed=1), make_model("llama", tmp_path / "init", seed=2)
    trainable = make_trainable(init, kind="full", dtype=dtype, sft=sft)
    model = trainable.policy.model
    start, ema = logits_of(model), copies(trainable.masters)
    move(trainable)
    moved = logits_of(model)
    assert (moved - start).abs().max() > 0.1
    with trainable.at_anchor(ema):
        assert torch.equal(logits_of(model), start)
    with trainable.at_sft():
        compute = trainable.policy.dtype
        assert torch.equal(logits_of(model), logits_of(load_policy(sft, device=CPU, dtype=compute).model))
    assert torch.equal(logits_of(model), moved)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_full_in_bfloat16_computes_what_a_model_loaded_in_bfloat16_computes(family, tmp_path):
    """So that the policy that was trained is the one that is measured: rotary frequencies are not rounded."""
    folder = make_model(family, tmp_path / "m")
    trainable = make_trainable(folder, kind="full", dtype="bfloat16")
    plain = load_policy(folder, device=CPU, dtype=torch.bfloat16)
    assert trainable.policy.dtype == torch.bfloat16
    assert torch.equal(logits_of(trainable.policy.model), logits_of(plain.model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", True), ("llama", False), ("gemma2", None), ("gpt2", None), ("opt", None), ("mixtral", None)],
)
def test_full_is_saved_in_float32_under_the_names_it_came_with(family, tied, dtype, tmp_path):
    folder = make_model(family, tmp_path / "m", tied=tied)
    trainable = make_trainable(folder, kind="full", dtype=dtype)
    move(trainable, scale=0.01)
    out = tmp_path / "out"
    out.mkdir()
    trainable.save(out)
    write_model_files(out, [open_checkpoint(folder)], dtype=torch.float32, kind="full")
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    again = load_policy(out, device=CPU)
    masters = dict(again.model.named_parameters())
    assert equal(copies(masters), copies(trainable.masters))
    assert not torch.equal(logits_of(again.model), logits_of(load_policy(folder, device=CPU).model))
    open_checkpoint(out)
    if dtype == "bfloat16":
        assert {p.dtype for p in trainable.policy.model.parameters()} == {torch.bfloat16}


def test_runs_share_a_and_it_is_not_trained(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    config = AdapterConfig(rank=4, train="b")
    one, other = (LoraTrainable(load_policy(folder, device=CPU), config, seed=8) for _ in range(2))
    assert all(torch.equal(one.layers[name].a_RI, other.layers[name].a_RI) for name in one.layers)
    assert not any(layer.a_RI.requires_grad for layer in one.layers.values())
    assert all(name.endswith(".b_OR") for name in one.masters)
    both = LoraTrainable(load_policy(folder, device=CPU), AdapterConfig(rank=4, train="both"), seed=8)
    assert sum(name.endswith(".a_RI") for name in both.masters) == len(both.layers) == 14


def test_rank_0_layers_have_no_masters(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    frozen = frozen_part(load_policy(folder, device=CPU).model)
    learner = make_learner(folder, frozen=frozen, targets=("q_proj",), train="both")
    assert sorted(learner.trainable.masters) == [
        f"model.layers.{i}.self_attn.q_proj.{part}" for i in (0, 1) for part in ("a_RI", "b_OR")
    ]
    learner.step()
    assert len(learner.trainable.factors()) == 14


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_low_precision_gradients_add_up_in_float32(kind, tmp_path):
    trainable = make_trainable(make_model("llama", tmp_path / "m"), kind=kind, dtype="bfloat16")
    ids = torch.arange(8).unsqueeze(0)
    for _ in range(2):
        trainable.policy.model(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    assert all(live.grad is None for live in trainable.policy.model.parameters() if live.dtype == torch.bfloat16)
    twice = {name: master.grad.clone() for name, master in trainable.masters.items()}
    for master in trainable.masters.values():
        master.grad = None
    trainable.policy.model(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    for name, master in trainable.masters.items():
        assert twice[name].dtype == torch.float32
        torch.testing.assert_close(twice[name], 2 * master.grad, rtol=1e-5, atol=1e-8)
