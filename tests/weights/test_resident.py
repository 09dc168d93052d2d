"""The resident merge writes the tensors of the streamed merge, in place."""

import pytest
import torch

from tests import tiny
from tests.weights.helpers import adapter_set, full_set, merge
from warp_core.errors import GeometryError, MismatchError
from warp_core.weights import ResidentMerge, coefficients, compute_geometry, make_recipe, open_checkpoint


def resident_of(init, policies, *, dtype=torch.float32, towards=None):
    model = tiny.load_model(init.full.path, dtype=dtype)
    return model, ResidentMerge(model, init=init, policies=policies, towards=towards)


def coefs_of(init, policies, *, granularity="layer", **recipe):
    geometry = compute_geometry(init, policies, granularity=granularity)
    return coefficients(make_recipe(init, policies, granularity=granularity, **recipe), geometry)


def assert_same_parameters(model, folder, dtype=torch.float32):
    want = dict(tiny.load_model(folder, dtype=dtype).named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, want[name]), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_checkpoints_move_in_place_as_streamed(family, tmp_path):
    init, policies = full_set(tmp_path, family)
    model, resident = resident_of(init, policies)
    where = {name: p.data_ptr() for name, p in model.named_parameters()}
    resident.move(coefs_of(init, policies, eta=0.4))
    out = merge(init, policies, tmp_path / "out", eta=0.4).out
    assert_same_parameters(model, out)
    assert torch.equal(tiny.logits_of(model), tiny.logits_of(tiny.load_model(out)))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == where
    resident.reset()
    assert_same_parameters(model, init.path)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("with_init", [False, True])
def test_adapters_move_in_place_as_streamed(family, with_init, tmp_path):
    init, policies = adapter_set(tmp_path, family, with_init=with_init)
    model, resident = resident_of(init, policies)
    resident.move(coefs_of(init, policies, eta=0.4))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", eta=0.4).out)
    resident.reset()
    want = tiny.logits_of(tiny.load_model(init.path, base=init.full.path if with_init else None))
    assert torch.allclose(tiny.logits_of(model), want, atol=1e-5)


def test_moves_do_not_add_up(tmp_path):
    init, policies = full_set(tmp_path)
    model, resident = resident_of(init, policies)
    for eta in (0.1, 1.7, 0.4):
        resident.move(coefs_of(init, policies, eta=eta))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", eta=0.4).out)


@pytest.mark.parametrize("method", ["lerp", "slerp-weights"])
@pytest.mark.parametrize("granularity", ["tensor", "model"])
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_methods_and_granularities(method, granularity, kind, tmp_path):
    init, policies = full_set(tmp_path, num=3) if kind == "full" else adapter_set(tmp_path, num=3)
    model, resident = resident_of(init, policies)
    settings = {"method": method, "granularity": granularity, "eta": 0.8, "weights": (0.2, 0.3, 0.5)}
    resident.move(coefs_of(init, policies, **settings))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", **settings).out)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_bfloat16_models_move_in_float32_and_are_cast_once(kind, tmp_path):
    make = full_set if kind == "full" else adapter_set
    init, policies = make(tmp_path, dtype=torch.bfloat16)
    model, resident = resident_of(init, policies, dtype=torch.bfloat16)
    resident.move(coefs_of(init, policies, eta=0.4))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", eta=0.4).out, torch.bfloat16)


def test_a_bfloat16_preview_of_float32_checkpoints_is_the_bfloat16_export(tmp_path):
    init, policies = full_set(tmp_path)
    model, resident = resident_of(init, policies, dtype=torch.bfloat16)
    resident.move(coefs_of(init, policies, eta=0.4))
    out = merge(init, policies, tmp_path / "out", eta=0.4, dtype="bfloat16").out
    assert_same_parameters(model, out, torch.bfloat16)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_towards(kind, tmp_path):
    if kind == "full":
        init, (*policies, sft) = full_set(tmp_path, num=3)
    else:
        init, policies = adapter_set(tmp_path, with_init=True)
        sft = open_checkpoint(init.full.path)
    model, resident = resident_of(init, policies, towards=sft)
    resident.move(coefs_of(init, policies, eta=0.4, towards=sft))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", eta=0.4, towards=sft).out)
    resident.move(coefs_of(init, policies, eta=0.4))
    assert_same_parameters(model, merge(init, policies, tmp_path / "plain", eta=0.4).out)
    model, resident = resident_of(init, policies)
    with pytest.raises(MismatchError, match="towards"):
        resident.move(coefs_of(init, policies, eta=0.4, towards=sft))


def test_tied_weights_stay_tied_and_move_once(tmp_path):
    init, policies = full_set(tmp_path, "gemma2")
    model, resident = resident_of(init, policies)
    resident.move(coefs_of(init, policies, eta=0.4))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", eta=0.4).out)


def test_fused_experts_have_no_angle_per_tensor_and_nothing_moves(tmp_path):
    init, policies = full_set(tmp_path, "mixtral")
    model, resident = resident_of(init, policies)
    with pytest.raises(GeometryError, match=r"mlp.*--granularity layer"):
        resident.move(coefs_of(init, policies, granularity="tensor"))
    assert_same_parameters(model, init.path)
    resident.move(coefs_of(init, policies, granularity="model", eta=0.5))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", granularity="model", eta=0.5).out)


def test_adapters_beside_fused_experts_have_angles_per_tensor(tmp_path):
    init, policies = adapter_set(tmp_path, "mixtral")
    model, resident = resident_of(init, policies)
    resident.move(coefs_of(init, policies, granularity="tensor", eta=0.5))
    assert_same_parameters(model, merge(init, policies, tmp_path / "out", granularity="tensor", eta=0.5).out)


def test_coefficients_of_another_set_are_refused(tmp_path):
    init, policies = full_set(tmp_path, num=3)
    _, resident = resident_of(init, policies[:2])
    with pytest.raises(MismatchError, match="3 policies"):
        resident.move(coefs_of(init, policies))


def test_a_model_of_another_shape_is_refused(tmp_path):
    init, policies = full_set(tmp_path)
    other = tiny.build_model("llama", intermediate_size=64)
    with pytest.raises(MismatchError, match="does not fit"):
        ResidentMerge(other, init=init, policies=policies)


def test_the_live_parameters_can_still_be_trained(tmp_path):
    init, policies = full_set(tmp_path)
    model, resident = resident_of(init, policies)
    resident.move(coefs_of(init, policies))
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert model.model.norm.weight.grad is not None
    assert resident.size_bytes == 3 * 4 * init.num_params


def test_the_parameters_that_are_held_can_be_read(tmp_path):
    init, policies = full_set(tmp_path)
    _, resident = resident_of(init, policies[:1])
    held = resident.parameters_of(policies[0])
    want = dict(tiny.load_model(policies[0].path).named_parameters())
    assert all(torch.equal(held[name], want[name]) for name in want)
    with pytest.raises(MismatchError, match="not held"):
        resident.parameters_of(policies[1])


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_two_live_models_share_their_sources(kind, tmp_path):
    init, policies = (full_set if kind == "full" else adapter_set)(tmp_path)
    model, resident = resident_of(init, policies)
    other = tiny.load_model(init.full.path)
    second = resident.beside(other)
    resident.move(coefs_of(init, policies, eta=0.4))
    second.move(coefs_of(init, policies, eta=1.5, method="lerp"))
    assert second.size_bytes == resident.size_bytes
    assert_same_parameters(model, merge(init, policies, tmp_path / "one", eta=0.4).out)
    assert_same_parameters(other, merge(init, policies, tmp_path / "two", eta=1.5, method="lerp").out)
    with pytest.raises(MismatchError, match="other parameters"):
        resident.beside(tiny.build_model("llama", intermediate_size=64))
