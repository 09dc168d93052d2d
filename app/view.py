"""Everything that a link restores: the selection, the position of the sliders, axes, budget, pins, prompt.

    ?run=demo-run&at=i2.slerp.e0.3.sft&pin=i1.slerp.e0.5.sft~half way&x=kl&y=reward&budget=10&q=The film&seed=3

A `View` lives in the session and is written into the address whenever it changes, so that the browser's Back button
undoes a change: `follow_address` takes an older address over. Streamlit clears the address when the page changes, and
`keep_address` puts it back.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import streamlit as st

from warp_core.errors import RecipeError
from warp_core.service.documents import RunSummary
from warp_core.service.places import full_weights, parse_place, place_label, place_text
from warp_core.service.protocol import Place, Selection

__all__ = [
    "MAX_PINS",
    "RUN_VARIABLE",
    "Pin",
    "View",
    "choose_run",
    "current_view",
    "follow_address",
    "keep_address",
    "set_view",
]

RUN_VARIABLE = "WARP_APP_RUN"
MAX_PINS: Final = 12
LATE_S: Final = 1.5
"""For so long after a change a script run may still come with the address from before it."""
MAX_TOKENS: Final = 256
MAX_SEED: Final = 2**31 - 1
MAX_PROMPT: Final = 4000
AXIS = re.compile(r"kl|reward|length|diversity|reward:[^\s&#]{1,60}")
SIDE = re.compile(r"sft|end|\d{1,2}")
START: Final = Place(eta=0.5)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A place that was kept, with a name of its own."""

    place: Place
    label: str = ""
    """Empty: the place's own name."""

    @property
    def name(self) -> str:
        """The label, or else the place in words."""
        return self.label or place_label(self.place)


@dataclass(frozen=True, kw_only=True)
class View:
    """What is looked at, and how."""

    run: str | None = None
    """Name of a run; None with `policies` from anywhere."""
    init: str | None = None
    policies: tuple[str, ...] = ()
    base: str | None = None
    place: Place = START
    """Where the sliders are; its iteration is the one looked at."""
    extrapolate: bool = False
    """Whether eta goes up to 2."""
    x: str = "kl"
    y: str = "reward"
    budget: float | None = None
    """KL that must not be exceeded, nats per completion."""
    pins: tuple[Pin, ...] = ()
    reference: int | None = None
    """Index of the pin that differences are to; None: the SFT policy."""
    prompt: str = ""
    """Empty: the first of the run."""
    seed: int = 0
    chat: bool = False
    tokens: int = 24
    left: str = "sft"
    """What the left pane shows: `sft`, `end` (eta 1 of the current place) or the index of a pin."""
    right: str = "end"
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a link held that could not be used, one line each."""

    @property
    def selection(self) -> Selection:
        """The checkpoints."""
        return Selection(run=self.run, init=self.init, policies=self.policies, base=self.base)

    @property
    def has_selection(self) -> bool:
        """Whether there is something to look at."""
        return self.run is not None or bool(self.policies)

    @property
    def iteration(self) -> int:
        """The iteration looked at."""
        return self.place.iteration

    def side(self, which: str) -> Place:
        """Return what a side pane shows: `sft`, `end` or a pin's index; the SFT policy for a pin that is gone."""
        if which == "end":
            return self.place.model_copy(update={"eta": 1.0})
        if which.isdecimal() and int(which) < len(self.pins):
            return self.pins[int(which)].place
        return Place(iteration=1, eta=0.0)

    def fitted(self, *, num_policies: int, iterations: int) -> "View":
        """Return the view without the places that this selection does not have; each is noted."""
        notes: list[str] = []

        def fits(place: Place, what: str) -> bool:
            try:
                full_weights(place, num_policies)
            except RecipeError as error:
                notes.append(f"{what} is left out: {error}")
                return False
            if place.iteration > iterations:
                notes.append(f"{what} is left out: there are {iterations} iterations here, not {place.iteration}")
                return False
            return True

        place = self.place
        if not fits(place, "The position"):
            place = Place(iteration=min(place.iteration, iterations), eta=min(place.eta, 1.0))
        kept = [index for index, pin in enumerate(self.pins) if fits(pin.place, f"Pin {index + 1}")]
        if place == self.place and len(kept) == len(self.pins):
            return self
        moved = {str(old): str(new) for new, old in enumerate(kept)}
        reference = None if self.reference is None or self.reference not in kept else kept.index(self.reference)
        return dataclasses.replace(
            self,
            place=place,
            pins=tuple(self.pins[index] for index in kept),
            reference=reference,
            left=moved.get(self.left, self.left if not self.left.isdecimal() else "sft"),
            right=moved.get(self.right, self.right if not self.right.isdecimal() else "end"),
            notes=(*self.notes, *notes),
        )

    def to_query(self) -> dict[str, list[str]]:
        """Return the view as query parameters; what is as by default is left out, but not the selection and place."""
        flags = {"wide": self.extrapolate, "chat": self.chat}
        values: dict[str, Any] = {
            "run": self.run,
            "init": self.init,
            "policy": list(self.policies),
            "base": self.base,
            "at": place_text(self.place) if self.has_selection else None,
            "pin": [_pin_text(pin) for pin in self.pins],
            "ref": self.reference,
            "budget": None if self.budget is None else f"{self.budget:g}",
            "q": self.prompt or None,
        }
        for name in ("x", "y", "seed", "left", "right"):
            values[name] = getattr(self, name) if getattr(self, name) != _DEFAULT[name] else None
        values["n"] = self.tokens if self.tokens != _DEFAULT["tokens"] else None
        values |= {name: 1 for name, flag in flags.items() if flag}
        listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
        return {name: [str(one) for one in value] for name, value in listed.items() if value and value != [None]}

    @classmethod
    def from_query(cls, query: Mapping[str, str | Sequence[str]]) -> "View":
        """Read query parameters. What makes no sense is left out and noted; there is no error."""
        reader = _Reader(query)
        pins = tuple(pin for text in reader.all("pin")[:MAX_PINS] if (pin := reader.pin(text)) is not None)
        run = reader.text("run", 400)
        loose: dict[str, Any] = {}
        if run is None:
            policies = tuple(one for one in reader.all("policy")[:16] if 0 < len(one) <= 400)
            loose = {"init": reader.text("init", 400), "policies": policies, "base": reader.text("base", 400)}
        at = reader.place(reader.first("at"))
        reference = reader.whole("ref", 0, MAX_PINS)
        values: dict[str, Any] = {
            **loose,
            "run": run,
            "place": at,
            "extrapolate": reader.first("wide") == "1" or (at is not None and at.eta > 1),
            "x": reader.match("x", AXIS),
            "y": reader.match("y", AXIS),
            "budget": reader.budget(),
            "pins": pins,
            "reference": reference if reference is not None and reference < len(pins) else None,
            "prompt": reader.text("q", MAX_PROMPT),
            "seed": reader.whole("seed", 0, MAX_SEED),
            "chat": reader.first("chat") == "1",
            "tokens": reader.whole("n", 1, MAX_TOKENS),
            "left": reader.match("left", SIDE),
            "right": reader.match("right", SIDE),
        }
        return cls(**{name: value for name, value in values.items() if value is not None}, notes=tuple(reader.notes))


_DEFAULT: Final = {one.name: one.default for one in dataclasses.fields(View)}


class _Reader:
    """Reads one value after the other and notes what it cannot use."""

    def __init__(self, query: Mapping[str, str | Sequence[str]]) -> None:
        self._query = {name: [value] if isinstance(value, str) else list(value) for name, value in query.items()}
        self.notes: list[str] = []

    def all(self, name: str) -> list[str]:
        return self._query.get(name, [])

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def text(self, name: str, limit: int) -> str | None:
        value = self.first(name)
        if value is not None and len(value) > limit:
            self._drop(name, value)
            return None
        return value or None

    def match(self, name: str, pattern: re.Pattern[str]) -> str | None:
        value = self.first(name)
        if value is not None and not pattern.fullmatch(value):
            self._drop(name, value)
            return None
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.first(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) <= 10 and low <= int(value) <= high):
            self._drop(name, value)
            return None
        return int(value)

    def budget(self) -> float | None:
        value = self.first("budget")
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0:
            self._drop("budget", value)
            return None
        return number

    def place(self, text: str | None) -> Place | None:
        if text is None:
            return None
        try:
            return parse_place(text)
        except RecipeError as error:
            self.notes.append(f"Left out of the link: {error}")
            return None

    def pin(self, text: str) -> Pin | None:
        place_part, _, label = text.partition("~")
        place = self.place(place_part)
        return None if place is None else Pin(place=place, label=label[:60])

    def _drop(self, name: str, value: str) -> None:
        self.notes.append(f"Left out of the link: {name}={value[:60]!r} makes no sense here")


def _pin_text(pin: Pin) -> str:
    return f"{place_text(pin.place)}~{pin.label}" if pin.label else place_text(pin.place)


def current_view() -> View:
    """Return the view of this browser session; the first time it is read from the address."""
    if "view" not in st.session_state:
        st.session_state["view"] = View.from_query(_address())
    return cast(View, st.session_state["view"])


def set_view(**changes: Any) -> View:
    """Change fields of the view, here and in the address; return it."""
    view = dataclasses.replace(current_view(), **changes)
    st.session_state["view"] = view
    keep_address()
    return view


def keep_address() -> None:
    """Write the view into the address where it is not there already."""
    wanted = current_view().to_query()
    if _address() != wanted:
        st.query_params.from_dict(wanted)
        st.session_state["address_written_at"] = time.monotonic()


def follow_address() -> None:
    """Take over what the browser's Back and Forward buttons brought back; call it once at the start of a run.

    An address without a selection is that of a page just switched to. One that differs right after it was written is
    late: the browser asked for this run before it had heard of the change.
    """
    address = _address()
    is_late = time.monotonic() - st.session_state.get("address_written_at", -math.inf) < LATE_S
    if is_late or address == current_view().to_query():
        return
    found = View.from_query(address)
    if found.has_selection:
        st.session_state["view"] = found


def _address() -> dict[str, list[str]]:
    return {name: st.query_params.get_all(name) for name in st.query_params}


def choose_run(runs: Sequence[RunSummary]) -> str | None:
    """Return the run to open when nothing is selected: the one asked for at the start, the bundled, or the latest."""
    asked = os.environ.get(RUN_VARIABLE)
    names = [run.name for run in runs]
    if asked in names:
        return asked
    finished = [run for run in runs if run.finished_iterations > 0]
    bundled = [run.name for run in finished if run.is_bundled]
    return next(iter([*bundled, *(run.name for run in finished), *names]), None)
