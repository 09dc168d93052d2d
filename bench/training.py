"""One training step of SmolLM2: 8 prompts, 4 completions each of 24 tokens, an anchor that is the policy's EMA.

The peer is TRL's RLOOTrainer with `sync_ref_model`: the same model, prompts, lengths, batch, temperature, beta and
optimizer, and a reward that costs nothing on both sides. Every run is a process of its own; its first step is not
counted. TRL's default is bfloat16 autocast with checkpointing; its best is the fastest of three settings.

    python -m bench.training SETTINGS.json      one run of ours: a line of JSON with seconds and peak memory
"""

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.processes import Done, ProcessError, run_measured, run_peer
from bench.rows import Row
from bench.settings import Settings
from warp_core.policy.model import DTYPES, load_policy
from warp_core.policy.prompts import read_prompts
from warp_core.rewards import load_reward
from warp_core.training.config import AdapterConfig, TrainingConfig
from warp_core.training.reinforce import Learner
from warp_core.training.trainable import FullTrainable, LoraTrainable, Trainable

__all__ = ["measure"]

SIZES: dict[str, Any] = {
    "prompts_per_step": 8,
    "completions_per_prompt": 4,
    "max_new_tokens": 24,
    "temperature": 0.9,
    "beta": 0.05,
    "mu": 0.05,
    "learning_rate": 1e-6,
    "adam_betas": [0.9, 0.999],
    "max_grad_norm": 1.0,
}
QUICK: dict[str, Any] = {"prompts_per_step": 2, "completions_per_prompt": 2, "max_new_tokens": 4}
STEPS, QUICK_STEPS = 3, 2
RANK = 16
DEFAULT = "default, checkpointing"
# TRL's settings: dtype and whether activations are computed again.
PEERS = {
    DEFAULT: ("default", True),
    "bfloat16, no checkpointing": ("bfloat16", False),
    "float32, no checkpointing": ("float32", False),
}
OURS = [("full", "float32"), ("full", "bfloat16"), ("lora", "float32"), ("lora", "bfloat16")]


def measure(settings: Settings) -> list[Row]:
    """Return seconds and peak memory of a step, ours and TRL's."""
    common = {
        **SIZES,
        **(QUICK if settings.quick else {}),
        "model": str(settings.smollm2),
        "threads": settings.threads,
        "steps": QUICK_STEPS if settings.quick else STEPS,
        "prompts": list(read_prompts("reviews-train")[:64]),
        "lora_rank": 0,
    }
    peers = {} if settings.peer_python is None or settings.quick else _peers(settings, common)
    rows = [_row(f"TRL, full, {name}", "time per step", one["seconds"], "s") for name, one in peers.items()]
    rows += [_row(f"TRL, full, {name}", "peak memory", one["gb"], "GB") for name, one in peers.items()]
    for kind, dtype in OURS:
        ours = _ours(settings, common | {"kind": kind, "dtype": dtype})
        rows += _rows(f"{kind}, {dtype}", ours, peers)
    return rows


def _peers(settings: Settings, common: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for name, (dtype, checkpointing) in PEERS.items():
        place = settings.scratch / "trl.json"
        place.write_text(json.dumps({**common, "dtype": dtype, "checkpointing": checkpointing}), encoding="utf-8")
        try:
            found[name] = _summary(run_peer(settings, "trl_step", place))
        except ProcessError as failure:
            print(f"TRL, {name}: {failure}", file=sys.stderr)
        finally:
            place.unlink()
    return found


def _ours(settings: Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    place = settings.scratch / "ours.json"
    place.write_text(json.dumps(options), encoding="utf-8")
    try:
        # As `warp_core.environment` has it.
        environment = settings.environment() | {"THP_MEM_ALLOC_ENABLE": "1"}
        done = run_measured([sys.executable, "-m", "bench.training", str(place)], environment=environment)
    finally:
        place.unlink()
    return _summary(done) | done.answer()


def _summary(done: Done) -> dict[str, Any]:
    return {"seconds": statistics.median(done.answer()["steps_s"]), "gb": done.private_mb / 1e3}


def _row(case: str, quantity: str, value: float, unit: str, **rest: Any) -> Row:
    return Row(bench="training", case=case, quantity=quantity, value=round(value, 3), unit=unit, **rest)


def _rows(case: str, ours: Mapping[str, Any], peers: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Ours beside TRL's full fine-tuning: its LoRA has no moving reference, so there is nothing to compare with."""
    rows = [_row(case, "time per step", ours["seconds"], "s")]
    rows += [_row(case, f"{part}, of a step", seconds, "s") for part, seconds in ours["parts"].items()]
    factor = ours["gb"] / ours["sum_gb"]
    full = case.startswith("full")
    aim = {"aim": "< 1.2 x", "meets": factor < 1.2} if full else {}
    note = "weights, gradients, Adam, EMA" if full else "one base, factors with gradients, Adam and EMA"
    rows.append(_row(case, "peak memory / sum of tensors", factor, "x", note=note, **aim))
    rows.append(_row(case, "peak memory", ours["gb"], "GB"))
    if not peers:
        return rows
    fastest = min(peers, key=lambda name: peers[name]["seconds"])
    smallest = min(peers, key=lambda name: peers[name]["gb"])
    aims = {DEFAULT: 2.0, fastest: 1.6} if DEFAULT in peers else {}
    in_same_dtype = [name for name in peers if name.startswith(case.partition(", ")[2])]
    for name in dict.fromkeys([*aims, *in_same_dtype]):
        ratio = peers[name]["seconds"] / ours["seconds"]
        aim = {"aim": f">= {aims[name]} x", "meets": ratio >= aims[name]} if name in aims else {}
        rows.append(_row(case, "time per step", ours["seconds"], "s", peer=f"TRL, {name}", ratio=ratio, **aim))
    ratio = peers[smallest]["gb"] / ours["gb"]
    told = {"peer": f"TRL, {smallest}", "ratio": ratio, "aim": "> 1 x", "meets": ratio > 1}
    return [*rows, _row(case, "peak memory", ours["gb"], "GB", **told)]


def _train(options: Mapping[str, Any]) -> dict[str, Any]:
    """Be one run of ours."""
    torch.set_num_threads(options["threads"])
    folder, cpu = Path(options["model"]), torch.device("cpu")
    trainable = _trainable(folder, cpu, options)
    learner = Learner(
        trainable,
        prompts=options["prompts"],
        reward=load_reward(("uppercase",), device="cpu"),
        config=TrainingConfig(**{name: options[name] for name in SIZES}),
        chat_template=False,
        seed=0,
    )
    records = [learner.step() for _ in range(options["steps"])][1:]
    parts = {name: statistics.median(one.seconds[name] for one in records) for name in records[0].seconds}
    trained = sum(master.nbytes for master in trainable.masters.values())
    held = sum(parameter.nbytes for parameter in trainable.policy.model.parameters())
    if isinstance(trainable, LoraTrainable):
        held += sum(layer.kernel.dense().nbytes for layer in trainable.layers.values())
    copies = 5 if trainable.policy.dtype != torch.float32 and options["kind"] == "full" else 4
    return {
        "steps_s": [sum(one.seconds.values()) for one in records],
        "parts": parts,
        "sum_gb": (held + copies * trained) / 1e9,
        "length": [one.length for one in records],
    }


def _trainable(folder: Path, device: torch.device, options: Mapping[str, Any]) -> Trainable:
    dtype = DTYPES[options["dtype"]]
    if options["kind"] == "full":
        policy = load_policy(folder, device=device, dtype=torch.float32)
        return FullTrainable(policy, dtype=dtype, sft_folder=lambda: folder, keep_sft=False)
    policy = load_policy(folder, device=device, dtype=dtype)
    return LoraTrainable(policy, AdapterConfig(rank=RANK, alpha=float(RANK)), seed=0)


if __name__ == "__main__":
    print(json.dumps(_train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
