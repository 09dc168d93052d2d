"""Presets: how large the runs of a study are, what they are measured on, and what hyperparameters are tried."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warp_core.errors import ConfigError
from warp_core.studies.plan import changed
from warp_core.studies.tiny import tiny_model
from warp_core.training.config import WarpConfig, config_from_mapping
from warp_core.workspace.assets import assets_root

__all__ = ["SCALES", "Scale", "make_scale"]

SCALES = ("smoke", "cpu", "gpu")
ETAS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A preset.

    Attributes:
        config: the runs of WARP itself: M = 2, EMA anchor.
        seeds: in the order in which they are run.
        policies: the largest M.
        etas, far_etas, lambdas: places on LITI curves, beyond the merge, and between two policies.
        sft_betas: weights of the KL to a fixed SFT anchor.
        mus, betas, init_etas: what the ablations try instead of the preset's own.
        length_tokens, length_penalty: longest completion in the length study, and the penalty per token.
        judge: the second judge, "judge" for the bundled head, or any reward.
        text: held-out text for perplexities, and how many windows of how many tokens of it.
        harness_tasks: lm-evaluation-harness tasks, where that is installed.
        step_guess_s, point_guess_s: seconds of a training step and a point, until some were measured.
    """

    name: str
    config: WarpConfig
    seeds: tuple[int, ...]
    policies: int
    etas: tuple[float, ...]
    far_etas: tuple[float, ...]
    lambdas: tuple[float, ...]
    sft_betas: tuple[float, ...]
    mus: tuple[float, ...]
    betas: tuple[float, ...]
    init_etas: tuple[float, ...]
    length_tokens: int
    length_penalty: float
    judge: str
    text: Path | None
    text_windows: int
    window_tokens: int
    harness_tasks: tuple[str, ...]
    step_guess_s: float
    point_guess_s: float

    def seeded(self, seed: int) -> WarpConfig:
        """The configuration of WARP's own runs with a seed."""
        return changed(self.config, training={"seed": seed})


def make_scale(name: str, *, text: Path | None = None, num_seeds: int | None = None) -> Scale:
    """Return a preset.

    Args:
        name: smoke, cpu or gpu.
        text: held-out text for perplexities, in place of the preset's own.
        num_seeds: only the first so many seeds.

    Raises:
        ConfigError: there is no preset of that name, or no such text.
    """
    if name not in SCALES:
        raise ConfigError(f"no scale {name!r}: choose one of {', '.join(SCALES)}")
    if text is not None and not text.is_file():
        raise ConfigError(f"--text {text}: there is no such file")
    made: dict[str, Any] = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu}[name]()
    made["seeds"] = made["seeds"][:num_seeds]
    return Scale(name=name, **made | ({"text": text} if text else {}))


def _smoke() -> dict[str, Any]:
    config = {
        "model": {"name": str(tiny_model())},
        "adapter": {"rank": 2, "alpha": 4.0},
        "reward": {"terms": ["uppercase"]},
        "training": {
            "steps": [4, 2],
            "prompts_per_step": 2,
            "completions_per_prompt": 2,
            "max_new_tokens": 6,
            "learning_rate": 0.05,
            "warmup_steps": 0,
            "beta": 0.1,
            "mu": 0.25,
            "evaluate_every": 0,
            "keep_every": 2,
            "keep_ema": True,
        },
        "warp": {"policies": 2, "iterations": 2},
        "evaluation": {"prompts": 8, "samples_per_prompt": 2},
    }
    return {
        "config": config_from_mapping(config),
        "seeds": (0,),
        "policies": 3,
        "etas": (0.0, 0.5, 1.0),
        "far_etas": (2.0,),
        "lambdas": (0.0, 0.5, 1.0),
        "sft_betas": (0.0, 0.1),
        "mus": (0.5,),
        "betas": (0.01,),
        "init_etas": (0.5,),
        "length_tokens": 8,
        "length_penalty": 0.05,
        "judge": "ascii",
        "text": assets_root() / "prompts" / "review-openings-eval.txt",
        "text_windows": 4,
        "window_tokens": 32,
        "harness_tasks": (),
        "step_guess_s": 0.1,
        "point_guess_s": 0.2,
    }


def _cpu() -> dict[str, Any]:
    """SmolLM2-135M with LoRA, like assets/demo-run.toml."""
    config = {
        "adapter": {"rank": 4, "alpha": 4.0, "save_dtype": "bfloat16"},
        "training": {
            "steps": [50, 40],
            "prompts_per_step": 8,
            "completions_per_prompt": 4,
            "max_new_tokens": 16,
            "learning_rate": 5e-3,
            "beta": 0.1,
            "mu": 0.05,
            "evaluate_every": 0,
            "keep_every": 10,
            "keep_ema": True,
        },
        "warp": {"policies": 2, "iterations": 3},
        "evaluation": {"prompts": 64, "samples_per_prompt": 2},
    }
    return _common() | {
        "config": config_from_mapping(config),
        "seeds": (0, 1, 2),
        "policies": 5,
        "mus": (0.01, 0.2),
        "betas": (0.03, 0.3),
        "harness_tasks": (),
        "step_guess_s": 8.0,
        "point_guess_s": 25.0,
    }


def _gpu() -> dict[str, Any]:
    """Full fine-tuning with a tenth of the paper's steps and the rest in proportion: mu T = 90, warm-up T / 90.

    Weights, EMA, Adam's moments and gradients in float32 and a bfloat16 copy to compute with: 3 GB for 135M
    parameters, and about 40 GB for 1.7B, so that either fits one GPU of 80 GB.
    """
    config = {
        "model": {"dtype": "bfloat16"},
        "adapter": {"kind": "full"},
        "training": {
            "steps": [900, 700, 500],
            "prompts_per_step": 32,
            "completions_per_prompt": 4,
            "max_new_tokens": 32,
            "learning_rate": 1e-5,
            "warmup_steps": 10,
            "beta": 0.1,
            "mu": 0.1,
            "evaluate_every": 100,
            "keep_every": 90,
            "keep_ema": True,
        },
        "warp": {"policies": 2, "iterations": 3},
        "evaluation": {"prompts": 64, "samples_per_prompt": 8, "batch_size": 256},
    }
    return _common() | {
        "config": config_from_mapping(config),
        "seeds": (0, 1, 2),
        "policies": 5,
        "mus": (0.01, 0.5),
        "betas": (0.01, 0.5),
        "harness_tasks": ("hellaswag", "arc_easy"),
        "step_guess_s": 1.5,
        "point_guess_s": 5.0,
    }


def _common() -> dict[str, Any]:
    return {
        "etas": ETAS,
        "far_etas": (1.3, 1.6, 2.0),
        "lambdas": (0.0, 0.25, 0.5, 0.75, 1.0),
        "sft_betas": (0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "init_etas": (0.1, 0.5),
        "length_tokens": 32,
        "length_penalty": 0.05,
        "judge": "judge",
        "text": _text_beside_the_project(),
        "text_windows": 64,
        "window_tokens": 256,
    }


def _text_beside_the_project() -> Path | None:
    """WikiText-2 where the folder of shared data lies beside the project; it does not ship with it."""
    path = assets_root().parents[1] / "shared" / "data" / "wikitext-2" / "test.txt"
    return path if path.is_file() else None
