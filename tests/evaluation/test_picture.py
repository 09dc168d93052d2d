"""The SVG picture: well-formed, without script, its marks where the numbers say, nothing outside the frame."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.evaluation.fake_front import HOSTILE, POINTS, RUN, SFT, merge, point
from warp_core.evaluation.picture import _ticks, write_front_svg

NS = "{http://www.w3.org/2000/svg}"


def draw(path: Path, points: list, **options: str) -> ElementTree.Element:
    write_front_svg(path, points, **options)
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def test_the_picture_shows_every_series(tmp_path: Path) -> None:
    root = draw(tmp_path / "a.svg", POINTS, title="Demo")
    words = [node.text for node in root.iter(f"{NS}text")]
    for word in (
        "Demo",
        "Reference",
        "SFT policy",
        "Pareto front",
        "Iteration 1",
        "SLERP",
        "LERP",
        "RL runs",
        "Reward",
    ):
        assert word in words
    assert "KL to the SFT policy (nats per completion)" in words
    assert "KL by the exact estimator; n = 80 completions each, seed 0; bars: one standard error." in words
    assert len(list(root.iter(f"{NS}polyline"))) == 3
    assert len([p for p in root.iter(f"{NS}path") if p.get("class") == "bar"]) == len(POINTS) - len(RUN)


def test_curves_are_where_the_numbers_say(tmp_path: Path) -> None:
    root = draw(tmp_path / "a.svg", [SFT, merge(5, 3, "slerp", 0.5), merge(10, 4, "slerp", 1.0)])
    (line,) = list(root.iter(f"{NS}polyline"))
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, c.split(","))) for c in (line.get("points") or "").split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y1) / (y1 - y2) == pytest.approx(2.2, abs=0.02)


def test_everything_is_inside_even_with_five_iterations(tmp_path: Path) -> None:
    points = [SFT]
    for i in range(1, 6):
        points += [merge(i, i, "slerp", 0.5, i), merge(i + 0.5, i, "lerp", 0.5, i)]
        points += [merge(i, i - 0.5, "slerp", 0.5, i, towards="s" * 64)]
        points += [point(i, i, policy=str(i), kind="policy", run="1", iteration=i)]
    root = draw(tmp_path / "a.svg", points)
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    places = [(float(t.get("x", 1)), float(t.get("y", 1))) for t in root.iter(f"{NS}text")]
    assert all(0 < x < width and 0 < y < height for x, y in places)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    odd = point(1.0, 1.0, policy="x", kind="training", run=HOSTILE)
    named = merge(2.0, 1.0, "lerp", 0.5)
    root = draw(tmp_path / "a.svg", [SFT, odd, named], title=HOSTILE, reward_label=HOSTILE)
    assert {node.tag.removeprefix(NS) for node in root.iter()} <= {
        "svg", "g", "clipPath", "title", "style", "text", "path", "polyline", "polygon", "circle", "rect",
    }  # fmt: skip
    assert any((node.text or "").startswith("<img src=x") for node in root.iter(f"{NS}text"))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", (tmp_path / "a.svg").read_text().replace(
        "&lt;a href=&quot;http://evil.example", ""
    ))  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 20), (0.46, 5.2), (-3, -1), (0, 1e-4), (7, 7), (0, 199)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    ticks, (start, end) = _ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(start <= t <= end for t in ticks)
    assert (start, end) == (low, pytest.approx(low + ((high - low) or 1)))
    assert _ticks(0, 20)[0] == [0, 5, 10, 15, 20]
