"""The fields of a configuration, read from its JSON schema: the form shows what the schema says and nothing else.

A field's value is kept as its widget has it: a list of numbers or names is the text `40, 12`. `to_config` turns the
values of all fields into what TOML would give, `from_config` the other way round. What cannot be read as a number stays
text, so that the engine's check names the field and says what it found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Field", "fields_of", "from_config", "from_text", "problems_by_field", "to_config", "to_text"]

Kind = Literal["choice", "choices", "flag", "whole", "digits", "number", "text", "list"]
"""`digits`: a whole number that may be larger than a browser counts exactly, kept as text."""
TABLES = ("runs",)
"""Parts of the configuration that are no section of plain fields."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a section."""

    section: str
    name: str
    kind: Kind
    default: Any
    """As in the configuration."""
    help: str
    options: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def id(self) -> str:
        """`training.steps`."""
        return f"{self.section}.{self.name}"


def fields_of(schema: Mapping[str, Any]) -> dict[str, Field]:
    """Return the fields of all sections by id, in the order of the schema."""
    found: dict[str, Field] = {}
    for section, part in schema["properties"].items():
        if section in TABLES:
            continue
        for name, spec in _resolved(part, schema)["properties"].items():
            field = _field(section, name, _resolved(spec, schema), schema)
            found[field.id] = field
    return found


def _resolved(spec: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = spec.get("$ref")
    return spec if reference is None else schema["$defs"][reference.rpartition("/")[2]]


def _field(section: str, name: str, spec: Mapping[str, Any], schema: Mapping[str, Any]) -> Field:
    items = _resolved(spec.get("items", {}), schema)
    options = spec.get("enum") or items.get("enum") or ()
    kinds: dict[str, Kind] = {"boolean": "flag", "integer": "whole", "number": "number", "array": "list"}
    kind: Kind = kinds.get(spec.get("type", ""), "text")
    if name == "seed":
        kind = "digits"
    elif options:
        kind = "choices" if kind == "list" else "choice"
    return Field(
        section=section,
        name=name,
        kind=kind,
        default=spec.get("default"),
        help=" ".join(str(spec.get("description", "")).split()),
        options=tuple(options),
        minimum=_limit(spec, "minimum", "exclusiveMinimum"),
        maximum=_limit(spec, "maximum", "exclusiveMaximum"),
    )


def _limit(spec: Mapping[str, Any], *names: str) -> float | None:
    return next((float(spec[name]) for name in names if name in spec), None)


def to_text(values: Iterable[Any]) -> str:
    """Write a list as a person would: `40, 12`."""
    return ", ".join(map(_shown, values))


def _shown(value: Any) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def from_text(text: str) -> list[Any]:
    """Read a list: numbers where they are, names otherwise; separated by commas or blanks."""
    return [_read(token) for token in text.replace(",", " ").split()]


def _read(token: str) -> Any:
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            continue
    return token


def from_config(config: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the value of every field as its widget has it; the default where the configuration has none."""
    values: dict[str, Any] = {}
    for field in fields.values():
        value = config.get(field.section, {}).get(field.name, field.default)
        if field.kind in ("list", "choices"):
            # A configuration may give a single value where a list is wanted.
            listed = list(value) if isinstance(value, list | tuple) else [value]
            value = to_text(listed) if field.kind == "list" else listed
        elif field.kind == "number":
            value = float(value)
        elif field.kind == "digits":
            value = str(value)
        values[field.id] = value
    return values


def to_config(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the configuration that the widgets stand for; the engine checks it."""
    config: dict[str, Any] = {}
    for field in fields.values():
        value = values[field.id]
        if field.kind == "list":
            value = from_text(value)
        elif field.kind == "digits":
            value = _read(value.strip())
        config.setdefault(field.section, {})[field.name] = value
    return config


def problems_by_field(problems: Sequence[str], ids: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Sort the problems of a `ConfigCheck` to the fields they name: by field id, and those that name none.

    A problem of a list's third item (`training.steps.2: ...`) belongs to the field; so does one of `[[runs]]`, under
    the id `runs`.
    """
    known = sorted(ids, key=len, reverse=True)
    mine: dict[str, str] = {}
    others: list[str] = []
    for problem in problems:
        place, _, message = problem.partition(": ")
        place = place.strip("[]")
        owner = next((one for one in known if place == one or place.startswith(f"{one}.")), None)
        if owner is None:
            others.append(problem)
        else:
            rest = place.removeprefix(owner).lstrip(".")
            text = f"{rest}: {message}" if rest and not rest.isdigit() else message
            mine[owner] = f"{mine[owner]}; {text}" if owner in mine else text
    return mine, others
