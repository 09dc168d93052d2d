"""What an attack reports: how often it was tried, how often the promise held, and every time that it did not."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Attack", "Outcome", "Tally"]

SHOWN_FAILURES = 20  # the count is exact; the lines are for finding the first ones


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One case of an attack.

    Attributes:
        case: what was done, in a few words: "publish, SIGKILL".
        promise: which promise of the README it tests: "P1"; "" for none of them.
        tried: how often.
        survived: how often what must hold did.
        holds: what must hold, one sentence.
        measured: figures beside the counts, such as "memory 212 to 214 MB".
        failures: one line for each of the first failures.
    """

    case: str
    promise: str
    tried: int
    survived: int
    holds: str
    measured: str = ""
    failures: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something did not survive, or nothing was tried at all."""
        return self.survived != self.tried or not self.tried

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return vars(self) | {"failures": list(self.failures)}


class Attack(Protocol):
    """A module of an attack: `attack` does it and yields outcomes as they are known."""

    def attack(self, place: Path, *, quick: bool) -> Iterator[Outcome]:
        """Attack in `place`, an empty folder that is removed afterwards.

        quick: a part that takes seconds, for `make test`; else everything.
        """


# The longest first: an environment may lie in the project, and the project in the home.
_PLACES = {
    sys.prefix: "VENV",
    sys.base_prefix: "PYTHON",
    str(Path(__file__).parents[1]): "PROJECT",
    str(Path.home()): "~",
}


def _without_places(text: str) -> str:
    """Name the folders of this machine as on any other: what failed is kept in a public page."""
    for place in sorted(_PLACES, key=len, reverse=True):
        text = text.replace(f"{place}/", f"{_PLACES[place]}/")
    return text


@dataclass
class Tally:
    """Counts tries of one case; `outcome` closes it.

    tally = Tally("publish, SIGKILL", promise="P1", holds="the folder is whole or absent")
    tally.check(is_whole(folder), f"call {index}: {listing}")
    yield tally.outcome()
    """

    case: str
    promise: str
    holds: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, held: bool, otherwise: str) -> None:
        """Count a try; `otherwise` says what was seen where it did not hold."""
        self.tried += 1
        self.survived += held
        if not held and len(self.failures) < SHOWN_FAILURES:
            self.failures.append(_without_places(" ".join(otherwise.split()))[:500])

    def outcome(self, measured: str = "") -> Outcome:
        """Return the counts."""
        return Outcome(
            case=self.case,
            promise=self.promise,
            tried=self.tried,
            survived=self.survived,
            holds=self.holds,
            measured=measured,
            failures=tuple(self.failures),
        )
