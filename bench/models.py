"""The inputs of the benches: inits and policies of given sizes, made once and kept in the scratch folder.

    .venv/bin/python -m bench.models [--scratch FOLDER] [--delete]       says what is there and how large; deletes it

A policy is its init with a task vector of seeded uniform noise, whose length is a hundredth of the weights'. What is
measured does not depend on the numbers in the tensors, apart from the text that comes out.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from warp_core.policy.model import DTYPES
from warp_core.workspace.paths import cache_root

__all__ = ["SHAPES", "Inputs", "default_scratch", "make_inputs", "parameters_of"]

VERSION = 1  # raised when what is made here changes
SHARD_BYTES = 1_000_000_000
VOCABULARY = 49152
TASK_VECTOR = 0.01  # length of a task vector, as a share of the init's
# size -> (hidden, layers, heads, key-value heads, inner); all with SmolLM2's vocabulary and tied embeddings
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (64, 4, 4, 2, 128),
    "135M": (576, 30, 9, 3, 1536),
    "360M": (960, 32, 15, 5, 2560),
    "1.1B": (2048, 22, 32, 4, 5632),
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """An init and its policies as model folders.

    Attributes:
        size_bytes: of the tensors of one of them.
    """

    init: Path
    policies: tuple[Path, ...]
    size_bytes: int


def parameters_of(size: str) -> int:
    """Return the number of weights of a size."""
    return sum(math.prod(shape) for shape in _shapes(size).values())


def make_inputs(scratch: Path, smollm2: Path, *, size: str, dtype: str, policies: int) -> Inputs:
    """Return an init and its policies, made now where they are not there yet.

    scratch: `Settings.scratch`. smollm2: `Settings.smollm2`; the 135M init is that model, in `dtype`, the others are
    random. size: a key of SHAPES. dtype: float32 or bfloat16. policies: how many.
    Raises OSError where the disk has no room: a checkpoint of 1.1B in bfloat16 takes 2.1 GB.
    """
    family = scratch / f"models-{VERSION}" / f"{size}-{dtype}"
    init = family / "init"
    if not init.is_dir():
        if size == "135M":
            _write(init, smollm2, _converted(smollm2, DTYPES[dtype]), size, dtype)
        else:
            _write(init, smollm2, _random(size, DTYPES[dtype]), size, dtype)
    folders = [family / f"policy-{number}" for number in range(1, policies + 1)]
    for folder in folders:
        if not folder.is_dir():
            _write(folder, smollm2, _moved(init, seed=zlib.crc32(folder.name.encode())), size, dtype)
    size_bytes = sum(file.stat().st_size for file in init.glob("*.safetensors"))
    return Inputs(init=init, policies=tuple(folders), size_bytes=size_bytes)


def default_scratch() -> Path:
    """Return the folder for inputs where the user names none."""
    return cache_root() / "bench"


def _shapes(size: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a model like Llama, by name."""
    hidden, layers, heads, groups, inner = SHAPES[size]
    head = hidden // heads
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        place = f"model.layers.{layer}"
        found |= {f"{place}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        found |= {f"{place}.self_attn.{name}_proj.weight": (groups * head, hidden) for name in ("k", "v")}
        found |= {f"{place}.self_attn.{name}_proj.weight": (hidden, hidden) for name in ("q", "o")}
        found |= {f"{place}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{place}.mlp.down_proj.weight"] = (hidden, inner)
    return found


def _random(size: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights that keep activations and logits in a usual range."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in _shapes(size).items():
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=dtype)
        else:
            reach = math.sqrt(3 / shape[1])
            yield name, torch.empty(shape, dtype=dtype).uniform_(-reach, reach, generator=generator)


def _converted(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in _tensors(folder):
        yield name, tensor.to(dtype)


def _moved(init: Path, *, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The init with a task vector."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in _tensors(init):
        reach = TASK_VECTOR * math.sqrt(3) * float(tensor.float().norm()) / math.sqrt(tensor.numel())
        noise = torch.empty(tensor.shape).uniform_(-reach, reach, generator=generator)
        yield name, (noise + tensor).to(tensor.dtype)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys()):
                yield name, opened.get_tensor(name)


def _write(folder: Path, smollm2: Path, tensors: Iterator[tuple[str, torch.Tensor]], size: str, dtype: str) -> None:
    """Write a model folder, whole or not at all, in shards of SHARD_BYTES with an index where there are several."""
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in smollm2.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            shutil.copyfile(file, making / file.name)
    config = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    hidden, layers, heads, groups, inner = SHAPES[size]
    config |= {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"num_key_value_heads": groups, "intermediate_size": inner, "head_dim": hidden // heads}
    config |= {"dtype": dtype, "tie_word_embeddings": True, "vocab_size": VOCABULARY}
    (making / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = list(_save_shards(making, tensors))
    if len(shards) == 1:
        (making / "shard-1.safetensors").rename(making / "model.safetensors")
    else:
        _name_shards(making, shards)
    making.rename(folder)


def _save_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[list[str]]:
    """Save tensors as shard-1.safetensors and so on; the names in each."""
    held: dict[str, torch.Tensor] = {}
    number = 1
    for name, tensor in tensors:
        if held and sum(one.nbytes for one in held.values()) + tensor.nbytes > SHARD_BYTES:
            save_file(held, folder / f"shard-{number}.safetensors", metadata={"format": "pt"})
            yield list(held)
            held, number = {}, number + 1
        held[name] = tensor.contiguous()
    save_file(held, folder / f"shard-{number}.safetensors", metadata={"format": "pt"})
    yield list(held)


def _name_shards(folder: Path, shards: list[list[str]]) -> None:
    """Give shards their usual names and write the index."""
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}.safetensors").rename(folder / file)
        places |= dict.fromkeys(names, file)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Say what inputs there are, or delete them."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description="The inputs of the benches.")
    parser.add_argument("--scratch", type=Path, default=default_scratch(), help="where they are")
    parser.add_argument("--delete", action="store_true", help="delete them")
    options = parser.parse_args()
    total = 0
    for family in sorted(options.scratch.glob("models-*/*")):
        size = sum(file.stat().st_size for file in family.rglob("*") if file.is_file())
        total += size
        print(f"{size / 1e9:8.2f} GB  {family.name}: {', '.join(sorted(folder.name for folder in family.iterdir()))}")
    print(f"{total / 1e9:8.2f} GB  in {options.scratch}")
    if options.delete:
        for made in options.scratch.glob("models-*"):
            shutil.rmtree(made)
        print("deleted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
