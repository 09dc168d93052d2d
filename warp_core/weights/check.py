"""Everything that is wrong with a model folder, for `warp-core check`: one line per problem, none stops the search."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from warp_core.errors import CheckpointError, UserError
from warp_core.weights.adapters import read_adapter
from warp_core.weights.architecture import config_facts, read_config, tokenizer_fingerprint
from warp_core.weights.checkpoints import (
    adapter_base_name,
    open_checkpoint,
    require_mixable,
    require_mixable_dtype,
)
from warp_core.weights.folders import safe_file, shard_names, stray_weight_files, weight_table
from warp_core.weights.headers import TensorEntry, read_header
from warp_core.weights.tensor_io import TensorReader, row_chunks

__all__ = ["check_checkpoint"]


def check_checkpoint(path: Path, *, base: Path | None = None, init: Path | None = None) -> list[str]:
    """All problems of a model folder; empty if it is safe, whole and finite. Reads every weight once.

    path: a full checkpoint or an adapter (then `base` as in `open_checkpoint`).
    init: also check that the folder can be mixed with this one.

    Found: missing, truncated, malformed or quantised files, paths and links that leave the folder, pickle-only folders,
    an index that disagrees with its shards, left-over shards, tensors that the model class lacks or does not know, NaN
    and infinity, a bad config or tokenizer, adapters that cannot be merged exactly. Never runs code of the folder.
    """
    path = Path(path)
    if not path.is_dir():
        return [f"{path}: no such folder; give the folder of a model"]
    try:
        adapter = adapter_base_name(path) is not None
        problems = list(_adapter_problems(path, base) if adapter else _full_problems(path))
    except CheckpointError as err:
        return [str(err)]
    if not problems and init is not None:
        problems += _caught(lambda: _require_fit(path, base, init))
    return list(dict.fromkeys(problems))


def _full_problems(path: Path) -> Iterator[str]:
    found = _caught(lambda: config_facts(read_config(path), path=path / "config.json"))
    found += _caught(lambda: tokenizer_fingerprint(path))
    try:
        names, _ = shard_names(path)
    except CheckpointError as err:
        yield from [*found, str(err)]
        return
    entries: list[TensorEntry] = []
    for name in names:
        found += _caught(lambda name=name: entries.extend(read_header(safe_file(path, name)).values()))  # type: ignore[misc]
    if not found:
        found += _caught(lambda: weight_table(path))
    found += [f"{path / name}: a shard that the index does not name; remove it" for name in stray_weight_files(path)]
    for entry in entries:
        found += _caught(lambda entry=entry: require_mixable_dtype(entry))  # type: ignore[misc]
    found += _nonfinite(entries)
    if not found:
        found += _caught(lambda: open_checkpoint(path)) or _load_problems(path)
    yield from found


def _adapter_problems(path: Path, base: Path | None) -> Iterator[str]:
    yield from _caught(lambda: read_adapter(open_checkpoint(path, base=base)))


def _require_fit(path: Path, base: Path | None, init: Path) -> None:
    checkpoint = open_checkpoint(path, base=base)
    start = open_checkpoint(init, base=base if adapter_base_name(init) is not None else None)
    require_mixable(start, [checkpoint])


def _nonfinite(entries: Sequence[TensorEntry]) -> list[str]:
    problems = []
    with TensorReader() as reader:
        for entry in entries:
            if not entry.is_float:
                continue
            for start, stop in row_chunks(entry.shape):
                if not torch.isfinite(reader.read(entry, start=start, stop=stop)).all():
                    problems.append(
                        f"{entry.file}: tensor {entry.name!r} holds NaN or infinity; use another checkpoint"
                    )
                    break
    return problems


def _load_problems(path: Path) -> list[str]:
    """What transformers says about names and shapes, on the meta device: no weights are loaded, no code is run."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # the report comes back as data
    try:
        loader: Any = AutoModelForCausalLM
        _, report = loader.from_pretrained(
            path,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as err:  # whatever the loader raises, the folder does not load
        return [f"{path}: transformers cannot load it ({' '.join(str(err).split())[:200]}); get the model again"]
    finally:
        logging.set_verbosity(before)
    problems = [f"{path}: tensor {name!r} is missing; get the model again" for name in sorted(report["missing_keys"])]
    problems += [
        f"{path}: tensor {name!r} is not part of this model; remove it" for name in sorted(report["unexpected_keys"])
    ]
    problems += [
        f"{path}: tensor {item[0]!r} has shape {tuple(item[1])}, the config says {tuple(item[2])}; get the model again"
        for item in sorted(report["mismatched_keys"])
    ]
    return problems


def _caught(action: Any) -> list[str]:
    try:
        action()
    except UserError as err:
        return [str(err)]
    except OSError as err:
        return [f"{err.filename}: cannot be read ({err.strerror}); check the folder"]
    return []
