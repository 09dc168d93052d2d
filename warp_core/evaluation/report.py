"""Show a front: a table for the terminal, CSV, one self-contained HTML page, one SVG picture.

print(front_table(points))
write_front_html(Path("front.html"), points, title="demo")
"""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from warp_core.evaluation.page import front_figure, write_front_html
from warp_core.evaluation.paired import Comparison, Difference, difference_note, difference_rows
from warp_core.evaluation.picture import write_front_svg
from warp_core.evaluation.points import Point
from warp_core.evaluation.series import Front, how_measured, hypervolume_note, label, make_front, number, with_error
from warp_core.workspace.publish import write_text_atomic

__all__ = ["CSV_FIELDS", "front_figure", "front_table", "write_front_csv", "write_front_html", "write_front_svg"]

CSV_FIELDS = (
    "kind", "policy", "method", "eta", "iteration", "run", "step", "reward", "reward_se", "kl", "kl_se", "kl_estimator",
    "length", "length_se", "diversity", "diversity_se", "n", "seed", "dominated", "rewards", "recipe",
    "reward_to_reference", "reward_to_reference_se", "kl_to_reference", "kl_to_reference_se",
    "reward_to_previous", "reward_to_previous_se", "kl_to_previous", "kl_to_previous_se",
)  # fmt: skip
_WIDTH = 100


def front_table(
    points: Sequence[Point],
    *,
    reference: tuple[float, float] | None = None,
    comparisons: Mapping[str, Comparison] | None = None,
) -> str:
    """The measured points as aligned plain text of at most 100 columns, a star for those on the Pareto front.

    Three lines on the measurement and the hypervolume follow, then the differences, where `comparisons` are given (see
    `paired.compare_front`). Moments of training runs are left out. Raises ValueError if there is no measured point.
    """
    front = make_front(points, reference=reference)
    head = ("", "model", "it", "eta", "reward", "KL (nats)", "tokens", "diversity", "n")
    rows = [
        (
            " " if flag else "*",
            label(point),
            str(point.iteration or ""),
            "" if point.eta is None else f"{point.eta:.4g}",
            with_error(point.reward, point.reward_se, sign="+-"),
            with_error(point.kl, point.kl_se, sign="+-"),
            number(point.length),
            number(point.diversity),
            str(point.n),
        )
        for point, flag in zip(front.points, front.dominated, strict=True)
    ]
    notes = ["* on the Pareto front; +- is one standard error.", f"{how_measured(front)}.", hypervolume_note(front)]
    return "\n".join([*_aligned(head, rows), "", *notes, *_differences(front, comparisons or {})])


def _differences(front: Front, comparisons: Mapping[str, Comparison]) -> list[str]:
    note = difference_note(comparisons)
    if not note:
        return []
    head = ("", "model", "it", "eta", "reward", "KL (nats)", "step: reward", "step: KL")
    rows = [
        ("", label(point), str(point.iteration or ""), "" if point.eta is None else f"{point.eta:.4g}", *cells)
        for point, cells in difference_rows(front, comparisons, sign="+-")
    ]
    return ["", *textwrap.wrap(note, _WIDTH), "", *_aligned(head, rows)]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    widths[1] = max(8, min(widths[1], _WIDTH - sum(widths) + widths[1] - 2 * (len(widths) - 1)))
    lines = [_line(row, widths) for row in [head, *rows]]
    return [lines[0], "-" * min(_WIDTH, sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def write_front_csv(
    path: Path, points: Sequence[Point], *, comparisons: Mapping[str, Comparison] | None = None
) -> None:
    """Write all points, training ones too, one row each; `rewards` and `recipe` are JSON, missing values empty.

    `dominated` is true or false for measured points and empty for training ones; the differences are those of
    `comparisons` (see `paired.compare_front`), empty where there are none. Raises WorkspaceError if the file
    cannot be written, ValueError if there is no measured point.
    """
    front = make_front(points)
    flags = dict(zip(map(id, front.points), front.dominated, strict=True))
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for point in [*front.points, *(p for p in points if p.kind == "training")]:
        data = point.to_json() | {"dominated": flags.get(id(point))} | _differences_of(point, comparisons or {})
        row = {field: data[field] for field in CSV_FIELDS}
        for field in ("rewards", "recipe"):
            row[field] = json.dumps(row[field], sort_keys=True) if row[field] else ""
        if row["dominated"] is not None:
            row["dominated"] = str(row["dominated"]).lower()
        writer.writerow(row)
    write_text_atomic(path, out.getvalue())


def _differences_of(point: Point, comparisons: Mapping[str, Comparison]) -> dict[str, float | None]:
    """The columns of the differences of one point."""
    found = comparisons.get(point.key, Comparison()) if point.kind != "training" else Comparison()
    columns: dict[str, float | None] = {}
    for name, one in (("reference", found.to_reference), ("previous", found.to_previous)):
        columns |= _columns(name, one)
    return columns


def _columns(name: str, one: Difference | None) -> dict[str, float | None]:
    values = (one.reward.mean, one.reward.se, one.kl.mean, one.kl.se) if one else (None,) * 4
    names = (f"reward_to_{name}", f"reward_to_{name}_se", f"kl_to_{name}", f"kl_to_{name}_se")
    return dict(zip(names, values, strict=True))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for i, (text, width) in enumerate(zip(row, widths, strict=True)):
        cut = text if len(text) <= width else text[: width - 3] + "..."
        cells.append(cut.ljust(width) if i < 2 else cut.rjust(width))
    return "  ".join(cells).rstrip()
