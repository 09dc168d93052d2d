"""Open a model folder: a full checkpoint or a PEFT LoRA adapter over one. Reads headers and hashes, never runs code."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from warp_core.errors import CheckpointError, MismatchError
from warp_core.weights.architecture import (
    config_facts,
    digest,
    plain_facts,
    read_config,
    require_layers,
    tokenizer_fingerprint,
)
from warp_core.weights.folders import read_json_object, readable, safe_file, weight_table
from warp_core.weights.headers import TensorEntry
from warp_core.weights.lora_config import LoraSettings, read_lora_settings
from warp_core.weights.tensor_io import TensorReader, row_chunks
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.paths import cache_root

__all__ = ["Checkpoint", "SourceFile", "adapter_base_name", "open_checkpoint", "require_mixable"]

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_LARGE_BYTES = 50_000_000  # the hashes of smaller files, and what else is known of such folders, are not kept


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A weight file: its name in the folder, its SHA-256, and what told it from others when it was hashed."""

    name: str
    sha256: str
    stamp: tuple[int, ...] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder that was opened and found sound.

    Attributes:
        id: content hash (64 hex digits) of weights, function-changing config and, for an adapter, its base.
        path: the folder.
        kind: "full", or "adapter" (PEFT LoRA).
        arch: hash of tensor names, shapes and function-changing config fields (of the base, for an adapter).
        base: the full checkpoint under an adapter; None for a full one.
        tokenizer: fingerprint of the vocabulary; None where the folder has no tokenizer.
        tensors: where each tensor lies, by name on disk (tied duplicates left out).
        config: config.json, or adapter_config.json.
        facts: the config fields that change the function, as JSON text.
        files: weight files with their hashes.
        lora: rank and scaling of an adapter.
    """

    id: str
    path: Path
    kind: Literal["full", "adapter"]
    arch: str
    base: "Checkpoint | None" = None
    tokenizer: str | None = field(default=None, compare=False)
    tensors: Mapping[str, TensorEntry] = field(repr=False, compare=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)
    facts: Mapping[str, str] = field(repr=False, compare=False)
    files: tuple[SourceFile, ...] = field(repr=False, compare=False)
    lora: LoraSettings | None = field(default=None, repr=False, compare=False)

    @property
    def full(self) -> "Checkpoint":
        """The full checkpoint whose tensors carry this one: the base of an adapter, else itself."""
        return self.base or self

    @property
    def num_params(self) -> int:
        """Parameters of the full model."""
        return sum(entry.numel for entry in self.full.tensors.values() if entry.is_float)


def adapter_base_name(path: Path) -> str | None:
    """Which base model an adapter folder names ("" if it names none); None for a full checkpoint.

    Raises CheckpointError if adapter_config.json is malformed.
    """
    with readable(path):
        if not (path / "adapter_config.json").exists():
            return None
        return str(read_json_object(safe_file(path, "adapter_config.json")).get("base_model_name_or_path") or "")


def open_checkpoint(path: Path, *, base: Path | None = None) -> Checkpoint:
    """Open a Hugging Face folder (safetensors, one file or sharded) or a PEFT LoRA adapter.

    base: folder of the base model of an adapter; by default the local folder that its config names.

    Raises CheckpointError, naming file and field, if the folder is missing, incomplete, unsafe (pickle only, a path or
    link that leaves the folder), malformed, quantised, or an adapter that cannot be merged exactly.
    """
    path = Path(path)
    with readable(path):
        name = adapter_base_name(path)
        if name is None:
            return _open_full(path)
        return _open_adapter(path, _open_full(_base_folder(path, name, base)))


def require_mixable(init: Checkpoint, policies: Sequence[Checkpoint], *, towards: Checkpoint | None = None) -> None:
    """Raise MismatchError, naming the first tensor and field that differ, unless all can be mixed.

    Full policies need the tensors, shapes, config and tokenizer of init. Adapters need init to be their base or an
    adapter over the same base; all policies are of one kind. A checkpoint without tokenizer files fits any.
    """
    others = [*policies, *([towards] if towards else [])]
    for other in others:
        if "adapter" in (init.kind, other.kind) or any(p.kind == "adapter" for p in policies):
            _require_same_base(init, other, policies)
        _require_same_function(init.full, other.full)
        _require_same_tokenizer(init, other)


def _open_full(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give the folder of a model")
    if (path / "adapter_config.json").exists():
        raise CheckpointError(f"{path}: an adapter cannot be the base of an adapter; give the full model")
    tensors = weight_table(path)
    config = read_config(path)
    for entry in tensors.values():
        require_mixable_dtype(entry)
    require_layers(config, len(tensors), path=path / "config.json")
    large = sum(entry.size_bytes for entry in tensors.values()) > _LARGE_BYTES
    facts = config_facts(config, path=path / "config.json", cache_dir=cache_root() / "facts" if large else None)
    tensors = _without_tied_copy(tensors, tied=facts.get("tie_word_embeddings") == "true")
    shapes = sorted((entry.name, list(entry.shape)) for entry in tensors.values())
    files = hash_files(tensors)
    return Checkpoint(
        id=digest(["full", sorted(f.sha256 for f in files), plain_facts(config)]),
        path=path,
        kind="full",
        arch=digest([shapes, facts]),
        tokenizer=tokenizer_fingerprint(path),
        tensors=tensors,
        config=config,
        facts=facts,
        files=files,
    )


def _open_adapter(path: Path, base: Checkpoint) -> Checkpoint:
    config = read_json_object(safe_file(path, "adapter_config.json"))
    lora = read_lora_settings(config, path=path / "adapter_config.json")
    tensors = weight_table(path, stem="adapter_model")
    files = hash_files(tensors)
    return Checkpoint(
        id=digest(["adapter", base.id, sorted(f.sha256 for f in files), lora.to_json()]),
        path=path,
        kind="adapter",
        arch=base.arch,
        base=base,
        tokenizer=tokenizer_fingerprint(path),
        tensors=tensors,
        config=config,
        facts=base.facts,
        files=files,
        lora=lora,
    )


def _base_folder(path: Path, name: str, base: Path | None) -> Path:
    if base is not None:
        return Path(base)
    with suppress(OSError):  # a name that is too long is no folder
        if name and Path(name).is_dir():
            return Path(name)
    raise CheckpointError(
        f"{path / 'adapter_config.json'}: base_model_name_or_path {name[:80]!r} is not a local folder; "
        "name the base model"
    )


def hash_files(tensors: Mapping[str, TensorEntry]) -> tuple[SourceFile, ...]:
    """SHA-256 of every file that holds one of the tensors; files are read side by side."""
    files = sorted({entry.file for entry in tensors.values()})
    with ThreadPoolExecutor(max_workers=min(len(files), torch.get_num_threads())) as pool:
        return tuple(pool.map(_hash_file, files))


def _hash_file(file: Path) -> SourceFile:
    stamp = _stamp(file)
    cache = cache_root() / "hashes" if stamp[0] > _LARGE_BYTES else None
    return SourceFile(name=file.name, sha256=sha256_file(file, cache_dir=cache), stamp=stamp)


def require_unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise CheckpointError if a weight file is no longer the one whose content hash the checkpoint carries."""
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            path = checkpoint.path / file.name
            if not path.is_file() or not _is_still(path, file):
                raise CheckpointError(f"{path}: the file changed after it was opened; open the checkpoint again")
        if checkpoint.base is not None:
            require_unchanged([checkpoint.base])


def _is_still(path: Path, file: SourceFile) -> bool:
    """Whether a file holds what was hashed. A link to it or other rights change its stamp: then it is hashed again."""
    stamp = _stamp(path)
    return stamp == file.stamp or (stamp[0] == file.stamp[0] and _hash_again(path, stamp) == file.sha256)


@lru_cache(maxsize=256)
def _hash_again(path: Path, _stamp_now: tuple[int, ...]) -> str:
    return sha256_file(path)


def _stamp(path: Path) -> tuple[int, ...]:
    """Size first. Copies keep the time of change of what they copy; they do not keep inode and ctime."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def require_mixable_dtype(entry: TensorEntry) -> None:
    """Refuse integer weights; boolean tensors and position ids are buffers and pass.

    Raises CheckpointError naming the tensor and its file.
    """
    buffer = entry.dtype == torch.bool or entry.name.endswith(("position_ids", "attn.bias", "attention.bias"))
    if not entry.is_float and not buffer:
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name!r} is {str(entry.dtype).removeprefix('torch.')}: "
            "quantised weights cannot be mixed; use the unquantised model"
        )


def _without_tied_copy(tensors: Mapping[str, TensorEntry], *, tied: bool) -> dict[str, TensorEntry]:
    """Leave out a stored head that equals the embedding, where the config says they are one tensor."""
    heads = [name for name in tensors if name in _HEADS]
    embeddings = [name for name in tensors if name.endswith(_EMBEDDINGS)]
    if not tied or not heads or not embeddings:
        return dict(tensors)
    head, embedding = tensors[heads[0]], tensors[embeddings[0]]
    if not _equal(head, embedding):
        raise CheckpointError(
            f"{head.file}: tensor {head.name!r} differs from {embedding.name!r}, but config.json says that they are "
            "tied (tie_word_embeddings); save the model again with the right config"
        )
    return {name: entry for name, entry in tensors.items() if name != head.name}


def _equal(a: TensorEntry, b: TensorEntry) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    with TensorReader() as reader:
        return all(
            torch.equal(reader.read(a, start=i, stop=j), reader.read(b, start=i, stop=j))
            for i, j in row_chunks(a.shape)
        )


def _require_same_base(init: Checkpoint, other: Checkpoint, policies: Sequence[Checkpoint]) -> None:
    full = next((policy for policy in policies if policy.kind == "full"), None)
    if full is not None:
        raise MismatchError(f"{full.path}: a full checkpoint among adapters; give policies of one kind")
    if init.full.id != other.full.id:
        raise MismatchError(
            f"{other.path}: its base is not that of {init.path} (base ids {other.full.id[:12]} and "
            f"{init.full.id[:12]}); adapters mix over one base only: merge them into full models first"
        )


def _require_same_function(init: Checkpoint, other: Checkpoint) -> None:
    if init.arch == other.arch:
        return
    found = [text for text in (_tensor_difference(init, other), _config_difference(init, other)) if text]
    raise MismatchError(
        f"{other.path} does not fit {init.path}: {'; '.join(found)}; use policies trained from this init"
    )


def _tensor_difference(init: Checkpoint, other: Checkpoint) -> str:
    for name in sorted(init.tensors.keys() | other.tensors.keys()):
        mine, theirs = init.tensors.get(name), other.tensors.get(name)
        if mine is None and theirs is not None:
            return f"extra tensor {name!r} {theirs.shape}"
        if theirs is None and mine is not None:
            return f"missing tensor {name!r} {mine.shape}"
        if mine is not None and theirs is not None and mine.shape != theirs.shape:
            return f"tensor {name!r} has shape {theirs.shape}, not {mine.shape}"
    return ""


def _config_difference(init: Checkpoint, other: Checkpoint) -> str:
    for name in sorted(init.facts.keys() | other.facts.keys(), key=lambda name: (name != "model_type", name)):
        mine, theirs = init.facts.get(name, "absent"), other.facts.get(name, "absent")
        if mine != theirs:
            return f"config field {name} is {theirs[:80]}, not {mine[:80]}"
    return ""


def _require_same_tokenizer(init: Checkpoint, other: Checkpoint) -> None:
    mine, theirs = init.tokenizer or init.full.tokenizer, other.tokenizer or other.full.tokenizer
    comparable = mine and theirs and mine.split(":")[0] == theirs.split(":")[0]
    if comparable and mine != theirs:
        raise MismatchError(
            f"{other.path}: the tokenizer differs from that of {init.path}; use policies of one tokenizer"
        )
