"""What attacks on a running engine share: tiny models, an engine behind HTTP, requests, and how much it holds."""

import gc
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.service.served import TOKEN, served
from tests.tiny import make_adapter, make_model, make_policies
from warp_core.service.client import HttpEngine
from warp_core.service.interface import Engine
from warp_core.service.protocol import Job, PaneRequest, Place, PreviewRequest, Selection

__all__ = [
    "PROMPTS",
    "REWARD",
    "Level",
    "Models",
    "Said",
    "connect",
    "engine_here",
    "finished",
    "leftovers",
    "level_of",
    "make_models",
    "move",
    "random_place",
    "said_by",
]

PROMPTS = ("it is", "the plot", "b", "the film was", "never again")
REWARD = ("length",)
PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Models:
    """Folders of tiny models: full policies and adapters over one init."""

    init: Path
    policies: tuple[Path, ...]
    adapters: tuple[Path, ...]

    @property
    def full(self) -> Selection:
        """The full policies."""
        return Selection(init=str(self.init), policies=tuple(map(str, self.policies)))

    @property
    def lora(self) -> Selection:
        """The adapters."""
        return Selection(init=str(self.init), policies=tuple(map(str, self.adapters)))


def make_models(folder: Path, *, seed: int = 0, num: int = 2) -> Models:
    """Write an init, full policies and adapters that `seed` decides."""
    init = make_model("llama", folder / "init", seed=seed)
    return Models(
        init=init,
        policies=tuple(make_policies(init, folder, num=num, seed=seed + 1, scale=0.05)),
        adapters=tuple(make_adapter(init, folder / f"adapter{m}", seed=10 * seed + m) for m in range(num)),
    )


@contextmanager
def engine_here() -> Iterator[str]:
    """An engine of this process behind HTTP; its address."""
    from warp_core.service.engine import LocalEngine

    engine = LocalEngine(device="cpu")
    try:
        with served(engine) as url:
            yield url
    finally:
        engine.close()


def connect(url: str, token: str = TOKEN) -> HttpEngine:
    """Return a client."""
    return HttpEngine(url, token)


def finished(engine: Engine, job: Job, *, within_s: float = PATIENCE_S) -> Job:
    """Return a job when it has ended; TimeoutError if it does not."""
    until = time.monotonic() + within_s
    while not job.state.is_final:
        if time.monotonic() > until:
            raise TimeoutError(f"job {job.kind} of {job.session}: {job.state}, {job.message!r} after {within_s:.0f} s")
        time.sleep(0.01)
        job = engine.job(job.id)
    return job


def random_place(draw: random.Random, *, num_policies: int = 2) -> Place:
    """Draw a position of the sliders."""
    shares = [draw.random() + 0.01 for _ in range(num_policies)]
    return Place(
        method=draw.choice(("slerp", "lerp", "slerp-weights")),
        weights=tuple(share / sum(shares) for share in shares),
        eta=round(draw.uniform(0.05, 1.2), 3),
    )


def move(
    selection: Selection, place: Place, *, session: str, prompt: str = PROMPTS[0], seed: int = 0
) -> PreviewRequest:
    """Return what the page asks after a move of a slider: the SFT policy, the merge, and the far end."""
    places = {"left": Place(eta=0.0), "current": place, "right": place.model_copy(update={"eta": 1.0})}
    return PreviewRequest(
        session=session,
        selection=selection,
        prompt=prompt,
        panes=tuple(PaneRequest(id=name, place=one) for name, one in places.items()),
        seed=seed,
        max_new_tokens=8,
        reward=REWARD,
    )


Said = tuple[tuple[str, int, float | None, float | None], ...]


def said_by(job: Job) -> Said:
    """What the panes of a preview say: text, tokens, reward and KL of every completion."""
    return tuple((one.text, one.num_tokens, one.reward, one.kl) for pane in job.panes for one in pane.completions)


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much a process holds; memory is what it has for itself: the system takes and brings back pages of files."""

    memory_mb: float
    descriptors: int
    threads: int
    children: int
    zombies: int


def level_of(pid: int | None = None) -> Level:
    """Look at a process; its own garbage is collected first where it is this one."""
    if pid in (None, os.getpid()):
        gc.collect()
    process = psutil.Process(pid)
    children, memory = process.children(recursive=True), process.memory_info()
    return Level(
        memory_mb=(memory.rss - getattr(memory, "shared", 0)) / 1e6,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        children=len(children),
        zombies=sum(_is_zombie(child) for child in children),
    )


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def leftovers(*folders: Path) -> list[str]:
    """What an interrupted write has left in some folders: hidden temporaries and folders that were moved aside."""
    marks = (".tmp-", ".old-", ".tmp")
    return sorted(
        path.name
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob(".*")
        if any(mark in path.name for mark in marks)
    )
