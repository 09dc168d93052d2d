"""The layout of a run folder: everything that Algorithm 1 makes, complete in itself and free to move.

RUN/
  config.toml                   the configuration, every field filled in
  run.json                      format, versions, the SFT policy's name and content id
  prompts-train.jsonl           the prompts as they were when the run began
  prompts-evaluation.jsonl
  results.sqlite                points and their samples
  iteration-1/
    init/                       the adapter or model this iteration starts from (from iteration 2 on)
    policy-1/
      state/                    resumable state: masters, EMA, Adam, step
      metrics.jsonl             one line a step
      checkpoint/               the finished policy
      kept/step-N/, step-N-ema/ checkpoints on the way and EMA weights, where training.keep_every asks for them
      summary.json              steps done, why it ended
    policy-2/ ...
  front.json, front.csv, front.html
  process.json, .running        who trains it now; the lock on .running is held for as long as that process lives
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from warp_core.errors import WorkspaceError
from warp_core.workspace.publish import write_json_atomic
from warp_core.workspace.reading import read_regular

__all__ = ["RunFolder", "open_run"]

FORMAT = 2
KEPT_SINCE = 2  # the format from which on the last line of config.toml says that the file is whole
LOCK_NAME = ".running"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The configuration."""
        return self.path / "config.toml"

    @property
    def about_file(self) -> Path:
        """What made this run."""
        return self.path / "run.json"

    @property
    def results_file(self) -> Path:
        """The results store."""
        return self.path / "results.sqlite"

    def prompts_file(self, which: str) -> Path:
        """The run's own copy of its prompts; `which` is train or evaluation."""
        return self.path / f"prompts-{which}.jsonl"

    def iteration(self, iteration: int) -> Path:
        """The folder of an iteration (1-based)."""
        return self.path / f"iteration-{iteration}"

    def init(self, iteration: int) -> Path:
        """The init of an iteration from 2 on."""
        return self.iteration(iteration) / "init"

    def policy(self, iteration: int, policy: int) -> Path:
        """The folder of one RL run; `policy` counts from 1 as in theta_1..theta_M."""
        return self.iteration(iteration) / f"policy-{policy}"

    def checkpoint(self, iteration: int, policy: int) -> Path:
        """The finished policy."""
        return self.policy(iteration, policy) / "checkpoint"

    def kept(self, iteration: int, policy: int, step: int, *, ema: bool = False) -> Path:
        """A checkpoint that was kept on the way (training.keep_every), or the EMA weights of that step."""
        return self.policy(iteration, policy) / "kept" / f"step-{step}{'-ema' if ema else ''}"

    def about(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            WorkspaceError: it is missing, damaged or of a newer format.
        """
        try:
            about = json.loads(read_regular(self.about_file))
            newer = int(about["format"]) > FORMAT
            if not newer:
                _require_sound(about)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WorkspaceError(f"{self.path} is not a run: its run.json cannot be read ({error})") from error
        if newer:
            raise WorkspaceError(f"{self.path} was made by a newer version: update warp-core")
        return dict(about)

    def finished_iterations(self, policies: int) -> list[int]:
        """Return the iterations whose `policies` runs have all finished, from 1 on without a gap."""
        done: list[int] = []
        while all(self.checkpoint(len(done) + 1, m).is_dir() for m in range(1, policies + 1)):
            done.append(len(done) + 1)
        return done

    @contextmanager
    def held_for_training(self) -> Iterator[None]:
        """Hold the run for this process, so that no other trains it and every other can see that it is being trained.

        Raises:
            WorkspaceError: another process holds it.
        """
        try:
            # A look by `trainer` takes the lock for a moment: wait that long.
            with self._lock(timeout_s=1.0):
                write_json_atomic(self._process_file, {"pid": os.getpid()})
                try:
                    yield
                finally:
                    with suppress(OSError):  # what the disk has against it has been said, or it is gone
                        self._process_file.unlink()
        except Timeout as error:
            raise WorkspaceError(f"{self.path} is being trained by another process: wait for it, or stop it") from error

    def trainer(self) -> int | None:
        """Return the id of the process that trains this run now, or None."""
        if not (self.path / LOCK_NAME).exists():
            return None
        try:
            with self._lock(timeout_s=0.0):
                return None
        except Timeout:
            try:
                return int(json.loads(read_regular(self._process_file))["pid"])
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
                return None  # it holds the lock and has not said who it is yet
        except OSError:
            return None  # a read-only folder is not trained in

    @property
    def _process_file(self) -> Path:
        return self.path / "process.json"

    def _lock(self, *, timeout_s: float) -> FileLock:
        return FileLock(self.path / LOCK_NAME, timeout=timeout_s, thread_local=False)


def _require_sound(about: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where a field is not what was written."""
    if not all(isinstance(about["sft"][name], str) for name in ("id", "name")):
        raise ValueError("sft is damaged")
    for name, limit in (("started", 1e12), ("threads", 1e5)):
        value = about.get(name, 1)
        if not isinstance(value, int | float) or not 0 < value < limit:
            raise ValueError(f"{name} is damaged")


def open_run(path: Path) -> RunFolder:
    """Open an existing run.

    Raises:
        WorkspaceError: there is none at `path`.
    """
    run = RunFolder(path)
    run.about()
    return run
