"""A front as people measure it today: mergekit writes each point to disk, transformers loads, samples and scores it.

python pipeline.py ARGUMENTS.json     prints one JSON line: seconds of each stage, and each point's reward and KL

The SLERP of the two task vectors is made once (`nuslerp` with a base); every eta is a linear merge of base and that.
Runs in the peers' environment and imports nothing of this project. ARGUMENTS holds:
    sft, policies [2]: model folders; reward: a sequence-classification folder; prompts: texts; etas; max_new_tokens;
    temperature; threads; scratch: a folder to write merges to.
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import transformers

Seconds = dict[str, float]


def run_mergekit(document: dict[str, Any], out: Path) -> None:
    """Write a merge by mergekit's command line; JSON is YAML."""
    config = out.with_suffix(".yml")
    config.write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("mergekit-yaml")), str(config), str(out), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def merge_slerp(asked: dict[str, Any], out: Path) -> None:
    """Merge the policies half and half: a SLERP of their task vectors."""
    models = [{"model": policy, "parameters": {"weight": 0.5}} for policy in asked["policies"]]
    run_mergekit(
        {"merge_method": "nuslerp", "base_model": asked["sft"], "models": models, "dtype": "float32"}
        | {"tokenizer_source": "base"},
        out,
    )


def merge_point(asked: dict[str, Any], slerp: Path, eta: float, out: Path) -> None:
    """Go from the base towards the merged policies by eta."""
    parts = {asked["sft"]: 1 - eta, str(slerp): eta}
    models = [{"model": model, "parameters": {"weight": weight}} for model, weight in parts.items()]
    run_mergekit({"merge_method": "linear", "models": models, "dtype": "float32"}, out)


def load(folder: str | Path, **more: Any) -> Any:
    """Load a causal language model in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()


@torch.inference_mode()
def log_probabilities(model: Any, ids: torch.Tensor, mask: torch.Tensor, asked: dict[str, Any]) -> torch.Tensor:
    """Return the log-probabilities over the vocabulary that each new token was drawn from."""
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    kept = asked["max_new_tokens"] + 1
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept).logits
    return (logits[:, :-1] / asked["temperature"]).log_softmax(2)


@torch.inference_mode()
def rewards(classifier: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the log-odds of the second label against the first."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
    logits = classifier(**batch).logits.double()
    return logits[:, 1] - logits[:, 0]


def main() -> None:
    """Measure every eta, one after the other."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(asked["threads"])
    seconds: Seconds = defaultdict(float)
    clock = time.perf_counter()

    def did(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] += now - clock
        clock = now

    scratch = Path(asked["scratch"])
    slerp = scratch / "slerp"
    merge_slerp(asked, slerp)
    did("slerp")
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked["sft"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    sft = load(asked["sft"])
    judge_tokenizer = transformers.AutoTokenizer.from_pretrained(asked["reward"])
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(asked["reward"]).eval()
    prompts = tokenizer(asked["prompts"], return_tensors="pt", padding=True)
    did("load once")
    points = []
    for number, eta in enumerate(asked["etas"]):
        folder = scratch / f"point-{number}"
        merge_point(asked, slerp, eta, folder)
        did("merge")
        policy = load(folder)
        did("load")
        torch.manual_seed(number)
        new = asked["max_new_tokens"]
        sampling = {"do_sample": True, "temperature": asked["temperature"], "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            ids = policy.generate(**prompts, **sampling, max_new_tokens=new, pad_token_id=tokenizer.pad_token_id)
        did("generate")
        start = prompts.input_ids.shape[1]
        ids = torch.nn.functional.pad(ids, (0, start + new - ids.shape[1]), value=tokenizer.pad_token_id)
        ended = (ids[:, start:] == tokenizer.eos_token_id).long()
        mask = torch.cat([prompts.attention_mask, 1 - (ended.cumsum(1) - ended)], 1)
        logp, anchor = (log_probabilities(model, ids, mask, asked) for model in (policy, sft))
        kl = ((logp.exp() * (logp - anchor)).sum(2, dtype=torch.float64) * mask[:, start:]).sum(1)
        did("KL")
        texts = tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        scores = rewards(judge, judge_tokenizer, [p + t for p, t in zip(asked["prompts"], texts, strict=True)])
        did("reward")
        error = len(texts) ** -0.5
        found = {"reward": scores.tolist(), "kl": kl.tolist()}
        points.append({"eta": eta} | {k: [fmean(v), stdev(v) * error] for k, v in found.items()})
        del policy, logp, anchor
    print(json.dumps({"seconds": seconds, "points": points}))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
