"""Configurations to start from."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PRESETS", "preset"]

_DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo.toml"
_PAPER: dict[str, Any] = {
    "adapter": {"kind": "full"},
    "reward": {"terms": ["sentiment", "length:-0.0005"]},
    "training": {
        "steps": [9000, 7000, 5000],
        "prompts_per_step": 128,
        "completions_per_prompt": 1,
        "temperature": 0.9,
        "learning_rate": 1e-6,
        "warmup_steps": 100,
        "beta": 0.1,
        "mu": 0.01,
        "anchor": "ema",
        "baseline": "none",
        "evaluate_every": 100,
        "kl_ceiling": 200.0,
    },
    "merge": {"method": "slerp", "eta": 0.3},
    "warp": {"policies": 2, "iterations": 5},
}

PRESETS: Mapping[str, str] = {
    "defaults": "Defaults",
    "demo": "Demo (about 10 minutes on 2 cores)",
    "paper": "Paper (Rame et al. 2024)",
}
"""Names with what people read."""


def preset(name: str) -> dict[str, Any]:
    """Return a configuration as a TOML file gives it: what it does not name is as by default."""
    if name == "demo":
        return tomllib.loads(_DEMO.read_text(encoding="utf-8"))
    return dict(_PAPER) if name == "paper" else {}
