"""A front of SmolLM2: values of eta, each with its reward and exact KL on the same prompts, with standard errors.

Ours is one process from its start to the last stored point, for full checkpoints and for adapters; the peer is what
people do today (peers/pipeline.py): mergekit writes each point to disk, transformers loads, samples and scores it.
Both merge the first two policies of the bundled run, in float32, with the same threads, prompts and reward model.

    python -m bench.front SETTINGS.json prepare|full|adapters      one process
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.processes import ROOT, Done, run_measured, run_peer
from bench.rows import Row
from bench.settings import Settings, read_settings, settings_json

__all__ = ["measure"]

ETAS = tuple(number / 10 for number in range(11))
PROMPTS, TOKENS, TEMPERATURE = 32, 24, 0.9
POLICIES = 2
RUN = ROOT / "assets" / "demo-run"
PEER = "mergekit, reload, generate, score"
KINDS = {"adapters": "adapters", "full": "full checkpoints"}


def measure(settings: Settings) -> list[Row]:
    """Return the wall time of a front of full checkpoints and of adapters, against the pipeline's."""
    asked = _asked(settings)
    _ours(settings, "prepare")
    peer = _pipeline(settings, asked) if settings.peer_python else None
    rows: list[Row] = []
    for kind, name in KINDS.items():
        done = _ours(settings, kind)
        found = done.answer()
        case = f"SmolLM2 float32, {name}, {len(asked['etas'])} eta x {len(asked['prompts'])} prompts x {TOKENS} tokens"
        ratio = peer[0].wall_s / done.wall_s if peer else None
        rows.append(
            Row(
                bench="front",
                case=case,
                quantity="wall time",
                value=done.wall_s,
                unit="s",
                peer=PEER if peer else None,
                ratio=ratio,
                aim=">= 5 x",
                meets=None if ratio is None else ratio >= 5,
                note=_note(found, peer[1] if peer else None),
            )
        )
        rows.append(
            Row(
                bench="front",
                case=case,
                quantity="private memory",
                value=done.private_mb,
                unit="MB",
                peer=PEER if peer else None,
                ratio=peer[0].private_mb / done.private_mb if peer else None,
            )
        )
    return rows


def _note(found: dict[str, Any], peer: dict[str, Any] | None) -> str:
    """Where the time goes, and how far the points of both are from each other, in standard errors of the difference."""
    note = f"start-up {found['start_s']:.1f} s"
    if peer is None:
        return note
    gaps = [
        abs(ours[name][0] - theirs[name][0]) / max(1e-9, (ours[name][1] ** 2 + theirs[name][1] ** 2) ** 0.5)
        for ours, theirs in zip(found["points"], peer["points"], strict=True)
        for name in ("reward", "kl")
        if ours["eta"] > 0
    ]
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in peer["seconds"].items())
    return f"{note}; the peer's: {stages}; means differ by {fmean(gaps):.1f} standard errors on average"


def _asked(settings: Settings) -> dict[str, Any]:
    from warp_core.policy.prompts import read_prompts

    etas, prompts = (ETAS[::5], 4) if settings.quick else (ETAS, PROMPTS)
    return {
        "sft": str(settings.smollm2),
        "policies": [str(_folder(settings) / f"policy-{m}") for m in range(1, POLICIES + 1)],
        "reward": str(ROOT / "assets" / "reward-model"),
        "prompts": list(read_prompts("reviews-eval")[:prompts]),
        "etas": list(etas),
        "max_new_tokens": TOKENS,
        "temperature": TEMPERATURE,
        "threads": settings.threads,
    }


def _folder(settings: Settings) -> Path:
    return settings.scratch / "front"


def _pipeline(settings: Settings, asked: dict[str, Any]) -> tuple[Done, dict[str, Any]]:
    """Run the peer; its merges are removed."""
    place = Path(tempfile.mkdtemp(dir=settings.scratch))
    try:
        arguments = place / "arguments.json"
        arguments.write_text(json.dumps(asked | {"scratch": str(place)}))
        done = run_peer(settings, "pipeline", arguments, timeout_s=1800)
        return done, done.answer()
    finally:
        shutil.rmtree(place)


def _ours(settings: Settings, part: str) -> Done:
    with tempfile.TemporaryDirectory(dir=settings.scratch) as place:
        file = Path(place) / "settings.json"
        file.write_bytes(settings_json(settings))
        # Nothing may come from an earlier measurement: no geometry, no point.
        environment = settings.environment() | {"WARP_CACHE": place}
        return run_measured([sys.executable, "-m", "bench.front", file, part], environment=environment)


def _prepare(settings: Settings, asked: dict[str, Any]) -> None:
    """Write the policies as full checkpoints, which the pipeline needs."""
    from warp_core.policy.loading import load_checkpoint

    for opened, out in zip(_adapters(settings), map(Path, asked["policies"]), strict=True):
        if not (out / "config.json").is_file():
            policy = load_checkpoint(opened)
            policy.model.save_pretrained(out)
            policy.tokenizer.save_pretrained(out)
            shutil.copyfile(settings.smollm2 / "config.json", out / "config.json")


def _adapters(settings: Settings) -> Sequence[Any]:
    from warp_core.policy.loading import open_all

    folders = [str(RUN / "iteration-1" / f"policy-{m}" / "checkpoint") for m in range(1, POLICIES + 1)]
    return open_all(str(settings.smollm2), folders, base=str(settings.smollm2))[1]


def _sweep(settings: Settings, asked: dict[str, Any], *, adapters: bool) -> dict[str, Any]:
    """Measure the front as `warp-core front` does, into an empty store."""
    import time

    import psutil
    import torch

    from warp_core.evaluation.evaluate import evaluation_of
    from warp_core.evaluation.sweep import Ask, Spot, Sweep
    from warp_core.policy.speech import speech_id
    from warp_core.rewards import load_reward
    from warp_core.weights import open_checkpoint
    from warp_core.workspace.results import Results

    torch.set_num_threads(settings.threads)
    init = open_checkpoint(settings.smollm2)
    policies = _adapters(settings) if adapters else [open_checkpoint(Path(folder)) for folder in asked["policies"]]
    reward = load_reward([asked["reward"] + "#POSITIVE"])
    evaluation = evaluation_of(
        asked["prompts"],
        reward,
        samples_per_prompt=1,
        max_new_tokens=TOKENS,
        temperature=TEMPERATURE,
        seed=0,
        kl_estimator="exact",
        chat_template=False,
        anchor=init.id,
        speech=speech_id(init.path),
    )
    store = Results(Path(os.environ["WARP_CACHE"]) / "results.sqlite")
    ask = Ask(prompts=tuple(asked["prompts"]), reward=reward, evaluation=evaluation)
    sweep = Sweep(sft=init, init=init, policies=policies, ask=ask, store=store)
    start_s = time.time() - psutil.Process().create_time()
    points = sweep.points([Spot(recipe=sweep.recipe(eta=eta)) for eta in asked["etas"]])
    store.close()
    found = [
        {"eta": point.eta, "reward": [point.reward, point.reward_se or 0.0], "kl": [point.kl, point.kl_se or 0.0]}
        for point in points
    ]
    return {"start_s": start_s, "points": found}


def main(arguments: Sequence[str]) -> None:
    """Run one part in this process."""
    file, part = arguments
    settings = read_settings(Path(file).read_bytes())
    asked = _asked(settings)
    if part == "prepare":
        _prepare(settings, asked)
    else:
        print(json.dumps(_sweep(settings, asked, adapters=part == "adapters")))


if __name__ == "__main__":
    main(sys.argv[1:])
