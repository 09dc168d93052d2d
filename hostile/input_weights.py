"""Hostile weights and files that are none, for the model folders of input_folders.py: one function each."""

import json
import os
import struct
from contextlib import suppress

import torch

from hostile.input_scene import NORM, UP, WEIGHTS, Scene

__all__ = [
    "adapter_config_is_a_pipe",
    "complex_weights",
    "config_is_a_pipe",
    "deep_tokenizer",
    "float8_weights",
    "hub_cache",
    "hub_cache_elsewhere",
    "infinite_token",
    "infinite_weight",
    "integer_weights",
    "mixed_dtypes",
    "nan_weight",
    "scalar_tensor",
    "senseless_tokenizer",
    "sparse_lie",
    "terabyte_tokenizer",
    "tokenizer_is_a_pipe",
    "truncated",
    "unchanged",
    "weights_are_a_device",
    "weights_are_a_folder",
    "weights_are_a_loop",
    "weights_are_a_pipe",
    "zero_weights",
]


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
