"""The tiny random model of the smoke preset: two layers, a byte-level tokenizer, made in the cache on first use."""

from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from warp_core.workspace.paths import cache_root
from warp_core.workspace.publish import publish_folder

__all__ = ["tiny_model"]

_SPECIAL = ("<pad>", "<bos>", "<eos>")
_VERSION = 1


def tiny_model() -> Path:
    """Return the folder of the model: a Llama of width 32 over bytes, with weights from a fixed seed."""
    folder = cache_root() / "models" / f"study-smoke-v{_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with publish_folder(folder) as out:
                _model().save_pretrained(out)
                _tokenizer().save_pretrained(out)
    return folder


def _model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=256 + len(_SPECIAL),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=258,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)


def _tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate([*alphabet, *_SPECIAL])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.add_special_tokens(list(_SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )
