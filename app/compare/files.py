"""The comparison as files: CSV of the completions and of the votes, as texts and numbers were stored."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from app.compare.models import CompareModel
from app.compare.rows import Row
from warp_core.service.places import place_label, place_text
from warp_core.service.protocol import Vote

__all__ = ["completions_csv", "votes_csv"]


def completions_csv(rows: Sequence[Row], models: Sequence[CompareModel]) -> bytes:
    """Return one line per completion: prompt, sample, model, its place in a link, text, reward, parts, KL, length."""
    parts = sorted({part for row in rows for cell in row.cells.values() for part in cell.rewards})
    head = ["prompt", "sample", "model", "place", "completion", "reward", *(f"reward:{part}" for part in parts)]
    lines = (
        [
            row.prompt,
            row.sample,
            model.label,
            place_text(model.place),
            (cell := row.cells[model.letter]).completion,
            cell.reward,
            *(cell.rewards.get(part, "") for part in parts),
            cell.kl,
            cell.num_tokens,
        ]
        for row in rows
        for model in models
    )
    return _csv([*head, "kl_nats", "num_tokens"], lines)


def votes_csv(votes: Sequence[Vote]) -> bytes:
    """Return one line per vote: when, how, prompt, the two models and texts, the score (> 0 prefers the first)."""
    head = ["time", "source", "blind", "session", "score", "prompt", "first", "first_place", "second", "second_place"]
    lines = (
        [
            datetime.fromtimestamp(vote.time, tz=UTC).isoformat(timespec="seconds"),
            vote.source,
            int(vote.blind),
            vote.session,
            vote.score,
            vote.prompt,
            place_label(vote.first),
            place_text(vote.first),
            place_label(vote.second),
            place_text(vote.second),
            vote.first_text,
            vote.second_text,
        ]
        for vote in votes
    )
    return _csv([*head, "first_text", "second_text"], lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue().encode("utf-8", "backslashreplace")
