"""Pins and measured points as CSV. Pure functions."""

import csv
import io
from collections.abc import Iterable, Sequence

from app.explore.differences import point_at
from app.view import Pin
from warp_core.service.documents import FrontDocument, FrontPoint
from warp_core.service.places import full_weights, place_text
from warp_core.service.protocol import Place

__all__ = ["pins_csv", "points_csv"]

_PLACE_COLUMNS = ("iteration", "method", "weights", "eta", "towards", "place")
_FIRST_METRICS = ("reward", "kl", "length", "diversity")


def points_csv(front: FrontDocument, num_policies: int) -> str:
    """Return every point: what it is, where the sliders are for it, metrics with standard errors, how measured."""
    metrics = _metric_names(front.points)
    labels = {note.id: note.label for note in front.evaluations}
    head = [
        "label",
        "kind",
        "policy",
        "step",
        *_PLACE_COLUMNS,
        *_metric_columns(metrics),
        "n",
        "dominated",
        "evaluation",
    ]
    rows = [
        [
            point.label,
            point.kind,
            point.policy,
            point.step,
            *(_place_cells(point.place, num_policies) if point.place else [point.iteration, "", "", "", "", ""]),
            *_metric_cells(point, metrics),
            point.n,
            point.dominated,
            labels.get(point.evaluation, point.evaluation),
        ]
        for point in front.points
    ]
    return _written(head, rows)


def pins_csv(pins: Sequence[Pin], front: FrontDocument, num_policies: int) -> str:
    """Return the pins; metrics are those measured there, empty where nothing was."""
    metrics = _metric_names(front.points)
    rows = []
    for pin in pins:
        point = point_at(front, pin.place)
        cells = _metric_cells(point, metrics) if point else [""] * (2 * len(metrics))
        rows.append([pin.name, *_place_cells(pin.place, num_policies), *cells, point.n if point else ""])
    return _written(["label", *_PLACE_COLUMNS, *_metric_columns(metrics), "n"], rows)


def _metric_names(points: Iterable[FrontPoint]) -> list[str]:
    found = {name for point in points for name in point.metrics}
    return [name for name in _FIRST_METRICS if name in found] + sorted(found.difference(_FIRST_METRICS))


def _metric_columns(names: Sequence[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name}_se")]


def _metric_cells(point: FrontPoint, names: Sequence[str]) -> list[object]:
    found = [point.metrics.get(name) for name in names]
    return [cell for metric in found for cell in ((metric.mean, metric.se) if metric else ("", ""))]


def _place_cells(place: Place, num_policies: int) -> list[object]:
    weights = " ".join(f"{weight:.6g}" for weight in full_weights(place, num_policies))
    return [place.iteration, place.method, weights, place.eta, place.towards, place_text(place)]


def _written(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return out.getvalue()


def _cell(value: object) -> object:
    """A label that a spreadsheet would take for a formula gets an apostrophe in front; links carry labels."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
