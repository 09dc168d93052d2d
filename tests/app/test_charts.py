"""Shared plotly pieces, and the line charts: what is sent to the browser."""

import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from app.charts import THEME_COLORS, figure, plain
from app.components.lines import MAX_POINTS, moving_mean, thinned
from app.server import SETTINGS_FILE, settings
from tests.app.pages_seen import component


class TestPlotly:
    def test_labels_are_text(self):
        assert plain('<b>x</b> & "y"') == '&lt;b&gt;x&lt;/b&gt; &amp; "y"'
        assert plain("a\nb\x00") == "a b "

    def test_colours_are_the_themes(self):
        made = figure(go.Scatter(y=[1, 2]), height=200, x="x", y="y")
        colors = made.layout.colorway
        assert len(colors) == THEME_COLORS == len(set(colors))
        assert all(color.startswith("#0000") for color in colors), "places that the browser fills in"
        assert made.data[0].line.color is None

    def test_the_theme_has_as_many_colours_as_charts_use(self):
        found = settings(port=1)
        assert SETTINGS_FILE.is_file()
        for scheme in ("light", "dark"):
            assert len(found[f"theme.{scheme}.chartCategoricalColors"]) >= THEME_COLORS

    def test_size_and_titles(self):
        made = figure(height=321, x="layer", y="norm", legend=False, barmode="stack")
        assert (made.layout.height, made.layout.xaxis.title.text, made.layout.yaxis.title.text) == (
            321,
            "layer",
            "norm",
        )
        assert made.layout.barmode == "stack"
        assert made.layout.showlegend is False


class TestThinning:
    def test_few_points_stay(self):
        assert thinned((1, 2, 3), (1.0, None, 3.0)) == ([1, 2, 3], [1.0, None, 3.0])

    def test_many_points_become_means_that_end_at_the_last_step(self):
        x, y = thinned(range(1, 11), [float(step) for step in range(1, 11)], limit=4)
        assert x == [3, 6, 9, 10]
        assert y == [2.0, 5.0, 8.0, 10.0]

    def test_gaps_stay_gaps(self):
        assert thinned(range(1, 7), [None, None, 3.0, None, 5.0, 7.0], limit=3) == ([2, 4, 6], [None, 3.0, 6.0])

    def test_no_more_than_the_limit(self):
        for count in (MAX_POINTS, MAX_POINTS + 1, 9001):
            x, y = thinned(range(count), [0.0] * count)
            assert len(x) == len(y) <= MAX_POINTS
            assert x[-1] == count - 1


class TestMovingMean:
    def test_by_hand(self):
        assert moving_mean([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]

    def test_a_gap_counts_for_nothing(self):
        assert moving_mean([1.0, None, 3.0], 2) == [1.0, None, 3.0]
        assert moving_mean([2.0, None, 4.0], 3) == [2.0, None, 3.0]

    def test_a_window_of_one_changes_nothing(self):
        assert moving_mean([1.0, 5.0], 1) == [1.0, 5.0]


PAGE = """
from app.components.lines import Chart, Line, lines

line = Line(name="policy 1", number=1, x_S=(1, 2, 3), y_S=(1.0, 3.0, 5.0))
lines([Chart(id="r", title="Reward", lines=(line,))], key="k", label="Curves", x_max={x_max}, smooth={smooth})
"""


@pytest.mark.parametrize("smooth", [1, 2])
def test_what_the_component_is_given(smooth):
    page = AppTest.from_string(PAGE.format(x_max=40, smooth=smooth)).run()
    assert not page.exception
    data = component(page, "k")
    assert (data["x_min"], data["x_max"], data["label"]) == (1, 40, "Curves")
    assert data["names"] == [{"name": "policy 1", "number": 1}]
    (series,) = data["charts"][0]["series"]
    assert series["y"] == ([1.0, 3.0, 5.0] if smooth == 1 else [1.0, 2.0, 4.0])
    assert series.get("raw") == (None if smooth == 1 else [1.0, 3.0, 5.0])


def test_one_step_still_has_an_axis():
    page = AppTest.from_string(PAGE.format(x_max=1, smooth=1)).run()
    assert component(page, "k")["x_max"] == 2
