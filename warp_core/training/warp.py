"""Algorithm 1: M RL runs (EMA anchors), SLERP of the policies, LITI towards the init, and again.

`train_warp` is the whole of it; a run folder is resumable from whatever it holds.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import warp_core
from warp_core.errors import WorkspaceError
from warp_core.policy.precision import choose_dtype
from warp_core.policy.prompts import read_prompts, write_prompts
from warp_core.rewards import parse_spec
from warp_core.training.config import (
    WarpConfig,
    config_from_mapping,
    config_to_mapping,
    kept_config,
    load_config,
    load_kept_config,
)
from warp_core.training.parallel import train_in_parallel
from warp_core.training.policy_run import Hear, drop_state, fingerprint_of, train_policy
from warp_core.weights import Checkpoint, compute_geometry, make_recipe, merge_to_folder, open_checkpoint
from warp_core.workspace.paths import cache_root
from warp_core.workspace.publish import publish_folder, write_text_atomic
from warp_core.workspace.runs import FORMAT, KEPT_SINCE, RunFolder, open_run
from warp_core.workspace.sources import resolve_model

__all__ = ["Sources", "devices_here", "make_next_init", "prepare_run", "run_config", "sources_of", "train_warp"]


def prepare_run(config: WarpConfig, out: Path, *, resume: bool) -> RunFolder:
    """Make the run folder, or open the one that is to be resumed.

    Raises:
        WorkspaceError: `out` is taken and `resume` was not asked for, or was made with other settings.
    """
    run = RunFolder(out)
    config = _lasting(config)
    if config.model.dtype == "auto":
        config = _with_dtype(config, run)
    if run.about_file.exists():
        if not resume:
            raise WorkspaceError(f"{out} holds a run already: add --resume to continue it, or choose another --out")
        if fingerprint_of(run_config(run)) != fingerprint_of(config):
            raise WorkspaceError(
                f"{out} was started with other settings: resume it with {run.config_file}, or choose another --out"
            )
        _require_same_sft(run, open_checkpoint(resolve_model(config.model.name)))
        if run_config(run) != config:
            # How it is measured and how often it is saved may change on the way.
            write_text_atomic(run.config_file, kept_config(config))
        return run
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorkspaceError(f"{out} exists and is not a run: choose another --out")
    sft = open_checkpoint(resolve_model(config.model.name))
    about = {
        "format": FORMAT,
        "warp_core": warp_core.__version__,
        "torch": torch.__version__,
        # Sums in another order are other numbers: a resume on a CPU takes as many threads again.
        "threads": torch.get_num_threads(),
        "sft": {"name": config.model.name, "id": sft.id},
        "started": round(time.time(), 1),
    }
    # In one piece: a run that has no run.json could neither be resumed nor be started again.
    with publish_folder(out) as folder:
        for which in ("train", "evaluation"):
            write_prompts(RunFolder(folder).prompts_file(which), read_prompts(getattr(config.prompts, which)))
        (folder / run.config_file.name).write_text(kept_config(config), encoding="utf-8")
        (folder / run.about_file.name).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return run


def _lasting(config: WarpConfig) -> WarpConfig:
    """Name local model folders by their absolute paths, so that the run can be resumed and moved from anywhere."""
    mapping = config_to_mapping(config)
    mapping["model"]["name"] = _absolute(config.model.name)
    for reward in (mapping["reward"], *(run["reward"] for run in mapping["runs"])):
        if "terms" in reward:
            terms = [reward["terms"]] if isinstance(reward["terms"], str) else reward["terms"]
            specs = [parse_spec(term) for term in terms]
            reward["terms"] = [str(replace(spec, name=_absolute(spec.name))) for spec in specs]
    return config_from_mapping(mapping)


def _with_dtype(config: WarpConfig, run: RunFolder) -> WarpConfig:
    """Put the dtype that is chosen here in the place of `auto`; a resume goes on with what the run began with."""
    mapping = config_to_mapping(config)
    begun = run.about_file.exists()
    mapping["model"]["dtype"] = run_config(run).model.dtype if begun else choose_dtype(devices_here()[0])
    return config_from_mapping(mapping)


def _absolute(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def run_config(run: RunFolder) -> WarpConfig:
    """Read the configuration of a run."""
    read = load_kept_config if int(run.about()["format"]) >= KEPT_SINCE else load_config
    return read(run.config_file)


class Sources:
    """The checkpoints of one iteration: the SFT policy, the iteration's init, its M policies."""

    def __init__(self, *, sft: Checkpoint, init: Checkpoint, policies: Sequence[Checkpoint]) -> None:
        self.sft, self.init, self.policies = sft, init, tuple(policies)

    @property
    def towards(self) -> Checkpoint | None:
        """The SFT policy where it is not the init, for LITI curves that start at the SFT policy."""
        return None if self.init.id == self.sft.id else self.sft


def sources_of(run: RunFolder, config: WarpConfig, iteration: int) -> Sources:
    """Open the checkpoints of a finished iteration.

    Raises:
        WorkspaceError: the iteration is not finished, or the SFT policy is not the one that the run was made from.
    """
    for policy in range(1, config.warp.policies + 1):
        if not run.checkpoint(iteration, policy).is_dir():
            raise WorkspaceError(
                f"{run.path}: policy {policy} of iteration {iteration} is not trained yet: "
                f"`warp-core train {run.config_file} --out {run.path} --resume`"
            )
    base = resolve_model(config.model.name)
    sft = open_checkpoint(base)
    _require_same_sft(run, sft)
    init = sft if iteration == 1 else open_checkpoint(run.init(iteration), base=base)
    policies = [open_checkpoint(run.checkpoint(iteration, m), base=base) for m in range(1, config.warp.policies + 1)]
    return Sources(sft=sft, init=init, policies=policies)


def _require_same_sft(run: RunFolder, sft: Checkpoint) -> None:
    known = run.about()["sft"]
    if known["id"] != sft.id:
        raise WorkspaceError(
            f"{run.path} was trained from {known['name']!r} with content {known['id'][:12]}, but {sft.path} now holds "
            f"{sft.id[:12]}: put the original weights back"
        )


def train_warp(
    config: WarpConfig,
    out: Path,
    *,
    resume: bool = False,
    devices: Sequence[torch.device] | None = None,
    hear: Hear = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunFolder:
    """Run Algorithm 1 to its end and return the run folder.

    Args:
        config: what to run.
        out: the run folder.
        resume: continue what is in `out`.
        devices: one run at a time on each; None takes every GPU, or the CPU.
        hear: told of every step and evaluation.
        should_stop: asked between steps; the state is saved before KeyboardInterrupt is raised.
    """
    run = prepare_run(config, out, resume=resume)
    config = run_config(run)
    devices = list(devices or devices_here())
    if _is_finished(run, config):
        for iteration in range(1, config.warp.iterations + 1):
            for policy in range(1, config.warp.policies + 1):
                drop_state(run, iteration=iteration, policy=policy)
        return run  # which may be read-only
    with run.held_for_training():
        for iteration in range(1, config.warp.iterations + 1):
            _train_iteration(run, config, iteration, devices, hear=hear, should_stop=should_stop)
            if iteration < config.warp.iterations:
                make_next_init(run, config, iteration)
    return run


def _is_finished(run: RunFolder, config: WarpConfig) -> bool:
    iterations = config.warp.iterations
    inits = all(run.init(iteration).is_dir() for iteration in range(2, iterations + 1))
    return inits and len(run.finished_iterations(config.warp.policies)) >= iterations


def _train_iteration(
    run: RunFolder,
    config: WarpConfig,
    iteration: int,
    devices: Sequence[torch.device],
    *,
    hear: Hear,
    should_stop: Callable[[], bool],
) -> None:
    if len(devices) > 1:
        train_in_parallel(run, config, iteration, devices, hear=hear, should_stop=should_stop)
        return
    for policy in range(1, config.warp.policies + 1):
        train_policy(
            run, config, iteration=iteration, policy=policy, device=devices[0], hear=hear, should_stop=should_stop
        )


def devices_here() -> list[torch.device]:
    """Return every GPU, or the CPU where there is none."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]


def make_next_init(run: RunFolder, config: WarpConfig, iteration: int) -> None:
    """SLERP the policies of an iteration, then LITI: (1 - eta) init + eta merged is the next init (section 3.4)."""
    out = run.init(iteration + 1)
    if out.is_dir():
        return
    sources = sources_of(run, config, iteration)
    geometry = compute_geometry(
        sources.init,
        sources.policies,
        granularity=config.merge.granularity,
        cache_dir=cache_root() / "geometry",
    )
    recipe = make_recipe(
        sources.init,
        sources.policies,
        method=config.merge.method,
        weights=config.merge_weights,
        eta=config.merge.eta,
        granularity=config.merge.granularity,
    )
    full = config.adapter.kind == "full"
    merge_to_folder(
        recipe,
        init=sources.init,
        policies=sources.policies,
        geometry=geometry,
        out=out,
        kind="full" if full else "adapter",
        # The next runs start from what is written here: nothing is rounded to the SFT policy's dtype.
        dtype="float32" if full else config.adapter.save_dtype,
        base_name=config.model.name,
    )


def reopen(path: Path) -> tuple[RunFolder, WarpConfig]:
    """Open an existing run with its configuration."""
    run = open_run(path)
    return run, run_config(run)
