"""Tiny random real models for tests: 2 layers, width 32, a byte-level tokenizer with a chat template. No network.

init = make_model("llama", tmp_path / "init")
policies = make_policies(init, tmp_path, num=2)                  # full checkpoints: init + noise
adapters = [make_adapter(init, tmp_path / f"a{m}", seed=m) for m in range(2)]  # PEFT LoRA adapters
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ATTENTION_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]

_IDS: dict[str, Any] = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
_GATED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GATED),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", _GATED | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _GATED | _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GATED | _GEMMA),
    "mixtral": ("MixtralConfig", _GATED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.1}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "init_std": 0.1,
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
        },
    ),
}
FAMILIES = tuple(_CONFIGS)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer: ids 0..255 are bytes, then SPECIAL_TOKENS; left padding; has a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*alphabet, *SPECIAL_TOKENS])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(family: str, *, seed: int = 0, tied: bool | None = None, **config: Any) -> transformers.PreTrainedModel:
    """A random float32 model of `family` (one of FAMILIES) in eval mode; `tied` and `config` override its config."""
    class_name, settings = _CONFIGS[family]
    settings = settings | _IDS | {"vocab_size": VOCAB_SIZE} | config
    if tied is not None:
        settings["tie_word_embeddings"] = tied
    model_config = getattr(transformers, class_name)(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(model_config)
        with torch.no_grad():  # norms and biases start as constants: make every tensor count
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def make_model(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool | None = None,
    max_shard_size: int | str = "5GB",
    **config: Any,
) -> Path:
    """Save a random model of `family` with tokenizer into `folder` and return the folder.

    `max_shard_size=20_000` gives several shards and an index.
    """

    def build(template: Path) -> None:
        model = build_model(family, seed=seed, tied=tied, **config).to(dtype)
        model.save_pretrained(template, max_shard_size=max_shard_size)
        make_tokenizer().save_pretrained(template)

    return _from_template((family, seed, dtype, tied, max_shard_size, sorted(config.items())), folder, build)


def make_policies(
    init: Path, parent: Path, *, num: int = 2, seed: int = 1, scale: float = 0.02, names: tuple[str, ...] = ()
) -> list[Path]:
    """`num` copies of the folder `init`, every tensor moved by scale * N(0, 1): parent/policy0, parent/policy1, ..."""
    folders = []
    for m in range(num):
        folder = parent / (names[m] if names else f"policy{m}")
        shutil.copytree(init, folder)
        generator = torch.Generator().manual_seed(1000 * seed + m)
        for file in sorted(folder.glob("*.safetensors")):
            tensors = {
                name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(value.dtype)
                for name, value in sorted(load_file(file).items())
            }
            save_file(tensors, file, metadata={"format": "pt"})
        folders.append(folder)
    return folders


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    seed_a: int | None = None,
    rank: int = 4,
    alpha: float = 8,
    scale: float = 0.1,
    **lora: Any,
) -> Path:
    """Save a random PEFT LoRA adapter over the folder `base` into `folder` and return the folder.

    All linear layers unless `target_modules` says otherwise (Mixtral: attention only).
    B is scale * N(0, 1), so the update is not zero.
    `seed_a` draws A from a seed of its own: adapters with the same `seed_a` share A (the frozen-A recipe).
    """
    settings = {"rank": rank, "alpha": alpha, "scale": scale, "seed": seed, "seed_a": seed_a} | lora
    key = ((base / "config.json").read_text(encoding="utf-8"), sorted(settings.items()))
    _from_template(key, folder, lambda template: _build_adapter(base, template, **settings))
    config = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def _build_adapter(
    base: Path, folder: Path, *, rank: int, alpha: float, scale: float, seed: int, seed_a: int | None, **lora: Any
) -> None:
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ATTENTION_MODULES if model.config.model_type == "mixtral" else "all-linear",
        "lora_dropout": 0.0,
        "fan_in_fan_out": model.config.model_type == "gpt2",
    }
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(settings | lora)))
    generator_a = torch.Generator().manual_seed(seed if seed_a is None else seed_a)
    generator_b = torch.Generator().manual_seed(7919 + seed)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator_a) / parameter.shape[-1] ** 0.5)
            elif "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator_b))
    adapted.save_pretrained(folder)


_templates: dict[str, Path] = {}
_template_root = tempfile.TemporaryDirectory(prefix="tiny-")  # removed when the process ends


def _from_template(key: object, folder: Path, build: Callable[[Path], None]) -> Path:
    """Copy a folder that was built before with the same key: ten times faster than building it again."""
    name = repr(key)
    if name not in _templates:
        template = Path(_template_root.name) / str(len(_templates))
        build(template)
        _templates[name] = template
    return shutil.copytree(_templates[name], folder, dirs_exist_ok=True)


def load_model(folder: Path, *, base: Path | None = None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Open a folder with plain transformers (and PEFT when `base` is given), in eval mode."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base or folder, dtype=dtype)
    if base is None:
        return model.eval()
    import peft

    return peft.PeftModel.from_pretrained(model, folder).eval()


def logits_of(model: torch.nn.Module, *, seed: int = 0) -> torch.Tensor:
    """Logits (2, 12, V) float32 on fixed random token ids: equal models give equal logits."""
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float()


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
