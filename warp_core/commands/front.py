"""The command `front`: reward-vs-KL fronts of a run, or of any init and policies."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warp_core.commands.answer import Answer
from warp_core.commands.checks import require_file_place
from warp_core.commands.measure import evaluation_asked, reward_asked, shared_results
from warp_core.commands.progress import Clock, describe, duration, say
from warp_core.errors import CheckpointError, ConfigError
from warp_core.evaluation.fronts import default_reference, hypervolume
from warp_core.evaluation.paired import Comparison, Samples, compare_front
from warp_core.evaluation.points import Point, Sample
from warp_core.evaluation.report import front_table, write_front_csv, write_front_html
from warp_core.evaluation.series import Front, make_front, reference_name
from warp_core.evaluation.sweep import Ask, Hooks, Spot, Sweep
from warp_core.policy.loading import open_all, open_model
from warp_core.policy.model import pick_device
from warp_core.policy.prompts import chosen_prompts
from warp_core.policy.room import require_room
from warp_core.rewards import load_reward
from warp_core.training.config import EvaluationConfig, WarpConfig, config_from_mapping, config_to_mapping
from warp_core.training.measuring import evaluation_for, held_out_prompts, require_iteration
from warp_core.training.warp import reopen, sources_of
from warp_core.weights import Recipe
from warp_core.workspace.paths import find_run
from warp_core.workspace.results import Results
from warp_core.workspace.runs import RunFolder
from warp_core.workspace.sources import resolve_model

__all__ = ["compare_points", "front", "front_document", "measure_run", "samples_of_run"]

# Options that a run answers with its own configuration where the command line says nothing.
MEASURING = ("dtype", "prompts", "samples", "kl", "max_new_tokens", "temperature", "seed")


def front(args: Namespace) -> Answer:
    """Measure the fronts of a run, or of any init and policies."""
    _require_one_subject(args)
    files = {option: Path(getattr(args, option)) for option in ("html", "csv") if getattr(args, option) is not None}
    for file in files.values():
        require_file_place(file)
    points, samples = _front_of_run(args) if args.run else _front_of_models(args)
    comparisons = compare_points(points, samples, reference=args.reference)
    document = front_document(points, comparisons=comparisons)
    if "html" in files:
        write_front_html(files["html"], points, comparisons=comparisons)
    if "csv" in files:
        write_front_csv(files["csv"], points, comparisons=comparisons)
    return Answer(document=document, text=front_table(points, comparisons=comparisons))


def _require_one_subject(args: Namespace) -> None:
    if bool(args.run) == bool(args.init):
        raise ConfigError("front: give either a RUN, or --init and --policies")
    if args.init and not args.policies:
        raise ConfigError("front: --init needs --policies")
    for option in ("iteration",) if args.init else ("policies", "anchor"):
        if getattr(args, option):
            raise ConfigError(f"front: --{option} does not go with {'--init' if args.init else 'a RUN'}: leave it out")


def compare_points(points: Sequence[Point], samples: Samples, *, reference: str | None = None) -> dict[str, Comparison]:
    """Return the points, by `Point.key`, beside a reference and along their curves.

    Args:
        points: of one front.
        samples: of each point, by its key.
        reference: the name of a point as `front --reference` has it; None for the SFT policy.

    Raises:
        ConfigError: no point, or more than one, has that name.
    """
    found = make_front(points)
    base = None
    if reference is not None:
        named: dict[str, list[Point]] = {}
        for point in found.points:
            named.setdefault(reference_name(point), []).append(point)
        # A run with one iteration needs no number in front.
        places = [point for name, at in named.items() if reference in (name, name.partition("/")[2]) for point in at]
        if len(places) != 1:
            what = f"{len(places)} points of this front have that name" if places else "no point of this front"
            raise ConfigError(f"--reference {reference}: {what}: choose from {', '.join(named)}")
        base = places[0]
    return compare_front(found, samples, reference=base)


def front_document(points: Sequence[Point], *, comparisons: Mapping[str, Comparison] | None = None) -> dict[str, Any]:
    """Return what `front --json` prints: measured points with `dominated`, the hypervolume and its reference.

    comparisons: of the points, by `Point.key`, as `to_reference` and `to_previous` of each.
    """
    found = make_front(points)
    measured = [
        point.to_json() | {"dominated": flag} | _beside(point, comparisons)
        for point, flag in zip(found.points, found.dominated, strict=True)
    ]
    training = [point.to_json() for point in points if point.kind == "training"]
    return {
        "points": measured,
        "training": training,
        "hypervolume": found.hypervolume,
        "hypervolumes": _hypervolumes(found),
        "reference": list(default_reference(found.points)),
    }


def _beside(point: Point, comparisons: Mapping[str, Comparison] | None) -> dict[str, Any]:
    """The differences of a point for JSON, null where there is nothing to subtract; none where none were asked for."""
    if comparisons is None:
        return {}
    found = comparisons.get(point.key, Comparison())
    both = {"to_reference": found.to_reference, "to_previous": found.to_previous}
    return {"key": point.key} | {name: one and one.to_json() for name, one in both.items()}


def _hypervolumes(found: Front) -> list[dict[str, Any]]:
    """Return the hypervolume of each merged curve by itself, all to the one reference, so that they can be compared."""
    curves: dict[tuple[int | None, str | None, bool], list[Point]] = {}
    for point in found.points:
        if point.kind == "merge" and point.recipe is not None:
            to_init = point.recipe.get("towards") is None
            curves.setdefault((point.iteration, point.method, to_init), []).append(point)
    return [
        {
            "iteration": iteration,
            "method": method,
            "to_init": to_init,
            "hypervolume": hypervolume(curve, found.reference),
        }
        for (iteration, method, to_init), curve in curves.items()
    ]


def _samples_of(store: Results, points: Sequence[Point]) -> Samples:
    """Return the stored samples of the measured points."""
    keys = {point.key for point in points if point.kind != "training"}
    return {key: [Sample.from_json(sample) for sample in store.samples(key)] for key in keys}


def samples_of_run(run: RunFolder, points: Sequence[Point]) -> Samples:
    """Return the samples of a run's measured points, by `Point.key`."""
    store = Results(run.results_file)
    try:
        return _samples_of(store, points)
    finally:
        store.close()


def _front_of_run(args: Namespace) -> tuple[list[Point], Samples]:
    run, config = reopen(find_run(args.run))
    if args.num_prompts is None and args.prompts is None:
        prompts = held_out_prompts(str(run.prompts_file("evaluation")), config)
    else:
        prompts = chosen_prompts(args.prompts or str(run.prompts_file("evaluation")), args.num_prompts)
    points = measure_run(
        run,
        _as_asked(config, args),
        prompts=prompts,
        etas=args.etas,
        methods=args.method,
        iterations=args.iteration,
        both_ends=args.to_init,
    )
    otherwise = any(getattr(args, option) is not None for option in (*MEASURING, "reward", "num_prompts")) or args.chat
    # The curves of training were measured in the run's own way: beside other measurements they would mislead.
    shown = [point for point in points if point.kind != "training"] if otherwise else points
    return shown, samples_of_run(run, shown)


def _as_asked(config: WarpConfig, args: Namespace) -> WarpConfig:
    """Return the configuration of a run with what the command line says otherwise about measuring it."""
    said = {
        ("model", "name"): args.base,
        ("model", "chat_template"): args.chat or None,
        ("model", "dtype"): args.dtype,
        ("reward", "terms"): args.reward,
        ("training", "max_new_tokens"): args.max_new_tokens,
        ("training", "temperature"): args.temperature,
        ("merge", "weights"): args.weights,
        ("merge", "granularity"): args.granularity,
        ("evaluation", "samples_per_prompt"): args.samples,
        ("evaluation", "kl_estimator"): args.kl,
        ("evaluation", "seed"): args.seed,
    }
    mapping = config_to_mapping(config)
    for (section, field), value in said.items():
        if value is not None:
            mapping[section][field] = value
    return config_from_mapping(mapping)


def measure_run(
    run: RunFolder,
    config: WarpConfig,
    *,
    prompts: Sequence[str] | None = None,
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
        prompts: to measure on; None for the held-out prompts of the run.
        etas: LITI coefficients; None for the configuration's.
        methods: merges; None for the configuration's.
        iterations: which; None for all that are finished.
        both_ends: from iteration 2 on also the curve towards that iteration's own init (Fig. 17).
        clock: tells the time left, where the caller keeps one.
    """
    chosen = list(iterations or run.finished_iterations(config.warp.policies))
    for iteration in chosen or [1]:
        require_iteration(run, config, iteration)
    ask = _ask_of(run, config, prompts)
    store = Results(run.results_file)
    points: list[Point] = []
    try:
        for iteration in chosen or [1]:
            sources = sources_of(run, config, iteration)
            asked = ask.evaluation
            require_room(
                sources.sft, ask.prompts, chat_template=asked.chat_template, max_new_tokens=asked.max_new_tokens
            )
            sweep = Sweep(
                sft=sources.sft,
                init=sources.init,
                policies=sources.policies,
                ask=ask,
                store=store,
                iteration=iteration,
            )
            recipes = _recipes(
                sweep,
                methods=methods or config.evaluation.methods,
                etas=etas or config.evaluation.etas,
                weights=config.merge.weights or None,
                granularity=config.merge.granularity,
                both_ends=both_ends,
            )
            points += _sweep_points(sweep, recipes, clock)
        training = [Point.from_json(point) for point in store.list_points(kind="training")]
        points += [point for point in training if iterations is None or point.iteration in iterations]
    finally:
        store.close()
    return list({(point.key, point.kind): point for point in points}.values())


def _ask_of(run: RunFolder, config: WarpConfig, prompts: Sequence[str] | None) -> Ask:
    prompts = tuple(prompts) if prompts is not None else held_out_prompts(str(run.prompts_file("evaluation")), config)
    reward = load_reward(config.reward.terms, device=str(pick_device()))
    sft = run.about()["sft"]["id"]
    evaluation = evaluation_for(config, prompts, reward, anchor=sft, sft=resolve_model(config.model.name))
    return Ask(prompts=prompts, reward=reward, evaluation=evaluation, batch_size=config.evaluation.batch_size)


def _recipes(
    sweep: Sweep,
    *,
    methods: Sequence[str],
    etas: Sequence[float],
    weights: Sequence[float] | None,
    granularity: str,
    both_ends: bool,
) -> list[tuple[str, Recipe]]:
    """Return the merges of a front with a name for each; a mistake in them shows before anything is measured."""
    return [
        (
            f"{method} at eta {eta:g}" + (" towards the init" if to_init else ""),
            sweep.recipe(method=method, eta=eta, weights=weights, granularity=granularity, to_init=to_init),
        )
        for method in methods
        for to_init in ([False, True] if both_ends and sweep.towards else [False])
        for eta in etas
    ]


def _sweep_points(sweep: Sweep, recipes: Sequence[tuple[str, Recipe]], clock: Clock | None) -> list[Point]:
    """Measure one iteration, saying each point as it is found."""
    where = f"iteration {sweep.iteration}, " if sweep.iteration else ""
    names = ["SFT policy", *(f"policy {m}" for m in range(1, len(sweep.policies) + 1)), *(name for name, _ in recipes)]
    policies = [Spot(policy=m) for m in range(1, len(sweep.policies) + 1)]
    spots = [Spot(), *policies, *(Spot(recipe=recipe) for _, recipe in recipes)]

    def found(number: int, point: Point) -> None:
        left = ""
        if clock:
            clock.did("measure")
            # What is stored already comes at once, and needs no forecast.
            left = f"; about {duration(clock.left_s())} left" if clock.left_s() > 2 else ""
        say(f"{where}{names[number]}: {describe(point)}{left}")

    return sweep.points(spots, hooks=Hooks(found=found))


def _front_of_models(args: Namespace) -> tuple[list[Point], Samples]:
    for name, value in args.unless_said.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    init, policies = open_all(args.init, args.policies, base=args.base)
    anchor = open_model(args.anchor, base=args.base) if args.anchor else init.full
    if anchor.kind == "adapter":
        raise CheckpointError(f"--anchor {args.anchor}: an adapter cannot be the SFT policy: give a full model")
    prompts = chosen_prompts(args.prompts, args.num_prompts)
    require_room(anchor, prompts, chat_template=args.chat, max_new_tokens=args.max_new_tokens)
    reward = reward_asked(args)
    asked = evaluation_asked(args, prompts, reward, anchor=anchor, spoken=anchor)
    ask = Ask(prompts=prompts, reward=reward, evaluation=asked)
    store = shared_results()
    try:
        sweep = Sweep(sft=anchor, init=init, policies=policies, ask=ask, store=store)
        recipes = _recipes(
            sweep,
            methods=args.method or ["slerp"],
            etas=args.etas or EvaluationConfig().etas,
            weights=args.weights,
            granularity=args.granularity or "layer",
            both_ends=args.to_init,
        )
        points = _sweep_points(sweep, recipes, None)
        return points, _samples_of(store, points)
    finally:
        store.close()
