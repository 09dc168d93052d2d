"""A job's context that writes down everything that is said and shown to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from warp_core.service.jobs import Cancelled
from warp_core.service.protocol import Pane


@dataclass
class Watched:
    """Stands for `Context`: cancels after `patience` checkpoints; calls `between` in each of them."""

    patience: int = 10**9
    between: Callable[[], None] | None = None
    said: list[str] = field(default_factory=list)
    progressed: list[tuple[int, int, str]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    shown: list[tuple[Pane, ...]] = field(default_factory=list)
    checkpoints: int = 0

    def checkpoint(self) -> None:
        self.checkpoints += 1
        if self.checkpoints > self.patience:
            raise Cancelled
        if self.between:
            self.between()

    def progress(self, done: int, total: int, message: str = "") -> None:
        assert 0 <= done <= total
        self.progressed.append((done, total, message))

    def say(self, message: str) -> None:
        self.said.append(message)

    def mark(self, name: str) -> None:
        if name not in self.marks:
            self.marks.append(name)

    def show(self, panes: Sequence[Pane]) -> None:
        self.shown.append(tuple(panes))

    @property
    def panes(self) -> tuple[Pane, ...]:
        """What is shown now."""
        return self.shown[-1]

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """The texts of every pane now."""
        return [tuple(one.text for one in pane.completions) for pane in self.panes]
