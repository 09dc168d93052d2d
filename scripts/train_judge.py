"""Train the second judge of the studies: a linear score head on the frozen features of the embedded model.

    OMP_NUM_THREADS=1 python scripts/train_judge.py --sentences rt-polarity --seen sst2 --out assets/judge

The reward of the studies was trained on SST-2. A policy that has learnt to please that reward alone should not please
a judge of another make: another backbone (SmolLM2-135M, frozen) and other sentences (sentence polarity dataset 1.0,
Pang and Lee 2005). SST-2 was drawn from the same reviews, so a sentence is dropped where it, or any run of at least
four of its words, is a phrase of SST-2 (case, punctuation and spacing aside).

Written: head.safetensors (score.weight [1, H], a few kB), judge.json and README.md. `warp_core.studies.judge` puts the
head beside the embedded model's weights in the user's cache, as an ordinary sequence-classification folder.

Shapes: B sentences, H hidden size.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
from safetensors.torch import load_file, save_file

from warp_core.policy.model import Policy, load_policy
from warp_core.workspace.sources import EMBEDDED, GGUF_SHA256, resolve_model

CARD = Path(__file__).with_name("judge_card.md")
SHARED_WORDS = 4
HELD_OUT_SHARE = 0.2
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
BATCH_TOKENS = 1024
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A review sentence and whether it is positive."""

    text: str
    positive: bool


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text for comparing spellings: lower case, letters and digits alone."""
    return tuple(re.sub(r"[^a-z0-9 ]", " ", text.lower().replace("n't", " not").replace("'", "")).split())


def shares_phrase(words: Sequence[str], seen: set[tuple[str, ...]]) -> bool:
    """Whether the words, or a run of at least four of them, are among the phrases of `seen`."""
    whole = tuple(words)
    runs = (whole[start:stop] for start in range(len(whole)) for stop in range(start + SHARED_WORDS, len(whole) + 1))
    return whole in seen or any(run in seen for run in runs)


def natural(text: str) -> str:
    """Undo the tokenised spelling of the data: "it 's good ." becomes "It's good."."""
    text = re.sub(r"\s+([.,;:!?%)\]]|'s\b|n't\b|'re\b|'ve\b|'ll\b|'d\b|'m\b)", r"\1", text.strip())
    text = re.sub(r"([(\[$])\s+", r"\1", text)
    return text[:1].upper() + text[1:]


def read_sentences(folder: Path) -> list[Sentence]:
    """Read positive.txt and negative.txt, one sentence a line."""
    return [
        Sentence(text=line.strip(), positive=name == "positive")
        for name in ("positive", "negative")
        for line in (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]


def read_seen(folder: Path) -> set[tuple[str, ...]]:
    """Read the phrases of SST-2 (train.tsv and dev.tsv: sentence, tab, label; one header line)."""
    return {
        words_of(line.rsplit("\t", 1)[0])
        for name in ("train", "dev")
        for line in (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    }


def cut(text: str, rng: random.Random) -> str:
    """Cut half of the texts after 50 to 100 % of their words: generated reviews stop anywhere."""
    words = text.split()
    if rng.random() < 0.5 or len(words) < 6:
        return text
    return " ".join(words[: max(5, round(len(words) * rng.uniform(0.5, 1.0)))])


@torch.inference_mode()
def features(policy: Policy, texts: Sequence[str]) -> torch.Tensor:
    """Return the last token's hidden state behind the final norm [B, H], float64: what the score head reads."""
    rows = [policy.tokenizer(text)["input_ids"] for text in texts]
    found_BH = torch.zeros(len(rows), policy.model.config.hidden_size, dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    started, done = time.monotonic(), 0
    while done < len(order):
        size = max(1, BATCH_TOKENS // len(rows[order[min(done + 32, len(order) - 1)]]))
        places = order[done : done + size]
        longest = max(len(rows[place]) for place in places)
        ids = torch.tensor([rows[p] + [policy.pad_id] * (longest - len(rows[p])) for p in places])
        mask = torch.tensor([[1] * len(rows[p]) + [0] * (longest - len(rows[p])) for p in places])
        hidden_BTH = policy.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last_B = mask.sum(dim=1) - 1
        found_BH[places] = hidden_BTH[torch.arange(len(places)), last_B].double()
        done += len(places)
        if done % 512 < len(places):
            print(f"{done}/{len(order)} texts, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found_BH


def fit(x_BH: torch.Tensor, y_B: torch.Tensor, *, penalty: float) -> torch.Tensor:
    """Logistic regression without bias (the layout of the head has none) and an L2 penalty on scaled features [H]."""
    scale_H = x_BH.std(dim=0) + 1e-9
    w_H = torch.zeros(x_BH.shape[1], dtype=torch.float64, requires_grad=True)
    z_BH = x_BH / scale_H
    optimizer = torch.optim.LBFGS([w_H], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(z_BH @ w_H, y_B) + penalty * w_H.square().mean()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return (w_H / scale_H).detach()


def accuracy(w_H: torch.Tensor, x_BH: torch.Tensor, y_B: torch.Tensor) -> float:
    """Share of texts on the right side of 0."""
    return float((((x_BH @ w_H) > 0) == (y_B > 0.5)).double().mean())


def chosen_penalty(x_BH: torch.Tensor, y_B: torch.Tensor) -> float:
    """Return the penalty with the best accuracy over five folds of the training sentences."""
    fold_B = torch.randperm(len(y_B), generator=torch.Generator().manual_seed(SEED)) % FOLDS

    def score(penalty: float) -> float:
        parts = []
        for fold in range(FOLDS):
            kept = fold_B != fold
            parts.append(accuracy(fit(x_BH[kept], y_B[kept], penalty=penalty), x_BH[~kept], y_B[~kept]))
        return sum(parts) / FOLDS

    return max(PENALTIES, key=score)


def main() -> None:
    """Read, drop what SST-2 shares, extract features once, fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sentences", type=Path, required=True, help="folder of positive.txt and negative.txt")
    parser.add_argument("--seen", type=Path, required=True, help="folder of SST-2, whose sentences are dropped")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--limit", type=int, help="only so many sentences, for a trial")
    parser.add_argument("--features", type=Path, help="file to keep the features in, and to take them from")
    args = parser.parse_args()
    seen, every = read_seen(args.seen), read_sentences(args.sentences)
    fresh = [sentence for sentence in every if not shares_phrase(words_of(sentence.text), seen)]
    rng = random.Random(SEED)
    rng.shuffle(fresh)
    fresh = fresh[: args.limit]
    num_held = round(len(fresh) * HELD_OUT_SHARE)
    held, train = fresh[:num_held], fresh[num_held:]
    texts = [natural(s.text) for s in held] + [cut(natural(s.text), rng) for s in train]
    if args.features and args.features.exists():
        x_BH = load_file(args.features)["x"]
    else:
        x_BH = features(load_policy(resolve_model(EMBEDDED)), texts)
    if args.features:
        save_file({"x": x_BH}, args.features)
    y_B = torch.tensor([float(s.positive) for s in [*held, *train]], dtype=torch.float64)
    penalty = chosen_penalty(x_BH[num_held:], y_B[num_held:])
    w_H = fit(x_BH[num_held:], y_B[num_held:], penalty=penalty)
    facts = {
        "base": EMBEDDED,
        "base_sha256": GGUF_SHA256,
        "label": "POSITIVE",
        "sentences": len(every),
        "dropped": len(every) - len(fresh),
        "trained_on": len(train),
        "held_out": num_held,
        "held_out_accuracy": round(accuracy(w_H, x_BH[:num_held], y_B[:num_held]), 4),
        "training_accuracy": round(accuracy(w_H, x_BH[num_held:], y_B[num_held:]), 4),
        "held_out_positive": round(float(y_B[:num_held].mean()), 4),
        "penalty": penalty,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({"score.weight": w_H.float().unsqueeze(0).contiguous()}, args.out / "head.safetensors")
    (args.out / "judge.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="ascii")
    card = Template(CARD.read_text(encoding="ascii"))
    (args.out / "README.md").write_text(card.substitute({k: str(v) for k, v in facts.items()}), encoding="ascii")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
