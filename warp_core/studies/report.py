"""The files of a study, and the page that puts the sentences of all studies together.

OUT/NAME/SCALE.csv           every point that was measured
OUT/NAME/SCALE-claims.csv    every claim with its interval
OUT/NAME/SCALE.svg, .html    picture and interactive page
OUT/NAME/SCALE.json          all of it, and the verdict
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from warp_core.errors import WorkspaceError
from warp_core.studies.figures import AXES, COLORS, Line, Panel
from warp_core.studies.lab import Found
from warp_core.studies.outcome import Axis, Evidence, Outcome, point_rows, sentence_of
from warp_core.studies.page import write_study_html
from warp_core.studies.picture import write_study_svg
from warp_core.workspace.publish import write_text_atomic
from warp_core.workspace.reading import read_regular

__all__ = ["panels_of", "read_documents", "results_page", "write_study"]

_MARK = {"held": "held", "failed": "**failed**", "undecided": "undecided"}


def write_study(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Write all files of a study under `out` and return its JSON.

    Raises WorkspaceError if a file cannot be written.
    """
    study, scale = outcome.study, outcome.evidence.scale
    folder = out / study.name
    folder.mkdir(parents=True, exist_ok=True)
    document = outcome.to_json()
    names = {kind: f"{scale.name}{end}" for kind, end in _ENDINGS.items()}
    panels = panels_of(outcome)
    document |= {"files": names, "panels": [asdict(panel) for panel in panels], "made": _how(document)}
    title = f"{study.title} ({study.figure}, scale {scale.name})"
    _write_csv(folder / names["points"], point_rows(outcome.evidence))
    _write_csv(folder / names["claims"], _claim_rows(document))
    write_study_svg(folder / names["picture"], panels, title=title, caption=sentence_of(outcome))
    write_study_html(
        folder / names["page"],
        panels,
        title=title,
        observation=study.observation,
        verdict=outcome.verdict,
        sentence=sentence_of(outcome),
        claims=[(claim.verdict, claim.sentence) for claim in [*outcome.claims, *outcome.judge]],
        about=document["made"],
    )
    # Last, so that who finds it finds the others too.
    write_text_atomic(folder / names["document"], json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


_ENDINGS = {"points": ".csv", "claims": "-claims.csv", "picture": ".svg", "page": ".html", "document": ".json"}


def panels_of(outcome: Outcome) -> list[Panel]:
    """Return what the study draws of what there is."""
    evidence = outcome.evidence
    panels = [_panel(evidence, x, y) for x, y in outcome.study.axes]
    return [*(panel for panel in panels if panel.lines), *outcome.study.panels(evidence)]


def _panel(evidence: Evidence, x: Axis, y: Axis) -> Panel:
    own = next(iter(evidence.curves.values()))[0].axis
    lines = []
    for seed, curves in evidence.curves.items():
        for place, curve in enumerate(curves):
            found = [
                (at, one)
                for at, one in zip(curve.at, evidence.found[seed, curve.name], strict=True)
                if one is not None and _read(one, at, x) is not None and _read(one, at, y) is not None
            ]
            # What is drawn along eta has no place for steps.
            if not found or (x == "at" and (curve.axis != own or len(curve.models) < 2)):
                continue
            lines.append(
                Line(
                    name=curve.name,
                    color=COLORS[place % len(COLORS)],
                    x=[_read(one, at, x) or 0.0 for at, one in found],
                    y=[_read(one, at, y) or 0.0 for at, one in found],
                    y_se=[(one.point.reward_se or 0.0) for _, one in found] if y == "reward" else (),
                    notes=[f"{curve.axis} {at:g}, seed {seed}" for at, _ in found],
                    dash=curve.dash,
                    in_legend=seed == next(iter(evidence.curves)),
                )
            )
    return Panel(x_label=AXES[own if x == "at" else x], y_label=AXES[y], lines=tuple(lines))


def _read(found: Found, at: float, axis: Axis) -> float | None:
    if axis == "at":
        return at
    if axis == "judge":
        return sum(found.judge) / len(found.judge) if found.judge else None
    if axis == "similarity":
        return None if found.point.diversity is None else 1 - found.point.diversity
    return {"kl": found.point.kl, "reward": found.point.reward, "length": found.point.length}[axis]


def _claim_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for claim in [*document["claims"], *document["judge"]]:
        row = {name: claim[name] for name in ("name", "verdict", "unit", "margin", "counts")}
        for prefix, interval in (("", claim["interval"]), ("hypervolume_", claim["hypervolume"])):
            row |= {f"{prefix}{name}": (interval or {}).get(name) for name in ("value", "low", "high")}
        rows.append(row | {"sentence": claim["sentence"]})
    return rows


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["seed"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def _how(document: dict[str, Any]) -> str:
    return (
        f"Scale {document['scale']}, seeds {', '.join(map(str, document['seeds']))}, {document['prompts']} held-out "
        f"prompts x {document['samples_per_prompt']} completions, model {document['model']}, reward "
        f"{', '.join(document['reward'])}; second judge: {document['second_judge']}. Bars: one standard error; "
        f"intervals: 95 %, bootstrap of paired prompts, with the spread of the seeds where three were run. "
        f"Made {document['date']}, warp-core {document['warp_core']}, commit {document['commit'] or 'unknown'}."
    )


def read_documents(out: Path) -> list[dict[str, Any]]:
    """Return the JSON of all studies under `out`, by name and scale.

    Raises WorkspaceError if one is damaged.
    """
    found = []
    for path in sorted(out.glob("*/*.json")):
        try:
            document = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError) as error:
            raise WorkspaceError(f"{path} cannot be read ({error}): run that study again") from error
        if isinstance(document, dict) and "study" in document:
            found.append(document)
    return found


def results_page(documents: Sequence[dict[str, Any]], *, order: Sequence[str], folder: str) -> str:
    """Return the page of sentences as Markdown; `folder` is where the studies lie, seen from the page."""
    lines = [
        "# Results",
        "",
        "Made by `warp-core study` from the JSON of each study. A claim that the data do not decide is undecided; one",
        "that fails is reported as failed. Intervals are 95 %, from a bootstrap over prompts (paired: the same prompts",
        "and random numbers for all curves), with the spread of the seeds in them where three were run.",
        "",
        "| study | paper | scale | verdict |",
        "|---|---|---|---|",
    ]
    known = sorted(documents, key=lambda one: (order.index(one["study"]), one["scale"]))
    for one in known:
        state = "" if one["complete"] else ", not finished"
        link = f"[{one['study']}](#{one['study']}-{one['scale']})"
        lines.append(f"| {link} | {one['paper']['figure']} | {one['scale']} | {_MARK[one['verdict']]}{state} |")
    for one in known:
        lines += ["", *_section(one, folder)]
    return "\n".join(lines) + "\n"


def _section(one: dict[str, Any], folder: str) -> list[str]:
    place = f"{folder}/{one['study']}"
    lines = [
        f"## {one['study']} {one['scale']}",
        "",
        f"{one['title']} ({one['paper']['figure']}). {one['observation']}.",
    ]
    lines += ["", one["sentence"], "", f"![{one['title']}]({place}/{one['files']['picture']})", ""]
    lines += [f"- {claim['verdict']}: {claim['sentence']}" for claim in one["claims"] if not claim["counts"]]
    lines += [f"- {claim['verdict']}: {claim['sentence']}" for claim in one["judge"]]
    lines += [
        "",
        f"[numbers]({place}/{one['files']['points']}), [claims]({place}/{one['files']['claims']}). {one['made']}",
    ]
    return lines
