"""The HTML page: what is drawn, that it needs no network, and that hostile text stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.evaluation.fake_front import HOSTILE, LERP, ONE, POINTS, SFT, SLERP, TWO, compared, merge, point
from warp_core.evaluation.page import front_figure, write_front_html


def traces() -> dict[str, object]:
    return {trace.name: trace for trace in front_figure(POINTS).data if trace.name}


def test_every_series_is_drawn_at_its_points() -> None:
    found = traces()
    assert list(found) == ["Pareto front", "RL run 1", "SLERP", "LERP", "single policies", "SFT policy"]
    assert list(found["SLERP"].x) == [None, 0.0, 2.3, 7.2, 15, 20]
    assert list(found["SLERP"].y) == [None, 0.80, 2.74, 4.32, 5.06, 5.16]
    assert list(found["single policies"].x) == [None, ONE.kl, TWO.kl]
    assert (found["SLERP"].line.dash, found["LERP"].line.dash) == ("solid", "dash")
    assert found["SFT policy"].marker.symbol == "star"
    assert found["RL run 1"].line.width < found["SLERP"].line.width


def test_error_bars_stand_on_the_points_of_the_series_only() -> None:
    slerp = traces()["SLERP"]
    assert list(slerp.error_y.array) == [0, 0, *(p.reward_se for p in SLERP)]
    assert list(slerp.error_x.array) == [0, 0, *(p.kl_se for p in SLERP)]
    assert traces()["RL run 1"].error_y.array is None


def test_dominated_points_are_faded_and_the_legend_is_not() -> None:
    lerp = traces()["LERP"]
    assert [LERP[0].kl, LERP[1].kl] == list(lerp.x[2:])
    assert list(lerp.marker.color) == ["#0072B2", "rgba(0,114,178,0.0)", "rgba(0,114,178,0.4)", "#0072B2"]


def test_the_front_is_a_staircase_and_its_area_is_the_hypervolume() -> None:
    figure = front_figure([SFT, merge(2, 3, "slerp", 0.5), merge(4, 5, "slerp", 1.0)], reference=(10.0, 0.8))
    area, line = figure.data[:2]
    assert list(zip(line.x, line.y, strict=True)) == [(0, 0.8), (2, 0.8), (2, 3), (4, 3), (4, 5)]
    corners = list(zip(area.x, area.y, strict=True))
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    shoelace = abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2
    assert shoelace == pytest.approx(8 * 2.2 + 6 * 2)


def test_the_pointer_shows_recipe_and_numbers() -> None:
    assert traces()["SLERP"].hovertext[2] == (
        "<b>SLERP, eta 0.3</b><br>iteration 1<br>weights 0.5 / 0.5<br>reward 2.74 \u00b1 0.10<br>"
        "KL 2.30 \u00b1 0.50 nats<br>length 15.0 tokens, n 80"
    )
    assert traces()["single policies"].hovertext[1].endswith("<br>dominated")


class Reader(HTMLParser):
    """Collects the tags, their attributes and the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "front.html"
    odd = point(1.0, 1.0, policy=HOSTILE, kind="policy", run=HOSTILE, iteration=2)
    hostile_run = point(1.5, 1.0, None, policy=HOSTILE, kind="training", run=HOSTILE, step=1)
    write_front_html(path, [*POINTS, odd, hostile_run], title=f"Title {HOSTILE}", reward_label=HOSTILE)
    return path.read_text(encoding="utf-8")


def test_the_page_is_complete_and_asks_for_nothing(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"img", "a", "link", "iframe", "object", "base"}
    assert not any("src" in attrs or "href" in attrs for _, attrs in reader.tags)
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "plotly.js v" in page
    assert page.count("<h1>") == 1


def test_hostile_text_is_shown_as_text(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    visible = "".join(reader.text)
    assert 'Title <img src=x onerror="alert(1)"></script><script>alert(2)' in visible
    assert "policy <img src=x onerror=" in visible
    assert "\x1b" not in visible
    assert "\u202e" not in page
    assert "<img src=x" not in page
    assert "alert(2)</script>" not in page
    data = page[page.rindex("Plotly.newPlot(") :]
    assert not re.search(r"\\u003c(img|a|script)\b", data)
    assert "\\u0026lt;img src=x" in data or "&lt;img src=x" in data


def test_the_table_has_a_row_per_measured_point(page: str) -> None:
    body = page[page.rindex("<tbody>") :]
    assert body.count("<tr") == len(POINTS) - 3 + 1
    assert "<td>0.3</td><td>2.74 \u00b1 0.10</td><td>2.30 \u00b1 0.50</td><td>15.0</td>" in body


def test_the_page_is_written_whole_or_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no points"):
        write_front_html(tmp_path / "a.html", [])
    assert list(tmp_path.iterdir()) == []


def test_differences_are_a_table_of_their_own(tmp_path: Path) -> None:
    points = [SFT, *SLERP[:2]]
    write_front_html(tmp_path / "front.html", points, comparisons=compared(points))
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    table = text.partition("Differences on the same prompts and noise: less SFT policy;")[2]
    cells = re.findall("<td>([^<]*)</td>", table)
    first, step = ["+2.00 \u00b1 1.00", "+3.00 \u00b1 0.00"], ["+4.00 \u00b1 2.00", "+6.00 \u00b1 0.00"]
    assert cells == ["1", "0.3", *first, *first, "1", "0.5", *step, *first]
    write_front_html(tmp_path / "plain.html", points)
    assert "Differences on" not in (tmp_path / "plain.html").read_text(encoding="utf-8")
