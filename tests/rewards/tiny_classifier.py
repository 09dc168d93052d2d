"""Tiny random sequence classifiers on disk: an encoder and decoders, with the tokenizers of tests/tiny.py."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny import VOCAB_SIZE, make_tokenizer

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {"intermediate_size": 48, "max_position_embeddings": 64}),
    "roberta": ("RobertaConfig", {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}),
    "llama": ("LlamaConfig", {"intermediate_size": 48, "max_position_embeddings": 64}),
}


def make_classifier(
    folder: Path,
    *,
    family: str = "bert",
    labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE"),
    chat: bool = False,
    pad: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a random float32 classifier with a byte-level tokenizer and return the folder.

    chat: keep the chat template; pad: keep the padding token; config: fields of the model's configuration.
    """
    class_name, settings = _CONFIGS[family]
    settings = settings | {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(
            getattr(transformers, class_name)(**(settings | config))
        )
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    if not pad:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder
