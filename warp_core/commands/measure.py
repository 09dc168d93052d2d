"""Commands that run models: evaluate, front, sample."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warp_core.commands.answer import Answer
from warp_core.commands.models import open_all
from warp_core.commands.progress import Clock, describe, duration, say
from warp_core.errors import ConfigError, PromptError
from warp_core.evaluation.evaluate import Subject, evaluation_of, measure
from warp_core.evaluation.fronts import default_reference
from warp_core.evaluation.points import Point, point_from_samples
from warp_core.evaluation.report import front_table, write_front_csv, write_front_html
from warp_core.evaluation.series import make_front
from warp_core.evaluation.sweep import Ask, Sweep
from warp_core.policy.loading import load_checkpoint, open_model
from warp_core.policy.model import pick_device
from warp_core.policy.prompts import encode_prompts, read_prompts
from warp_core.policy.sampling import row_seed
from warp_core.policy.sampling import sample as draw
from warp_core.rewards import RewardBatch, load_reward
from warp_core.training.config import WarpConfig
from warp_core.training.warp import reopen, sources_of
from warp_core.workspace.paths import cache_root, find_run
from warp_core.workspace.results import Results
from warp_core.workspace.runs import RunFolder

__all__ = ["evaluate", "front", "front_document", "measure_run", "sample"]


def evaluate(args: Namespace) -> Answer:
    """Measure one policy: reward, KL to the anchor, length, diversity."""
    checkpoint, anchor = open_model(args.policy, base=args.base), open_model(args.anchor, base=args.base)
    prompts = _prompts(args.prompts, args.num_prompts)
    reward = load_reward(args.reward, device=str(pick_device()))
    evaluation = evaluation_of(
        prompts,
        reward,
        samples_per_prompt=args.samples,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        kl_estimator=args.kl,
        chat_template=args.chat,
        anchor=anchor.id,
    )
    store = Results(cache_root() / "results.sqlite")
    stored = store.get_point(f"{checkpoint.id}:{evaluation.id}")
    if stored is not None:
        point = Point.from_json(stored)
    else:
        policy = load_checkpoint(checkpoint)
        reference = None if anchor.id == checkpoint.id else load_checkpoint(anchor)
        samples = measure(
            Subject(policy=policy, reference=reference), prompts, reward, evaluation, progress=_counted("sampling")
        )
        point = point_from_samples(samples, evaluation=evaluation, policy=checkpoint.id, kind="policy")
        store.put_point(point.key, point.to_json(), [one.to_json() for one in samples])
    store.close()
    text = f"{describe(point)}, length {point.length:.1f}, n = {point.n}, KL estimator {point.kl_estimator}"
    return Answer(document=point.to_json(), text=text)


def _prompts(source: str, limit: int | None) -> tuple[str, ...]:
    prompts = read_prompts(source)
    if limit is not None and limit > len(prompts):
        raise PromptError(f"--num-prompts {limit}: {source!r} has {len(prompts)}")
    return prompts[:limit]


def _counted(what: str) -> Any:
    def show(done: int, total: int) -> None:
        say(f"{what}: {done} of {total} completions")

    return show


def sample(args: Namespace) -> Answer:
    """Draw completions of one prompt."""
    policy = load_checkpoint(open_model(args.policy, base=args.base))
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


def front(args: Namespace) -> Answer:
    """Measure the fronts of a run, or of any init and policies."""
    if bool(args.run) == bool(args.init):
        raise ConfigError("front: give either a RUN, or --init and --policies")
    if args.init and not args.policies:
        raise ConfigError("front: --init needs --policies")
    points = _front_of_run(args) if args.run else _front_of_models(args)
    document = front_document(points)
    for option, write in (("html", write_front_html), ("csv", write_front_csv)):
        if getattr(args, option):
            write(Path(getattr(args, option)), points)
    return Answer(document=document, text=front_table(points))


def front_document(points: Sequence[Point]) -> dict[str, Any]:
    """Return what `front --json` prints: measured points with `dominated`, the hypervolume and its reference."""
    found = make_front(points)
    measured = [
        point.to_json() | {"dominated": flag} for point, flag in zip(found.points, found.dominated, strict=True)
    ]
    training = [point.to_json() for point in points if point.kind == "training"]
    return {
        "points": measured,
        "training": training,
        "hypervolume": found.hypervolume,
        "reference": list(default_reference(found.points)),
    }


def _front_of_run(args: Namespace) -> list[Point]:
    run, config = reopen(find_run(args.run))
    return measure_run(
        run,
        config,
        etas=args.etas,
        methods=args.method,
        iterations=args.iteration,
        both_ends=args.to_init,
        clock=None,
    )


def measure_run(
    run: RunFolder,
    config: WarpConfig,
    *,
    etas: Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
    iterations: Sequence[int] | None = None,
    both_ends: bool = False,
    clock: Clock | None = None,
) -> list[Point]:
    """Return the points of a run's fronts: SFT policy, policies, merges at each eta, moments of training.

    Args:
        run: the run.
        config: its configuration, which says how to measure.
        etas: LITI coefficients; None for the configuration's.
        methods: merges; None for the configuration's.
        iterations: which; None for all that are finished.
        both_ends: from iteration 2 on also the curve towards that iteration's own init (Fig. 17).
        clock: tells the time left, where the caller keeps one.
    """
    finished = run.finished_iterations(config.warp.policies)
    chosen = list(iterations or finished)
    if not chosen:
        sources_of(run, config, 1)  # says what is missing
    ask = _ask_of(run, config)
    store = Results(run.results_file)
    points: list[Point] = []
    try:
        for iteration in chosen:
            sources = sources_of(run, config, iteration)
            sweep = Sweep(
                sft=sources.sft,
                init=sources.init,
                policies=sources.policies,
                ask=ask,
                store=store,
                iteration=iteration,
            )
            points += _sweep_points(sweep, config, etas, methods, both_ends=both_ends, clock=clock)
        points += [Point.from_json(point) for point in store.list_points(kind="training")]
    finally:
        store.close()
    return list({(point.key, point.kind): point for point in points}.values())


def _ask_of(run: RunFolder, config: WarpConfig) -> Ask:
    settings = config.evaluation
    prompts = read_prompts(config.prompts.evaluation)[: settings.prompts]
    reward = load_reward(config.reward.terms, device=str(pick_device()))
    evaluation = evaluation_of(
        prompts,
        reward,
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=config.training.max_new_tokens,
        temperature=config.training.temperature,
        seed=settings.seed,
        kl_estimator=settings.kl_estimator,
        chat_template=config.model.chat_template,
        anchor=run.about()["sft"]["id"],
    )
    return Ask(prompts=prompts, reward=reward, evaluation=evaluation, batch_size=settings.batch_size)


def _sweep_points(
    sweep: Sweep,
    config: WarpConfig,
    etas: Sequence[float] | None,
    methods: Sequence[str] | None,
    *,
    both_ends: bool,
    clock: Clock | None,
) -> list[Point]:
    """Measure one iteration, saying each point as it is found."""
    where = f"iteration {sweep.iteration}, " if sweep.iteration else ""
    points: list[Point] = []

    def found(point: Point, name: str) -> None:
        points.append(point)
        left = ""
        if clock:
            clock.did("measure")
            left = f"; about {duration(clock.left_s())} left" if sum(clock.todo.values()) else ""
        say(f"{where}{name}: {describe(point)}{left}")

    found(sweep.sft_point(), "SFT policy")
    for policy in range(1, len(sweep.policies) + 1):
        found(sweep.policy_point(policy), f"policy {policy}")
    merge = config.merge
    for method in methods or config.evaluation.methods:
        for to_init in [False, True] if both_ends and sweep.towards else [False]:
            for eta in etas or config.evaluation.etas:
                recipe = sweep.recipe(
                    method=method,
                    eta=eta,
                    weights=merge.weights or None,
                    granularity=merge.granularity,
                    to_init=to_init,
                )
                found(sweep.point(recipe), f"{method} at eta {eta:g}" + (" towards the init" if to_init else ""))
    return points


def _front_of_models(args: Namespace) -> list[Point]:
    init, policies = open_all(args.init, args.policies, base=args.base)
    anchor = open_model(args.anchor, base=args.base) if args.anchor else init.full
    prompts = _prompts(args.prompts, args.num_prompts)
    reward = load_reward(args.reward, device=str(pick_device()))
    evaluation = evaluation_of(
        prompts,
        reward,
        samples_per_prompt=args.samples,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        kl_estimator=args.kl,
        chat_template=args.chat,
        anchor=anchor.id,
    )
    config = WarpConfig()
    store = Results(Path(os.environ.get("WARP_RESULTS") or cache_root() / "results.sqlite"))
    sweep = Sweep(
        sft=anchor,
        init=init,
        policies=policies,
        ask=Ask(prompts=prompts, reward=reward, evaluation=evaluation),
        store=store,
    )
    try:
        return _sweep_points(sweep, config, args.etas, args.method or ["slerp"], both_ends=args.to_init, clock=None)
    finally:
        store.close()
