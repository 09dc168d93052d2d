"""geometry, merge, check and doctor."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import load_model, logits_of, read_json
from warp_core.weights import open_checkpoint

# A tensor of every layer, and the layers in the order they are shown.
MOVED = {
    "model.embed_tokens": "model.embed_tokens.weight",
    "model.layers.0": "model.layers.0.mlp.up_proj.weight",
    "model.layers.1": "model.layers.1.self_attn.q_proj.weight",
    "model.norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
# Task vectors (1/2, 0) and (3/10, 4/10): both of length 1/2, at an angle whose cosine is 3/5.
FIRST, SECOND = (0.5, 0.0), (0.3, 0.4)
ANGLE = math.degrees(math.acos(0.6))


def moved(init, folder, steps, *, layers=tuple(MOVED), add=None):
    """A copy of init: the first elements of one tensor of each layer moved by `steps`."""
    shutil.copytree(init, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in layers:
        flat = tensors[MOVED[layer]].view(-1)
        for place, step in enumerate(steps):
            flat[place] += step
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def pair(tiny, tmp_path):
    return [moved(tiny.init, tmp_path / "first", FIRST), moved(tiny.init, tmp_path / "second", SECOND)]


def test_geometry_of_hand_made_checkpoints(cli, tiny, pair):
    found = cli("geometry", "--init", tiny.init, "--policies", *pair, "--json").json
    assert [layer["name"] for layer in found["layers"]] == list(MOVED)
    assert found["init"] == open_checkpoint(tiny.init).id
    assert found["policies"] == [open_checkpoint(policy).id for policy in pair]
    sizes = {layer["name"]: layer["num_params"] for layer in found["layers"]}
    assert sizes["model.norm"] == 32
    assert sizes["model.embed_tokens"] == sizes["lm_head"] == 262 * 32
    assert sum(sizes.values()) == sum(t.numel() for t in load_file(tiny.init / "model.safetensors").values())
    for layer in found["layers"]:
        assert layer["norms"] == pytest.approx([0.5, 0.5], rel=1e-5)
        assert layer["cosines"][0] == pytest.approx([1.0, 0.6], rel=1e-5)
        assert layer["angles_deg"][0] == pytest.approx([0.0, ANGLE], rel=1e-5)
        assert layer["angles_deg"][1] == pytest.approx([ANGLE, 0.0], rel=1e-5)


def test_geometry_as_a_table(cli, tiny, pair):
    said = cli("geometry", "--init", tiny.init, "--policies", *pair)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1].split() == ["model.embed_tokens", "0.5000", "0.5000", "53.13"]


@pytest.mark.parametrize(("granularity", "rows"), [("tensor", 21), ("model", 1)])
def test_geometry_at_other_granularities(cli, tiny, pair, granularity, rows):
    said = cli("geometry", "--init", tiny.init, "--policies", *pair, "--granularity", granularity, "--json").json
    assert (said["granularity"], len(said["layers"])) == (granularity, rows)
    if granularity == "model":
        assert said["layers"][0]["norms"] == pytest.approx([0.5 * math.sqrt(5)] * 2, rel=1e-5)


def test_geometry_where_nothing_moved_is_finite(cli, tiny):
    found = cli("geometry", "--init", tiny.init, "--policies", tiny.init, tiny.init, "--json").json
    assert {tuple(layer["norms"]) for layer in found["layers"]} == {(0.0, 0.0)}


def test_merge_of_hand_made_checkpoints(cli, tiny, pair, tmp_path):
    out = tmp_path / "merged"
    done = cli("merge", "--init", tiny.init, "--policies", *pair, "--out", out, "--json").json
    # sin(W/2) / sin W = 1 / (2 cos(W/2)), and cos^2(W/2) = (1 + 3/5) / 2.
    half = 1 / (2 * math.sqrt(0.8))
    assert list(done["coefficients"]) == list(MOVED)
    for coefficients in done["coefficients"].values():
        assert coefficients == pytest.approx([half, half], rel=1e-5)
    assert done["out"] == str(out)
    assert done["recipe"]["method"] == "slerp"
    assert done["num_params"] == open_checkpoint(tiny.init).num_params
    assert done["size_bytes"] == sum(file.stat().st_size for file in out.rglob("*"))
    assert done["wall_s"] >= 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny.init, out))
    for name in MOVED.values():
        delta = (after[name] - before[name]).view(-1)
        assert delta[:2].tolist() == pytest.approx([half * 0.8, half * 0.4], rel=1e-5)
        assert delta[2:].abs().max() < 1e-6


def test_weights_eta_and_method_reach_the_recipe(cli, tiny, pair, tmp_path):
    options = ("--weights", ".25", ".75", "--eta", "1.5", "--method", "lerp", "--granularity", "model")
    done = cli("merge", "--init", tiny.init, "--policies", *pair, *options, "--out", tmp_path / "out", "--json").json
    assert done["coefficients"] == {"model": pytest.approx([0.375, 1.125])}
    recipe = done["recipe"]
    assert (recipe["weights"], recipe["eta"], recipe["method"], recipe["granularity"]) == (
        [0.25, 0.75],
        1.5,
        "lerp",
        "model",
    )


def test_a_merged_folder_is_complete(cli, tiny, tmp_path):
    out = tmp_path / "deep" / "merged"
    options = ("--max-shard-size", "40KB", "--dtype", "bfloat16", "--out", out)
    said = cli("merge", "--init", tiny.init, "--policies", *tiny.policies, *options)
    assert said.code == 0
    assert said.out.startswith(f"wrote {out} (")
    assert said.err == ""
    names = {file.name for file in out.iterdir()}
    shards = sorted(name for name in names if name.endswith(".safetensors"))
    assert len(shards) >= 2
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "warp_recipe.json",
        "README.md",
    }
    assert {t.dtype for shard in shards for t in load_file(out / shard).values()} == {torch.bfloat16}
    hashes = json.dumps(read_json(out / "warp_recipe.json"))
    for source in (tiny.init, *tiny.policies):
        assert open_checkpoint(source).files[0].sha256 in hashes
    assert load_model(out, dtype=torch.bfloat16).config.dtype == torch.bfloat16
    checked = cli("check", out, "--init", out, "--json").json
    assert checked == {"ok": True, "problems": []}


def test_adapters_merge_into_an_adapter_that_peft_loads(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.folder)  # names relative to here must not end up in the adapter
    common = ("merge", "--init", "init", "--policies", "adapter0", "adapter1", "--eta", "0.7")
    assert cli(*common, "--as", "adapter", "--out", tmp_path / "adapter").code == 0
    assert cli(*common, "--out", tmp_path / "full").code == 0
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(tiny.init)
    adapted = logits_of(load_model(tmp_path / "adapter", base=tiny.init))
    assert torch.allclose(adapted, logits_of(load_model(tmp_path / "full")), atol=1e-4)
    monkeypatch.chdir(tmp_path)
    assert cli("check", "adapter", "--json").json["ok"]


def test_check_lists_every_problem(cli, tiny, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny.init, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    tensors["lm_head.weight"][0, 0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    said = cli("check", broken, "--json")
    assert said.code == 2
    document = json.loads(said.out)
    assert document["ok"] is False
    assert len(document["problems"]) == 2
    for name in ("model.norm.weight", "lm_head.weight"):
        assert sum(name in problem for problem in document["problems"]) == 1
    assert said.err == ""
    plain = cli("check", broken)
    assert (plain.code, plain.out.splitlines()) == (2, document["problems"])


def test_check_finds_a_tensor_that_is_missing(cli, tiny, tmp_path):
    shutil.copytree(tiny.init, tmp_path / "short")
    tensors = load_file(tmp_path / "short" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "short" / "model.safetensors", metadata={"format": "pt"})
    said = cli("check", tmp_path / "short")
    assert said.code == 2
    assert "lm_head.weight" in said.out


@pytest.mark.parametrize("what", ["missing", "other", "adapter"])
def test_check_answers_in_json_whatever_is_wrong(cli, tiny, tmp_path, what):
    argv = {
        "missing": (tmp_path / "nowhere",),
        "other": (tiny.policies[0], "--init", tiny.gpt2),
        "adapter": (tiny.adapters[0], "--base", tmp_path / "nowhere"),
    }[what]
    said = cli("check", *argv, "--json")
    assert said.code == 2
    assert json.loads(said.out)["ok"] is False
    assert len(json.loads(said.out)["problems"]) == 1


def test_doctor_knows_versions_devices_and_speeds(cli):
    found = cli("doctor", "--json").json
    assert found["versions"]["torch"] == torch.__version__
    assert {"transformers", "safetensors", "peft"} <= found["versions"].keys()
    cpu = found["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["gflops"].keys() == {"float32", "bfloat16", "float16"}
    assert all(speed > 0 for speed in cpu["gflops"].values())
    assert cpu["layer_gflops"].keys() == {"float32", "bfloat16"}
    assert cpu["auto_dtype"] == "float32" or cpu["has_bfloat16"]
    said = cli("doctor")
    assert "GFLOP/s" in said.out
    assert 'model.dtype = "auto" is' in said.out
