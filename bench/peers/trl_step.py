"""Steps of TRL's RLOOTrainer with an EMA as reference model: what `bench/training.py` compares itself with.

    python trl_step.py settings.json

Runs in an environment of its own and prints one JSON line. The settings name model, prompts and sizes; `dtype` is
`float32`, `default` (float32 weights under bfloat16 autocast, what TRL does unless told otherwise) or `bfloat16`
(weights, gradients and optimizer in bfloat16); `checkpointing` recomputes activations, TRL's default.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

SETTINGS: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Note the time."""
        self.ends_s.append(time.perf_counter())


def reward(completions: list[str], **_kwargs: Any) -> list[float]:
    """The share of lower-case letters: costs nothing, differs between completions."""
    return [sum(letter.islower() for letter in one) / max(1, len(one)) for one in completions]


def peak_gb() -> float:
    """The most memory that this process has had in use."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def configuration(out: str) -> RLOOConfig:
    """Settings of one run; what is not named is TRL's default."""
    one = SETTINGS
    precision = {"float32": {"bf16": False}, "default": {}, "bfloat16": {"bf16": False}}[one["dtype"]]
    return RLOOConfig(
        output_dir=out,
        per_device_train_batch_size=one["prompts_per_step"] * one["completions_per_prompt"],
        num_generations=one["completions_per_prompt"],
        max_completion_length=one["max_new_tokens"],
        temperature=one["temperature"],
        beta=one["beta"],
        learning_rate=one["learning_rate"],
        adam_beta1=one["adam_betas"][0],
        adam_beta2=one["adam_betas"][1],
        max_grad_norm=one["max_grad_norm"],
        sync_ref_model=not one["lora_rank"],
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=one["mu"],
        max_steps=one["steps"],
        gradient_checkpointing=one["checkpointing"],
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **precision,
    )


def adapter() -> Any:
    """A LoRA adapter for every linear layer, without an EMA, which TRL cannot do there; None trains all weights."""
    if not SETTINGS["lora_rank"]:
        return None
    from peft import LoraConfig

    return LoraConfig(r=SETTINGS["lora_rank"], lora_alpha=SETTINGS["lora_rank"], target_modules="all-linear")


def main() -> None:
    """Train a few steps; the first one is warm-up."""
    torch.set_num_threads(SETTINGS["threads"])
    dtype = torch.bfloat16 if SETTINGS["dtype"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(SETTINGS["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"], padding_side="left")
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=reward,
            args=configuration(out),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in SETTINGS["prompts"]]),
            processing_class=tokenizer,
            callbacks=[clock],
            peft_config=adapter(),
        )
        trainer.train()
    steps_s = [after - before for before, after in zip(clock.ends_s, clock.ends_s[1:], strict=False)]
    length = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    print(json.dumps({"steps_s": steps_s, "peak_gb": peak_gb(), "length": length}))


if __name__ == "__main__":
    main()
