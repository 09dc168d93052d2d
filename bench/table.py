"""Rows as Markdown, for the terminal and for bench/README.md."""

from collections.abc import Iterable

from bench.rows import Row

__all__ = ["HEAD", "line_of", "number", "table_of"]

HEAD = "| case | quantity | value | beside | ratio | aim | reached | note |\n|---|---|---|---|---|---|---|---|"


def number(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    if value == 0 or not abs(value) < 1e15:
        return f"{value:.0f}"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}" if abs(value) < 1000 else f"{value:,.0f}"
    text = f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")
    return text if text not in ("0", "-0") else f"{value:.2g}"


def line_of(row: Row) -> str:
    """Return the row as one line of a Markdown table with the columns of HEAD."""
    cells = [
        row.case,
        row.quantity,
        f"{number(row.value)} {row.unit}",
        row.peer or "",
        "" if row.ratio is None else f"{number(row.ratio)} x",
        row.aim or "",
        {None: "", True: "yes", False: "no"}[row.meets],
        row.note,
    ]
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def table_of(rows: Iterable[Row]) -> str:
    """Return a table per bench, each under a heading, in the order in which the benches come."""
    by_bench: dict[str, list[Row]] = {}
    for row in rows:
        by_bench.setdefault(row.bench, []).append(row)
    parts = ["\n".join([f"### {name}", "", HEAD, *map(line_of, found)]) for name, found in by_bench.items()]
    return "\n\n".join(parts) + "\n"
