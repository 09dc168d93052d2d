"""The second judge of the studies: shows whether reward that was gained is real or hacked.

`assets/judge` holds a linear head of a few kB (scripts/train_judge.py); here it is put beside the weights of the
embedded model, as an ordinary sequence-classification folder in the user's cache.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock

from warp_core.rewards import RewardSum, load_reward
from warp_core.workspace.assets import assets_root
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.paths import cache_root
from warp_core.workspace.publish import publish_folder
from warp_core.workspace.sources import embedded_model

__all__ = ["JUDGE", "assemble_judge", "judge_id", "judge_in_words", "load_judge"]

JUDGE = "judge"
_BODY, _HEAD = "model.safetensors", "head.safetensors"
# A file of the usual name would be taken for the whole model, whatever the index says.
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def judge_id(name: str) -> str:
    """Return what the scores of a judge are stored under, without loading it."""
    if name != JUDGE:
        return hashlib.sha256(name.encode()).hexdigest()[:16]
    return sha256_file(assets_root() / JUDGE / _HEAD)[:16]


def judge_in_words(name: str) -> str:
    """Return what a judge is, for a report."""
    if name != JUDGE:
        return name
    facts = json.loads((assets_root() / JUDGE / "judge.json").read_text(encoding="utf-8"))
    return (
        f"a linear head on frozen {facts['base']}, trained on {facts['trained_on']} sentences, without those found to"
        f" share a phrase with SST-2; accuracy {facts['held_out_accuracy']:.3f} on"
        f" {facts['held_out']} held-out sentences"
    )


def load_judge(name: str, *, device: str) -> RewardSum:
    """Load a judge: the bundled one, or any reward by its name."""
    return load_reward([str(assemble_judge(embedded_model())) if name == JUDGE else name], device=device)


def assemble_judge(base: Path) -> Path:
    """Return the complete folder of the bundled judge over the model in `base`, made on first use.

    Its weights are those of `base` by hard link (a copy on another disk) with the head as a second shard. It has no
    chat template: it judges the text, not a conversation.
    """
    head = assets_root() / JUDGE / _HEAD
    folder = cache_root() / "models" / f"{JUDGE}-{judge_id(JUDGE)}-{base.name[:60]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with publish_folder(folder) as out:
                _assemble(base, head, out)
    return folder


def _assemble(base: Path, head: Path, out: Path) -> None:
    from safetensors import safe_open

    body = out / _SHARDS[0]
    try:
        os.link(base / _BODY, body)
    except OSError:  # another disk
        shutil.copyfile(base / _BODY, body)
    shutil.copyfile(head, out / _SHARDS[1])
    with safe_open(body, framework="pt") as tensors:
        places = dict.fromkeys(tensors.keys(), _SHARDS[0])
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "POSITIVE"}}
    config |= {"label2id": {"POSITIVE": 0}}
    index = {"metadata": {}, "weight_map": places | {"score.weight": _SHARDS[1]}}
    for name, content in (("config.json", config), ("model.safetensors.index.json", index)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in _TOKENIZER:
        shutil.copyfile(base / name, out / name)
    # Scores of a template would be those of a conversation.
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
