"""Adapters: reading every PEFT setting, exact merges on factors, writing what PEFT opens."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.weights import oracle
from tests.weights.helpers import adapter_set, merge
from warp_core.errors import CheckpointError, MismatchError, NonFiniteError, RecipeError
from warp_core.weights import (
    AdapterFactors,
    coefficients,
    compute_geometry,
    make_recipe,
    merge_adapters,
    open_checkpoint,
    read_adapter,
    write_adapter,
)

PEFT_FAMILIES = tiny.FAMILIES


def dense(adapter):
    """An adapter's weights as PEFT itself merges them, float64 by parameter name."""
    base = tiny.load_model(adapter.base.path)
    merged = peft.PeftModel.from_pretrained(base, adapter.path).merge_and_unload()
    return {name: p.detach().double().numpy() for name, p in merged.named_parameters()}


def assert_updates_equal_pefts(adapter):
    before = {n: p.detach().double().numpy() for n, p in tiny.load_model(adapter.base.path).named_parameters()}
    after = dense(adapter)
    factors = read_adapter(adapter)
    for name, weight in after.items():
        module = name.removesuffix(".weight")
        update = factors.delta(module).double().numpy() if module in factors.modules else 0.0
        assert np.abs(before[name] + update - weight).max() < 1e-6, name


@pytest.mark.parametrize("family", PEFT_FAMILIES)
def test_updates_are_those_of_peft(family, tmp_path):
    _, (adapter,) = adapter_set(tmp_path, family, num=1)
    factors = read_adapter(adapter)
    assert factors.fan_in_fan_out == (family == "gpt2")
    assert_updates_equal_pefts(adapter)


@pytest.mark.parametrize(
    "lora",
    [
        {"alpha": 3.0, "rank": 5},
        {"use_rslora": True, "rank": 3},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"q_proj": 12.0}},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
)
def test_scaling_and_patterns(lora, tmp_path):
    _, (adapter,) = adapter_set(tmp_path, num=1, **lora)
    assert_updates_equal_pefts(adapter)


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(tiny.read_json(path) | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("peft_type", "IA3"),
        ("init_lora_weights", "pissa_niter_4"),
        ("lora_bias", True),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [1]),
        ("some_future_field", {"x": 1}),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused_by_name(field, value, tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    folder = tiny.make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=field):
        open_checkpoint(folder, base=base)


@pytest.mark.parametrize(("field", "value"), [("r", 0), ("r", "8"), ("lora_alpha", None), ("rank_pattern", {"(": 2})])
def test_malformed_settings(field, value, tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    folder = tiny.make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match="malformed"):
        open_checkpoint(folder, base=base)


def edit_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), CheckpointError, "only"),
        (lambda t: t.update({f"{Q}.bias": torch.ones(3)}), CheckpointError, "not a LoRA factor"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 5)}), CheckpointError, "shape"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(5, 32)}), CheckpointError, "rank 5"),
        (lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan")), NonFiniteError, "q_proj.lora_A"),
        (
            lambda t: t.update({k.replace("q_proj", "z_proj"): t.pop(k) for k in list(t) if "layers.0" in k}),
            CheckpointError,
            "z_proj",
        ),
    ],
)
def test_bad_factors_are_refused_by_name(change, error, message, tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    folder = tiny.make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_tensors(folder, change)
    with pytest.raises(error, match=message):
        read_adapter(open_checkpoint(folder, base=base))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("with_init", [False, True])
@pytest.mark.parametrize("shared_a", [False, True])
def test_merged_adapters_equal_merged_weights(family, with_init, shared_a, tmp_path):
    init, policies = adapter_set(tmp_path, family, num=2, with_init=with_init, shared_a=shared_a)
    out = merge(init, policies, tmp_path / "out", kind="adapter", eta=0.6, weights=(0.4, 0.6)).out
    full = merge(init, policies, tmp_path / "full", eta=0.6, weights=(0.4, 0.6)).out
    start = dense(init) if with_init else {n: p.double().numpy() for n, p in parameters(init.path).items()}
    want = oracle.merge(start, [dense(p) for p in policies], weights=[0.4, 0.6], eta=0.6)
    for model in (tiny.load_model(out, base=init.full.path).merge_and_unload(), tiny.load_model(full)):
        for name, parameter in model.named_parameters():
            assert np.abs(parameter.detach().double().numpy() - want[name]).max() < 2e-6, name
    shape = load_file(out / "adapter_model.safetensors")[
        next(iter(policies[0].tensors)).replace("lora_B", "lora_A")
    ].shape
    assert shape[0] == (4 if shared_a else 4 * (2 + with_init))


def parameters(folder):
    return {name: p.detach() for name, p in tiny.load_model(folder).named_parameters()}


def test_slerp_of_full_weights_of_adapters(tmp_path):
    init, policies = adapter_set(tmp_path, num=2, with_init=True)
    out = merge(init, policies, tmp_path / "out", method="slerp-weights", eta=0.8).out
    want = oracle.merge(dense(init), [dense(p) for p in policies], method="slerp-weights", eta=0.8)
    for name, parameter in parameters(out).items():
        assert np.abs(parameter.double().numpy() - want[name]).max() < 2e-6, name
    with pytest.raises(RecipeError, match="full model"):
        merge(init, policies, tmp_path / "no", method="slerp-weights", kind="adapter")


def test_liti_of_adapters_towards_the_base(tmp_path):
    init, policies = adapter_set(tmp_path, num=2, with_init=True)
    base = open_checkpoint(init.full.path)
    want = oracle.merge(
        dense(init),
        [dense(p) for p in policies],
        eta=0.3,
        towards={n: p.double().numpy() for n, p in parameters(base.path).items()},
    )
    full = merge(init, policies, tmp_path / "full", towards=base, eta=0.3).out
    small = merge(init, policies, tmp_path / "small", towards=base, eta=0.3, kind="adapter").out
    for model in (tiny.load_model(small, base=base.path).merge_and_unload(), tiny.load_model(full)):
        for name, parameter in model.named_parameters():
            assert np.abs(parameter.detach().double().numpy() - want[name]).max() < 2e-6, name


def test_we_do_not_average_factors(tmp_path):
    init, policies = adapter_set(tmp_path, num=2)
    recipe = make_recipe(init, policies, method="lerp")
    coefs = coefficients(recipe, compute_geometry(init, policies))
    merged = merge_adapters(coefs, init=init, policies=policies)
    one, two = (read_adapter(p) for p in policies)
    for module in merged.modules:
        mean_of_updates = (one.delta(module) + two.delta(module)) / 2
        b, a = ((x + y) / 2 for x, y in zip(one.modules[module], two.modules[module], strict=True))
        assert torch.allclose(merged.delta(module), mean_of_updates, atol=1e-6)
        assert (merged.delta(module) - b @ a).norm() > 0.3 * mean_of_updates.norm()


def test_shared_frozen_a_keeps_a_bitwise_and_averages_b(tmp_path):
    init, policies = adapter_set(tmp_path, num=2, shared_a=True)
    coefs = coefficients(make_recipe(init, policies, method="lerp"), compute_geometry(init, policies))
    merged = merge_adapters(coefs, init=init, policies=policies)
    one, two = (read_adapter(p) for p in policies)
    for module, (b, a) in merged.modules.items():
        assert torch.equal(a, one.modules[module][1])
        assert torch.allclose(b, (one.modules[module][0] + two.modules[module][0]) / 2, atol=1e-7)


def test_the_ends_of_liti_are_exact_on_factors(tmp_path):
    init, policies = adapter_set(tmp_path, num=2, with_init=True)
    geometry = compute_geometry(init, policies)
    zero = merge_adapters(coefficients(make_recipe(init, policies, eta=0.0), geometry), init=init, policies=policies)
    ours = read_adapter(init)
    for module, (b, a) in zero.modules.items():
        assert torch.equal(b, ours.modules[module][0])
        assert torch.equal(a, ours.modules[module][1])
    base = open_checkpoint(init.full.path)
    at_base = merge(base, policies, tmp_path / "zero", eta=0.0, kind="adapter").out
    assert torch.equal(
        tiny.logits_of(tiny.load_model(at_base, base=base.path)), tiny.logits_of(tiny.load_model(base.path))
    )


def test_policies_may_adapt_different_modules_and_ranks(tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    one = tiny.make_adapter(base, tmp_path / "one", seed=1, rank=3, target_modules=["q_proj", "up_proj"])
    two = tiny.make_adapter(base, tmp_path / "two", seed=2, rank=6, target_modules=["q_proj"], layers_to_transform=[1])
    init, policies = open_checkpoint(base), [open_checkpoint(x, base=base) for x in (one, two)]
    out = merge(init, policies, tmp_path / "out", kind="adapter").out
    start = {n: p.double().numpy() for n, p in parameters(base).items()}
    want = oracle.merge(start, [dense(p) for p in policies])
    model = tiny.load_model(out, base=base).merge_and_unload()
    for name, parameter in model.named_parameters():
        assert np.abs(parameter.detach().double().numpy() - want[name]).max() < 2e-6, name
    assert sorted(set(tiny.read_json(out / "adapter_config.json")["rank_pattern"].values())) == [9]


def test_an_adapter_merged_into_a_bfloat16_base(tmp_path):
    init, policies = adapter_set(tmp_path, num=2, dtype=torch.bfloat16)
    out = merge(init, policies, tmp_path / "out", eta=0.5).out
    wide = merge(init, policies, tmp_path / "wide", eta=0.5, dtype="float32").out
    narrow, full = (load_file(x / "model.safetensors") for x in (out, wide))
    assert all(torch.equal(narrow[name], full[name].bfloat16()) for name in full)


def test_a_written_adapter_opens_again_unchanged(tmp_path):
    init, policies = adapter_set(tmp_path, num=1)
    factors = read_adapter(policies[0])
    (tmp_path / "out").mkdir()
    write_adapter(factors, tmp_path / "out", base_name="someone/base")
    assert tiny.read_json(tmp_path / "out" / "adapter_config.json")["base_model_name_or_path"] == "someone/base"
    again = read_adapter(open_checkpoint(tmp_path / "out", base=init.path))
    for module, (b, a) in factors.modules.items():
        assert torch.equal(again.modules[module][0], b)
        assert torch.equal(again.modules[module][1], a)
    with pytest.raises(RecipeError, match="no module"):
        write_adapter(AdapterFactors(modules={}), tmp_path, base_name="x")


def test_adapters_over_different_bases_do_not_mix(tmp_path):
    init, policies = adapter_set(tmp_path, num=1)
    other = tiny.make_model("llama", tmp_path / "other", seed=5)
    stranger = open_checkpoint(tiny.make_adapter(other, tmp_path / "stranger"), base=other)
    with pytest.raises(MismatchError, match="stranger"):
        compute_geometry(init, [*policies, stranger])
    with pytest.raises(MismatchError, match="one kind"):
        compute_geometry(init, [*policies, init])


def test_old_folders_without_the_class_prefix(tmp_path):
    base = tiny.make_model("gpt2", tmp_path / "base")
    file = base / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    adapter = tiny.make_adapter(base, tmp_path / "adapter")
    save_file(bare, file, metadata={"format": "pt"})
    init, policy = open_checkpoint(base), open_checkpoint(adapter, base=base)
    out = merge(init, [policy], tmp_path / "out").out
    want = tiny.logits_of(tiny.load_model(adapter, base=base))
    assert torch.allclose(tiny.logits_of(tiny.load_model(out)), want, atol=1e-5)


def test_a_base_is_needed_and_may_come_from_the_config(tmp_path):
    base = tiny.make_model("llama", tmp_path / "base")
    folder = tiny.make_adapter(base, tmp_path / "adapter")
    assert open_checkpoint(folder).base.path == base
    edit_config(folder, base_model_name_or_path="someone/model")
    with pytest.raises(CheckpointError, match="name the base"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="cannot be the base"):
        open_checkpoint(folder, base=tiny.make_adapter(base, tmp_path / "second"))


def test_the_exported_adapter_folder_is_complete(tmp_path):
    init, policies = adapter_set(tmp_path, num=2)
    out = merge(init, policies, tmp_path / "out", kind="adapter").out
    names = {path.name for path in out.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "warp_recipe.json",
        "README.md",
    } <= names
    assert "config.json" not in names
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == tiny.CHAT_TEMPLATE
