"""RL runs by the hash of their configuration: trained once, shared by every study, resumable at every step.

    WORKSPACE/studies/runs/HASH/     an ordinary run folder

What the first iteration trains does not depend on how its policies are merged, nor on how many there are: those runs
live in the folder of a configuration without such choices, and a later iteration takes them over by hard links.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock

from warp_core.errors import WorkspaceError
from warp_core.studies.plan import Rollout, Stage, changed
from warp_core.training.config import WarpConfig, config_to_mapping
from warp_core.training.policy_run import Hear, fingerprint_of, train_policy
from warp_core.training.warp import make_next_init, prepare_run, run_config
from warp_core.weights import Checkpoint, open_checkpoint
from warp_core.workspace.publish import publish_folder
from warp_core.workspace.runs import RunFolder
from warp_core.workspace.sources import resolve_model

__all__ = ["Trainings"]


class Trainings:
    """The runs under one folder.

    Args:
        root: where run folders are made.
        device: where to train.
        hear: told of every step.
        should_stop: asked between steps.
    """

    def __init__(
        self,
        root: Path,
        *,
        device: torch.device,
        hear: Hear = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.root, self.device, self.hear, self.should_stop = root, device, hear, should_stop

    def folder(self, rollout: Rollout) -> RunFolder:
        """Return where a run lives, made or not."""
        return RunFolder(self.root / _name(rollout))

    @staticmethod
    def shared(rollout: Rollout) -> Rollout:
        """Return the run without the choices that do not concern it: equal for runs that are the same work."""
        return Rollout(config=_own_config(rollout), iteration=rollout.iteration, policy=rollout.policy)

    def needed(self, rollout: Rollout) -> list[Rollout]:
        """Return the runs that have to be finished before this one can begin, and itself, in order."""
        before: list[Rollout] = []
        for iteration in range(1, rollout.iteration):
            for policy in range(1, rollout.config.warp.policies + 1):
                before.append(self.shared(Rollout(config=rollout.config, iteration=iteration, policy=policy)))
        return [*before, self.shared(rollout)]

    def is_done(self, rollout: Rollout) -> bool:
        """Whether a run is finished."""
        return self.folder(rollout).checkpoint(rollout.iteration, rollout.policy).is_dir()

    def steps_left(self, rollout: Rollout) -> int:
        """Return how many steps a run still has to make, by its log."""
        if self.is_done(rollout):
            return 0
        log = self.folder(rollout).policy(rollout.iteration, rollout.policy) / "metrics.jsonl"
        done = log.read_bytes().count(b"\n") if log.exists() else 0
        return max(0, rollout.steps - done)

    def seconds_per_step(self, rollout: Rollout) -> list[float]:
        """Return what the steps of a run have taken so far."""
        log = self.folder(rollout).policy(rollout.iteration, rollout.policy) / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        took = []
        for line in lines:
            with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):  # damaged, or cut short
                took.append(float(sum(json.loads(line)["seconds"].values())))
        return took

    def finish(self, rollout: Rollout) -> None:
        """Train what a run needs, and the run itself, from where they stand.

        Raises:
            KeyboardInterrupt: `should_stop` said so; the state is saved.
        """
        for one in self.needed(rollout):
            if not self.is_done(one):
                self._train(one)

    def _train(self, rollout: Rollout) -> None:
        folder = self.folder(rollout)
        config = _own_config(rollout)
        # The policies of a later iteration share a folder, and may be trained by several processes.
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder.path}.lock"):
            run = prepare_run(config, folder.path, resume=folder.about_file.exists())
            config = run_config(run)
            if rollout.iteration > 1:
                self._take_over(run, rollout)
                for iteration in range(1, rollout.iteration):
                    make_next_init(run, config, iteration)
        if (rollout.iteration, rollout.policy) != (1, 1):
            # Trajectories are drawn of one run: every other would only fill the disk with checkpoints.
            config = changed(config, training={"keep_every": 0, "keep_ema": False})
        train_policy(
            run,
            config,
            iteration=rollout.iteration,
            policy=rollout.policy,
            device=self.device,
            hear=self.hear,
            should_stop=self.should_stop,
        )

    def _take_over(self, run: RunFolder, rollout: Rollout) -> None:
        """Bring the finished runs of iteration 1 into the folder of a later one."""
        for policy in range(1, rollout.config.warp.policies + 1):
            first = Rollout(config=rollout.config, policy=policy)
            here = run.checkpoint(1, policy)
            if not here.is_dir():
                with publish_folder(here) as out:
                    for file in sorted(self.folder(first).checkpoint(1, policy).iterdir()):
                        _link(file, out / file.name)

    def open(self, stage: Stage) -> Checkpoint:
        """Open a checkpoint of a run that has come so far."""
        rollout = stage.rollout
        run, place = self.folder(rollout), (rollout.iteration, rollout.policy)
        # A run that reached its KL ceiling ends before its last step, and stays there.
        summary = run.policy(*place) / "summary.json"
        try:
            last = int(json.loads(summary.read_text(encoding="utf-8"))["steps"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise WorkspaceError(
                f"{summary} cannot be read ({error}): remove {run.path} to train that run again"
            ) from error
        step = min(stage.step or last, last)
        path = run.checkpoint(*place) if step == last and not stage.ema else run.kept(*place, step, ema=stage.ema)
        return open_checkpoint(path, base=self.sft_folder(rollout.config))

    def init(self, rollout: Rollout) -> Checkpoint:
        """Open what a run starts from."""
        sft = self.sft_folder(rollout.config)
        if rollout.iteration == 1:
            return open_checkpoint(sft)
        return open_checkpoint(self.folder(rollout).init(rollout.iteration), base=sft)

    @staticmethod
    def sft_folder(config: WarpConfig) -> Path:
        """Return the folder of the SFT policy."""
        return resolve_model(config.model.name)


@lru_cache(maxsize=4096)
def _name(rollout: Rollout) -> str:
    return fingerprint_of(_own_config(rollout))


@lru_cache(maxsize=4096)
def _own_config(rollout: Rollout) -> WarpConfig:
    """Return the configuration that decides a run: for iteration 1 without what comes after it."""
    if rollout.iteration > 1:
        return rollout.config
    plain = config_to_mapping(WarpConfig())
    steps = {"steps": [rollout.steps]}
    return changed(rollout.config, merge=plain["merge"], warp=plain["warp"], training=steps)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
