"""The configuration that is being written: kept in the browser session while the pages change.

Streamlit forgets what a widget held as soon as it is not drawn, so every value lives in the draft; a widget that is
drawn again begins with it, and what it holds is read into the draft before anything is drawn. Where values change
otherwise than by their widgets (a preset), all widgets are new ones, with other keys: a value that is put into a widget
through the session gets lost when the browser asks for another run before it has drawn the first.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import streamlit as st

from app.train.fields import Field, from_config, to_config
from warp_core.errors import ConfigError, WorkspaceError
from warp_core.workspace.paths import safe_name

__all__ = ["RUNS", "TERMS", "Draft", "Term", "current_draft", "free_name", "name_problem", "read_toml"]

TERMS = "reward.terms"
RUNS = "runs"
NAME = "name"
_STATE = "train-draft"


@dataclass
class Term:
    """One part of the reward; the id tells its widgets from those of the others."""

    id: int
    name: str
    weight: float = 1.0

    @property
    def spec(self) -> str:
        """NAME or NAME:WEIGHT, as a configuration has it."""
        if self.weight == 1.0 and not _ends_in_weight(self.name):
            return self.name
        short = f"{self.weight:g}"
        return f"{self.name}:{short if float(short) == self.weight else repr(self.weight)}"


@dataclass
class Draft:
    """The values of all widgets of the form."""

    fields: Mapping[str, Field]
    values: dict[str, Any]
    """By field id, as `fields.from_config` has them, and `name`; without the reward's terms."""
    terms: list[Term] = field(default_factory=list)
    runs: str = ""
    """What the policies do differently, in TOML."""
    generation: int = 0
    """Of the widgets: their keys have it."""

    def key(self, field_id: str) -> str:
        """Return the key of a field's widget."""
        return f"train{self.generation}.{field_id}"

    def collect(self) -> None:
        """Take over what the widgets hold."""
        held = st.session_state
        for one in (*self.fields, NAME):
            self.values[one] = held.get(self.key(one), self.values[one])
        self.runs = held.get(self.key(RUNS), self.runs)
        for term in self.terms:
            term.name = (held.get(self.key(f"term-{term.id}"), term.name) or "").strip()
            term.weight = float(held.get(self.key(f"weight-{term.id}"), term.weight) or 0.0)

    def load(self, config: Mapping[str, Any]) -> None:
        """Begin anew with a configuration, valid or not yet looked at."""
        name = self.values.get(NAME, "")
        self.values = from_config(config, self.fields) | {NAME: name}
        next_id = max((term.id for term in self.terms), default=0) + 1
        specs = config.get("reward", {}).get("terms", self.fields[TERMS].default)
        self.terms = [_term(spec, next_id + place) for place, spec in enumerate(_as_list(specs))]
        self.runs = _runs_text(config.get(RUNS, []))
        self.generation += 1

    def rename(self, name: str) -> None:
        """Give the run another name."""
        self.values[NAME] = name
        self.generation += 1

    def add_term(self, name: str) -> None:
        """Add a part to the reward."""
        self.terms.append(Term(id=max((term.id for term in self.terms), default=0) + 1, name=name))

    def remove_term(self, term_id: int) -> None:
        """Take a part out of the reward."""
        self.terms = [term for term in self.terms if term.id != term_id]

    def config(self) -> dict[str, Any]:
        """Return the configuration as TOML would give it; the engine checks it.

        Raises:
            ConfigError: what the policies do differently is not TOML.
        """
        whole = to_config({**self.values, TERMS: ""}, self.fields)
        whole["reward"]["terms"] = [term.spec for term in self.terms]
        whole[RUNS] = read_toml(self.runs, what="runs").get(RUNS, [])
        return whole


def current_draft(fields: Mapping[str, Field]) -> Draft:
    """Return the draft of this browser session, the defaults at first."""
    if _STATE not in st.session_state:
        draft = Draft(fields=fields, values={})
        draft.load({})
        st.session_state[_STATE] = draft
    return cast(Draft, st.session_state[_STATE])


def read_toml(text: str, *, what: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ConfigError: it is none, with the place of the mistake.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what}: not valid TOML: {error}") from error


def free_name(stem: str, taken: Iterable[str]) -> str:
    """Return `stem`, or the first of stem-2, stem-3, ... that is not taken."""
    stem = re.sub(r"-\d+$", "", stem) or "run"
    names = {name.lower() for name in taken}
    number = 1
    while (name := stem if number == 1 else f"{stem}-{number}").lower() in names:
        number += 1
    return name


def name_problem(name: str, taken: Iterable[str]) -> str | None:
    """Return what is wrong with the name of a new run, or None."""
    try:
        safe_name(name)
    except WorkspaceError as error:
        return str(error)
    if name.lower() in {one.lower() for one in taken}:
        return "there is a run of that name already: choose another"
    return None


def _as_list(specs: Any) -> list[str]:
    return [specs] if isinstance(specs, str) else [str(spec) for spec in specs]


def _term(spec: str, term_id: int) -> Term:
    name, _, weight = spec.rpartition(":")
    if not _ends_in_weight(spec):
        return Term(id=term_id, name=spec)
    return Term(id=term_id, name=name, weight=float(weight))


def _ends_in_weight(spec: str) -> bool:
    """Whether what follows the last colon would be read as a weight."""
    _, colon, last = spec.rpartition(":")
    try:
        float(last)
    except ValueError:
        return False
    return bool(colon)


def _runs_text(runs: Iterable[Mapping[str, Mapping[str, Any]]]) -> str:
    lines: list[str] = []
    for run in runs:
        lines.append("[[runs]]")
        for section, changes in run.items():
            lines += [f"{section}.{name} = {_toml(value)}" for name, value in changes.items()]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
