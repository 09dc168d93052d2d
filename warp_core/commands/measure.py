"""Commands that run one model: evaluate, sample."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from warp_core.commands.answer import Answer
from warp_core.commands.progress import describe, say
from warp_core.errors import MismatchError, NonFiniteError, PromptError
from warp_core.evaluation.evaluate import Subject, evaluation_of, measure
from warp_core.evaluation.points import Evaluation, Point, point_from_samples
from warp_core.policy.loading import load_checkpoint, open_model
from warp_core.policy.model import DTYPES, Policy, pick_device
from warp_core.policy.prompts import chosen_prompts, encode_prompts
from warp_core.policy.room import require_room
from warp_core.policy.sampling import row_seed
from warp_core.policy.sampling import sample as draw
from warp_core.policy.speech import speech_id
from warp_core.rewards import RewardBatch, RewardSum, load_reward
from warp_core.weights import Checkpoint
from warp_core.workspace.results import Results, shared_results_file

__all__ = ["evaluate", "evaluation_asked", "reward_asked", "sample", "shared_results"]


def evaluate(args: Namespace) -> Answer:
    """Measure one policy: reward, KL to the anchor, length, diversity."""
    checkpoint, anchor = open_model(args.policy, base=args.base), open_model(args.anchor, base=args.base)
    _require_same_vocabulary(checkpoint, anchor)
    prompts = chosen_prompts(args.prompts, args.num_prompts)
    for one in (checkpoint, anchor):
        require_room(one, prompts, chat_template=args.chat, max_new_tokens=args.max_new_tokens)
    reward = reward_asked(args)
    evaluation = evaluation_asked(args, prompts, reward, anchor=anchor, spoken=checkpoint)
    store = shared_results()
    try:
        stored = store.get_point(f"{checkpoint.id}:{evaluation.id}")
        if stored is not None:
            # A front stores it as the SFT policy or as one of its policies; here it stands alone.
            alone = {"kind": "policy", "iteration": None, "run": None}
            point = Point.from_json(stored | alone)
        else:
            policy = _loaded(checkpoint, args.dtype)
            reference = None if anchor.id == checkpoint.id else _loaded(anchor, args.dtype)
            subject = Subject(policy=policy, reference=reference)
            samples = measure(subject, prompts, reward, evaluation, progress=_say_counted)
            point = point_from_samples(samples, evaluation=evaluation, policy=checkpoint.id, kind="policy")
            store.put_point(point.key, point.to_json(), [one.to_json() for one in samples])
    finally:
        store.close()
    text = f"{describe(point)}, length {point.length:.1f}, n = {point.n}, KL estimator {point.kl_estimator}"
    return Answer(document=point.to_json(), text=text)


def _loaded(checkpoint: Checkpoint, dtype: str) -> Policy:
    """Load a checkpoint; NaN in it would come out as nonsense, so it is named here."""
    policy = load_checkpoint(checkpoint, dtype=DTYPES[dtype])
    for name, parameter in policy.model.named_parameters():
        if not parameter.isfinite().all():
            raise NonFiniteError(f"{checkpoint.path}: tensor {name!r} holds NaN or infinity; use another checkpoint")
    return policy


def _require_same_vocabulary(policy: Checkpoint, anchor: Checkpoint) -> None:
    """A KL compares probabilities token by token: the tokens must be the same."""
    tokenizers = {one.full.tokenizer for one in (policy, anchor)} - {None}
    sizes = {one.full.facts.get("vocab_size") for one in (policy, anchor)}
    if len(tokenizers) > 1 or len(sizes) > 1:
        raise MismatchError(
            f"{policy.path} and {anchor.path} have different vocabularies, so there is no KL between them: "
            "give as --anchor the model that the policy was trained from"
        )


def reward_asked(args: Namespace) -> RewardSum:
    """Load the rewards of the command line; without any, the bundled one."""
    return load_reward(args.reward or ["sentiment"], device=str(pick_device()))


def evaluation_asked(
    args: Namespace, prompts: Sequence[str], reward: RewardSum, *, anchor: Checkpoint, spoken: Checkpoint
) -> Evaluation:
    """Return the evaluation that the options of the command line ask for; `spoken` is whose tokenizer is used."""
    return evaluation_of(
        prompts,
        reward,
        samples_per_prompt=args.samples,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        kl_estimator=args.kl,
        chat_template=args.chat,
        anchor=anchor.id,
        speech=speech_id(spoken.full.path),
        dtype=args.dtype,
    )


def shared_results() -> Results:
    """Open the results of what belongs to no run; `evaluate` and `front --init` find each other's points there."""
    return Results(shared_results_file())


def _say_counted(done: int, total: int) -> None:
    say(f"sampling: {done} of {total} completions")


def sample(args: Namespace) -> Answer:
    """Draw completions of one prompt."""
    if not args.prompt.isascii() and args.prompt.encode(errors="replace").decode() != args.prompt:
        raise PromptError(f"--prompt {args.prompt!a} is not UTF-8 text: give it in that encoding")
    checkpoint = open_model(args.policy, base=args.base)
    require_room(checkpoint, [args.prompt], chat_template=args.chat, max_new_tokens=args.max_new_tokens)
    policy = _loaded(checkpoint, args.dtype)
    batch = encode_prompts([args.prompt], policy.tokenizer, chat_template=args.chat, device=policy.device)
    completions = draw(
        policy,
        batch.repeat(args.n),
        seeds=[row_seed("sample", args.seed, number) for number in range(args.n)],
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
    )
    found: list[dict[str, Any]] = [
        {"text": text, "num_tokens": num} for text, num in zip(completions.texts, completions.num_tokens, strict=True)
    ]
    if args.reward:
        reward = load_reward(args.reward, device=str(policy.device))
        scores = reward(
            RewardBatch(
                prompts=completions.prompts.texts, completions=completions.texts, num_tokens=completions.num_tokens
            )
        )
        for row, one in enumerate(found):
            one["reward"] = float(scores.total_B[row])
    shown = []
    for number, one in enumerate(found, start=1):
        head = f"[{number}] reward {one['reward']:+.2f}" if "reward" in one else f"[{number}]"
        shown.append(f"{head}\n{args.prompt}{one['text']}")
    text = "\n\n".join(shown)
    return Answer(document={"completions": found}, text=text)
