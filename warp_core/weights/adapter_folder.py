"""Write factors as a PEFT LoRA folder that `peft.PeftModel.from_pretrained` opens."""

import json
import re
from collections import Counter
from pathlib import Path

import torch

from warp_core.errors import RecipeError
from warp_core.weights.adapters import AdapterFactors
from warp_core.weights.tensor_io import ShardWriter

__all__ = ["write_adapter"]


def write_adapter(
    factors: AdapterFactors, folder: Path, *, base_name: str, dtype: torch.dtype = torch.float32
) -> dict[str, object]:
    """Write adapter_config.json and adapter_model.safetensors into an existing folder; returns the config.

    base_name: what the config names as base model. lora_alpha = r, so that the scaling is 1 (it is in B already);
    modules of another rank get their own rank and alpha by pattern. Nothing is averaged or truncated.

    Raises RecipeError if there is no module to write.
    """
    if not factors.modules:
        raise RecipeError("no module is adapted, so there is no adapter to write; check the policies")
    ranks = {module: len(a) for module, (_, a) in factors.modules.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = {re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != common}
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "fan_in_fan_out": factors.fan_in_fan_out,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    tensors = {}
    for module, (b, a) in factors.modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    shapes = {name: (dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with ShardWriter(folder / "adapter_model.safetensors", shapes) as writer:
        for name in writer.names:
            writer.write(name, tensors[name].detach().cpu().to(dtype))
    return config
