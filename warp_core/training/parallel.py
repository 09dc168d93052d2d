"""The M runs of an iteration side by side: one process per device, watched through their logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from warp_core.errors import UserError, WarpError
from warp_core.evaluation.points import Point
from warp_core.training.config import WarpConfig
from warp_core.training.policy_run import Hear, PolicyProgress
from warp_core.training.reinforce import StepRecord
from warp_core.workspace.results import Results
from warp_core.workspace.runs import RunFolder

__all__ = ["train_in_parallel"]

POLL_S = 0.2


@dataclass
class _Worker:
    """A process that trains one policy since `started_s`, and how far its metrics.jsonl has been read."""

    policy: int
    process: "subprocess.Popen[bytes]"
    metrics: Path
    log: Path
    started_s: float
    inode: int = 0
    read_bytes: int = 0

    def new_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines that this process wrote since the last look."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self.inode:  # a resume first puts a shorter log in its place
                self.inode, self.read_bytes = inode, 0
            file.seek(self.read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.read_bytes += len(line)
                row = json.loads(line)
                # What an earlier session wrote is no news; times in the log are rounded to 0.1 s.
                if row["time"] >= self.started_s - 0.1:
                    yield row


def train_in_parallel(
    run: RunFolder,
    config: WarpConfig,
    iteration: int,
    devices: Sequence[torch.device],
    *,
    hear: Hear,
    should_stop: Callable[[], bool],
) -> None:
    """Train the policies of an iteration that are not finished; a free device takes the next one.

    Args:
        run: the run folder.
        config: its configuration.
        iteration: 1-based.
        devices: one process at a time on each; a device may stand in the list twice.
        hear: told of every step and evaluation of every worker.
        should_stop: asked all the time; workers then finish their step and save.

    Raises:
        UserError, WarpError: what a worker ended with; the others are stopped.
        KeyboardInterrupt: stopped; everything is saved.
    """
    waiting = [m for m in range(1, config.warp.policies + 1) if not run.checkpoint(iteration, m).is_dir()]
    busy: dict[int, _Worker] = {}
    try:
        while waiting or busy:
            for place, device in enumerate(devices):
                if place not in busy and waiting:
                    busy[place] = _start(run, iteration, waiting.pop(0), device)
            time.sleep(POLL_S)
            for place, worker in list(busy.items()):
                ended = worker.process.poll() is not None
                _tell(worker, run, config, iteration, hear)
                if ended:
                    del busy[place]
                    if worker.process.returncode:
                        raise _failure(worker)
            if should_stop():
                raise KeyboardInterrupt
    finally:
        for worker in busy.values():
            worker.process.terminate()  # it finishes its step, saves, and ends
        for worker in busy.values():
            worker.process.wait()


def _start(run: RunFolder, iteration: int, policy: int, device: torch.device) -> _Worker:
    folder = run.policy(iteration, policy)
    folder.mkdir(parents=True, exist_ok=True)
    metrics, log_file = folder / "metrics.jsonl", folder / "worker.log"
    arguments = [str(run.path), str(iteration), str(policy), str(device)]
    command = [sys.executable, "-m", "warp_core.training.worker", *arguments]
    started_s = time.time()
    with log_file.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ))
    return _Worker(policy=policy, process=process, metrics=metrics, log=log_file, started_s=started_s)


def _tell(worker: _Worker, run: RunFolder, config: WarpConfig, iteration: int, hear: Hear) -> None:
    for row in worker.new_rows():
        record = StepRecord(**{one.name: row[one.name] for one in fields(StepRecord)})
        point = _point_of(run, iteration, worker.policy, record.step) if "evaluation" in row else None
        hear(
            PolicyProgress(
                iteration=iteration,
                policy=worker.policy,
                step=record.step,
                steps=config.for_run(worker.policy - 1).steps_in(iteration),
                record=record,
                point=point,
            )
        )


def _point_of(run: RunFolder, iteration: int, policy: int, step: int) -> Point | None:
    store = Results(run.results_file)
    try:
        found = store.list_points(kind="training", iteration=iteration, run=f"policy-{policy}", step=step)
        return Point.from_json(found[-1]) if found else None
    finally:
        store.close()


def _failure(worker: _Worker) -> BaseException:
    """Return the error that a worker's exit code stands for."""
    code = worker.process.returncode
    if code in (130, -signal.SIGINT):
        return KeyboardInterrupt()  # Ctrl-C reaches every process of the terminal
    kind = UserError if code == 2 else WarpError
    return kind(_last_line(worker.log) or f"policy {worker.policy} ended with code {code}: see {worker.log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
