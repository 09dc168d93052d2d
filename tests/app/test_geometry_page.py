"""The Geometry page: facts and sentences by hand, charts, table, the job that computes, empty states."""

import math

import numpy as np
import pytest

from app.geometry_facts import angles_LP, facts_of, full_angles_LP, pairs_of, short_names, table, what_it_means
from app.view import View
from tests.app.pages_seen import button, choose, figures, press, seen
from warp_core.errors import WorkspaceError
from warp_core.service.documents import GeometryDocument
from warp_core.service.protocol import JobState, Place

LOOSE = View(init="/models/sft", policies=("/models/a", "/models/<b>"))


def document(*vectors_per_layer, full=None, names=None) -> GeometryDocument:
    """The geometry of task vectors given per layer as a list of M vectors."""
    grams = [np.asarray(vectors, dtype=float) @ np.asarray(vectors, dtype=float).T for vectors in vectors_per_layer]
    norms = [np.sqrt(np.diag(gram)) for gram in grams]
    count = len(vectors_per_layer[0])
    cosines = []
    for gram, norm in zip(grams, norms, strict=True):
        outer = np.outer(norm, norm)
        cosines.append(np.where(outer > 0, gram / np.where(outer > 0, outer, 1.0), 1.0))
    return GeometryDocument(
        iteration=1,
        granularity="layer",
        layers=tuple(names or [f"model.layers.{layer}" for layer in range(len(grams))]),
        num_params=(10,) * len(grams),
        policies=tuple(f"policy {m + 1}" for m in range(count)),
        has_sft_column=False,
        gram_LKK=[gram.tolist() for gram in grams],
        norms_LM=[norm.tolist() for norm in norms],
        angles_deg_LMM=[np.degrees(np.arccos(np.clip(one, -1, 1))).tolist() for one in cosines],
        cosines_LMM=[one.tolist() for one in cosines],
        full_cosines_LMM=full,
    )


ORTHOGONAL = [[1, 0], [0, 1]]
SIXTY = [[1, 0], [0.5, math.sqrt(3) / 2]]


class TestFacts:
    def test_orthogonal_task_vectors(self):
        facts = facts_of(document(ORTHOGONAL))
        assert (facts.mean_deg, facts.low_deg, facts.high_deg) == pytest.approx((90, 90, 90))
        assert facts.lerp_share == pytest.approx(1 / math.sqrt(2))
        assert facts.norm_ratio == pytest.approx(1.0)
        assert (facts.num_layers, facts.num_still, facts.full_deg) == (1, 0, None)

    def test_a_mean_over_layers_and_its_span(self):
        facts = facts_of(document(ORTHOGONAL, SIXTY))
        assert facts.mean_deg == pytest.approx(75)
        assert (facts.low_deg, facts.high_deg) == pytest.approx((60, 90))
        assert facts.lerp_share == pytest.approx((1 / math.sqrt(2) + math.cos(math.radians(30))) / 2)

    def test_norms_that_differ(self):
        assert facts_of(document([[3, 0], [0, 1]], ORTHOGONAL)).norm_ratio == pytest.approx(3.0)

    def test_a_layer_that_was_not_trained_has_no_angle(self):
        found = document(ORTHOGONAL, [[0, 0], [0, 1]])
        assert np.isnan(angles_LP(found)[1, 0])
        facts = facts_of(found)
        assert (facts.num_layers, facts.num_still) == (1, 1)
        assert facts.mean_deg == pytest.approx(90)

    def test_there_is_none_with_one_policy_or_without_any_movement(self):
        assert facts_of(document([[1, 0]])) is None
        assert facts_of(document([[0, 0], [0, 0]])) is None

    def test_full_weights(self):
        near = math.cos(math.radians(0.5))
        found = document(ORTHOGONAL, full=[[[1.0, near], [near, 1.0]]])
        assert full_angles_LP(found)[0, 0] == pytest.approx(0.5)
        assert facts_of(found).full_deg == pytest.approx(0.5)
        assert full_angles_LP(document(ORTHOGONAL)) is None

    def test_three_policies_have_three_pairs(self):
        assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)]
        assert angles_LP(document([[1, 0, 0], [0, 1, 0], [1, 1, 0]]))[0] == pytest.approx([90, 45, 45])


class TestWords:
    def test_what_orthogonal_means(self):
        words = what_it_means(facts_of(document(ORTHOGONAL, ORTHOGONAL)))
        assert "90.0 degrees on average (90.0 to 90.0) over 2 layers: nearly orthogonal" in words
        assert "0.71 times as long" in words
        assert "full weights" not in words

    def test_other_angles_have_other_words(self):
        assert "similar directions" in what_it_means(facts_of(document(SIXTY)))
        apart = [[1, 0], [-0.8, 0.6]]
        assert "against each other" in what_it_means(facts_of(document(apart)))

    def test_full_weights_and_still_layers_are_mentioned_where_there_are_some(self):
        near = [[1.0, 0.9999], [0.9999, 1.0]]
        found = document(ORTHOGONAL, [[0, 0], [0, 1]], full=[near, near])
        words = what_it_means(facts_of(found), unit="tensor")
        assert "The full weights stand at 0.81 degrees" in words
        assert "In 1 further tensors" in words

    @pytest.mark.parametrize(
        ("names", "short"),
        [
            (["model.embed_tokens", "model.layers.0", "model.layers.1"], ["model.embed_tokens", "0", "1"]),
            (["h.0", "h.1", "lm_head"], ["0", "1", "lm_head"]),
            (["model.layers.0.up", "model.layers.0.down"], ["up", "down"]),
            (["model"], ["model"]),
            (["wte", "wpe"], ["wte", "wpe"]),
        ],
    )
    def test_short_names(self, names, short):
        assert short_names(names) == short


class TestTable:
    def test_a_row_per_layer_and_pair(self):
        near = [[1.0, 0.5], [0.5, 1.0]]
        rows = table(document(ORTHOGONAL, [[3, 0], [0, 2]], full=[near, near]))
        assert list(rows["layer"]) == ["model.layers.0", "model.layers.1"]
        assert list(rows["angle_deg"]) == pytest.approx([90, 90])
        assert list(rows["full_angle_deg"]) == pytest.approx([60, 60])
        assert (rows["norm_first"][1], rows["norm_second"][1]) == (3.0, 2.0)

    def test_a_single_policy_has_norms(self):
        rows = table(document([[3, 4]]))
        assert list(rows["norm_first"]) == [5.0]

    def test_no_angle_is_an_empty_cell(self):
        rows = table(document([[0, 0], [0, 1]]))
        assert math.isnan(rows["angle_deg"][0])
        assert ",," in rows.to_csv(index=False).splitlines()[1]


class TestPage:
    def test_known_geometry_is_drawn_at_once(self, open_page):
        page = open_page("geometry")
        assert not page.exception
        assert "degrees on average" in seen(page)
        assert [figure["data"][0]["type"] for figure in figures(page)] == [
            "histogram",
            "histogram",
            "heatmap",
            "heatmap",
            "scatter",
        ]
        assert len(page.dataframe[0].value) == 30 * 3

    def test_task_vectors_stand_beside_full_weights(self, open_page):
        both = figures(open_page("geometry"))[1]["data"]
        assert [trace["name"] for trace in both] == ["task vectors", "full weights"]

    def test_one_colour_and_name_per_pair(self, open_page):
        names = [trace["name"] for trace in figures(open_page("geometry"))[0]["data"]]
        assert names == ["policy 1 and policy 2", "policy 1 and policy 3", "policy 2 and policy 3"]

    def test_the_iteration_of_the_view_comes_first_and_another_can_be_chosen(self, open_page):
        page = open_page("geometry", view=View(run="demo-run", place=Place(iteration=2)))
        assert page.button_group(key="geometry-iteration-demo-run").value == 2
        second = page.dataframe[0].value["angle_deg"][0]
        choose(page, "geometry-iteration-demo-run", 1)
        assert page.dataframe[0].value["angle_deg"][0] != second
        assert page.session_state["view"].iteration == 2, "the sliders stay where they are"

    def test_the_csv_has_every_number(self, open_page):
        page = open_page("geometry")
        assert page.get("download_button")[0].proto.label == "Download CSV"

    def test_computing_shows_progress_then_the_result(self, open_page, fake):
        page = open_page("geometry", view=LOOSE)
        assert "Not computed yet" in seen(page)
        press(page, "geometry-compute")
        assert "Compute the geometry" in seen(page)
        assert button(page, "geometry-compute") is None
        assert len(page.get("progress")) == 1
        fake.advance(10)
        page.run()
        assert "degrees on average" in seen(page)
        assert not page.exception

    def test_names_from_disk_are_text_in_the_charts(self, open_page, fake):
        page = open_page("geometry", view=LOOSE)
        press(page, "geometry-compute")
        fake.advance(10)
        page.run()
        for figure in figures(page):
            assert "<b>" not in str(figure["data"])

    def test_it_can_be_cancelled_and_asked_for_again(self, open_page, fake, monkeypatch):
        monkeypatch.setattr(fake, "_pace", 1e9)  # so that it does not end while the page looks at it
        page = open_page("geometry", view=LOOSE)
        press(page, "geometry-compute")
        (job,) = fake.jobs()
        press(page, f"geometry-cancel-{job.id}")
        page.run()
        assert fake.job(job.id).state is JobState.CANCELLED
        assert "cancelled" in seen(page)
        press(page, "geometry-compute")
        assert len(fake.jobs()) == 2

    def test_a_restarted_engine_knows_no_job(self, open_page, fake):
        page = open_page("geometry", view=LOOSE)
        press(page, "geometry-compute")
        fake._queue._jobs.clear()
        page.run()
        assert "Not computed yet" in seen(page)
        assert not button(page, "geometry-compute").disabled

    def test_a_refusal_is_said(self, open_page, fake, monkeypatch):
        def refuse(request):
            raise WorkspaceError("/models/a is not there")

        monkeypatch.setattr(fake, "submit", refuse)
        page = open_page("geometry", view=LOOSE)
        press(page, "geometry-compute")
        assert "/models/a is not there" in seen(page)

    def test_another_granularity_is_computed_on_demand(self, open_page, fake):
        page = open_page("geometry")
        choose(page, "geometry-granularity", "model")
        assert "Not computed yet" in seen(page)
        press(page, "geometry-compute")
        (job,) = fake.jobs()
        assert fake._queue.find(job.id).request.granularity == "model"
        choose(page, "geometry-granularity", "layer")
        assert "degrees on average" in seen(page)

    def test_nothing_selected(self, open_page):
        page = open_page("geometry", view=View())
        assert "Choose a run" in seen(page)

    def test_a_run_without_a_finished_iteration(self, open_page):
        page = open_page("geometry", view=View(run="training-now"))
        assert "No finished iteration yet" in seen(page)

    def test_a_single_policy(self, open_page, fake, monkeypatch):
        monkeypatch.setattr(fake, "geometry", lambda selection, iteration: document([[1, 0]], [[2, 0]]))
        page = open_page("geometry")
        assert "single policy" in seen(page)
        assert [figure["data"][0]["type"] for figure in figures(page)] == ["scatter"]

    def test_one_row_for_the_whole_model(self, open_page, fake, monkeypatch):
        monkeypatch.setattr(fake, "geometry", lambda selection, iteration: document(ORTHOGONAL, names=["model"]))
        page = open_page("geometry")
        assert not page.exception
        assert [figure["data"][0]["type"] for figure in figures(page)] == ["histogram", "histogram"]

    def test_many_policies_share_one_histogram(self, open_page, fake, monkeypatch):
        vectors = np.eye(6).tolist()
        monkeypatch.setattr(fake, "geometry", lambda selection, iteration: document(vectors, vectors))
        page = open_page("geometry")
        assert [trace["name"] for trace in figures(page)[0]["data"]] == ["all 15 pairs"]
