"""The terminal table and the CSV."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.fake_front import HOSTILE, POINTS, RUN, SFT, SLERP, compared, merge, point
from warp_core.errors import WorkspaceError
from warp_core.evaluation.report import CSV_FIELDS, front_table, write_front_csv


def test_the_table_is_aligned_and_says_how_it_was_measured() -> None:
    lines = front_table([SFT, SLERP[0], merge(3.0, 2.0, "lerp", 0.5)]).splitlines()
    assert lines == [
        "   model       it  eta        reward     KL (nats)  tokens  diversity   n",
        "-" * 73,
        "*  SFT policy           0.80 +- 0.34  0.00 +- 0.50    15.0       0.90  80",
        "*  SLERP        1  0.3  2.74 +- 0.10  2.30 +- 0.50    15.0       0.90  80",
        "   LERP         1  0.5  2.00 +- 0.10  3.00 +- 0.50    15.0       0.90  80",
        "",
        "* on the Pareto front; +- is one standard error.",
        "KL by the exact estimator; n = 80 completions each, seed 0.",
        "Hypervolume 2.33 against KL 3.50, reward 0.80.",
    ]


def test_differences_follow_the_table() -> None:
    lines = front_table([SFT, *SLERP[:2]], comparisons=compared([SFT, *SLERP[:2]])).splitlines()
    assert lines[9:] == [
        "",
        "Differences on the same prompts and noise: less SFT policy; step: less the point before.",
        "",
        "  model     it  eta         reward      KL (nats)   step: reward       step: KL",
        "-" * 79,
        "  SLERP      1  0.3  +2.00 +- 1.00  +3.00 +- 0.00  +2.00 +- 1.00  +3.00 +- 0.00",
        "  SLERP      1  0.5  +4.00 +- 2.00  +6.00 +- 0.00  +2.00 +- 1.00  +3.00 +- 0.00",
    ]


def test_differences_are_columns_of_the_csv(tmp_path: Path) -> None:
    write_front_csv(tmp_path / "front.csv", [*RUN, SFT, *SLERP[:2]], comparisons=compared([SFT, *SLERP[:2]]))
    with (tmp_path / "front.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [
        f"{what}_to_{to}{se}" for to in ("reference", "previous") for what in ("reward", "kl") for se in ("", "_se")
    ]
    assert [[row[name] for name in names] for row in rows] == [
        [""] * 8,
        ["2.0", "1.0", "3.0", "0.0", "2.0", "1.0", "3.0", "0.0"],
        ["4.0", "2.0", "6.0", "0.0", "2.0", "1.0", "3.0", "0.0"],
        *[[""] * 8] * len(RUN),
    ]


def test_the_table_is_plain_and_fits_a_terminal_whatever_the_names() -> None:
    odd = [point(i, i, policy="x", kind="policy", run=f"{i}{HOSTILE}", iteration=100) for i in range(3)]
    lines = front_table([SFT, *odd, point(1e5, -1e4, policy="y" * 300)], reference=(1.0, 0.0)).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert lines[5].startswith("*  policy 1<img src=x onerror=")


def test_the_csv_has_every_point_and_reads_back(tmp_path: Path) -> None:
    hostile = point(1.0, 1.0, policy=HOSTILE, kind="policy", rewards={"good": 0.5})
    write_front_csv(tmp_path / "front.csv", [*POINTS, hostile])
    with (tmp_path / "front.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(CSV_FIELDS)
    assert len(rows) == len(POINTS) + 1
    assert [float(row["kl"]) for row in rows if row["kind"] == "training"] == [p.kl for p in RUN]
    (slerp,) = (row for row in rows if row["method"] == "slerp" and row["eta"] == "0.3")
    assert json.loads(slerp["recipe"]) == SLERP[0].recipe
    assert (slerp["dominated"], slerp["reward"], slerp["reward_se"], slerp["policy"]) == ("false", "2.74", "0.1", "")
    assert {row["dominated"] for row in rows if row["kind"] == "training"} == {""}
    (odd,) = (row for row in rows if row["rewards"])
    assert odd["policy"] == HOSTILE
    assert json.loads(odd["rewards"]) == {"good": 0.5}


def test_a_folder_in_the_way_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_front_csv(tmp_path, POINTS)


def test_the_table_does_without_plotly() -> None:
    script = "import sys, warp_core.evaluation.report; print('plotly' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
