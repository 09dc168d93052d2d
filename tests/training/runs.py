"""Tiny runs: a configuration, what a finished run leaves, and a run as a process that can be killed."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch

from warp_core.training.config import WarpConfig, config_from_mapping, config_to_mapping
from warp_core.training.warp import train_warp
from warp_core.workspace.runs import RunFolder
from warp_core.workspace.store import ResultsStore

CPU = torch.device("cpu")
REWARD = "python:tests.training.rewards.fine"
TRAIN = ["a", "the film was", "in the end", "I think that", "no"]
HELD_OUT = ["it is", "the plot", "b"]


def tiny_config(parent: Path, sft: Path, /, *, kind: str = "lora", **changes: dict[str, Any]) -> WarpConfig:
    """A run of seconds; `changes` are fields by section."""
    for name, prompts in (("train", TRAIN), ("evaluation", HELD_OUT)):
        (parent / f"{name}.txt").write_text("\n".join(prompts) + "\n")
    mapping: dict[str, Any] = {
        "model": {"name": str(sft)},
        "adapter": {"kind": kind, "rank": 2, "alpha": 4.0},
        "reward": {"terms": [REWARD, "length:-0.01"]},
        "prompts": {"train": str(parent / "train.txt"), "evaluation": str(parent / "evaluation.txt")},
        "training": {
            "steps": 4,
            "prompts_per_step": 2,
            "completions_per_prompt": 2,
            "max_new_tokens": 4,
            "learning_rate": 1e-2 if kind == "lora" else 1e-3,
            "warmup_steps": 2,
            "evaluate_every": 2,
        },
        "warp": {"policies": 1},
        "evaluation": {"prompts": 3, "training_samples_per_prompt": 2},
    }
    for section, fields in changes.items():
        mapping[section] = fields if section == "runs" else mapping.get(section, {}) | fields
    return config_from_mapping(mapping)


def trained_bytes(run: Path) -> dict[str, bytes]:
    """Every tensor file of a run: checkpoints, inits, and the states with EMA and Adam."""
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}


def metrics(run: Path, iteration: int = 1, policy: int = 1) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    file = RunFolder(run).policy(iteration, policy) / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("time", "seconds")} for row in rows]


def stored_points(run: Path) -> list[dict[str, Any]]:
    with ResultsStore(run / "results.sqlite", read_only=True) as store:
        return store.list_points()


def in_a_process(config: WarpConfig, out: Path) -> "multiprocessing.process.BaseProcess":
    """Start `train_warp` in a process that has torch loaded already, so that it can be killed at any moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs", "transformers.models.llama.modeling_llama"])
    arguments = (config_to_mapping(config), str(out), os.environ["WARP_CACHE"], torch.get_num_threads())
    process = context.Process(target=_train, args=arguments, daemon=True)
    process.start()
    return process


def _train(mapping: dict[str, Any], out: str, cache: str, threads: int) -> None:
    os.environ["WARP_CACHE"] = cache
    resumed = (Path(out) / "run.json").exists()
    # A resume takes the number of threads from the run, whatever the process would take.
    torch.set_num_threads(1 if resumed else threads)
    resume = (Path(out) / "run.json").exists()
    train_warp(config_from_mapping(mapping), Path(out), resume=resume, devices=[CPU])
