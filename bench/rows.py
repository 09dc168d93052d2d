"""One measured number with what it is compared to, and how it is kept in JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

__all__ = ["Row", "read_rows", "rows_to_json", "write_rows"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a bench.

    Attributes:
        bench: the module that measured it, such as `merge`.
        case: what it was measured on, such as `135M fp32, 3 policies`.
        quantity: what was measured, such as `wall time`.
        value: the number, in `unit`.
        unit: such as `s`, `ms`, `MB`, `GB/s`, `completions/s`, `GFLOP/s`, `x`.
        peer: what `ratio` compares with, such as `mergekit nuslerp float32` or `limit: read three, copy one`.
        ratio: peer / ours for times and memory (above 1 is better than the peer), ours / peer for rates.
        aim: what the ratio or the value should reach, such as `>= 6 x`.
        meets: whether it does; None where there is no aim.
        note: what one has to know to read the number.
    """

    bench: str
    case: str
    quantity: str
    value: float
    unit: str
    peer: str | None = None
    ratio: float | None = None
    aim: str | None = None
    meets: bool | None = None
    note: str = ""


_SILENT = {field.name: field.default for field in fields(Row) if field.default is not MISSING}
_ROWS: TypeAdapter[list[Row]] = TypeAdapter(list[Row])


def rows_to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain JSON values, fields that say nothing left out."""
    return [{name: value for name, value in asdict(row).items() if _SILENT.get(name, ...) != value} for row in rows]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a JSON file."""
    path.write_text(json.dumps(rows_to_json(rows), indent=1) + "\n", encoding="ascii")


def read_rows(text: str | bytes) -> list[Row]:
    """Return the rows that a JSON text holds. Raises pydantic.ValidationError where it holds something else."""
    return _ROWS.validate_json(text)
