"""LoRA layers and PEFT agree; the base is held once and never touched; A is shared and frozen where promised."""

from contextlib import ExitStack

import peft
import pytest
import torch
import transformers

from tests.tiny import FAMILIES, logits_of, make_model
from tests.toy import CPU
from warp_core.errors import ConfigError
from warp_core.policy.lora import LoraLinear, attach_lora, in_mode, lora_layers, target_modules
from warp_core.policy.model import load_policy
from warp_core.weights import AdapterFactors, write_adapter


def attach(model, *, rank=4, scale=2.0, targets=("all-linear",), seed=0, frozen=None, noise=0.1):
    """LoRA layers whose B is not zero, so that the update counts."""
    layers = attach_lora(model, rank=rank, scale=scale, targets=targets, seed=seed, frozen=frozen)
    generator = torch.Generator().manual_seed(99 + seed)
    with torch.no_grad():
        for layer in layers.values():
            layer.b_OR.copy_(noise * torch.randn(layer.b_OR.shape, generator=generator))
    return layers


def frozen_part(model, *, rank=3):
    """An earlier adapter over every linear layer, as (B, A) by path."""
    generator = torch.Generator().manual_seed(5)
    parts = {}
    for name, layer in target_modules(model, ["all-linear"]).items():
        rows, columns = layer.weight.shape
        if isinstance(layer, transformers.pytorch_utils.Conv1D):
            rows, columns = columns, rows
        parts[name] = (
            0.1 * torch.randn(rows, rank, generator=generator),
            0.3 * torch.randn(rank, columns, generator=generator),
        )
    return parts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_frozen", [False, True], ids=["first", "later"])
def test_layers_and_peft_agree(family, with_frozen, tmp_path):
    folder = make_model(family, tmp_path / "m")
    policy = load_policy(folder, device=CPU)
    base = logits_of(policy.model)
    layers = attach(policy.model, frozen=frozen_part(policy.model) if with_frozen else None)
    factored = logits_of(policy.model)
    assert (factored - base).abs().max() > 0.05

    out = tmp_path / "adapter"
    out.mkdir()
    factors = AdapterFactors(
        modules={name: layer.factors() for name, layer in layers.items()},
        transposed=frozenset(name for name, layer in layers.items() if layer.transposed),
    )
    write_adapter(factors, out, base_name=str(folder))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(
        logits_of(peft.PeftModel.from_pretrained(plain, out).eval()), factored, atol=5e-5, rtol=1e-4
    )


def test_one_layer_by_hand():
    linear = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    frozen = (torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 5.0]]))
    layer = LoraLinear(linear, frozen=frozen, a_RI=torch.tensor([[1.0, -1.0]]), scale=0.5)
    x = torch.tensor([[1.0, 1.0]])
    # W x = (3, 7); frozen adds 5 to the first; the trained part 0 while B = 0.
    assert layer(x).tolist() == [[8.0, 7.0]]
    with torch.no_grad():
        layer.b_OR.copy_(torch.tensor([[4.0], [2.0]]))
    x = torch.tensor([[2.0, 1.0]])
    # W x = (4, 10); frozen (5, 0); A x = 1, B 1 * .5 = (2, 1).
    assert layer(x).tolist() == [[11.0, 11.0]]
    with in_mode([layer], "base"):
        assert layer(x).tolist() == [[4.0, 10.0]]
    b, a = layer.factors()
    assert (b @ a + linear.weight).tolist() == [[3.0, 5.0], [4.0, 3.0]]
    assert b.tolist() == [[1.0, 2.0], [0.0, 1.0]]


def test_a_new_adapter_changes_nothing(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    before = logits_of(policy.model)
    attach_lora(policy.model, rank=4, scale=2.0, targets=["all-linear"], seed=0)
    assert torch.equal(logits_of(policy.model), before)


def test_modes_nest_and_come_back(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    base = logits_of(policy.model)
    layers = list(attach(policy.model).values())
    factored = logits_of(policy.model)
    with in_mode(layers, "base"):
        torch.testing.assert_close(logits_of(policy.model), base)
        with in_mode(layers, "lora"):
            assert torch.equal(logits_of(policy.model), factored)
        assert all(layer.mode == "base" for layer in layers)
    with pytest.raises(RuntimeError), in_mode(layers, "base"):
        raise RuntimeError
    assert all(layer.mode == "lora" for layer in layers)


@pytest.mark.parametrize("with_frozen", [False, True], ids=["first", "later"])
def test_factors_made_ready_are_those_of_the_moment(with_frozen, tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    base = logits_of(policy.model)
    layers = attach(policy.model, frozen=frozen_part(policy.model) if with_frozen else None)
    for _ in range(2):
        expected = logits_of(policy.model)
        with ExitStack() as stack:
            for layer in layers.values():
                stack.enter_context(layer.ready())
            torch.testing.assert_close(logits_of(policy.model), expected, atol=5e-5, rtol=1e-4)
            with in_mode(list(layers.values()), "base"):
                torch.testing.assert_close(logits_of(policy.model), base)
        assert torch.equal(logits_of(policy.model), expected)
        with torch.no_grad():
            for layer in layers.values():
                layer.b_OR.mul_(2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_held_once(family, dtype, tmp_path):
    """By the kernel; no parameter, attribute or buffer of the model holds an adapted weight beside it."""
    policy = load_policy(make_model(family, tmp_path / "m"), device=CPU, dtype=dtype)
    weights = {
        name: module.weight.detach().clone() for name, module in target_modules(policy.model, ["all-linear"]).items()
    }
    before = sum(parameter.numel() for parameter in policy.model.parameters())
    layers = attach(policy.model)
    adapted = sum(module.kernel.dense().numel() for module in layers.values())
    biases = sum(len(module.b_OR) for module in layers.values()) if family == "gpt2" else 0
    factors = sum(layer.a_RI.numel() + layer.b_OR.numel() for layer in layers.values())
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == before - adapted - biases + factors
    assert not any(tensor.numel() > 4 * 48 for layer in layers.values() for tensor in layer.buffers())
    for name, layer in layers.items():
        assert torch.equal(layer.kernel.dense(), weights[name].T if layer.transposed else weights[name])


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("with_frozen", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_plain_operations(train_a, with_frozen, bias):
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    linear = torch.nn.Linear(5, 7, bias=bias, dtype=torch.float64)
    weight, offset = linear.weight.detach().clone(), linear.bias.detach().clone() if bias else 0.0
    frozen = (random(7, 2), random(2, 5)) if with_frozen else None
    layer = LoraLinear(linear, frozen=frozen, a_RI=random(3, 5), scale=0.5)
    with torch.no_grad():
        layer.b_OR.copy_(random(7, 3))
    layer.a_RI.requires_grad_(train_a)
    inputs = [random(2, 4, 5).requires_grad_(True), layer.b_OR, *([layer.a_RI] if train_a else [])]
    gy = random(2, 4, 7)
    update = frozen[0] @ frozen[1] if frozen else 0.0
    plain = inputs[0] @ (weight + update + 0.5 * layer.b_OR @ layer.a_RI).T + offset
    torch.testing.assert_close(layer(inputs[0]), plain)
    expected = torch.autograd.grad(plain, inputs, gy)
    for found, one in zip(torch.autograd.grad(layer(inputs[0]), inputs, gy), expected, strict=True):
        torch.testing.assert_close(found, one)


def test_a_depends_on_seed_and_layer_alone(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    one, same, other = (
        attach_lora(load_policy(folder, device=CPU).model, rank=4, scale=scale, targets=targets, seed=seed)
        for scale, targets, seed in (
            (1.0, ["all-linear"], 3),
            (2.0, ["q_proj", "up_proj"], 3),
            (1.0, ["all-linear"], 4),
        )
    )
    assert len(one) == 14
    assert len(same) == 4
    for name, layer in same.items():
        assert torch.equal(layer.a_RI, one[name].a_RI)
        assert not torch.equal(layer.a_RI, other[name].a_RI)
    rows = [tuple(layer.a_RI.flatten().tolist()) for layer in one.values()]
    assert len(set(rows)) == len(rows), "two layers share their A"
    # Uniform in +-1/sqrt(I), as peft starts it: standard deviation 1/sqrt(3 I).
    a = one["model.layers.0.self_attn.q_proj"].a_RI
    assert a.abs().max() <= 32**-0.5
    assert float(a.detach().std()) == pytest.approx((3 * 32) ** -0.5, rel=0.15)


def test_targets_by_name_and_the_head_left_out(tmp_path):
    model = load_policy(make_model("llama", tmp_path / "m", tied=False), device=CPU).model
    assert sorted(target_modules(model, ["q_proj"])) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    everything = target_modules(model, ["all-linear"])
    assert "lm_head" not in everything
    assert len(everything) == 14
    with pytest.raises(
        ConfigError, match=r"adapter.targets: no linear layer is called 'c_attn'; this model has down_proj"
    ):
        target_modules(model, ["q_proj", "c_attn"])


def test_frozen_layers_that_are_not_targets_stay_adapted(tmp_path):
    """An earlier iteration adapted everything; this one trains q_proj: the rest keeps its part at rank 0 on top."""
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    frozen = frozen_part(policy.model)
    layers = attach_lora(policy.model, rank=4, scale=1.0, targets=["q_proj"], seed=0, frozen=frozen)
    assert len(layers) == 14
    ranks = {name.rsplit(".", 1)[-1]: layer.factors()[1].shape[0] for name, layer in layers.items()}
    assert ranks["q_proj"] == 7
    assert ranks["up_proj"] == 3
    factored = logits_of(policy.model)
    with in_mode(list(layers.values()), "base"):
        assert (logits_of(policy.model) - factored).abs().max() > 0.05


def test_gradients_reach_the_factors_in_float32_from_a_bfloat16_base(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU, dtype=torch.bfloat16)
    layers = attach(policy.model)
    layer = next(iter(layers.values()))
    assert layer.b_OR.dtype == layer.a_RI.dtype == torch.float32
    policy.model(input_ids=torch.arange(8).unsqueeze(0)).logits.float().logsumexp(-1).sum().backward()
    assert layer.b_OR.grad.dtype == torch.float32
    assert all(torch.isfinite(one.b_OR.grad).all() and one.b_OR.grad.abs().max() > 0 for one in layers.values())
    assert lora_layers(policy.model) == list(dict.fromkeys(lora_layers(policy.model)))
    assert policy.model.get_input_embeddings().weight.grad is None
