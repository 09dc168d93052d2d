"""Look at the folder of a reward model before anything opens it: nothing in it may run code or lead out of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from warp_core.errors import RewardError
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.reading import read_regular

__all__ = ["check_model_folder", "folder_id"]

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def check_model_folder(folder: Path, *, name: str) -> None:
    """Refuse a folder that is no safetensors sequence-classification model.

    Raises:
        RewardError: it is an adapter, has no config.json, has weights only as pickle, or its index names a shard
            that is missing or lies outside the folder.
    """
    if (folder / "adapter_config.json").exists():
        raise RewardError(f"reward {name!r}: {folder} is an adapter; merge it into its base model and give that folder")
    config = _read_json(folder / "config.json", name=name)
    if "auto_map" in config:
        raise RewardError(
            f"reward {name!r}: {folder / 'config.json'} asks for code of its own (auto_map), which is never run: "
            "use a model of an architecture that transformers has"
        )
    if (folder / INDEX).exists():
        _check_index(folder, name=name)
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f" but {', '.join(pickles[:3])}, a format that can run code" if pickles else ""
        raise RewardError(
            f"reward {name!r}: {folder} has no model.safetensors{found}: "
            "convert the model with save_pretrained(..., safe_serialization=True)"
        )


def folder_id(folder: Path) -> str:
    """Return a hash of the files that decide what the model computes: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt") and path.is_file():
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()[:16]


def _check_index(folder: Path, *, name: str) -> None:
    shards = _read_json(folder / INDEX, name=name).get("weight_map")
    if not isinstance(shards, dict):
        raise RewardError(f"reward {name!r}: {folder / INDEX} has no weight_map: fetch the model again")
    for shard in sorted({str(value) for value in shards.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise RewardError(
                f"reward {name!r}: {folder / INDEX} names the shard {shard!r}, which is not a safetensors file in this "
                "folder: do not use this model"
            )
        if not (folder / shard).is_file():
            raise RewardError(f"reward {name!r}: the shard {shard!r} is missing in {folder}: fetch the model again")


def _read_json(path: Path, *, name: str) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path))
    except FileNotFoundError:
        raise RewardError(
            f"reward {name!r}: no {path.name} in {path.parent}: give the folder of a sequence-classification model"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RewardError(f"reward {name!r}: {path} cannot be read ({error}): fetch the model again") from error
    if not isinstance(content, dict):
        raise RewardError(f"reward {name!r}: {path} is not a JSON object: fetch the model again")
    return content
