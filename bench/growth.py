"""The engine's work on one size of problem: what `scale.py` runs in a process of its own for each size.

python -m bench.growth FOLDER     reads FOLDER/task.json, prints {"seconds": ...} as one line
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from warp_core.evaluation.points import Evaluation
from warp_core.evaluation.sweep import Ask, Sweep
from warp_core.policy.inference import fast_inference
from warp_core.policy.model import DTYPES, load_policy
from warp_core.policy.prompts import encode_prompts, prompts_id, read_prompts
from warp_core.policy.sampling import row_seed, sample
from warp_core.rewards import load_reward
from warp_core.training.config import AdapterConfig, TrainingConfig
from warp_core.training.reinforce import Learner
from warp_core.training.trainable import LoraTrainable
from warp_core.weights import compute_geometry, make_recipe, merge_to_folder, open_checkpoint
from warp_core.workspace.results import Results

__all__ = ["PARTS"]

Task = dict[str, Any]
CPU = torch.device("cpu")


def best_of(times: int, call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def merge(task: Task, place: Path) -> float:
    """Inner products of the task vectors, then the merge written to disk; start-up is not in it."""
    out = place / "merged"

    def once() -> None:
        shutil.rmtree(out, ignore_errors=True)
        init, *policies = (open_checkpoint(Path(folder)) for folder in (task["init"], *task["policies"]))
        geometry = compute_geometry(init, policies)
        recipe = make_recipe(init, policies, eta=0.5)
        merge_to_folder(recipe, init=init, policies=policies, geometry=geometry, out=out)

    return best_of(task["tries"], once)


def sampling(task: Task, place: Path) -> float:
    """Completions of different prompts, packed weights ready; seconds per token of the whole batch."""
    policy = load_policy(Path(task["init"]), device=CPU, dtype=DTYPES[task["dtype"]])
    prompts = encode_prompts(_prompts(task["batch"]), policy.tokenizer, chat_template=False, device=CPU)

    def completions(tokens: int) -> None:
        seeds = [row_seed("scale", row) for row in range(task["batch"])]
        sample(policy, prompts, seeds=seeds, max_new_tokens=tokens, temperature=0.9)

    with fast_inference(policy):
        completions(2)
        short, long = (best_of(task["tries"], lambda n=n: completions(n)) for n in (1, 1 + task["tokens"]))  # type: ignore[misc]
    # The first token is the prefill.
    return (long - short) / task["tokens"]


def training(task: Task, place: Path) -> float:
    """One step of Algorithm 1 with an adapter, after one that prepares kernels and buffers."""
    policy = load_policy(Path(task["init"]), device=CPU, dtype=DTYPES[task["dtype"]])
    config = TrainingConfig(
        prompts_per_step=max(1, task["batch"] // 4),
        completions_per_prompt=min(4, task["batch"]),
        max_new_tokens=task["tokens"],
        warmup_steps=0,
    )
    learner = Learner(
        LoraTrainable(policy, AdapterConfig(), seed=0),
        prompts=_prompts(64),
        reward=load_reward(["length"]),
        config=config,
        chat_template=False,
        seed=0,
    )
    learner.step()
    return best_of(task["tries"], learner.step)


def front(task: Task, place: Path) -> float:
    """One more point of a front: merge in memory, sample, score, exact KL."""
    init, *policies = (open_checkpoint(Path(folder)) for folder in (task["init"], *task["policies"]))
    prompts, reward = _prompts(task["batch"]), load_reward(["length"])
    evaluation = Evaluation(
        reward_id=reward.id,
        prompts_id=prompts_id(prompts),
        num_prompts=len(prompts),
        samples_per_prompt=1,
        max_new_tokens=task["tokens"],
        temperature=0.9,
        seed=0,
        dtype=task["dtype"],
    )
    ask = Ask(prompts=prompts, reward=reward, evaluation=evaluation)
    sweep = Sweep(sft=init, init=init, policies=policies, ask=ask, store=Results(place / "results.sqlite"), device=CPU)
    sweep.point(sweep.recipe(eta=0.9))
    etas = iter((0.3, 0.6, 0.8))
    return best_of(task["tries"], lambda: sweep.point(sweep.recipe(eta=next(etas))))


PARTS: dict[str, Callable[[Task, Path], float]] = {
    "merge": merge,
    "sampling": sampling,
    "training": training,
    "front": front,
}


def _prompts(count: int) -> tuple[str, ...]:
    """So many different prompts of unequal length."""
    texts = read_prompts("reviews-train")
    return tuple(texts[number % len(texts)] for number in range(count))


def main() -> None:
    """Be the process of one task."""
    place = Path(sys.argv[1])
    task: Task = json.loads((place / "task.json").read_text(encoding="ascii"))
    torch.set_num_threads(task["threads"])
    print(json.dumps({"seconds": PARTS[task["part"]](task, place)}))


if __name__ == "__main__":
    main()
