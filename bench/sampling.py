"""Completions per second of SmolLM2 at batch 1, 8 and 32, prompts of unequal length, 24 tokens each.

Ours is `sample` within `fast_inference`, its packing of the weights included; the peer is plain transformers `generate`
with the same draw (the whole softmax at a temperature), on the same model, dtype, threads and prompts, in turns in one
process. Nothing ends a completion, so that both draw the same number of tokens. That is done twice: with idle OpenMP
threads that sleep, as ours run, and with OpenMP's default; the peer has the better of the two, ours its own.

    python -m bench.sampling SETTINGS.json DTYPE BATCH      one process: a line of JSON with the medians
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bench.processes import run_measured
from bench.rows import Row
from bench.settings import Settings, read_settings, settings_json
from bench.timing import interleaved_s
from warp_core.policy.inference import fast_inference
from warp_core.policy.model import DTYPES, Policy, load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts, read_prompts
from warp_core.policy.sampling import sample

__all__ = ["measure"]

BATCHES = (1, 8, 32)
TOKENS, QUICK_TOKENS = 24, 4
TEMPERATURE = 0.9
REPEATS = {1: 7, 8: 5, 32: 3}
PEER = "transformers generate"


def measure(settings: Settings) -> list[Row]:
    """Return the completions per second of every dtype and batch, against generate and against the limits."""
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        for batch in BATCHES[: 2 if settings.quick else 3]:
            rows += _rows(settings, dtype, batch)
    return rows


def _rows(settings: Settings, dtype: str, batch: int) -> Iterator[Row]:
    sleeping, spinning = (_run(settings, dtype, batch, peer=peer) for peer in (False, True))
    ours_s, peer_s = sleeping["ours"], min(sleeping["generate"], spinning["generate"])
    case = f"SmolLM2 {dtype}, batch {batch}, {int(sleeping['tokens'])} tokens"
    ratio = peer_s / ours_s
    is_aim = batch == 32
    yield Row(
        bench="sampling",
        case=case,
        quantity="completions",
        value=batch / ours_s,
        unit="completions/s",
        peer=PEER,
        ratio=ratio,
        aim=">= 1.5 x" if is_aim else None,
        meets=ratio >= 1.5 if is_aim else None,
        note=f"generate: {batch / peer_s:.2f} completions/s; packing the weights is included",
    )
    limit_s = _limit_s(settings.limits, sleeping, dtype, batch)
    yield Row(
        bench="sampling",
        case=case,
        quantity="share of the limit",
        value=limit_s / ours_s if limit_s else 0.0,
        unit="x",
        note="the longer of reading the weights and of the products, for the prompts and for every token"
        if limit_s
        else "limits were not measured in this run",
    )


def _limit_s(limits: Mapping[str, float], run: Mapping[str, float], dtype: str, batch: int) -> float | None:
    """Seconds of the products alone, at the rates that were measured, real prompt tokens and every new token once."""
    bandwidth, best = limits.get("read_gb_s"), limits.get(f"matmul_gflops_{dtype}")
    few = limits.get(f"matmul_gflops_{dtype}_{batch}")
    if bandwidth is None or best is None or few is None:
        return None
    weights, head = run["weights"], run["head"]
    prompt_s = 2 * (weights * run["prompt_tokens"] + head * batch) / best / 1e9
    size_gb = (weights + head) * DTYPES[dtype].itemsize / 1e9
    step_s = max(size_gb / bandwidth, 2 * (weights + head) * batch / few / 1e9)
    return float(prompt_s + (run["tokens"] - 1) * step_s)


def _run(settings: Settings, dtype: str, batch: int, *, peer: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        path = Path(folder) / "settings.json"
        path.write_bytes(settings_json(settings))
        command = [sys.executable, "-m", "bench.sampling", str(path), dtype, str(batch)]
        answer: dict[str, float] = run_measured(command, environment=settings.environment(peer=peer)).answer()
        return answer


def _endless(policy: Policy) -> Policy:
    """The same policy, but for it no token ends a completion."""
    policy.model.generation_config.eos_token_id = None
    return replace(policy, eos_ids=())


def _compare(settings: Settings, dtype: str, batch: int) -> dict[str, float]:
    torch.set_num_threads(settings.threads)
    policy = _endless(load_policy(settings.smollm2, device=torch.device("cpu"), dtype=DTYPES[dtype]))
    prompts = encode_prompts(
        read_prompts("reviews-train")[:batch], policy.tokenizer, chat_template=False, device=policy.device
    )
    tokens = QUICK_TOKENS if settings.quick else TOKENS
    calls = {
        "ours": lambda: _ours(policy, prompts, tokens),
        "generate": lambda: _generate(policy, prompts, tokens),
    }
    repeats = 1 if settings.quick else REPEATS[batch]
    seconds = {name: statistics.median(all_s) for name, all_s in interleaved_s(calls, repeats=repeats).items()}
    head = policy.model.get_output_embeddings().weight.numel()
    layers = sum(one.numel() for name, one in policy.model.named_parameters() if one.dim() == 2 and ".layers." in name)
    return seconds | {
        "tokens": tokens,
        "weights": layers,
        "head": head,
        "prompt_tokens": int(prompts.mask_BP.sum()),
    }


def _ours(policy: Policy, prompts: PromptBatch, tokens: int) -> None:
    seeds = range(len(prompts.texts))
    with fast_inference(policy):
        drawn = sample(policy, prompts, seeds=seeds, max_new_tokens=tokens, temperature=TEMPERATURE)
    assert drawn.tokens_BT.shape[1] == tokens


@torch.no_grad()
def _generate(policy: Policy, prompts: PromptBatch, tokens: int) -> None:
    drawn = policy.model.generate(
        input_ids=prompts.ids_BP,
        attention_mask=prompts.mask_BP,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        pad_token_id=policy.pad_id,
    )
    assert drawn.shape[1] == prompts.ids_BP.shape[1] + tokens


if __name__ == "__main__":
    print(json.dumps(_compare(read_settings(Path(sys.argv[1]).read_bytes()), sys.argv[2], int(sys.argv[3]))))
