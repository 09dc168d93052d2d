"""What a hostile model folder is made from, and what must come of it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

__all__ = ["EMBEDDING", "INDEX", "NORM", "UP", "WEIGHTS", "Expected", "FolderCase", "Scene", "Tensors"]

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBEDDING, NORM, UP = "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
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
