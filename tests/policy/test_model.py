"""Loading a policy: complete or refused, no dropout, end tokens from both places; pointing parameters elsewhere."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import logits_of, make_model
from tests.toy import CPU
from warp_core.errors import CheckpointError
from warp_core.policy.model import load_policy, pointed_at


def test_nothing_needs_a_gradient_and_nothing_is_dropped(tmp_path):
    folder = make_model("gpt2", tmp_path / "m", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    policy = load_policy(folder, device=CPU)
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert not any(module.training for module in policy.model.modules())
    assert torch.equal(logits_of(policy.model), logits_of(policy.model))


def test_a_missing_tensor_is_not_filled_with_random_numbers(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        load_policy(folder, device=CPU)


def test_another_shape_is_refused_in_one_line(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder, device=CPU)
    assert "\n" not in str(caught.value)


def test_pickles_and_folders_without_a_model_are_refused(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot load"):
        load_policy(folder, device=CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_policy(tmp_path / "empty", device=CPU)


def test_code_in_the_folder_is_not_run(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError):
        load_policy(folder, device=CPU)
    assert not (tmp_path / "ran").exists()


def test_end_tokens_come_from_generation_config_and_tokenizer(tmp_path):
    folder = make_model("llama", tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "top_k": 3}))
    policy = load_policy(folder, device=CPU)
    assert policy.eos_ids == (7, 9, 258)
    assert policy.pad_id == 256
    assert policy.model.generation_config.top_k in (None, 50)
    assert policy.model.generation_config.repetition_penalty in (None, 1.0)


def test_pointed_at_copies_nothing_and_comes_back(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m", tied=True), device=CPU)
    live = dict(policy.model.named_parameters())
    before = logits_of(policy.model)
    addresses = {name: parameter.data_ptr() for name, parameter in live.items()}
    doubled = {name: 1.1 * parameter.data for name, parameter in live.items()}
    with pointed_at(policy.model, doubled):
        assert all(parameter.data_ptr() == doubled[name].data_ptr() for name, parameter in live.items())
        assert policy.model.lm_head.weight.data_ptr() == doubled["model.embed_tokens.weight"].data_ptr()
        assert not torch.equal(logits_of(policy.model), before)
    assert {name: parameter.data_ptr() for name, parameter in live.items()} == addresses
    assert torch.equal(logits_of(policy.model), before)


def test_pointed_at_comes_back_after_an_error(tmp_path):
    policy = load_policy(make_model("llama", tmp_path / "m"), device=CPU)
    before = logits_of(policy.model)
    with pytest.raises(RuntimeError), pointed_at(policy.model, {"model.norm.weight": torch.zeros(32)}):
        raise RuntimeError
    assert torch.equal(logits_of(policy.model), before)
