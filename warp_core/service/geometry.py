"""The geometry of an iteration as the app needs it: with a column for the SFT policy where that is not the init.

It is computed once and lies in RUN/iteration-I/geometry.json, so that a run can be explored where its base model is
not; in the cache where the run cannot be written, and for models that belong to no run.

Shape suffixes: L layers, M policies, K = M columns or M + 1 with the SFT policy, N = 1 + K with theta_init in front.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import UserError, WorkspaceError
from warp_core.service.documents import GeometryDocument
from warp_core.service.jobs import Context
from warp_core.service.library import Library
from warp_core.service.memo import stamp_of
from warp_core.service.places import full_weights
from warp_core.service.protocol import GeometryRequest, Granularity, Place, Selection
from warp_core.training.warp import Sources
from warp_core.weights import Geometry, Recipe, coefficients, compute_geometry
from warp_core.workspace.paths import cache_root
from warp_core.workspace.publish import write_text_atomic
from warp_core.workspace.reading import read_regular
from warp_core.workspace.sealed import seal_of

__all__ = ["coefficients_at", "compute", "known_geometry", "stored_geometry"]

FORMAT = 1


def known_geometry(library: Library, selection: Selection, iteration: int) -> GeometryDocument | None:
    """Return the geometry that the sliders follow, where it was computed before. Quick: one small file is read.

    Raises:
        WorkspaceError: there is no such run.
    """
    found = stored_geometry(library, selection, iteration)
    if found is None:
        return None
    key = ("geometry", selection.model_dump_json(), iteration)
    return library.memo.get(key, found, lambda: _document(library, selection, iteration, found))


def stored_geometry(library: Library, selection: Selection, iteration: int) -> Geometry | None:
    """Return what `known_geometry` shows: columns are the policies, and the SFT policy where it is not the init."""
    granularity = library.measuring(selection).merge.granularity
    opened = library.opened(selection, iteration)
    run = library.run_of(selection)
    files = [run.iteration(iteration) / "geometry.json"] if run else []
    if opened is not None:
        files.append(_cache_file(opened, granularity))
    for file in files:
        sft, found = library.memo.get(("geometry file", file), stamp_of([file]), partial(_read, file))
        if found is None or found.granularity != granularity:
            continue
        if run is not None and sft != run.about()["sft"]["id"]:
            continue
        if opened is None or [found.init, *found.policies] == _ids(opened):
            return found
    return None


def coefficients_at(found: Geometry, place: Place, num_policies: int) -> NDArray[np.float64]:
    """Return c_LK of a place, theta = theta_init + sum_k c_k delta_k, on the columns of `stored_geometry`.

    Raises:
        GeometryError: the place has no path, because two task vectors are opposite.
        RecipeError: the weights do not fit the number of policies.
    """
    policies, sft = found.policies[:num_policies], found.policies[num_policies:]
    recipe = Recipe(
        init=found.init,
        policies=policies,
        method=place.method,
        weights=full_weights(place, num_policies),
        eta=place.eta,
        granularity=cast(Granularity, found.granularity),
        towards=sft[0] if sft and (place.towards == "sft" or place.iteration == 1) else None,
    )
    merge = coefficients(recipe, found)
    return np.concatenate([merge.coef_LM, merge.towards_L[:, None]], axis=1)[:, : len(found.policies)]


def compute(library: Library, request: GeometryRequest, context: Context) -> dict[str, Any]:
    """Return a `GeometryDocument` as JSON, computed if need be; what the sliders follow is kept for `known_geometry`.

    Raises:
        CheckpointError: the checkpoints do not belong together, or one holds NaN.
        WorkspaceError: the iteration is not finished.
    """
    selection, iteration = request.selection, request.iteration
    context.say("opening the checkpoints")
    sources = library.sources(selection, iteration)
    own = library.measuring(selection).merge.granularity
    found = stored_geometry(library, selection, iteration) if request.granularity == own else None
    if found is None:
        found = _computed(sources, request.granularity, context)
        if request.granularity == own:
            _keep(library, selection, iteration, sources, found)
    return _document(library, selection, iteration, found).model_dump(mode="json")


def _computed(sources: Sources, granularity: Granularity, context: Context) -> Geometry:
    def progress(done: int, total: int) -> None:
        context.checkpoint()
        context.progress(done, total, "reading weights")

    cache = cache_root() / "geometry"
    if sources.towards is None:
        return compute_geometry(
            sources.init, sources.policies, granularity=granularity, cache_dir=cache, progress=progress
        )
    # Seen from the SFT policy, which adapters over it can be, too; then turned to the init.
    whole = [sources.init, *sources.policies]
    seen = compute_geometry(sources.sft, whole, granularity=granularity, cache_dir=cache, progress=progress)
    turn_NN = np.eye(1 + len(whole))
    turn_NN[0, 1] = 1.0  # theta_init = theta_sft + U_0
    turn_NN[1:-1] = np.eye(1 + len(whole))[2:]
    turn_NN[1:, 1] = -1.0  # delta_m = U_m - U_0
    turn_NN[-1, 2:] = 0.0  # delta_sft = -U_0
    return replace(
        seen,
        init=sources.init.id,
        policies=(*(policy.id for policy in sources.policies), sources.sft.id),
        gram_LNN=turn_NN @ seen.gram_LNN @ turn_NN.T,
    )


def _keep(library: Library, selection: Selection, iteration: int, sources: Sources, found: Geometry) -> None:
    stored = {"format": FORMAT, "sft": sources.sft.id, "geometry": found.to_json()}
    text = json.dumps(stored | {"sha256": seal_of(stored)}) + "\n"
    run = library.run_of(selection)
    with suppress(WorkspaceError):
        if run is not None:
            write_text_atomic(run.iteration(iteration) / "geometry.json", text)
            return
    with suppress(WorkspaceError):  # then it is computed again another time
        write_text_atomic(_cache_file(sources, found.granularity), text)


def _read(file: Path) -> tuple[str, Geometry | None]:
    try:
        data = json.loads(read_regular(file))
        # The geometry of the bundled run has no seal: it is older.
        if data["format"] == FORMAT and data.pop("sha256", None) in (None, seal_of(data)):
            return str(data["sft"]), Geometry.from_json(data["geometry"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        pass  # absent or damaged: it can be computed again
    return "", None


def _cache_file(sources: Sources, granularity: str) -> Path:
    name = hashlib.sha256(json.dumps([sources.sft.id, *_ids(sources), granularity]).encode()).hexdigest()
    return cache_root() / "geometry" / f"iteration-{name[:32]}.json"


def _ids(sources: Sources) -> list[str]:
    """Content ids in the order of the Gram's columns."""
    whole = [sources.init, *sources.policies, *([sources.towards] if sources.towards else [])]
    return [one.id for one in whole]


def _document(library: Library, selection: Selection, iteration: int, found: Geometry) -> GeometryDocument:
    """Put a geometry into plain numbers; norms, angles and cosines are those of the policies alone."""
    config = library.config(selection)
    num = config.warp.policies if config else len(selection.policies)
    names = [Path(name).name for name in selection.policies] or [f"policy {m}" for m in range(1, num + 1)]
    return GeometryDocument(
        iteration=iteration,
        granularity=cast(Granularity, found.granularity),
        layers=tuple(layer.name for layer in found.layers),
        num_params=tuple(layer.num_params for layer in found.layers),
        policies=tuple(names),
        has_sft_column=len(found.policies) > num,
        gram_LKK=found.gram_LMM.tolist(),
        norms_LM=found.norms_LM[:, :num].tolist(),
        angles_deg_LMM=np.degrees(found.angles_LMM[:, :num, :num]).tolist(),
        cosines_LMM=found.cosines_LMM[:, :num, :num].tolist(),
        full_cosines_LMM=found.full_cosines_LMM[:, :num, :num].tolist(),
    )
