"""Commands on weights: geometry, merge, export, check."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from warp_core.commands.answer import Answer
from warp_core.commands.checks import require_new_folder
from warp_core.commands.progress import show_progress
from warp_core.errors import CheckpointError
from warp_core.weights import (
    Checkpoint,
    Geometry,
    MergeReport,
    adapter_base_name,
    check_checkpoint,
    compute_geometry,
    make_recipe,
    merge_to_folder,
)
from warp_core.weights.opening import open_all
from warp_core.weights.shards import parse_size
from warp_core.workspace.paths import cache_root, find_run
from warp_core.workspace.sources import resolve_model

__all__ = ["check", "export", "geometry", "merge"]


def geometry(args: Namespace) -> Answer:
    """Angles, norms and cosines of task vectors per layer."""
    init, policies = open_all(args.init, args.policies, base=args.base)
    found = _geometry(init, policies, args.granularity)
    layers = [
        {
            "name": layer.name,
            "num_params": layer.num_params,
            "norms": found.norms_LM[row].tolist(),
            "cosines": found.cosines_LMM[row].tolist(),
            "angles_deg": _degrees(found, row),
            "full_cosines": found.full_cosines_LMM[row].tolist(),
        }
        for row, layer in enumerate(found.layers)
    ]
    document = {
        "init": init.id,
        "policies": [policy.id for policy in policies],
        "granularity": args.granularity,
        "layers": layers,
    }
    return Answer(document=document, text=_geometry_table(layers))


def _degrees(found: Geometry, row: int) -> list[list[float]]:
    import numpy as np

    degrees: list[list[float]] = np.degrees(found.angles_LMM[row]).tolist()
    return degrees


def _geometry(init: Checkpoint, policies: Sequence[Checkpoint], granularity: str) -> Geometry:
    settings: dict[str, Any] = {"granularity": granularity}
    return compute_geometry(
        init,
        policies,
        cache_dir=cache_root() / "geometry",
        progress=lambda done, total: show_progress("reading weights", done, total),
        **settings,
    )


def _geometry_table(layers: Sequence[dict[str, Any]]) -> str:
    """One row per layer: the norms of the task vectors, and the angle of every pair."""
    num = len(layers[0]["norms"])
    pairs = [(j, k) for j in range(num) for k in range(j + 1, num)]
    width = max(len(layer["name"]) for layer in layers)
    head = f"{'layer':<{width}}" + "".join(f"{f'|d{m + 1}|':>10}" for m in range(num))
    lines = [head + "".join(f"{f'angle {j + 1},{k + 1}':>12}" for j, k in pairs)]
    for layer in layers:
        norms = "".join(f"{norm:>10.4f}" for norm in layer["norms"])
        angles = "".join(f"{layer['angles_deg'][j][k]:>12.2f}" for j, k in pairs)
        lines.append(f"{layer['name']:<{width}}{norms}{angles}")
    return "\n".join([*lines, "", "Norms of the task vectors; angles between them in degrees."])


def merge(args: Namespace) -> Answer:
    """Merge policies into a folder."""
    _require_output(args)
    init, policies = open_all(args.init, args.policies, base=args.base)
    recipe = make_recipe(
        init, policies, method=args.method, weights=args.weights, eta=args.eta, granularity=args.granularity
    )
    report = merge_to_folder(
        recipe,
        init=init,
        policies=policies,
        geometry=_geometry(init, policies, args.granularity),
        out=Path(args.out),
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        kind=args.kind,
        base_name=_lasting_name(args.base or (args.init if init.kind == "full" else None)),
        progress=lambda done, total: show_progress("merging", done, total),
    )
    return _merged(report)


def _require_output(args: Namespace) -> None:
    """Refuse a place that is taken and a size that is none before the weights are read."""
    require_new_folder(Path(args.out))
    parse_size(args.max_shard_size)


def _lasting_name(name: str | None) -> str | None:
    """Name a local folder by its absolute path, so that an adapter finds its base from anywhere."""
    folder = Path(name).expanduser() if name else None
    return str(folder.resolve()) if folder and folder.is_dir() else name


def export(args: Namespace) -> Answer:
    """Write the chosen model of a run."""
    # What trains brings transformers with it, which a merge of folders needs not wait for.
    from warp_core.training.measuring import require_iteration
    from warp_core.training.warp import reopen, sources_of

    _require_output(args)
    run, config = reopen(find_run(args.run))
    if args.base:
        config = replace(config, model=replace(config.model, name=args.base))
    iteration = args.iteration or _last_iteration(run.finished_iterations(config.warp.policies))
    require_iteration(run, config, iteration)
    sources = sources_of(run, config, iteration)
    towards = None if args.to_init else sources.towards
    granularity = args.granularity or config.merge.granularity
    recipe = make_recipe(
        sources.init,
        sources.policies,
        method=args.method or config.merge.method,
        weights=args.weights or config.merge_weights,
        eta=args.eta,
        granularity=granularity,
        towards=towards,
    )
    report = merge_to_folder(
        recipe,
        init=sources.init,
        policies=sources.policies,
        towards=towards,
        geometry=_geometry(sources.init, sources.policies, granularity),
        out=Path(args.out),
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        kind=args.kind,
        base_name=_lasting_name(config.model.name),
        progress=lambda done, total: show_progress("merging", done, total),
    )
    return _merged(report)


def _last_iteration(finished: Sequence[int]) -> int:
    return finished[-1] if finished else 1


def _merged(report: MergeReport) -> Answer:
    document = report.to_json()
    size = document["size_bytes"] / 1e6
    text = f"wrote {report.out} ({document['num_params']:,} parameters, {size:.0f} MB, {document['wall_s']:.1f} s)"
    return Answer(document=document, text=text)


def check(args: Namespace) -> Answer:
    """List everything that is wrong with a model folder."""
    folder = Path(args.folder)
    base = None
    problems: list[str] = []
    try:
        wanted = adapter_base_name(folder) if folder.is_dir() else None
        if wanted is not None and (args.base or wanted):
            base = resolve_model(args.base or wanted)
        init = resolve_model(args.init) if args.init else None
        problems = check_checkpoint(folder, base=base, init=init)
    except CheckpointError as error:
        problems = [str(error)]
    ok = not problems
    text = f"{folder} is safe, whole and finite" if ok else "\n".join(problems)
    return Answer(document={"ok": ok, "problems": problems}, text=text, code=0 if ok else 2)
