"""Train the bundled sentiment reward model from scratch: a two-layer BERT classifier of about 1.45M parameters.

    OMP_NUM_THREADS=1 python scripts/train_reward_model.py --out /tmp/reward-model --tokenizer assets/reward-model

The folder written is an ordinary Hugging Face one (config, safetensors, tokenizer.json, model card), so the loader that
opens any other reward model opens it too. One core needs about nine minutes.

The model that ships is tied to runs and stored results: train another into a folder of its own (--out). Its seed fixes
every random choice but the vocabulary; ``--tokenizer assets/reward-model`` takes the vocabulary that ships.

Phrases of SST-2 are short and tokenised ("do n't", "it 's"), and their labels are 0 or 1; generated reviews are several
natural sentences that stop anywhere, and a reward must tell "good" from "wonderful". Three things bridge the gap:
the tokenizer's normaliser maps both spellings to the same tokens; ``grade`` turns labels into graded targets;
``make_review`` puts small reviews together, many after one of the project's own neutral openings (training file only).

Shapes: B examples, T tokens.
"""

import argparse
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_TOKENS = 128
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
REWRITES = (  # (regular expression, replacement), on lower-case text: both spellings end as the same words
    (r"<br\s*/?>", " "),
    (r"[\u2018\u2019`\u00b4]", "'"),
    (r"[\u201c\u201d]|''", '"'),
    (r"[\u2013\u2014]", " - "),
    (r"-{2,}", " - "),
    (r"-lrb-", "("),
    (r"-rrb-", ")"),
    (r"(?<=\w)\s*n't\b", " not"),
    (r"\bcannot\b", "ca not"),
    (r"\u2026|\.{2,}|\. \.( \.)*", " ... "),
)
LADDER = (
    "The film is awful.",
    "The film is bad.",
    "The film is dull at times.",
    "The film is okay.",
    "The film is good.",
    "The film is very good.",
    "The film is wonderful.",
    "The film is wonderful, moving and beautifully acted, one of the best of the year.",
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training text and its target."""

    text: str
    target: float
    """Probability that the text is positive, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the weights, apart from the data."""

    vocab_size: int = 8000
    hidden_size: int = 128
    num_layers: int = 2
    dropout: float = 0.2
    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    floor: float = 0.7
    """Least target probability of the right label, where the grader disagrees with it; see ``grade``."""
    ceiling: float = 0.995
    """Greatest target probability of the right label, where the grader is certain."""
    grader_l2: float = 2e-5
    token_dropout: float = 0.1
    """Share of pieces hidden behind [MASK] in training."""
    review_share: float = 0.5
    """Reviews made from phrases, per original phrase in an epoch."""
    opening_share: float = 0.4
    """Of these reviews, how many begin with a neutral opening."""
    num_openings: int = 3000
    """Openings on their own in an epoch, cut at random, with target one half."""
    average_decay: float = 0.998
    """Of the moving average of the weights, which is what is saved."""
    seed: int = 0


def read_tsv(path: Path) -> list[Example]:
    """Read a ``sentence<TAB>label`` file with one header line."""
    rows = (line.rstrip("\n").rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return [Example(text=text.strip(), target=float(label)) for text, label in rows]


def read_openings(part: str) -> list[str]:
    """Read the neutral review openings of this repository, ``part`` being train or eval."""
    path = REPOSITORY / "assets" / "prompts" / f"review-openings-{part}.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def read_sentences(folder: Path) -> list[Example]:
    """Read ``positive.txt`` and ``negative.txt``, one sentence a line."""
    return [
        Example(text=line.strip(), target=target)
        for name, target in (("positive.txt", 1.0), ("negative.txt", 0.0))
        for line in (folder / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


def train_tokenizer(texts: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece tokenizer whose normaliser undoes the tokenised spelling of SST-2.

    Two runs give two vocabularies: the trainer numbers the pieces that begin with ## in the order of a hash map. To
    repeat a model exactly, pass its own tokenizer (``--tokenizer``).
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=64))  # type: ignore[call-arg]
    rewrites = [normalizers.Replace(Regex(pattern), content) for pattern, content in REWRITES]
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), *rewrites])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **dict(zip(names, SPECIAL_TOKENS, strict=True))
    )


def grade(phrases: Sequence[Example], *, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> list[Example]:
    """Turn the labels 0 and 1 into graded targets: "wonderful" is more certainly positive than "okay".

    Labels alone teach a network two plateaus. A logistic regression on bags of pieces, which cannot memorise phrases,
    says how strong the words are: with its probability q of the right label, the target probability of that label
    is ``floor + (ceiling - floor) * q``, so the side is the label's and the height is the words'.
    """
    bags = tokenizer([example.text for example in phrases], add_special_tokens=False)["input_ids"]
    flat = torch.tensor([piece for bag in bags for piece in bag])
    offset_B = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
    target_B = torch.tensor([example.target for example in phrases])
    weight_V1 = torch.zeros(len(tokenizer), 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_V1, bias], max_iter=60, line_search_fn="strong_wolfe")

    def grader_logits() -> torch.Tensor:
        return F.embedding_bag(flat, weight_V1, offset_B, mode="sum")[:, 0] + bias

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            F.binary_cross_entropy_with_logits(grader_logits(), target_B)
            + settings.grader_l2 * weight_V1.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    right_B = torch.sigmoid(torch.where(target_B > 0.5, grader_logits(), -grader_logits())).detach()
    graded_B = settings.floor + (settings.ceiling - settings.floor) * right_B
    graded_B = torch.where(target_B > 0.5, graded_B, 1.0 - graded_B)
    return [replace(example, target=float(target)) for example, target in zip(phrases, graded_B, strict=True)]


def make_model(settings: Settings, *, vocab_size: int) -> BertForSequenceClassification:
    """Build the randomly initialised classifier."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    return BertForSequenceClassification(config)


def make_review(
    phrases: Sequence[Example], *, openings: Sequence[str], opening_share: float, generator: random.Random
) -> Example:
    """Join one to three phrases into one text; its target is the mean of theirs, weighted by their words.

    An opening in front counts for nothing: what is judged is how a review goes on. One review in two loses up to half
    of its last phrase, as a completion does that reaches its token limit.
    """
    opened = generator.random() < opening_share
    chosen = [generator.choice(phrases) for _ in range(generator.choice((1, 2, 2) if opened else (2, 2, 3)))]
    words = [example.text.rstrip(" .,").split() or ["."] for example in chosen]
    if generator.random() < 0.5 and len(words[-1]) >= 4:
        words[-1] = words[-1][: -generator.randint(1, len(words[-1]) // 2)]
    counts = [len(part) for part in words]
    target = sum(n * example.target for n, example in zip(counts, chosen, strict=True)) / sum(counts)
    text = generator.choice((" . ", " . ", " , ", " and ", " ")).join(" ".join(part) for part in words)
    return Example(text=f"{generator.choice(openings)} {text}" if opened else text, target=target)


def make_epoch(
    phrases: Sequence[Example], *, openings: Sequence[str], settings: Settings, generator: random.Random
) -> list[Example]:
    """Return every phrase once, fresh reviews, and openings cut anywhere, which are neither good nor bad."""
    reviews = [
        make_review(phrases, openings=openings, opening_share=settings.opening_share, generator=generator)
        for _ in range(int(settings.review_share * len(phrases)))
    ]
    chosen = [generator.choice(openings).split() for _ in range(settings.num_openings)]
    neutral = [Example(text=" ".join(words[: generator.randint(2, len(words))]), target=0.5) for words in chosen]
    return [*phrases, *reviews, *neutral]


def shuffled_batches(
    examples: Sequence[Example], *, tokenizer: PreTrainedTokenizerFast, batch_size: int, generator: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids [B, T] and targets [B] in batches of like length, in random order."""
    ids = tokenizer([example.text for example in examples], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    # Jittered sort: padding stays small and the batches differ between epochs.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]) + generator.random() * 2.0)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    generator.shuffle(batches)
    for batch in batches:
        yield padded([ids[i] for i in batch]), torch.tensor([examples[i].target for i in batch])


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return rows of token ids as one tensor [B, T], filled with [PAD] = 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def hide(ids_BT: torch.Tensor, *, share: float) -> torch.Tensor:
    """Return a copy with a random ``share`` of the pieces replaced by [MASK]; special tokens stay."""
    mask_id = SPECIAL_TOKENS.index("[MASK]")
    return torch.where((torch.rand(ids_BT.shape) < share) & (ids_BT > mask_id), mask_id, ids_BT)


def soft_loss(logits_B2: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of two logits with the target probability of the second."""
    logp_B2 = F.log_softmax(logits_B2, dim=-1)
    return -(target_B * logp_B2[:, 1] + (1.0 - target_B) * logp_B2[:, 0]).mean()


def make_optimizer(
    model: torch.nn.Module, *, settings: Settings, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW, without decay of biases and norms, and its rate: 100 steps of warm-up, then a cosine to 1 %."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / 100, 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(i / num_steps, 1.0)))),
    )
    return optimizer, schedule


def train(
    phrases: Sequence[Example], *, openings: Sequence[str], tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> BertForSequenceClassification:
    """Train and return the model with the moving average of its weights."""
    torch.manual_seed(settings.seed)
    generator = random.Random(settings.seed)
    model = make_model(settings, vocab_size=len(tokenizer))
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    per_epoch = len(phrases) + int(settings.review_share * len(phrases)) + settings.num_openings
    num_steps = settings.epochs * math.ceil(per_epoch / settings.batch_size)
    optimizer, schedule = make_optimizer(model, settings=settings, num_steps=num_steps)
    step, started = 0, time.monotonic()
    for epoch in range(settings.epochs):
        model.train()
        losses = []
        examples = make_epoch(phrases, openings=openings, settings=settings, generator=generator)
        for ids_BT, target_B in shuffled_batches(
            examples, tokenizer=tokenizer, batch_size=settings.batch_size, generator=generator
        ):
            ids_BT = hide(ids_BT, share=settings.token_dropout)
            logits_B2 = model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).logits
            loss = soft_loss(logits_B2, target_B)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            losses.append(loss.item())
            update_average(average, model, decay=min(settings.average_decay, (1 + step) / (10 + step)))
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    model.load_state_dict(average)
    return model.eval()


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: torch.nn.Module, *, decay: float) -> None:
    """Move ``average`` in place towards the weights of ``model``; integer buffers are left alone."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1.0 - decay)


@torch.inference_mode()
def score(
    texts: Sequence[str], *, model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast
) -> np.ndarray:
    """Return the logit difference, positive minus negative, of each text."""
    ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores = np.zeros(len(ids))
    for start in range(0, len(order), 128):
        batch = order[start : start + 128]
        ids_BT = padded([ids[i] for i in batch])
        logits_B2 = model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).logits
        scores[batch] = (logits_B2[:, 1] - logits_B2[:, 0]).double().numpy()
    return scores


def word_4grams(text: str) -> set[tuple[str, ...]]:
    """Return the runs of four words, letters and digits only, so that spelling conventions do not matter."""
    words = re.sub(r"[^a-z0-9 ]", "", text.lower().replace(" n't", "nt").replace(" '", "")).split()
    return set(zip(words, words[1:], words[2:], words[3:], strict=False))


def unseen(sentences: Sequence[Example], *, phrases: Sequence[Example]) -> list[Example]:
    """Keep the sentences that share less than a fifth of their runs of four words with the training phrases."""
    known = set().union(*(word_4grams(example.text) for example in phrases))
    grams = [(example, word_4grams(example.text)) for example in sentences]
    return [example for example, own in grams if own and len(own & known) < 0.2 * len(own)]


def accuracy(scores: np.ndarray, examples: Sequence[Example]) -> float:
    """Return the share of examples whose score has the right sign."""
    return float(np.mean((scores > 0) == (np.array([example.target for example in examples]) > 0.5)))


def evaluate(
    model: BertForSequenceClassification,
    *,
    tokenizer: PreTrainedTokenizerFast,
    phrases: Sequence[Example],
    dev: Sequence[Example],
    sentences: Sequence[Example],
) -> dict[str, object]:
    """Return every number that the card reports."""
    dev_scores = score([example.text for example in dev], model=model, tokenizer=tokenizer)
    long_dev = [i for i, example in enumerate(dev) if len(example.text.split()) >= 12]
    target = np.array([example.target for example in dev])
    nll = float(np.mean(np.logaddexp(0.0, np.where(target > 0.5, -dev_scores, dev_scores))))
    new = unseen(sentences, phrases=phrases)
    openings = score(read_openings("eval"), model=model, tokenizer=tokenizer)
    ladder = score(LADDER, model=model, tokenizer=tokenizer)
    quantiles = np.quantile(dev_scores, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))

    def measured(examples: Sequence[Example]) -> dict[str, object]:
        if not examples:
            return {"accuracy": "not measured", "n": 0}
        scores = score([example.text for example in examples], model=model, tokenizer=tokenizer)
        return {"accuracy": round(accuracy(scores, examples), 4), "n": len(examples)}

    return {
        "num_params": sum(p.numel() for p in model.parameters()),
        "dev": measured(dev),
        "dev_12_words_or_more": measured([dev[i] for i in long_dev]),
        "dev_nll": round(nll, 4),
        "rt_polarity": measured(sentences),
        "rt_polarity_unseen": measured(new),
        "dev_quantiles_1_5_25_50_75_95_99": [round(float(q), 2) for q in quantiles],
        "dev_range": [round(float(dev_scores.min()), 2), round(float(dev_scores.max()), 2)],
        "openings_eval_mean_sd": [round(float(openings.mean()), 2), round(float(openings.std()), 2)],
        "ladder": {text: round(float(value), 2) for text, value in zip(LADDER, ladder, strict=True)},
    }


def write_card(out: Path, *, report: dict[str, object], settings: Settings, data: Path, seconds: float) -> None:
    """Write ``README.md`` beside the weights: command, data, numbers with n, date, limits."""
    template = (Path(__file__).parent / "reward_model_card.md").read_text(encoding="utf-8")
    hashes = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in ("train.tsv", "dev.tsv")}
    ladder = report["ladder"]
    assert isinstance(ladder, dict)
    filled = template.format_map(
        {
            **report,
            "ladder_rows": "\n".join(f"| {text} | {value:+.2f} |" for text, value in ladder.items()),
            "settings": ", ".join(f"{name} {value}" for name, value in vars(settings).items()),
            "sha256_train": hashes["train.tsv"],
            "sha256_dev": hashes["dev.tsv"],
            "minutes": f"{seconds / 60:.0f}",
            "date": datetime.now(tz=UTC).date().isoformat(),
            "torch_version": torch.__version__.split("+")[0],
        }
    )
    (out / "README.md").write_text(filled, encoding="utf-8")


def read_arguments() -> argparse.Namespace:
    """Read the command line; every field of ``Settings`` is a flag."""
    parser = argparse.ArgumentParser(description="Train the bundled sentiment reward model from scratch.")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data/sst2", help="train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and card")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer to take instead of training one")
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, save."""
    arguments = read_arguments()
    settings = replace(Settings(), **{name: getattr(arguments, name) for name in vars(Settings())})
    torch.set_num_threads(1)  # the sum order of several threads would change the weights from run to run
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    phrases, dev = read_tsv(arguments.data / "train.tsv"), read_tsv(arguments.data / "dev.tsv")
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
        if arguments.tokenizer
        else train_tokenizer([example.text for example in phrases], vocab_size=settings.vocab_size)
    )
    graded = grade(phrases, tokenizer=tokenizer, settings=settings)
    model = train(graded, openings=read_openings("train"), tokenizer=tokenizer, settings=settings)
    seconds = time.monotonic() - started
    polarity = arguments.data.parent / "rt-polarity"
    sentences = read_sentences(polarity) if polarity.is_dir() else []
    report = evaluate(model, tokenizer=tokenizer, phrases=phrases, dev=dev, sentences=sentences)
    print(json.dumps(report, indent=1))
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    write_card(arguments.out, report=report, settings=settings, data=arguments.data, seconds=seconds)


if __name__ == "__main__":
    main()
