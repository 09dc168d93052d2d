"""Streamed merges against the naive oracle, and what an exported folder holds."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.weights import oracle
from tests.weights.helpers import full_set, merge
from warp_core.errors import CheckpointError, GeometryError, NonFiniteError, RecipeError, WorkspaceError
from warp_core.weights import Geometry, compute_geometry, make_recipe, merge_to_folder, open_checkpoint
from warp_core.weights.shards import parse_size, plan_shards


def assert_close(folder, want, *, rtol=3e-7):
    got = oracle.read_folder(folder)
    assert got.keys() == want.keys()
    for name in want:
        scale = np.abs(want[name]).max()
        assert np.abs(got[name] - want[name]).max() <= rtol * max(scale, 1e-3), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_merges_as_the_oracle_does_and_loads(family, tmp_path):
    init, policies = full_set(tmp_path, family, max_shard_size=30_000)
    report = merge(init, policies, tmp_path / "out", eta=0.7, weights=(0.3, 0.7), max_shard_size=40_000)
    folders = [oracle.read_folder(c.path) for c in (init, *policies)]
    assert_close(tmp_path / "out", oracle.merge(folders[0], folders[1:], weights=[0.3, 0.7], eta=0.7))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert report.num_params == init.num_params
    moved = tiny.logits_of(tiny.load_model(tmp_path / "out"))
    assert (moved - tiny.logits_of(tiny.load_model(init.path))).abs().max() > 1e-3
    assert torch.isfinite(moved).all()


@pytest.mark.parametrize("method", ["slerp", "lerp", "slerp-weights"])
@pytest.mark.parametrize("granularity", ["layer", "tensor", "model"])
def test_methods_and_granularities_agree_with_the_oracle(method, granularity, tmp_path):
    init, policies = full_set(tmp_path, num=3)
    merge(init, policies, tmp_path / "out", method=method, granularity=granularity, weights=(0.5, 0.2, 0.3), eta=1.3)
    folders = [oracle.read_folder(c.path) for c in (init, *policies)]
    want = oracle.merge(
        folders[0], folders[1:], method=method, granularity=granularity, weights=[0.5, 0.2, 0.3], eta=1.3
    )
    assert_close(tmp_path / "out", want, rtol=1e-6)


def test_liti_towards_another_checkpoint(tmp_path):
    init, (first, second, sft) = full_set(tmp_path, num=3)
    merge(init, [first, second], tmp_path / "out", towards=sft, eta=0.3)
    w = [oracle.read_folder(c.path) for c in (init, first, second, sft)]
    assert_close(tmp_path / "out", oracle.merge(w[0], w[1:3], eta=0.3, towards=w[3]))
    merge(init, [first, second], tmp_path / "zero", towards=sft, eta=0.0)
    assert_same_tensors(tmp_path / "zero", sft.path)


def assert_same_tensors(a, b):
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_of_liti_are_bitwise(dtype, tmp_path):
    init, policies = full_set(tmp_path, dtype=dtype)
    merge(init, policies, tmp_path / "zero", eta=0.0)
    assert_same_tensors(tmp_path / "zero", init.path)
    merge(init, policies[:1], tmp_path / "one", eta=1.0)
    assert_same_tensors(tmp_path / "one", policies[0].path)
    merge(init, policies, tmp_path / "second", weights=(0.0, 1.0), eta=1.0)
    assert_same_tensors(tmp_path / "second", policies[1].path)


def test_dtypes_are_converted_at_the_end_only(tmp_path):
    init, policies = full_set(tmp_path)
    merge(init, policies, tmp_path / "wide", eta=0.5)
    merge(init, policies, tmp_path / "narrow", eta=0.5, dtype="bfloat16")
    wide, narrow = (load_file(tmp_path / x / "model.safetensors") for x in ("wide", "narrow"))
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)
    assert tiny.read_json(tmp_path / "narrow" / "config.json")["dtype"] == "bfloat16"
    assert tiny.read_json(tmp_path / "wide" / "config.json")["dtype"] == "float32"


def test_a_value_too_large_for_float16_is_an_error_and_leaves_nothing(tmp_path):
    init, policies = full_set(tmp_path)
    file = policies[0].path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    policies[0] = open_checkpoint(policies[0].path)
    with pytest.raises(NonFiniteError, match=r"'model\.norm\.weight'.*float16"):
        merge(init, policies, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_an_exported_folder_is_complete(tmp_path):
    init, policies = full_set(tmp_path, max_shard_size=30_000)
    (init.path / "LICENSE").write_text("terms", encoding="utf-8")
    (init.path / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    (init.path / "modeling_evil.py").write_text("raise SystemExit", encoding="utf-8")
    report = merge(init, policies, tmp_path / "out", eta=0.3, max_shard_size="60KB")
    names = {path.name for path in report.out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"} <= names
    assert {"chat_template.jinja", "warp_recipe.json", "README.md", "model.safetensors.index.json"} <= names
    assert "modeling_evil.py" not in names
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in report.out.iterdir())
    assert report.size_bytes == sum(path.stat().st_size for path in report.out.iterdir())
    tokenizer = transformers.AutoTokenizer.from_pretrained(report.out)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    card = (report.out / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nbase_model: "init"\nlicense: "apache-2.0"\nlibrary_name: transformers\n')
    assert str(tmp_path) not in card + (report.out / "warp_recipe.json").read_text(encoding="utf-8")


def test_the_recipe_file_tells_the_inputs(tmp_path):
    init, policies = full_set(tmp_path)
    report = merge(init, policies, tmp_path / "out", eta=0.3)
    record = tiny.read_json(report.out / "warp_recipe.json")
    assert record["recipe"] == report.recipe.to_json()
    assert record["coefficients"][1]["layer"] == "model.layers.0"
    assert record["coefficients"][1]["policies"] == report.coefficients.coef_LM[1].tolist()
    assert [s["role"] for s in record["sources"]] == ["init", "policy 1", "policy 2"]
    digest = hashlib.sha256((policies[1].path / "model.safetensors").read_bytes()).hexdigest()
    assert record["sources"][2]["files"] == [{"name": "model.safetensors", "sha256": digest}]
    assert json.dumps(report.to_json())


def test_the_shards_hold_what_the_index_says_within_the_limit(tmp_path):
    init, policies = full_set(tmp_path)
    out = merge(init, policies, tmp_path / "out", max_shard_size=50_000).out
    index = tiny.read_json(out / "model.safetensors.index.json")
    for file in sorted(set(index["weight_map"].values())):
        tensors = load_file(out / file)
        assert sorted(tensors) == sorted(name for name, where in index["weight_map"].items() if where == file)
        assert sum(t.numel() * 4 for t in tensors.values()) <= 50_000
    assert index["metadata"]["total_size"] == 4 * init.num_params


def test_an_output_that_exists_is_refused(tmp_path):
    init, policies = full_set(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(WorkspaceError, match="out"):
        merge(init, policies, tmp_path / "out")


def test_recipe_and_checkpoints_must_agree(tmp_path):
    init, policies = full_set(tmp_path)
    recipe = make_recipe(init, policies)
    geometry = compute_geometry(init, policies)
    with pytest.raises(RecipeError, match="same order"):
        merge_to_folder(recipe, init=init, policies=policies[::-1], geometry=geometry, out=tmp_path / "out")


def test_a_source_that_changed_after_it_was_opened(tmp_path):
    init, policies = full_set(tmp_path)
    recipe, geometry = make_recipe(init, policies), compute_geometry(init, policies)
    tiny.make_policies(init.path, tmp_path / "more", num=1, seed=7)
    shutil.copy(tmp_path / "more" / "policy0" / "model.safetensors", policies[1].path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"policy1/model\.safetensors: the file changed"):
        merge_to_folder(recipe, init=init, policies=policies, geometry=geometry, out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="changed"):
        compute_geometry(init, policies)


def test_a_geometry_without_some_layer_is_refused(tmp_path):
    init, policies = full_set(tmp_path)
    data = compute_geometry(init, policies).to_json()
    data |= {"layers": data["layers"][:-1], "gram_LNN": data["gram_LNN"][:-1]}
    with pytest.raises(GeometryError, match="belongs to no layer"):
        merge_to_folder(
            make_recipe(init, policies),
            init=init,
            policies=policies,
            geometry=Geometry.from_json(data),
            out=tmp_path / "out",
        )


def test_masks_and_odd_tensors_pass_through(tmp_path):
    init, policies = full_set(tmp_path, "gpt2")
    for checkpoint in (init, *policies):
        file = checkpoint.path / "model.safetensors"
        mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()}
        save_file(load_file(file) | mask, file, metadata={"format": "pt"})
    opened = [open_checkpoint(c.path) for c in (init, *policies)]
    out = merge(opened[0], opened[1:], tmp_path / "out", eta=0.5, dtype="bfloat16").out
    assert load_file(out / "model.safetensors")["transformer.h.0.attn.bias"].dtype == torch.bool


def test_float64_checkpoints_are_merged_in_float64(tmp_path):
    init, policies = full_set(tmp_path, dtype=torch.float64)
    out = merge(init, policies, tmp_path / "out", eta=0.5).out
    w = [oracle.read_folder(c.path) for c in (init, *policies)]
    assert_close(out, oracle.merge(w[0], w[1:], eta=0.5), rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200MB", 2 * 10**8), ("1.5KiB", 1536), (77, 77), ("12", 12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "5 parsecs", "0.1B", "9" * 400])
def test_bad_sizes(text):
    with pytest.raises(RecipeError, match="size"):
        parse_size(text)


def test_a_tensor_larger_than_the_limit_gets_its_own_file():
    spec = (torch.float32, (10,))
    shards = plan_shards({"a": spec, "b": (torch.float32, (100,)), "c": spec, "d": spec}, limit=80)
    assert [list(s.tensors) for s in shards] == [["a"], ["b"], ["c", "d"]]
    assert shards[2].file == "model-00003-of-00003.safetensors"


MEMORY = """
import sys
from pathlib import Path
from warp_core.weights import Geometry, compute_geometry, make_recipe, merge_to_folder, open_checkpoint

def private_kb(*_):
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])

root = Path(sys.argv[1])
init, *policies = (open_checkpoint(root / name) for name in ("init", "policy0", "policy1"))
before, seen = private_kb(), []
watch = lambda done, total: seen.append(private_kb())
geometry = compute_geometry(init, policies, progress=watch)
recipe = make_recipe(init, policies, eta=0.5)
merge_to_folder(recipe, init=init, policies=policies, geometry=geometry, out=root / "out", progress=watch)
print(max(seen) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_private_memory_is_a_few_pieces_whatever_the_model(tmp_path):
    init = tiny.make_model("llama", tmp_path / "init", hidden_size=256, intermediate_size=2048, num_hidden_layers=14)
    tiny.make_policies(init, tmp_path)
    assert (init / "model.safetensors").stat().st_size > 85_000_000
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) < 40_000  # KiB: three float64 pieces, three read buffers, the libraries' warm-up


def test_opposite_policies_name_the_layer_and_write_nothing(tmp_path):
    init, policies = full_set(tmp_path)
    start, one = (load_file(c.path / "model.safetensors") for c in (init, policies[0]))
    mirrored = {name: (one[name] if "layers.1" not in name else 2 * start[name] - one[name]) for name in start}
    save_file(mirrored, policies[1].path / "model.safetensors", metadata={"format": "pt"})
    policies[1] = open_checkpoint(policies[1].path)
    with pytest.raises(GeometryError, match=r"layer 'model\.layers\.1', policy 2.*opposite"):
        merge(init, policies, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(init, policies, tmp_path / "out", method="lerp")
