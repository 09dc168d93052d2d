"""Hostile model folders: one function each, which damages a sound copy; the table CASES says what must come of it."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

__all__ = ["CASES", "INDEX", "WEIGHTS", "Expected", "FolderCase", "Scene", "Tensors", "pickle_that_runs", "unchanged"]

Tensors = dict[str, torch.Tensor]
Expected = Literal["refused", "unmerged", "told", "loaded"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a case may use.

    Attributes:
        folder: a sound copy of a policy (or adapter), to be damaged.
        sharded: the same policy in several shards.
        canary: the file that appears if code of the folder runs.
        small: leave out what takes long to make.
    """

    folder: Path
    sharded: Path
    canary: Path
    small: bool

    def config(self, name: str = "config.json", **fields: Any) -> None:
        """Change fields of a JSON file; `...` removes one."""
        path = self.folder / name
        document = json.loads(path.read_text(encoding="utf-8")) | fields
        kept = {key: value for key, value in document.items() if value is not ...}
        path.write_text(json.dumps(kept), encoding="utf-8")

    def tensors(self, change: Callable[[Tensors], object], name: str = "model.safetensors") -> None:
        """Change the weights."""
        tensors = load_file(self.folder / name)
        change(tensors)
        save_file(tensors, self.folder / name, metadata={"format": "pt"})

    def use_shards(self) -> dict[str, str]:
        """Put the sharded copy in the place of the folder; return the weight map."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.sharded, self.folder)
        return dict(json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"])

    def index(self, weight_map: Mapping[str, str]) -> None:
        """Write the index."""
        (self.folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class FolderCase:
    """A hostile folder.

    Attributes:
        damage: makes it out of a sound copy; its docstring explains it.
        expected: "refused": it cannot be opened or not be mixed, and nothing is written; "unmerged": it opens, because
            only its numbers are at fault, and every merge refuses it; "told": `check` names the fault, and what is
            loaded and merged all the same is right; "loaded": sound, it is what plain transformers loads.
        named: what a refusal must name; "a|b" for either.
    """

    damage: Callable[[Scene], object]
    expected: Expected
    named: str = ""

    def is_named_in(self, text: str) -> bool:
        """Whether a message says what is wrong."""
        return any(name in text for name in self.named.split("|"))

    @property
    def name(self) -> str:
        """Its name."""
        return self.damage.__name__


INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBEDDING, NORM, UP = "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


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


def nan_weight(scene: Scene) -> None:
    """One weight is NaN."""
    scene.tensors(lambda tensors: tensors[UP][3].fill_(float("nan")))


def infinite_weight(scene: Scene) -> None:
    """One weight is infinite."""
    scene.tensors(lambda tensors: tensors[UP][3, 4:5].fill_(float("inf")))


def zero_weights(scene: Scene) -> None:
    """Every weight is 0."""
    scene.tensors(lambda tensors: [tensor.zero_() for tensor in tensors.values()])


def unchanged(scene: Scene) -> None:
    """Nothing is wrong with it, so that the others are known to be at fault."""


def integer_weights(scene: Scene) -> None:
    """A tensor of whole numbers."""
    scene.tensors(lambda tensors: tensors.update({UP: tensors[UP].mul(100).to(torch.int32)}))


def float8_weights(scene: Scene) -> None:
    """A tensor of 8 bits."""
    scene.tensors(lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e4m3fn)}))


def complex_weights(scene: Scene) -> None:
    """A tensor of complex numbers."""
    scene.tensors(lambda tensors: tensors.update({UP: tensors[UP].to(torch.complex64)}))


def mixed_dtypes(scene: Scene) -> None:
    """Some tensors in half the width: allowed, and kept exactly."""
    scene.tensors(lambda tensors: tensors.update({NORM: tensors[NORM].bfloat16()}))


def scalar_tensor(scene: Scene) -> None:
    """A tensor without dimensions."""
    scene.tensors(lambda tensors: tensors.update({"logit_scale": torch.tensor(2.0)}))


def truncated(scene: Scene) -> None:
    """Half a file."""
    os.truncate(scene.folder / WEIGHTS, 5000)


def weights_are_a_loop(scene: Scene) -> None:
    """The weights are a link to themselves."""
    (scene.folder / WEIGHTS).unlink()
    (scene.folder / WEIGHTS).symlink_to(WEIGHTS)


def weights_are_a_pipe(scene: Scene) -> None:
    """The weights are a pipe."""
    (scene.folder / WEIGHTS).unlink()
    os.mkfifo(scene.folder / WEIGHTS)


def config_is_a_pipe(scene: Scene) -> None:
    """config.json is a pipe."""
    (scene.folder / "config.json").unlink()
    os.mkfifo(scene.folder / "config.json")


def tokenizer_is_a_pipe(scene: Scene) -> None:
    """tokenizer.json is a pipe."""
    (scene.folder / "tokenizer.json").unlink()
    os.mkfifo(scene.folder / "tokenizer.json")


def weights_are_a_device(scene: Scene) -> None:
    """The weights are a device without end."""
    (scene.folder / WEIGHTS).unlink()
    with suppress(PermissionError):
        os.mknod(scene.folder / WEIGHTS, 0o20666, os.makedev(1, 5))
        return
    (scene.folder / WEIGHTS).symlink_to("/dev/zero")


def weights_are_a_folder(scene: Scene) -> None:
    """A folder of that name."""
    (scene.folder / WEIGHTS).unlink()
    (scene.folder / WEIGHTS).mkdir()


def terabyte_tokenizer(scene: Scene) -> None:
    """A tokenizer of a terabyte that takes no room."""
    with (scene.folder / "tokenizer.json").open("ab") as file:
        file.truncate(2**40)


def deep_tokenizer(scene: Scene) -> None:
    """A tokenizer nested 100,000 deep."""
    (scene.folder / "tokenizer.json").write_text("[" * 100_000 + "]" * 100_000, encoding="ascii")


def senseless_tokenizer(scene: Scene) -> None:
    """A tokenizer that is JSON and makes no sense."""
    (scene.folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": "b"}, "type": "None"}}', encoding="ascii")


def infinite_token(scene: Scene) -> None:
    """A token whose number is infinite."""
    document = json.loads((scene.folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"] = [{"id": float("inf"), "content": "x"}]
    (scene.folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


def adapter_config_is_a_pipe(scene: Scene) -> None:
    """A full model with a pipe as adapter_config.json."""
    os.mkfifo(scene.folder / "adapter_config.json")


def hub_cache(scene: Scene) -> None:
    """The links of a Hub cache: snapshots/REVISION/NAME -> blobs/HASH. They must be followed."""
    root = scene.folder.parent / "models--someone--tiny"
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "abc"
    snapshot.parent.mkdir()
    scene.folder.rename(snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(root / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    scene.folder.symlink_to(snapshot)


def hub_cache_elsewhere(scene: Scene) -> None:
    """A snapshot whose links lead to the blobs of another repository."""
    hub_cache(scene)
    snapshot = scene.folder.resolve()
    other = scene.folder.parent / "models--someone--else" / "blobs"
    other.mkdir(parents=True)
    (snapshot / WEIGHTS).resolve().rename(other / "0")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(other / "0")


def sparse_lie(scene: Scene) -> None:
    """A file of a terabyte with one tensor of a terabyte."""
    entry = b'{"a":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,1099511627776]}}'
    with (scene.folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(entry)) + entry)


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
