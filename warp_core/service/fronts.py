"""The points of a selection as the app draws them. Reads the results file and the run folder, never a model.

front_document(library, selection)              every stored point with the place that the sliders have for it
sample_rows(library, selection, key)            the completions of one
prediction_document(library, selection, 1)      the surface through the points of an iteration
"""

import hashlib
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from warp_core.errors import WorkspaceError
from warp_core.evaluation.fronts import default_reference, dominated, hypervolume
from warp_core.evaluation.points import Evaluation, Point
from warp_core.evaluation.series import label as series_label
from warp_core.service.documents import FrontDocument, FrontPoint, Metric, Prediction, SampleRow
from warp_core.service.evaluations import default_evaluation, evaluation_notes
from warp_core.service.geometry import stored_geometry
from warp_core.service.library import Library
from warp_core.service.memo import stamp_of
from warp_core.service.places import place_label, single
from warp_core.service.protocol import SFT, Place, Selection
from warp_core.service.surfaces import prediction_through
from warp_core.training.config import WarpConfig
from warp_core.training.measuring import held_out_prompts
from warp_core.training.warp import Sources
from warp_core.workspace.results import Results

__all__ = ["front_document", "prediction_document", "sample_rows"]

_KIND_ORDER = {"sft": 0, "policy": 1, "merge": 2, "training": 3}


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What stored points are placed against.

    Attributes:
        anchor: content id of the SFT policy.
        num_policies: M.
        own_init: whether iteration 1 starts from something else than the SFT policy (given models with an adapter as
            their init).
    """

    config: WarpConfig
    anchor: str
    num_policies: int
    own_init: bool = False


def front_document(library: Library, selection: Selection) -> FrontDocument:
    """Return all points of a selection; computed again only where a file changed, so that it can be polled.

    Models that belong to no run are known by their content: until they have been opened (by any job) there is no point.

    Raises:
        ConfigError: the selection is neither a run nor models.
        WorkspaceError: there is no such run, or what is stored is damaged.
    """
    run = library.run_of(selection)
    store = library.store_path(selection)
    opened = None if run else library.opened(selection, 1)
    files = [store, Path(f"{store}-wal"), *([run.config_file, run.about_file] if run else [])]
    ids = [one.id for one in (opened.sft, opened.init, *opened.policies)] if opened else []
    stamp = (stamp_of(files), ids)
    key = ("front", selection.model_dump_json())
    return library.memo.get(key, stamp, lambda: _document(library, selection, opened))


def sample_rows(library: Library, selection: Selection, key: str) -> list[SampleRow]:
    """Return the completions of a stored point.

    Raises:
        WorkspaceError: there is no point under this key, or a completion of it is damaged.
    """
    with closing(Results(library.store_path(selection))) as store:
        if store.get_point(key) is None:
            raise WorkspaceError(f"there is no measured point {key[:100]!r}: measure it first")
        try:
            return [SampleRow.model_validate(sample) for sample in store.samples(key)]
        except ValidationError as error:
            raise WorkspaceError(f"{store.path}: a stored completion is damaged; measure the point again") from error


def prediction_document(library: Library, selection: Selection, iteration: int) -> Prediction | None:
    """Return the surface through the measured points of an iteration and the SFT policy; None with fewer than four of
    them, or where the geometry is not known yet.

    Raises as `front_document` does.
    """
    front = front_document(library, selection)
    geometry = stored_geometry(library, selection, iteration)
    if geometry is None:
        return None
    config = library.config(selection)
    num = config.warp.policies if config else len(selection.policies)
    key = ("prediction", selection.model_dump_json(), iteration)
    stamp = (front.revision, geometry)
    return library.memo.get(
        key, stamp, lambda: prediction_through(front, geometry, iteration=iteration, num_policies=num)
    )


def _document(library: Library, selection: Selection, opened: Sources | None) -> FrontDocument:
    with closing(Results(library.store_path(selection))) as store:
        stored = {key: Point.from_json(point) for key, point in store.items()}
    config, run = library.measuring(selection), library.run_of(selection)
    if run is not None:
        scene = _Scene(config=config, anchor=run.about()["sft"]["id"], num_policies=config.warp.policies)
        prompts = held_out_prompts(str(run.prompts_file("evaluation")), config)
    elif opened is not None:
        stored = {key: mine for key, point in stored.items() if (mine := _as_ours(point, opened))}
        scene = _Scene(
            config=config,
            anchor=opened.sft.id,
            num_policies=len(opened.policies),
            own_init=opened.towards is not None,
        )
        prompts = tuple(library.prompts(selection))[: config.evaluation.prompts]
    else:
        return FrontDocument(revision="", points=(), evaluations=())
    default = default_evaluation(list(stored.values()), config, prompts=prompts, anchor=scene.anchor)
    return _assembled(stored, scene, default)


def _as_ours(point: Point, opened: Sources) -> Point | None:
    """Return a point of the shared store as one of these models, whatever it was measured as; None for others."""
    if point.evaluation is None or point.evaluation.anchor != opened.sft.id:
        return None
    ids = [policy.id for policy in opened.policies]
    if point.recipe is not None:
        mine = point.recipe.get("init") == opened.init.id and point.recipe.get("policies") == ids
        return replace(point, kind="merge", iteration=1) if mine else None
    if point.policy == opened.sft.id:
        return replace(point, kind="sft")
    if point.policy in ids:
        return replace(point, kind="policy", iteration=1, run=f"policy-{ids.index(point.policy) + 1}")
    return None


def _assembled(stored: dict[str, Point], scene: _Scene, default: Evaluation | None) -> FrontDocument:
    """Draw all points; domination is among the points of one evaluation, moments of training left out."""
    groups: dict[Evaluation | None, dict[str, Point]] = {}
    for key, point in stored.items():
        if point.kind != "training":
            groups.setdefault(point.evaluation, {})[key] = point
    beaten = {
        key
        for group in groups.values()
        for key, flag in zip(group, dominated(list(group.values())), strict=True)
        if flag
    }
    points = [
        _shown(key, point, scene, default, is_dominated=key in beaten)
        for key, point in sorted(stored.items(), key=lambda item: _order(item[1]))
    ]
    ours = list(groups.get(default, {}).values())
    reference = default_reference(ours) if ours else None
    text = "\n".join(point.model_dump_json() for point in points)
    return FrontDocument(
        revision=hashlib.sha256(text.encode()).hexdigest()[:16],
        points=tuple(points),
        evaluations=evaluation_notes([*filter(None, groups), *filter(None, [default])], default),
        hypervolume=hypervolume(ours, reference) if reference else None,
        reference=reference,
    )


def _order(point: Point) -> tuple[int, int, str, str, float, int]:
    return (
        _KIND_ORDER.get(point.kind or "merge", 2),
        point.iteration or 0,
        str(point.method or ""),
        str(point.run or ""),
        point.eta or 0.0,
        point.step or 0,
    )


def _shown(key: str, point: Point, scene: _Scene, default: Evaluation | None, *, is_dominated: bool) -> FrontPoint:
    policy = _policy_number(point)
    evaluation = point.evaluation
    if point.kind == "training" or evaluation is None:
        # A moment of training has fewer completions, but is of the same prompts and seed: it is drawn with the rest.
        evaluation = default or evaluation
    place = _place_of(point, scene, policy)
    return FrontPoint(
        key=key,
        kind=point.kind or "merge",
        label=_label(point, place, policy, default),
        place=place,
        iteration=point.iteration,
        policy=policy,
        step=point.step,
        n=point.n,
        evaluation=evaluation.id if evaluation else "",
        metrics=_metrics(point),
        dominated=is_dominated,
    )


def _policy_number(point: Point) -> int | None:
    number = (point.run or "").removeprefix("policy-")
    return int(number) if point.kind in ("policy", "training") and number.isdecimal() else None


def _place_of(point: Point, scene: _Scene, policy: int | None) -> Place | None:
    if point.kind == "sft":
        return SFT
    if point.kind == "training" or point.iteration is None:
        return None
    try:
        if point.kind == "policy":
            return single(policy, scene.num_policies, iteration=point.iteration) if policy else None
        return _place_of_merge(point, scene, point.iteration)
    except ValidationError:  # more policies than there are sliders
        return None


def _place_of_merge(point: Point, scene: _Scene, iteration: int) -> Place | None:
    recipe = point.recipe or {}
    weights = recipe.get("weights", ())
    if recipe.get("granularity") != scene.config.merge.granularity or len(weights) != scene.num_policies:
        return None
    to_init = recipe.get("towards") is None and (iteration > 1 or scene.own_init)
    if to_init and iteration == 1 and recipe["eta"] != 1:
        return None  # the sliders of iteration 1 start at the SFT policy
    even = max(weights) - min(weights) < 1e-9
    return Place(
        iteration=iteration,
        method=recipe["method"],
        weights=() if even else tuple(weights),
        eta=recipe["eta"],
        towards="init" if to_init and iteration > 1 else "sft",
    )


def _label(point: Point, place: Place | None, policy: int | None, default: Evaluation | None) -> str:
    if point.kind == "training":
        later = f", iteration {point.iteration}" if (point.iteration or 1) > 1 else ""
        usual = default.num_prompts * default.samples_per_prompt if default else point.n
        fewer = f" ({point.n} completions)" if point.n != usual else ""
        return f"policy {policy or '?'}{later}, step {point.step}{fewer}"
    if place is not None:
        return place_label(place)
    granularity = (point.recipe or {}).get("granularity")
    eta = f", eta {point.eta:g}" if point.eta is not None else ""
    return f"{series_label(point)}{eta}" + (f" per {granularity}" if granularity else "")


def _metrics(point: Point) -> dict[str, Metric]:
    found = {
        "reward": Metric(mean=point.reward, se=point.reward_se),
        "kl": Metric(mean=point.kl, se=point.kl_se),
        "length": Metric(mean=point.length, se=point.length_se),
    }
    if point.diversity is not None:
        found["diversity"] = Metric(mean=point.diversity, se=point.diversity_se)
    for name, mean in point.rewards.items():
        # A part that is the whole reward has its error; of others the store knows the mean alone.
        whole = len(point.rewards) == 1 and mean == point.reward
        found[f"reward:{name}"] = Metric(mean=mean, se=point.reward_se if whole else None)
    return found
