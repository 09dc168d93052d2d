"""Opening folders: identity, safety, and which checkpoints mix."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.weights.helpers import full_set
from warp_core.errors import CheckpointError, MismatchError
from warp_core.weights import adapter_base_name, architecture, check_checkpoint, open_checkpoint, require_mixable


def edit_config(folder, name="config.json", **fields):
    path = folder / name
    path.write_text(json.dumps(tiny.read_json(path) | fields), encoding="utf-8")


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def assert_refused(folder, message):
    """open_checkpoint refuses the folder in one line, and check_checkpoint finds fault with it too."""
    with pytest.raises(CheckpointError, match=message) as err:
        open_checkpoint(folder)
    assert "\n" not in str(err.value)
    problems = check_checkpoint(folder)
    assert problems
    assert all("\n" not in problem for problem in problems)


@pytest.fixture
def init(tmp_path):
    return tiny.make_model("llama", tmp_path / "init")


@pytest.fixture
def copy(init, tmp_path):
    return tiny.make_policies(init, tmp_path, num=1)[0]


def test_the_id_is_of_the_content_not_of_the_place(init, tmp_path):
    shutil.copytree(init, tmp_path / "moved")
    assert open_checkpoint(init).id == open_checkpoint(tmp_path / "moved").id
    edit_config(tmp_path / "moved", use_cache=False, transformers_version="9.9")
    assert open_checkpoint(init).id == open_checkpoint(tmp_path / "moved").id
    edit_config(tmp_path / "moved", rms_norm_eps=1e-3)
    assert open_checkpoint(init).id != open_checkpoint(tmp_path / "moved").id


def test_one_bit_of_a_weight_changes_the_id_but_not_the_architecture(init, tmp_path):
    shutil.copytree(init, tmp_path / "other")
    edit_tensors(tmp_path / "other", lambda t: t["model.norm.weight"].view(torch.int32)[0].bitwise_xor_(1))
    one, other = open_checkpoint(init), open_checkpoint(tmp_path / "other")
    assert one.id != other.id
    assert one.arch == other.arch


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_opens_whole_and_checks_clean(family, tmp_path):
    init, policies = full_set(tmp_path, family, max_shard_size=30_000)
    require_mixable(init, policies)
    assert check_checkpoint(policies[0].path, init=init.path) == []
    assert len(init.files) > 1


def test_adapters_check_clean(init, tmp_path):
    adapter = tiny.make_adapter(init, tmp_path / "adapter")
    assert check_checkpoint(adapter, base=init, init=init) == []
    assert check_checkpoint(adapter) == []
    assert adapter_base_name(adapter) == str(init)
    assert adapter_base_name(init) is None


def test_sharding_and_dtype_do_not_change_the_architecture(init, tmp_path):
    sharded = tiny.make_model("llama", tmp_path / "sharded", max_shard_size=30_000, dtype=torch.bfloat16)
    require_mixable(open_checkpoint(init), [open_checkpoint(sharded)])


def test_configs_of_other_library_versions_fit(init, copy):
    config = tiny.read_json(copy / "config.json")
    rope = config.pop("rope_parameters")
    for name in ("head_dim", "attention_bias", "mlp_bias", "dtype"):
        config.pop(name)
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": "float32", "transformers_version": "4.40.0"}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    require_mixable(open_checkpoint(init), [open_checkpoint(copy)])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rope_parameters", {"rope_theta": 5.0, "rope_type": "default"}, "rope_parameters.rope_theta"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps"),
        ("hidden_act", "gelu", "hidden_act"),
        ("num_key_value_heads", 4, "num_key_value_heads"),
        ("num_attention_heads", 8, "num_attention_heads"),
        ("vocab_size", 300, "vocab_size"),
        ("max_position_embeddings", 128, "max_position_embeddings"),
    ],
)
def test_config_fields_that_change_the_function(field, value, named, init, copy):
    edit_config(copy, **{field: value})
    with pytest.raises(MismatchError, match=f"config field {named}"):
        require_mixable(open_checkpoint(init), [open_checkpoint(copy)])


def test_training_noise_does_not_count(init, copy):
    edit_config(copy, attention_dropout=0.3, initializer_range=1.0, use_cache=False, pad_token_id=3)
    require_mixable(open_checkpoint(init), [open_checkpoint(copy)])


def rename(old, new):
    return lambda t: t.update({new: t.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"v_head.weight": torch.ones(1, 32)}), r"extra tensor 'v_head\.weight' \(1, 32\)"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"missing tensor 'model\.layers\.1\.mlp\.up_proj"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(7)}),
            r"'model\.norm\.weight' has shape \(7,\), not \(32,",
        ),
        (rename("model.norm.weight", "model.form.weight"), r"extra tensor 'model\.form"),
    ],
)
def test_tensors_that_do_not_fit(change, message, init, copy):
    edit_tensors(copy, change)
    with pytest.raises(MismatchError, match=message):
        require_mixable(open_checkpoint(init), [open_checkpoint(copy)])
    assert check_checkpoint(copy)


def test_tied_and_untied_do_not_mix(tmp_path):
    tied = tiny.make_model("llama", tmp_path / "tied", tied=True)
    untied = tiny.make_model("llama", tmp_path / "untied", tied=False)
    with pytest.raises(MismatchError, match=r"lm_head\.weight.*tie_word_embeddings"):
        require_mixable(open_checkpoint(tied), [open_checkpoint(untied)])
    with pytest.raises(MismatchError, match=r"lm_head\.weight.*tie_word_embeddings"):
        require_mixable(open_checkpoint(untied), [open_checkpoint(tied)])


def test_a_stored_copy_of_a_tied_head_is_left_out(tmp_path):
    tied = tiny.make_model("llama", tmp_path / "tied", tied=True)
    plain = open_checkpoint(tied)
    edit_tensors(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    require_mixable(plain, [open_checkpoint(tied)])
    edit_tensors(tied, lambda t: t["lm_head.weight"][0].add_(1))
    assert_refused(tied, "says that they are tied")


def test_tokenizers_must_agree_but_may_be_absent(init, copy, tmp_path):
    tokenizer = tiny.read_json(copy / "tokenizer.json")
    tokenizer["padding"] = {"strategy": "BatchLongest"} | (tokenizer.get("padding") or {})
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    require_mixable(open_checkpoint(init), [open_checkpoint(copy)])
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(MismatchError, match="tokenizer differs"):
        require_mixable(open_checkpoint(init), [open_checkpoint(copy)])
    (copy / "tokenizer.json").unlink()
    require_mixable(open_checkpoint(init), [open_checkpoint(copy)])


def test_missing_folders_and_files(init, tmp_path):
    assert_refused(tmp_path / "nowhere", "no such folder")
    (init / "config.json").unlink()
    assert_refused(init, "config.json")


def test_pickle_is_never_opened(init, tmp_path):
    (init / "model.safetensors").unlink()
    (init / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    assert_refused(init, "only pickle weights")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"garbage" * 20])
def test_broken_weight_files(data, init):
    (init / "model.safetensors").write_bytes(data)
    assert_refused(init, r"model\.safetensors")


def test_truncated_weights(init):
    os.truncate(init / "model.safetensors", 5000)
    assert_refused(init, "truncated")


@pytest.mark.parametrize(
    "name", ["../secret/x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "a\\b.safetensors", ""]
)
def test_shard_paths_that_leave_the_folder(name, tmp_path):
    folder = tiny.make_model("llama", tmp_path / "init", max_shard_size=30_000)
    (tmp_path / "secret").mkdir()
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "secret" / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    data = tiny.read_json(index)
    data["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(data), encoding="utf-8")
    assert_refused(folder, "leaves the folder")


def test_links_that_leave_the_folder(init, tmp_path):
    (init / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (init / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert_refused(init, "link that leaves")
    (init / "model.safetensors").unlink()
    (init / "model.safetensors").symlink_to(tmp_path / "dangling")
    assert_refused(init, "missing")


def test_the_links_of_a_hub_cache_are_fine(init, tmp_path):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    blobs = tmp_path / "models--someone--tiny" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(init.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert open_checkpoint(snapshot).id == open_checkpoint(init).id
    assert check_checkpoint(snapshot) == []


def test_index_and_shards_must_agree(tmp_path):
    folder = tiny.make_model("llama", tmp_path / "init", max_shard_size=30_000)
    index = folder / "model.safetensors.index.json"
    data = tiny.read_json(index)
    shards = list(data["weight_map"].values())
    first = next(name for name, file in sorted(data["weight_map"].items()) if shards.count(file) > 1)
    for change, message in [
        ({"ghost.weight": data["weight_map"][first]}, "ghost.weight"),
        ({first: sorted(set(data["weight_map"].values()))[-1]}, first),
    ]:
        index.write_text(json.dumps({"weight_map": data["weight_map"] | change}), encoding="utf-8")
        assert_refused(folder, message)
    missing = {k: v for k, v in data["weight_map"].items() if k != first}
    index.write_text(json.dumps({"weight_map": missing}), encoding="utf-8")
    assert_refused(folder, "not in the index")
    index.write_text(json.dumps(data), encoding="utf-8")
    assert check_checkpoint(folder) == []
    shutil.copy(folder / data["weight_map"][first], folder / "model-00099-of-00099.safetensors")
    assert "model-00099-of-00099" in check_checkpoint(folder)[0]
    (folder / data["weight_map"][first]).unlink()
    assert_refused(folder, "missing")


def test_a_tensor_in_two_shards(tmp_path):
    folder = tiny.make_model("llama", tmp_path / "init", max_shard_size=30_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(shards[0]) | load_file(shards[1]), shards[1], metadata={"format": "pt"})
    assert_refused(folder, "another shard")


def test_two_sets_of_weights(tmp_path, init):
    folder = tiny.make_model("llama", tmp_path / "sharded", max_shard_size=30_000)
    shutil.copy(init / "model.safetensors", folder)
    assert_refused(folder, "both")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": None}, "model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "absurd"),
        ({"num_attention_heads": "many"}, "not a valid llama config"),
    ],
)
def test_bad_configs(fields, message, init):
    edit_config(init, **fields)
    assert_refused(init, message)


def test_a_config_nested_for_ever(init):
    (init / "config.json").write_text('{"model_type": "x", "a": ' + '{"a":' * 900 + "1" + "}" * 901, encoding="utf-8")
    with contextlib.suppress(CheckpointError):
        open_checkpoint(init)
    (init / "config.json").write_text('{"model_type": "x", "a": ' + "[" * 900 + "]" * 900 + "}", encoding="utf-8")
    with contextlib.suppress(CheckpointError):
        open_checkpoint(init)
    (init / "config.json").write_text('{"model_type": "x", "a": ' + "[" * 10**5 + "]" * 10**5 + "}", encoding="utf-8")
    assert_refused(init, "config.json")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype, init):
    edit_tensors(init, lambda t: t.update({"model.norm.weight": torch.ones(32).to(dtype)}))
    assert_refused(init, "quantised")


def test_an_unknown_model_type_still_opens(init, copy):
    for folder in (init, copy):
        edit_config(folder, model_type="made_up")
    require_mixable(open_checkpoint(init), [open_checkpoint(copy)])


def test_code_in_the_folder_is_not_run(init, tmp_path):
    (init / "configuration_evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')", encoding="utf-8")
    edit_config(
        init, auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "configuration_evil.Evil"}
    )
    open_checkpoint(init)
    check_checkpoint(init)
    assert not (tmp_path / "owned").exists()


def test_check_lists_every_problem(init):
    def spoil(tensors):
        tensors["model.norm.weight"][0] = float("nan")
        tensors["model.layers.0.mlp.up_proj.weight"][0] = float("inf")

    edit_tensors(init, spoil)
    edit_config(init, quantization_config={"bits": 4})
    (init / "tokenizer.json").write_text("{", encoding="utf-8")
    problems = "\n".join(check_checkpoint(init))
    for word in ("model.norm.weight", "up_proj", "quantization_config", "tokenizer.json"):
        assert word in problems


def test_check_finds_nan_in_an_adapter(init, tmp_path):
    adapter = tiny.make_adapter(init, tmp_path / "adapter", target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert "NaN" in check_checkpoint(adapter, base=init)[0]


def test_check_says_which_tensors_the_class_lacks(init):
    edit_tensors(init, lambda t: (t.pop("model.norm.weight"), t.update({"v_head.weight": torch.ones(2)})))
    problems = check_checkpoint(init)
    assert any("'model.norm.weight' is missing" in problem for problem in problems)
    assert any("'v_head.weight' is not part" in problem for problem in problems)


def test_check_says_which_shapes_differ(init):
    edit_tensors(init, lambda t: t.update({"model.norm.weight": torch.ones(7)}))
    assert any("model.norm.weight" in problem and "(7,)" in problem for problem in check_checkpoint(init))


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}', '{"model": {"vocab": {}, "merges": [3]}}'])
def test_bad_tokenizers(content, init):
    (init / "tokenizer.json").write_text(content, encoding="utf-8")
    assert_refused(init, r"tokenizer\.json")


def test_what_a_config_says_is_kept_under_the_config_and_survives_damage(init, tmp_path, monkeypatch):
    config, cache = tiny.read_json(init / "config.json"), tmp_path / "facts"
    calls = []
    honest = architecture._computed_facts
    monkeypatch.setattr(architecture, "_computed_facts", lambda *a, **k: calls.append(1) or honest(*a, **k))
    first = architecture.config_facts(config, path=init, cache_dir=cache)
    assert architecture.config_facts(config, path=init, cache_dir=cache) == first
    assert len(calls) == 1
    assert architecture.config_facts(config | {"rms_norm_eps": 0.5}, path=init, cache_dir=cache) != first
    assert len(calls) == 2
    for text in ("", "{}", "[1]", '{"a": 1}'):
        for file in cache.iterdir():
            file.write_text(text, encoding="utf-8")
        assert architecture.config_facts(config, path=init, cache_dir=cache) == first
    with pytest.raises(CheckpointError, match="not a valid llama config"):
        architecture.config_facts(config | {"hidden_size": "x"}, path=init, cache_dir=cache)


WITHOUT_TRANSFORMERS = """
import sys
from warp_core.cli import main

code = main(sys.argv[1:])
print(sorted({"transformers", "peft"} & sys.modules.keys()), file=sys.stderr)
sys.exit(code)
"""


def test_a_merge_of_folders_that_are_known_needs_no_transformers(tmp_path):
    wide = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 9}
    init = tiny.make_model("llama", tmp_path / "init", **wide)
    policies = tiny.make_policies(init, tmp_path)
    environment = os.environ | {"WARP_CACHE": str(tmp_path / "cache")}
    said = []
    for out in ("one", "two"):
        command = [sys.executable, "-c", WITHOUT_TRANSFORMERS, "merge", "--init", init, "--policies", *policies]
        command += ["--eta", "0.3", "--out", tmp_path / out]
        done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=True, env=environment)
        said.append(done.stderr.splitlines()[-1])
    assert said == ["['transformers']", "[]"]
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()
