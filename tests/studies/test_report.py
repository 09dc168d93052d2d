"""What is drawn and written: escaped, whole, and true to the numbers."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from warp_core.errors import WorkspaceError
from warp_core.studies.figures import Line, Panel
from warp_core.studies.page import study_figure, write_study_html
from warp_core.studies.picture import write_study_svg
from warp_core.studies.report import read_documents, results_page

NASTY = '<script>alert("x")</script> & <b>'
PANEL = Panel(
    x_label="KL",
    y_label="reward",
    lines=(
        Line(name=NASTY, color="#3b6fd4", x=[0.0, 2.0, 4.0], y=[-1.0, 0.0, 3.0], y_se=[0.1, 0.1, 0.1]),
        Line(name="other", color="#d1603d", x=[0.0, 4.0], y=[0.0, 0.0], dash="dash"),
    ),
)


def document(name="slerp", *, verdict="held", complete=True):
    claim = {"verdict": verdict, "sentence": "A over B: +1", "counts": True}
    return {
        "study": name,
        "scale": "cpu",
        "title": "T",
        "paper": {"figure": "Fig. 9"},
        "observation": "It rises",
        "verdict": verdict,
        "complete": complete,
        "sentence": "Held: all.",
        "claims": [claim],
        "judge": [claim],
        "files": {"picture": "cpu.svg", "points": "cpu.csv", "claims": "cpu-claims.csv"},
        "seeds": [0],
        "prompts": 8,
        "samples_per_prompt": 2,
        "model": "m",
        "reward": ["r"],
        "second_judge": "j",
        "made": "So it was made.",
    }


def test_a_picture_has_its_lines_where_the_numbers_are(tmp_path):
    write_study_svg(tmp_path / "x.svg", [PANEL, PANEL], title=NASTY, caption="said " * 60)
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 4
    corners = [tuple(map(float, corner.split(","))) for corner in lines[0].get("points").split()]
    (x0, y0), (x1, y1), (x2, y2) = corners
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y2 == pytest.approx(3 * (y0 - y1), abs=0.4), "up is less"
    assert root.findall(".//{*}script") == []
    said = " ".join(text.text for text in root.findall(".//{*}text") if text.text and "said" in text.text)
    assert said.split() == ["said"] * 60, "all of the caption, on several lines"
    assert "<script>" not in (tmp_path / "x.svg").read_text()


def test_a_picture_has_a_bar_of_two_standard_errors_at_each_point(tmp_path):
    line = Line(name="n", color="#123456", x=[0.0, 1.0], y=[0.0, 1.0], notes=["", ""], y_se=[0.5, 0.0])
    write_study_svg(tmp_path / "x.svg", [Panel(x_label="x", y_label="y", lines=(line,))], title="t", caption="c")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    (bar,) = [one for one in root.findall(".//{*}path") if one.get("stroke-opacity")]
    low, high = map(float, re.fullmatch(r"M[\d.]+ ([\d.]+)V([\d.]+)", bar.get("d")).groups())
    start, end = (float(one.get("cy")) for one in root.findall(".//{*}circle"))
    assert low - high == pytest.approx(start - end, abs=0.3), "one reward high, as the line is"
    assert (low + high) / 2 == pytest.approx(start, abs=0.2)


def test_a_picture_of_nothing_is_a_picture(tmp_path):
    write_study_svg(tmp_path / "x.svg", [], title="t", caption="c")
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


def test_a_page_is_offline_and_escaped(tmp_path):
    write_study_html(
        tmp_path / "x.html",
        [PANEL],
        title=NASTY,
        observation=NASTY,
        verdict="held",
        sentence=NASTY,
        claims=[("held", NASTY)],
        about=NASTY,
    )
    page = (tmp_path / "x.html").read_text()
    assert "alert(" in page
    assert NASTY not in page
    assert "default-src 'none'" in page


def test_a_name_stands_once_in_the_legend():
    figure = study_figure([PANEL, PANEL])
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]
    assert list(figure.data[0].y) == [-1.0, 0.0, 3.0]
    assert list(figure.data[0].error_y.array) == [0.1, 0.1, 0.1]


def test_the_page_of_results_shows_failures_and_what_is_not_finished():
    page = results_page(
        [document(verdict="failed"), document("anchor", verdict="undecided", complete=False)],
        order=("anchor", "slerp"),
        folder="studies",
    )
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert rows == [
        "| [anchor](#anchor-cpu) | Fig. 9 | cpu | undecided, not finished |",
        "| [slerp](#slerp-cpu) | Fig. 9 | cpu | **failed** |",
    ]
    assert "![T](studies/slerp/cpu.svg)" in page
    assert page.endswith("\n")
    assert not page.endswith("\n\n")


def test_documents_are_found_and_damage_is_named(tmp_path):
    (tmp_path / "slerp").mkdir()
    (tmp_path / "slerp" / "cpu.json").write_text(json.dumps(document()))
    (tmp_path / "slerp" / "other.json").write_text("{}")
    assert [one["study"] for one in read_documents(tmp_path)] == ["slerp"]
    (tmp_path / "slerp" / "gpu.json").write_text("{")
    with pytest.raises(WorkspaceError, match=r"gpu\.json"):
        read_documents(tmp_path)
