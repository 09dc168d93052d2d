"""Runs of `FakeEngine`: a finished one, one that trains, and whatever is started."""

import math
from dataclasses import dataclass, field

from warp_core.errors import WorkspaceError
from warp_core.service.documents import Curve, RunDetail, RunState, RunSummary
from warp_core.service.fake_data import World, noise
from warp_core.training.config import WarpConfig, config_from_mapping, config_to_mapping, config_to_toml

__all__ = ["FakeRun", "demo_run", "running_run"]


@dataclass
class FakeRun:
    """A run and how many steps it has done, over all iterations and policies in their order."""

    name: str
    config: WarpConfig
    steps_done: int
    state: RunState
    is_bundled: bool = False
    error: str | None = None
    started_at: float = 1_795_000_000.0
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.config.warp.policies, self.config.warp.iterations)

    @property
    def lengths(self) -> list[tuple[int, int, int]]:
        """(iteration, policy, steps) in the order of training."""
        return [
            (iteration, policy, self.config.steps_in(iteration))
            for iteration in range(1, self.world.iterations + 1)
            for policy in range(1, self.world.num_policies + 1)
        ]

    @property
    def total_steps(self) -> int:
        """Of all RL runs."""
        return sum(steps for _, _, steps in self.lengths)

    def advance(self) -> None:
        """One more step, where it is running."""
        if self.state is RunState.RUNNING:
            self.steps_done += 1
            if self.steps_done >= self.total_steps:
                self.state = RunState.FINISHED

    def progress(self) -> list[tuple[int, int, int, int]]:
        """(iteration, policy, steps done, steps) of every RL run that has begun."""
        left, found = self.steps_done, []
        for iteration, policy, steps in self.lengths:
            if left <= 0:
                break
            found.append((iteration, policy, min(left, steps), steps))
            left -= steps
        return found

    def finished(self) -> list[tuple[int, int]]:
        """(iteration, policy) of the RL runs that are done."""
        return [(iteration, policy) for iteration, policy, done, steps in self.progress() if done >= steps]

    def summary(self) -> RunSummary:
        """The run in the list."""
        running = self.state is RunState.RUNNING
        iteration, policy, done, steps = (self.progress() or [(1, 1, 0, self.config.steps_in(1))])[-1]
        per_iteration = self.world.num_policies
        return RunSummary(
            name=self.name,
            state=self.state,
            model=self.config.model.name,
            policies=per_iteration,
            iterations=self.world.iterations,
            finished_iterations=len(self.finished()) // per_iteration,
            progress=self.steps_done / self.total_steps,
            seconds_left=12.0 * (self.total_steps - self.steps_done) if running else None,
            message=f"iteration {iteration}, policy {policy}, step {done} of {steps}" if running else "",
            error=self.error,
            started_at=self.started_at,
            is_bundled=self.is_bundled,
        )

    def detail(self) -> RunDetail:
        """The run with its configuration."""
        return RunDetail(
            summary=self.summary(),
            config=config_to_mapping(self.config),
            toml=config_to_toml(self.config),
            path=f"/workspace/runs/{self.name}",
        )

    def curves(self) -> list[Curve]:
        """The training metrics so far."""
        return [_curve(iteration, policy, done, steps) for iteration, policy, done, steps in self.progress()]


def _curve(iteration: int, policy: int, done: int, steps: int) -> Curve:
    def series(start: float, end: float, spread: float, name: str) -> tuple[float | None, ...]:
        values = []
        for step in range(1, done + 1):
            along = 1.0 - math.exp(-3.0 * step / steps)
            values.append(start + (end - start) * along + spread * noise(f"{name}{iteration}.{policy}.{step}"))
        return tuple(values)

    low = 0.2 if iteration == 1 else 1.1
    reward = series(low, 3.2, 0.25, "reward")
    return Curve(
        iteration=iteration,
        policy=policy,
        step_S=tuple(range(1, done + 1)),
        metrics={
            "reward": reward,
            "reward:sentiment": reward,
            "kl_anchor": series(0.0, 3.6, 0.15, "kl"),
            "length": series(19.8, 19.2, 0.2, "length"),
            "entropy": series(2.25, 1.55, 0.04, "entropy"),
            "tokens_per_s": series(40.0, 41.0, 1.5, "rate"),
            "grad_norm": series(3.3, 0.7, 0.1, "norm"),
            "learning_rate": tuple(0.005 * min(1.0, step / 5) for step in range(1, done + 1)),
            "sampling_gap": series(2e-5, 2.5e-5, 1e-6, "gap"),
        },
    )


def demo_run() -> FakeRun:
    """M = 3, I = 2, finished, as bundled."""
    run = FakeRun("demo-run", _config(policies=3, iterations=2, steps=[40, 12]), 0, RunState.FINISHED, is_bundled=True)
    run.steps_done = run.total_steps
    return run


def running_run() -> FakeRun:
    """M = 2, I = 1, on its way."""
    return FakeRun("training-now", _config(policies=2, iterations=1, steps=[40]), 54, RunState.RUNNING)


def _config(*, policies: int, iterations: int, steps: list[int]) -> WarpConfig:
    return config_from_mapping(
        {
            "adapter": {"rank": 4, "alpha": 4.0, "save_dtype": "bfloat16"},
            "reward": {"terms": ["sentiment", "length:-0.01"]},
            "training": {"steps": steps, "max_new_tokens": 20, "learning_rate": 5e-3},
            "warp": {"policies": policies, "iterations": iterations},
            "evaluation": {"methods": ["slerp", "lerp"]},
        }
    )


def check_name(name: str, taken: set[str]) -> None:
    """Raise WorkspaceError for a run name that cannot be used."""
    if name in taken:
        raise WorkspaceError(f"there is a run {name!r} already: choose another name, or resume it")
    if "/" in name or name.startswith("."):
        raise WorkspaceError(f"run name {name[:60]!r}: letters, digits, '.', '_' and '-' only")
