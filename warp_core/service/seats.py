"""What a preview samples from: models that are in memory, or can be put there, at the positions of the sliders.

A `Blend` says which model is wanted. A `Seat` is a model in memory that gives one or several of them: all at once where
they are adapters over one base (`bank`), one after the other where each is a model of its own (`slots`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from warp_core.policy.model import Policy
from warp_core.training.warp import Sources
from warp_core.weights import Checkpoint, Coefficients

__all__ = ["SFT_KEY", "Blend", "Seat", "Within"]

SFT_KEY = "sft"

Within = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend:
    """A model that is wanted.

    Attributes:
        key: equal for equal models; `SFT_KEY` for the SFT policy.
        sources: the checkpoints of its iteration.
        coefficients: the merge; None for the SFT policy.
    """

    key: str
    sources: Sources
    coefficients: Coefficients | None = None

    @property
    def is_sft(self) -> bool:
        """Whether it is the SFT policy itself."""
        return self.coefficients is None

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """What the columns of `Coefficients.sources_LK` are."""
        towards = self.sources.towards
        return (self.sources.init, *self.sources.policies, *((towards,) if towards else ()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Seat:
    """A model in memory that becomes the models of some panes.

    Attributes:
        panes: numbers of the panes; a batch holds their rows in this order.
        policy: the model.
        begin: puts the weights in place; quick where they are.
        within: entered for every forward pass of all panes.
        alone: gives what is entered for a forward pass of the n-th of `panes` alone.
        reference: a model that is the SFT policy, where there is one beside.
        anchor: makes `policy` the SFT policy for the time of a block, where there is no `reference`.
    """

    panes: tuple[int, ...]
    policy: Policy
    begin: Callable[[], None]
    within: Within = nullcontext
    alone: Callable[[int], Within] = lambda number: nullcontext
    reference: Policy | None = None
    anchor: Within = nullcontext
