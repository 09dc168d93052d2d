"""Hostile model folders: one function each, which damages a sound copy; the table CASES says what must come of it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hostile.input_scene import EMBEDDING, INDEX, NORM, UP, WEIGHTS, FolderCase, Scene
from hostile.input_weights import (
    adapter_config_is_a_pipe,
    complex_weights,
    config_is_a_pipe,
    deep_tokenizer,
    float8_weights,
    hub_cache,
    hub_cache_elsewhere,
    infinite_token,
    infinite_weight,
    integer_weights,
    mixed_dtypes,
    nan_weight,
    scalar_tensor,
    senseless_tokenizer,
    sparse_lie,
    terabyte_tokenizer,
    tokenizer_is_a_pipe,
    truncated,
    unchanged,
    weights_are_a_device,
    weights_are_a_folder,
    weights_are_a_loop,
    weights_are_a_pipe,
    zero_weights,
)

__all__ = ["CASES", "pickle_that_runs"]


def pickle_that_runs(canary: Path) -> bytes:
    """A pickle that makes the canary when it is opened."""
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def mixed_shards_of_two_saves(scene: Scene) -> None:
    """A save into other shards was cut short: the old index over one new file."""
    weight_map = scene.use_shards()
    first, second = sorted(set(weight_map.values()))[:2]
    save_file(
        load_file(scene.folder / first) | load_file(scene.folder / second),
        scene.folder / first,
        metadata={"format": "pt"},
    )


def missing_tensor(scene: Scene) -> None:
    """One tensor was not written."""
    scene.tensors(lambda tensors: tensors.pop(UP))


def extra_tensor(scene: Scene) -> None:
    """One tensor too many, of a value head."""
    scene.tensors(lambda tensors: tensors.update({"v_head.weight": torch.ones(1, 32)}))


def wrong_shape(scene: Scene) -> None:
    """A tensor turned round: as many numbers, another meaning."""
    scene.tensors(lambda tensors: tensors.update({UP: tensors[UP].T.contiguous()}))


def one_layer_more(scene: Scene) -> None:
    """The config has a layer that the weights lack; transformers would fill it with random numbers."""
    scene.config(num_hidden_layers=3)


def one_layer_less(scene: Scene) -> None:
    """The config leaves a layer of the weights out."""
    scene.config(num_hidden_layers=1)


def hundred_thousand_layers(scene: Scene) -> None:
    """Layers that take hours to build."""
    scene.config(num_hidden_layers=100_000)


def other_rope_theta(scene: Scene) -> None:
    """Other positions, same tensors."""
    scene.config(rope_parameters={"rope_theta": 5.0, "rope_type": "default"})


def other_eps(scene: Scene) -> None:
    """Another epsilon, same tensors."""
    scene.config(rms_norm_eps=0.1)


def other_activation(scene: Scene) -> None:
    """Another activation, same tensors."""
    scene.config(hidden_act="relu")


def other_heads(scene: Scene) -> None:
    """As many numbers cut into other heads."""
    scene.config(num_attention_heads=8, head_dim=4)


def other_vocabulary(scene: Scene) -> None:
    """A vocabulary larger than the embedding."""
    scene.config(vocab_size=300)


def other_tokenizer(scene: Scene) -> None:
    """Two tokens have changed places."""
    path = scene.folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(document), encoding="utf-8")


def shard_left_over(scene: Scene) -> None:
    """A shard of an older save with more of them; the index, which is sound, does not name it."""
    weight_map = scene.use_shards()
    old = load_file(scene.folder / sorted(set(weight_map.values()))[0])
    save_file({name: tensor + 1 for name, tensor in old.items()}, scene.folder / "model-00009-of-00009.safetensors")


def only_pickle(scene: Scene) -> None:
    """Weights as a pickle that runs code."""
    (scene.folder / WEIGHTS).unlink()
    (scene.folder / "pytorch_model.bin").write_bytes(pickle_that_runs(scene.canary))


def pickle_beside(scene: Scene) -> None:
    """Sound weights, and beside them pickles that run code."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (scene.folder / name).write_bytes(pickle_that_runs(scene.canary))


def own_code(scene: Scene) -> None:
    """Code of its own for config, model and tokenizer, with the wish that the tokenizer's be trusted."""
    code = f"open({str(scene.canary)!r}, 'w')\n"
    for name in ("configuration_own", "modeling_own", "tokenization_own", "custom_generate/generate", "conftest"):
        path = scene.folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    auto = {"AutoConfig": "configuration_own.A", "AutoModelForCausalLM": "modeling_own.A"}
    scene.config(auto_map=auto)
    tokens = {"AutoTokenizer": ["tokenization_own.A", "tokenization_own.A"]}
    scene.config("tokenizer_config.json", auto_map=tokens, trust_remote_code=True)


def own_code_trusted(scene: Scene) -> None:
    """The same, and the config says that it is to be trusted."""
    own_code(scene)
    scene.config(trust_remote_code=True)


def own_code_needed(scene: Scene) -> None:
    """An architecture that only its own code knows."""
    own_code(scene)
    scene.config(model_type="own_model", architectures=["OwnForCausalLM"])


def code_in_template(scene: Scene) -> None:
    """A chat template that reaches for the interpreter."""
    reach = "{{ ().__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch %s') }}"
    (scene.folder / "chat_template.jinja").write_text(reach % scene.canary, encoding="utf-8")


def index_to_parent(scene: Scene) -> None:
    """The index names ../secret.safetensors."""
    weight_map = scene.use_shards()
    save_file({NORM: torch.ones(32)}, scene.folder.parent / "secret.safetensors")
    scene.index(weight_map | {NORM: "../secret.safetensors"})


def index_to_root(scene: Scene) -> None:
    """The index names an absolute path."""
    weight_map = scene.use_shards()
    save_file({NORM: torch.ones(32)}, scene.folder.parent / "secret.safetensors")
    scene.index(weight_map | {NORM: str(scene.folder.parent / "secret.safetensors")})


def index_through_link(scene: Scene) -> None:
    """The index names a file in the folder that is a link out of it."""
    weight_map = scene.use_shards()
    save_file({NORM: torch.ones(32)}, scene.folder.parent / "secret.safetensors")
    (scene.folder / "inside.safetensors").symlink_to(scene.folder.parent / "secret.safetensors")
    scene.index({name: "inside.safetensors" if name == NORM else file for name, file in weight_map.items()})


def linked_out(scene: Scene) -> None:
    """The weights are a link out of the folder."""
    (scene.folder / WEIGHTS).rename(scene.folder.parent / "elsewhere.safetensors")
    (scene.folder / WEIGHTS).symlink_to(scene.folder.parent / "elsewhere.safetensors")


def config_linked_out(scene: Scene) -> None:
    """config.json is a link to a file of the system."""
    (scene.folder / "config.json").unlink()
    (scene.folder / "config.json").symlink_to("/etc/passwd")


def ten_thousand_shards(scene: Scene) -> None:
    """The index names 10,000 shards that are not there."""
    weight_map = scene.use_shards()
    scene.index(weight_map | {f"x{i}": f"model-{i:05d}-of-10000.safetensors" for i in range(10_000)})


def tensor_twice_in_index(scene: Scene) -> None:
    """The index names a tensor twice: readers take the last place, which is wrong."""
    weight_map = scene.use_shards()
    last = sorted(set(weight_map.values()))[-1]
    text = json.dumps({"weight_map": weight_map})
    name = next(name for name, file in weight_map.items() if file != last)
    (scene.folder / INDEX).write_text(f'{text[:-2]}, "{name}": "{last}"}}}}', encoding="utf-8")


def tensor_in_two_shards(scene: Scene) -> None:
    """Two shards hold the same tensor, with other numbers."""
    weight_map = scene.use_shards()
    first, second = sorted(set(weight_map.values()))[:2]
    name = next(name for name, file in weight_map.items() if file == first)
    tensors = load_file(scene.folder / second)
    save_file(tensors | {name: torch.zeros(2)}, scene.folder / second, metadata={"format": "pt"})


def two_sets_of_weights(scene: Scene) -> None:
    """One file and an index: readers take either."""
    sound = (scene.folder / WEIGHTS).read_bytes()
    scene.use_shards()
    (scene.folder / WEIGHTS).write_bytes(sound)


def newline_in_index(scene: Scene) -> None:
    """A shard whose name has a line break, to forge a second line of output."""
    weight_map = scene.use_shards()
    name = "a\nwarp-core: all is well.safetensors"
    first = sorted(set(weight_map.values()))[0]
    (scene.folder / first).rename(scene.folder / name)
    scene.index({tensor: name if file == first else file for tensor, file in weight_map.items()})


def half_character_in_index(scene: Scene) -> None:
    """A shard whose name no file system can hold."""
    scene.index(scene.use_shards() | {NORM: "\ud800.safetensors"})


def megabyte_in_index(scene: Scene) -> None:
    """A shard whose name has a million letters."""
    scene.index(scene.use_shards() | {NORM: "x" * 1_000_000})


def newline_beside(scene: Scene) -> None:
    """Other files have line breaks in their names."""
    for name in ("tokenizer\n.json", "a\nb", "LICENSE\nx"):
        (scene.folder / name).write_text("x", encoding="utf-8")


def tied_head_stored(scene: Scene) -> None:
    """Tied, and the head stored all the same, equal to the embedding."""
    scene.config(tie_word_embeddings=True)
    scene.tensors(lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))


def tied_head_differs(scene: Scene) -> None:
    """Tied, but the stored head is another: which one is meant is not known."""
    scene.config(tie_word_embeddings=True)


def large_config(scene: Scene) -> None:
    """A config with a string of 100 MB."""
    text = "x" * (11_000_000 if scene.small else 100_000_000)
    scene.config(comment=text)


def deep_config(scene: Scene) -> None:
    """A config nested 100,000 deep."""
    text = '{"model_type": "llama", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (scene.folder / "config.json").write_text(text, encoding="ascii")


def rather_deep_config(scene: Scene) -> None:
    """A config nested 900 deep, at the edge of what can be read."""
    text = '{"model_type": "llama", "a": ' + '{"a":' * 900 + "1" + "}" * 901
    (scene.folder / "config.json").write_text(text, encoding="ascii")


def config_is_a_list(scene: Scene) -> None:
    """A config that is no object."""
    (scene.folder / "config.json").write_text("[]", encoding="ascii")


def config_is_empty(scene: Scene) -> None:
    """A config of 0 bytes."""
    (scene.folder / "config.json").write_bytes(b"")


def config_is_binary(scene: Scene) -> None:
    """A config that is not text."""
    (scene.folder / "config.json").write_bytes(bytes(range(256)))


def nan_in_config(scene: Scene) -> None:
    """An epsilon that is not a number."""
    scene.config(rms_norm_eps=float("nan"))


def text_for_number(scene: Scene) -> None:
    """A width that is text."""
    scene.config(hidden_size="wide")


def list_for_number(scene: Scene) -> None:
    """A width that is a list."""
    scene.config(hidden_size=[32])


def negative_width(scene: Scene) -> None:
    """A width below 0."""
    scene.config(hidden_size=-32)


def no_heads(scene: Scene) -> None:
    """No attention heads: a division by zero."""
    scene.config(num_attention_heads=0)


def huge_width(scene: Scene) -> None:
    """A width of 10^30."""
    scene.config(hidden_size=10**30)


def billion_labels(scene: Scene) -> None:
    """A billion labels, of which a config class makes a table."""
    scene.config(num_labels=10**9)


def model_type_is_a_path(scene: Scene) -> None:
    """A model type that looks like a path."""
    scene.config(model_type="../../evil")


def model_type_missing(scene: Scene) -> None:
    """No model type."""
    scene.config(model_type=...)


def quantised(scene: Scene) -> None:
    """A config that says that the weights are quantised."""
    scene.config(quantization_config={"quant_method": "gptq", "bits": 4})


def encoder_decoder(scene: Scene) -> None:
    """A config of an encoder with a decoder over these weights."""
    scene.config(model_type="t5", is_encoder_decoder=True)


CASES = (
    FolderCase(damage=unchanged, expected="loaded"),
    FolderCase(damage=mixed_shards_of_two_saves, expected="refused", named="shard"),
    FolderCase(damage=missing_tensor, expected="refused", named=UP),
    FolderCase(damage=extra_tensor, expected="refused", named="v_head.weight"),
    FolderCase(damage=wrong_shape, expected="refused", named=UP),
    FolderCase(damage=one_layer_more, expected="refused", named="num_hidden_layers|layers.2."),
    FolderCase(damage=one_layer_less, expected="refused", named="num_hidden_layers|layers.1."),
    FolderCase(damage=hundred_thousand_layers, expected="refused", named="num_hidden_layers"),
    FolderCase(damage=other_rope_theta, expected="refused", named="rope_theta"),
    FolderCase(damage=other_eps, expected="refused", named="rms_norm_eps"),
    FolderCase(damage=other_activation, expected="refused", named="hidden_act"),
    FolderCase(damage=other_heads, expected="refused", named="head|k_proj"),
    FolderCase(damage=other_vocabulary, expected="refused", named="vocab_size|lm_head"),
    FolderCase(damage=other_tokenizer, expected="refused", named="tokenizer"),
    FolderCase(damage=shard_left_over, expected="told", named="model-00009-of-00009"),
    FolderCase(damage=only_pickle, expected="refused", named="pickle"),
    FolderCase(damage=pickle_beside, expected="loaded"),
    FolderCase(damage=own_code, expected="loaded"),
    FolderCase(damage=own_code_trusted, expected="refused", named="trust_remote_code"),
    FolderCase(damage=own_code_needed, expected="refused", named="model_type|custom code"),
    FolderCase(damage=code_in_template, expected="loaded"),
    FolderCase(damage=index_to_parent, expected="refused", named="../secret.safetensors"),
    FolderCase(damage=index_to_root, expected="refused", named="secret.safetensors"),
    FolderCase(damage=index_through_link, expected="refused", named="inside.safetensors"),
    FolderCase(damage=linked_out, expected="refused", named=WEIGHTS),
    FolderCase(damage=config_linked_out, expected="refused", named="config.json"),
    FolderCase(damage=ten_thousand_shards, expected="refused", named="-of-10000"),
    FolderCase(damage=tensor_twice_in_index, expected="refused", named="index"),
    FolderCase(damage=tensor_in_two_shards, expected="refused", named="another shard"),
    FolderCase(damage=two_sets_of_weights, expected="refused", named="both"),
    FolderCase(damage=newline_in_index, expected="refused", named="a\\nwarp-core"),
    FolderCase(damage=half_character_in_index, expected="refused", named="\\ud800"),
    FolderCase(damage=megabyte_in_index, expected="refused", named="xxx"),
    FolderCase(damage=newline_beside, expected="loaded"),
    FolderCase(damage=tied_head_stored, expected="refused", named="lm_head.weight"),
    FolderCase(damage=tied_head_differs, expected="refused", named="lm_head.weight"),
    FolderCase(damage=large_config, expected="refused", named="config.json"),
    FolderCase(damage=deep_config, expected="refused", named="config.json"),
    FolderCase(damage=rather_deep_config, expected="refused", named="config"),
    FolderCase(damage=config_is_a_list, expected="refused", named="config.json"),
    FolderCase(damage=config_is_empty, expected="refused", named="config.json"),
    FolderCase(damage=config_is_binary, expected="refused", named="config.json"),
    FolderCase(damage=nan_in_config, expected="refused", named="config.json"),
    FolderCase(damage=text_for_number, expected="refused", named="config.json"),
    FolderCase(damage=list_for_number, expected="refused", named="config.json"),
    FolderCase(damage=negative_width, expected="refused", named="hidden_size|negative dimension"),
    FolderCase(damage=no_heads, expected="refused", named="config"),
    FolderCase(damage=huge_width, expected="refused", named="hidden_size|'size'"),
    FolderCase(damage=billion_labels, expected="refused", named="num_labels"),
    FolderCase(damage=model_type_is_a_path, expected="refused", named="model_type|model type"),
    FolderCase(damage=model_type_missing, expected="refused", named="model_type"),
    FolderCase(damage=quantised, expected="refused", named="quantization_config"),
    FolderCase(damage=encoder_decoder, expected="refused", named="lm_head.weight"),
    FolderCase(damage=nan_weight, expected="unmerged", named=UP),
    FolderCase(damage=infinite_weight, expected="unmerged", named=UP),
    FolderCase(damage=zero_weights, expected="loaded"),
    FolderCase(damage=integer_weights, expected="refused", named=UP),
    FolderCase(damage=float8_weights, expected="refused", named=UP),
    FolderCase(damage=complex_weights, expected="refused", named=UP),
    FolderCase(damage=mixed_dtypes, expected="loaded"),
    FolderCase(damage=scalar_tensor, expected="refused", named="logit_scale"),
    FolderCase(damage=truncated, expected="refused", named=WEIGHTS),
    FolderCase(damage=weights_are_a_loop, expected="refused", named=WEIGHTS),
    FolderCase(damage=weights_are_a_pipe, expected="refused", named=WEIGHTS),
    FolderCase(damage=config_is_a_pipe, expected="refused", named="config.json"),
    FolderCase(damage=tokenizer_is_a_pipe, expected="refused", named="tokenizer.json"),
    FolderCase(damage=weights_are_a_device, expected="refused", named=WEIGHTS),
    FolderCase(damage=weights_are_a_folder, expected="refused", named=WEIGHTS),
    FolderCase(damage=terabyte_tokenizer, expected="refused", named="tokenizer.json"),
    FolderCase(damage=deep_tokenizer, expected="refused", named="tokenizer.json"),
    FolderCase(damage=senseless_tokenizer, expected="refused", named="tokenizer"),
    FolderCase(damage=infinite_token, expected="refused", named="tokenizer.json"),
    FolderCase(damage=adapter_config_is_a_pipe, expected="refused", named="adapter_config.json"),
    FolderCase(damage=hub_cache, expected="loaded"),
    FolderCase(damage=hub_cache_elsewhere, expected="refused", named=WEIGHTS),
    FolderCase(damage=sparse_lie, expected="refused", named=WEIGHTS),
)
