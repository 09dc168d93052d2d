"""What must be equal for two models to be mixed: the config fields that change the function, and the tokenizer."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from warp_core.errors import CheckpointError, WorkspaceError
from warp_core.weights.folders import read_json_object, read_small, safe_file
from warp_core.workspace.sealed import read_sealed, write_sealed

__all__ = ["config_facts", "digest", "read_config", "require_layers", "tokenizer_fingerprint"]

# Fields that do not change what the weights compute: bookkeeping, training-time noise, output switches, labels.
_IGNORED = re.compile(
    r"transformers_version|_name_or_path|dtype|torch_dtype|use_cache|architectures|id2label|label2id|problem_type|"
    r"output_.*|return_.*|chunk_size_feed_forward|.*dropout.*|.*pdrop|layerdrop|initializer_range|init_std|summary_.*|"
    r"(pad|bos|eos|sep|cls|decoder_start)_token_id|gradient_checkpointing|_?attn_implementation.*|pretraining_tp|"
    r"auto_map|router_aux_loss_coef|router_jitter_noise|task_specific_params|tokenizer_class|finetuning_task|"
    r"torchscript|unsloth_.*|model_name|num_labels|_commit_hash"
)
_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
_FACTS_FORMAT = 2  # raise it when _IGNORED or the flattening changes: what was kept before is then ignored
_SIZES_LISTS = ("layer", "block", "depth", "num_labels")  # fields by which a config class makes lists
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_MAX_CONFIG_BYTES = 10_000_000
_fingerprints: dict[str, str] = {}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises CheckpointError if it is missing, not of a model, absurd or quantised."""
    config = read_json_object(safe_file(folder, "config.json"), limit=_MAX_CONFIG_BYTES)
    path = folder / "config.json"
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path}: model_type is missing; get the model again")
    if config.get("quantization_config"):
        raise CheckpointError(f"{path}: quantization_config: quantised weights cannot be mixed; use the plain model")
    try:
        fields = list(_flatten(config, ignored=re.compile("")))
        plain_facts(config)
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply; get the model again") from None
    for name, value in fields:
        if isinstance(value, int | float) and abs(value) > 100_000 and any(word in name for word in _SIZES_LISTS):
            raise CheckpointError(f"{path}: {name} = {str(value)[:40]} is absurd; get the model again")
    return config


def require_layers(config: Mapping[str, Any], num_tensors: int, *, path: Path) -> None:
    """Raise CheckpointError for a config with more layers than there are tensors, before anything builds them."""
    for name, value in _flatten(config):
        if name.rpartition(".")[2] in _LAYER_COUNTS and isinstance(value, int | float) and value > num_tensors:
            raise CheckpointError(f"{path}: {name} = {value}, but there are {num_tensors} tensors; get the model again")


def config_facts(config: Mapping[str, Any], *, path: Path, cache_dir: Path | None = None) -> dict[str, str]:
    """The fields that change the function, flattened, as JSON text by name.

    Defaults are filled in by the config class of transformers where it knows the model type, so that configs written
    by different versions compare equal. Raises CheckpointError if that class refuses the values.

    cache_dir: what came of a config is kept there, because that import takes longer than many a merge.
    """
    if cache_dir is None:
        return _computed_facts(config, path=path)
    version = importlib.metadata.version("transformers")
    place = cache_dir / f"{digest([_FACTS_FORMAT, version, config])}.json"
    if (known := read_sealed(place)) is not None:  # a damaged cache is computed again
        return dict(known)
    facts = _computed_facts(config, path=path)
    with suppress(WorkspaceError):  # a cache that cannot be written costs time, never an answer
        write_sealed(place, facts)
    return facts


def _computed_facts(config: Mapping[str, Any], *, path: Path) -> dict[str, str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    full: Mapping[str, Any] = config
    if config["model_type"] in CONFIG_MAPPING:
        try:
            full = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict()
        except Exception as err:  # whatever a config class raises, the file is at fault
            reason = " ".join(str(err).split())[:200]
            raise CheckpointError(f"{path}: not a valid {config['model_type']} config ({reason})") from None
    return plain_facts(full)


def plain_facts(config: Mapping[str, Any]) -> dict[str, str]:
    """The fields that change the function exactly as written, without defaults."""
    return {name: json.dumps(value, sort_keys=True) for name, value in _flatten(config)}


def tokenizer_fingerprint(folder: Path) -> str | None:
    """KIND:hash of the vocabulary, merges and added tokens; None for a folder without tokenizer.

    Chat template, padding and truncation settings do not count. Two fingerprints compare only if KIND is equal.
    """
    if (folder / "tokenizer.json").exists():
        raw = read_small(safe_file(folder, "tokenizer.json"))
        key = hashlib.sha256(raw).hexdigest()
        if key not in _fingerprints:
            _fingerprints[key] = _fast_fingerprint(folder / "tokenizer.json")
        return _fingerprints[key]
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            return f"{name}:{hashlib.sha256(read_small(safe_file(folder, name))).hexdigest()}"
    return None


def digest(data: Any) -> str:
    """SHA-256 (64 hex digits) of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fast_fingerprint(path: Path) -> str:
    data = read_json_object(path)
    model = data.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise CheckpointError(f"{path}: no model.vocab; get the tokenizer again")
    try:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
        added = sorted((int(t["id"]), str(t["content"])) for t in data.get("added_tokens") or [])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
        raise CheckpointError(
            f"{path}: merges or added_tokens are malformed ({err}); get the tokenizer again"
        ) from None
    return f"tokenizer.json:{digest([model['vocab'], merges, added])}"


def _flatten(
    config: Mapping[str, Any], prefix: str = "", *, ignored: re.Pattern[str] = _IGNORED
) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(config.items()):
        if ignored.fullmatch(name) or value is None:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.", ignored=ignored)
        else:
            yield f"{prefix}{name}", value
