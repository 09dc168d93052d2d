"""What the tests of selections share: a tiny measured run, loose models, and a context that listens."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.tiny import make_adapter, make_model, make_policies
from tests.training.runs import CPU, tiny_config
from warp_core.commands.front import measure_run
from warp_core.service.jobs import Cancelled
from warp_core.service.protocol import Selection
from warp_core.training.warp import run_config, train_warp

TINY = Selection(run="tiny")
ETAS = [0.0, 0.5, 1.0]


@dataclass(frozen=True)
class Made:
    """Folders of tiny models, and of a run of two iterations of two policies over `init`."""

    init: Path
    policies: list[Path]
    adapters: list[Path]
    run: Path

    @property
    def full(self) -> Selection:
        return Selection(init=str(self.init), policies=tuple(map(str, self.policies)))

    @property
    def lora(self) -> Selection:
        return Selection(init=str(self.init), policies=tuple(map(str, self.adapters)))

    @property
    def later(self) -> Selection:
        """Adapters whose init is an adapter, too: the SFT policy is another model than the init."""
        first, *others = map(str, self.adapters)
        return Selection(init=first, policies=tuple(others))


def make_run(folder: Path) -> Made:
    init = make_model("llama", folder / "init")
    config = tiny_config(
        folder,
        init,
        warp={"policies": 2, "iterations": 2},
        training={"steps": 2, "evaluate_every": 1, "warmup_steps": 0, "learning_rate": 5e-2},
        evaluation={"etas": ETAS, "methods": ["slerp", "lerp"]},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_CACHE", str(folder / "cache"))
        run = train_warp(config, folder / "run", devices=[CPU])
        measure_run(run, run_config(run), both_ends=True)
    return Made(
        init=init,
        policies=make_policies(init, folder, num=3, scale=0.05),
        adapters=[make_adapter(init, folder / f"adapter{m}", seed=m) for m in range(3)],
        run=run.path,
    )


@dataclass
class Heard:
    """Stands for the context of a job: remembers what was said, and cancels after so many checkpoints."""

    patience: int = 10**9
    said: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def checkpoint(self) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise Cancelled

    def progress(self, done: int, total: int, message: str = "") -> None:
        assert 0 <= done <= total
        self.shares.append(done / total)
        self.said.append(message)

    def say(self, message: str) -> None:
        self.said.append(message)
