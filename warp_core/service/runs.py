"""The runs of a workspace as the app lists them: state, progress, time left, training curves.

Everything is read from the run folders, so it is the same whoever started a run, and after a restart of the engine.
"""

import itertools
import json
import statistics
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warp_core.errors import WarpError
from warp_core.service.documents import Curve, Example, RunDetail, RunState, RunSummary
from warp_core.service.library import Library
from warp_core.service.protocol import Selection
from warp_core.service.trainings import Trainings
from warp_core.training.config import WarpConfig, config_to_mapping
from warp_core.workspace.bundled import BUNDLED
from warp_core.workspace.reading import read_regular
from warp_core.workspace.runs import RunFolder

__all__ = ["Runs"]

SHOWN_STEPS = 2000
PLAIN_METRICS = ("reward", "kl_anchor", "length", "entropy", "grad_norm", "learning_rate", "sampling_gap")
RECENT_STEPS = 20

Row = Mapping[str, Any]


class Runs:
    """Reads run folders; what has not changed on disk is not read again."""

    def __init__(self, library: Library, trainings: Trainings) -> None:
        self._library, self._trainings = library, trainings
        self._lock = threading.Lock()
        self._rows: dict[Path, tuple[tuple[int, int], list[Row]]] = {}

    def summaries(self) -> list[RunSummary]:
        """All runs, the running ones first, then the latest. A folder that cannot be read is listed as failed."""
        found = [summary for name in self._names() if (summary := self._summary_or_problem(name))]
        return sorted(found, key=lambda run: (run.state != RunState.RUNNING, -(run.started_at or 0.0), run.name))

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self._library.run_names(), *self._trainings.names()]))

    def _summary_or_problem(self, name: str) -> RunSummary | None:
        """Describe a run; None where it was removed since it was found."""
        try:
            return self.summary(name)
        except WarpError as error:
            if name not in self._names():
                return None
            return RunSummary(
                name=name,
                state=RunState.FAILED,
                model="",
                policies=0,
                iterations=0,
                finished_iterations=0,
                progress=0.0,
                error=str(error),
            )

    def summary(self, name: str) -> RunSummary:
        """One run.

        Raises:
            WorkspaceError: there is none of that name, or its folder is damaged.
        """
        if name in self._library.run_names():
            return self._summary_of_folder(name)
        return self._trainings.summary_of_start(name)

    def _summary_of_folder(self, name: str) -> RunSummary:
        run = self._library.run_folder(name)
        config = self._config(name)
        finished = run.finished_iterations(config.warp.policies)
        is_finished = len(finished) >= config.warp.iterations
        state = RunState.FINISHED
        error = None
        if not is_finished:
            state, error = self._trainings.state_of(name, run)
        done, total, message = self._position(run, config)
        is_running = state is RunState.RUNNING
        return RunSummary(
            name=name,
            state=state,
            model=config.model.name,
            policies=config.warp.policies,
            iterations=config.warp.iterations,
            finished_iterations=len(finished),
            progress=1.0 if is_finished else min(1.0, done / total),
            seconds_left=self._seconds_left(run, config, total - done) if is_running else None,
            message="" if is_finished else message,
            error=error,
            started_at=run.about().get("started"),
            is_bundled=name == BUNDLED,
        )

    def detail(self, name: str) -> RunDetail:
        """One run with its configuration."""
        run = self._library.run_folder(name)
        return RunDetail(
            summary=self._summary_of_folder(name),
            config=config_to_mapping(self._config(name)),
            toml=read_regular(run.config_file),
            path=str(run.path),
        )

    def _config(self, name: str) -> WarpConfig:
        config = self._library.config(Selection(run=name))
        assert config is not None
        return config

    def curves(self, name: str) -> list[Curve]:
        """The training metrics of every RL run that has begun, thinned out evenly beyond `SHOWN_STEPS` steps."""
        run = self._library.run_folder(name)
        config = self._config(name)
        return [
            _curve(iteration, policy, rows)
            for iteration in range(1, config.warp.iterations + 1)
            for policy in range(1, config.warp.policies + 1)
            if (rows := self._metrics(run, iteration, policy))
        ]

    def _metrics(self, run: RunFolder, iteration: int, policy: int) -> list[Row]:
        file = run.policy(iteration, policy) / "metrics.jsonl"
        if not file.is_file():  # a pipe in its place would be waited for
            return []
        try:
            stat = file.stat()
        except OSError:
            return []
        version = (stat.st_size, stat.st_mtime_ns)
        with self._lock:
            known = self._rows.get(file)
        if known is not None and known[0] == version:
            return known[1]
        rows = _read_rows(file)
        with self._lock:
            self._rows[file] = (version, rows)
        return rows

    def _position(self, run: RunFolder, config: WarpConfig) -> tuple[int, int, str]:
        """Return steps done, steps in all, and where that is in words; a run that ended early counts as whole."""
        total = sum(config.steps_in(i) for i in range(1, config.warp.iterations + 1)) * config.warp.policies
        done, place = 0, "starting"
        for iteration in range(1, config.warp.iterations + 1):
            for policy in range(1, config.warp.policies + 1):
                steps = config.steps_in(iteration)
                rows = self._metrics(run, iteration, policy)
                step = int(rows[-1]["step"]) if rows else 0
                done += steps if run.checkpoint(iteration, policy).is_dir() else min(step, steps)
                if rows:
                    place = f"iteration {iteration}, policy {policy}, step {step} of {steps}"
        return done, total, place

    def _seconds_left(self, run: RunFolder, config: WarpConfig, steps: int) -> float | None:
        """Return steps times the mean time between the last steps of the RL run that was heard of last."""
        runs = [
            self._metrics(run, iteration, policy)
            for iteration in range(1, config.warp.iterations + 1)
            for policy in range(1, config.warp.policies + 1)
        ]
        latest = max((rows for rows in runs if rows), key=lambda rows: rows[-1]["time"], default=[])
        times = [float(row["time"]) for row in latest[-RECENT_STEPS - 1 :]]
        if len(times) < 2:
            return None
        # Not the median, because evaluations come on top of some steps. A pause between two sessions is no step.
        gaps = [after - before for before, after in itertools.pairwise(times)]
        usual = statistics.median(gaps)
        return steps * statistics.fmean(gap for gap in gaps if gap <= 20 * max(usual, 1e-3))


def _read_rows(file: Path) -> list[Row]:
    """Read the lines that are whole, as far as they are sound: the last one may still be on its way."""
    rows: list[Row] = []
    for line in read_regular(file, errors="replace").splitlines():
        try:
            row = json.loads(line)
            row |= {"step": _within(int(row["step"]), 2**31), "time": _within(float(row["time"]), 1e11)}
            _curve(1, 1, [row])  # that it can be drawn
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            break
        rows.append(row)
    return rows


def _within(value: float, limit: float) -> float:
    if not 0 <= value < limit:
        raise ValueError(f"{value} is not between 0 and {limit}")
    return value


def _curve(iteration: int, policy: int, rows: Sequence[Row]) -> Curve:
    stride = -(-len(rows) // SHOWN_STEPS)
    # From the end, so that the latest step is always among them.
    shown = list(reversed(rows[::-1][::stride]))
    metrics: dict[str, tuple[float | None, ...]] = {
        name: tuple(_number(row.get(name)) for row in shown)
        for name in PLAIN_METRICS
        if any(_number(row.get(name)) is not None for row in shown)
    }
    metrics["tokens_per_s"] = tuple(_throughput(row) for row in shown)
    parts = sorted({name for row in shown for name in row.get("rewards", {})})
    for part in parts:
        metrics[f"reward:{part}"] = tuple(_number(row.get("rewards", {}).get(part)) for row in shown)
    return Curve(
        iteration=iteration,
        policy=policy,
        step_S=tuple(int(row["step"]) for row in shown),
        metrics=metrics,
        example=_example(shown[-1]),
    )


def _example(row: Row) -> Example | None:
    given = row.get("example")
    if not given:
        return None
    reward = _number(given.get("reward"))
    return Example(step=int(row["step"]), prompt=given["prompt"], completion=given["completion"], reward=reward)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None


def _throughput(row: Row) -> float | None:
    """Completion tokens per second of the whole step."""
    spent = sum(float(value) for value in row.get("seconds", {}).values())
    return float(row["num_tokens"]) / spent if spent > 0 and "num_tokens" in row else None
