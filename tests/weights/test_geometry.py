"""The Gram matrix: against naive vectors, by hand, cached, and what makes it fail."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.weights import oracle
from tests.weights.helpers import adapter_set, full_set
from tests.weights.test_adapters import dense, parameters
from warp_core.errors import GeometryError, MismatchError, NonFiniteError
from warp_core.weights import Geometry, LayerInfo, compute_geometry, grams, layer_of, open_checkpoint
from warp_core.weights.layers import layer_order


def geometry_by_hand():
    """theta_init (0, 0, 2) and the task vectors (3, 0, 0) and (3, 4, 0)."""
    x = np.array([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    layers = (LayerInfo(name="a", num_params=3),)
    return Geometry(init="i", policies=("p", "q"), granularity="layer", layers=layers, gram_LNN=(x @ x.T)[None])


def test_norms_cosines_and_angles_by_hand():
    geometry = geometry_by_hand()
    assert geometry.norms_LM.tolist() == [[3.0, 5.0]]
    assert geometry.cosines_LMM[0, 0, 1] == pytest.approx(0.6)
    assert math.degrees(geometry.angles_LMM[0, 0, 1]) == pytest.approx(53.130102)
    assert geometry.cosines_LMM[0].diagonal().tolist() == [1.0, 1.0]
    # full weights (3, 0, 2) and (3, 4, 2): 13 / (sqrt(13) sqrt(29))
    assert geometry.full_cosines_LMM[0, 0, 1] == pytest.approx(math.sqrt(13 / 29))


def test_a_zero_task_vector_counts_as_parallel():
    gram = np.zeros((1, 3, 3))
    gram[0, 1, 1] = 4.0
    layers = (LayerInfo(name="a", num_params=1),)
    geometry = Geometry(init="i", policies=("p", "q"), granularity="layer", layers=layers, gram_LNN=gram)
    assert geometry.cosines_LMM[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert geometry.angles_LMM[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_json_round_trip_is_exact():
    geometry = geometry_by_hand()
    again = Geometry.from_json(json.loads(json.dumps(geometry.to_json())))
    assert (again.gram_LNN == geometry.gram_LNN).all()
    assert (again.init, again.policies, again.granularity, again.layers) == ("i", ("p", "q"), "layer", geometry.layers)


@pytest.mark.parametrize("change", [{"gram_LNN": [1.0]}, {"policies": None}, {"granularity": "x"}, {"layers": [{}]}])
def test_bad_json_is_refused(change):
    with pytest.raises(GeometryError, match="geometry"):
        Geometry.from_json(geometry_by_hand().to_json() | change)


def test_a_gram_with_nan_is_refused():
    with pytest.raises(GeometryError, match="NaN"):
        Geometry.from_json(geometry_by_hand().to_json() | {"gram_LNN": [math.nan] * 9})


def naive_grams(init, policies, granularity):
    vectors = [init, *({name: p[name] - init[name] for name in init} for p in policies)]
    units = {}
    for name in init:
        units.setdefault(oracle.unit_of(name, granularity), []).append(name)
    flat = {
        unit: np.stack([np.concatenate([v[n].ravel() for n in names]) for v in vectors])
        for unit, names in units.items()
    }
    return {unit: x @ x.T for unit, x in flat.items()}


@pytest.mark.parametrize("granularity", ["layer", "tensor", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_checkpoints_against_naive_vectors(granularity, dtype, tmp_path):
    init, policies = full_set(tmp_path, dtype=dtype, num=3, max_shard_size=30_000)
    geometry = compute_geometry(init, policies, granularity=granularity)
    want = naive_grams(oracle.read_folder(init.path), [oracle.read_folder(p.path) for p in policies], granularity)
    assert len(geometry.layers) == len(want)
    for layer, gram in zip(geometry.layers, geometry.gram_LNN, strict=True):
        assert gram == pytest.approx(want["all" if granularity == "model" else layer.name], rel=1e-12, abs=1e-12)
    assert sum(layer.num_params for layer in geometry.layers) == init.num_params


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("with_init", [False, True])
@pytest.mark.parametrize("shared_a", [False, True])
@pytest.mark.parametrize("granularity", ["layer", "tensor", "model"])
def test_adapters_against_naive_vectors(family, with_init, shared_a, granularity, tmp_path):
    init, policies = adapter_set(tmp_path, family, with_init=with_init, shared_a=shared_a)
    geometry = compute_geometry(init, policies, granularity=granularity)
    start = dense(init) if with_init else {n: p.double().numpy() for n, p in parameters(init.path).items()}
    want = naive_grams(start, [dense(p) for p in policies], granularity)
    for layer, gram in zip(geometry.layers, geometry.gram_LNN, strict=True):
        assert gram == pytest.approx(want["all" if granularity == "model" else layer.name], rel=1e-5, abs=2e-5)
    if granularity == "layer":
        blocks = "transformer.h" if family == "gpt2" else "model.layers"
        assert [layer.name for layer in geometry.layers] == [f"{blocks}.0", f"{blocks}.1"]


def test_adapters_and_their_merged_models_have_one_geometry(tmp_path):
    init, policies = adapter_set(tmp_path, with_init=True)
    small = compute_geometry(init, policies)
    merged = []
    for checkpoint in (init, *policies):
        folder = tmp_path / f"full-{checkpoint.id[:6]}"
        tiny.make_model("llama", folder)
        save = {n: torch.from_numpy(w) for n, w in dense(checkpoint).items()}
        save_file(save, folder / "model.safetensors", metadata={"format": "pt"})
        merged.append(open_checkpoint(folder))
    large = compute_geometry(merged[0], merged[1:])
    rows = [[layer.name for layer in large.layers].index(layer.name) for layer in small.layers]
    assert small.gram_LNN == pytest.approx(large.gram_LNN[rows], rel=1e-5, abs=1e-5)
    assert [large.layers[row].num_params for row in rows] == [layer.num_params for layer in small.layers]


def test_small_steps_from_an_adapter_lose_no_digits(tmp_path):
    init, (policy,) = adapter_set(tmp_path, num=1, with_init=True, shared_a=True)
    file = policy.path / "adapter_model.safetensors"
    tensors = load_file(init.path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    tensors[key][0, 0] += 2.0**-20
    step = (tensors[key].double() - load_file(init.path / "adapter_model.safetensors")[key].double()).sum().item()
    save_file(tensors, file, metadata={"format": "pt"})
    geometry = compute_geometry(init, [open_checkpoint(policy.path, base=init.full.path)])
    row_a = tensors[key.replace("lora_B", "lora_A")][0].double().norm().item()
    assert geometry.norms_LM[0, 0] == pytest.approx(2.0 * step * row_a, rel=1e-12)  # alpha / r = 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", ["init", "policy1"])
def test_nonfinite_values_name_tensor_and_file(value, who, tmp_path):
    full_set(tmp_path)
    file = tmp_path / who / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, file, metadata={"format": "pt"})
    init, policies = open_checkpoint(tmp_path / "init"), [open_checkpoint(tmp_path / f"policy{m}") for m in range(2)]
    with pytest.raises(NonFiniteError, match=rf"{who}/model\.safetensors: tensor 'model\.layers\.1\.mlp\.up_proj"):
        compute_geometry(init, policies)


def test_nonfinite_values_in_the_base_of_adapters(tmp_path):
    init, policies = adapter_set(tmp_path)
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        file = init.path / "model.safetensors"
        tensors = load_file(file)
        tensors[name].view(-1)[1] = float("inf")
        save_file(tensors, file, metadata={"format": "pt"})
        base = open_checkpoint(init.path)
        again = [open_checkpoint(p.path, base=init.path) for p in policies]
        with pytest.raises(NonFiniteError, match=name):
            compute_geometry(base, again)
        tensors[name].view(-1)[1] = 0.0
        save_file(tensors, file, metadata={"format": "pt"})


def test_the_cache_answers_for_all_granularities_and_survives_damage(tmp_path, monkeypatch):
    init, policies = full_set(tmp_path)
    cache, calls = tmp_path / "cache", []
    honest = grams._full_grams
    monkeypatch.setattr(grams, "_full_grams", lambda *args: calls.append(1) or honest(*args))
    first = compute_geometry(init, policies, cache_dir=cache)
    again = compute_geometry(init, policies, cache_dir=cache)
    assert (first.gram_LNN == again.gram_LNN).all()
    per_tensor = compute_geometry(init, policies, cache_dir=cache, granularity="tensor")
    assert per_tensor.gram_LNN.sum(axis=0) == pytest.approx(first.gram_LNN.sum(axis=0))
    assert len(calls) == 1
    compute_geometry(init, policies[::-1], cache_dir=cache)
    assert len(calls) == 2
    for text in ("", "{}", "[1]", next(cache.iterdir()).read_text(encoding="utf-8")[:200]):
        for file in cache.iterdir():
            file.write_text(text, encoding="utf-8")
        assert (compute_geometry(init, policies, cache_dir=cache).gram_LNN == first.gram_LNN).all()


def test_progress_counts_elements(tmp_path):
    init, policies = full_set(tmp_path)
    seen = []
    compute_geometry(init, policies, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (init.num_params, init.num_params)
    assert seen == sorted(seen)


def test_no_policies(tmp_path):
    with pytest.raises(MismatchError, match="no policies"):
        compute_geometry(open_checkpoint(tiny.make_model("llama", tmp_path / "init")), [])


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("model.layers.11.mlp.experts.5.w1.weight", "model.layers.11"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.0"),
        ("h.0.ln_1.bias", "h.0"),
        ("transformer.ln_f.bias", "transformer.ln_f"),
        ("weight", "weight"),
    ],
)
def test_layer_of(tensor, layer):
    assert layer_of(tensor) == layer


def test_layers_are_shown_in_the_order_of_the_model():
    names = ["lm_head", "model.layers.10", "model.layers.2", "model.norm", "model.embed_tokens", "model.layers.0"]
    want = ["model.embed_tokens", "model.layers.0", "model.layers.2", "model.layers.10", "model.norm", "lm_head"]
    assert sorted(names, key=layer_order) == want
