"""The position card: measured and predicted, differences, measuring, sweeping, export."""

import pytest
from streamlit.testing.v1 import AppTest

from app.view import Pin
from tests.app.conftest import OpenPage
from tests.app.explore_tools import data_of, finish, release, requests_of, unfold, view_of, words_of
from warp_core.service import protocol as p
from warp_core.service.fake import FakeEngine

PLACE = p.Place(iteration=1, eta=0.42)


@pytest.fixture
def page(open_page: OpenPage, fake: FakeEngine) -> AppTest:
    """The page on the bundled run, with its first texts."""
    return finish(fake, open_page("explore"))


class TestCard:
    def rows(self, page: AppTest) -> dict[str, dict]:
        return {row["label"]: row for row in data_of(page, "position-metrics")["metrics"]["rows"]}

    def test_predicted_and_measured_are_told_apart(self, page, fake):
        release(page, PLACE)
        assert data_of(page, "position-recipe")["recipe"]["badge"] == "predicted"
        predicted = self.rows(page)["Reward"]
        assert predicted["is_predicted"]
        assert predicted["value"].startswith("\u2248")
        page.button(key="measure").click().run()
        assert any("Measuring" in bar.proto.text for bar in page.get("progress"))
        assert page.button(key="measure").disabled
        finish(fake, page)
        assert data_of(page, "position-recipe")["recipe"]["badge"] == "measured"
        measured = self.rows(page)["Reward"]
        assert not measured["is_predicted"]
        assert "\u00b1" in measured["value"]
        assert page.button(key="measure").disabled
        assert any(point["key"] == "i1.slerp.e0.42.sft" for point in data_of(page, "pilot")["points"])

    def test_differences_have_sign_error_arrow_and_words(self, page):
        release(page, p.Place(eta=0.5))
        rows = self.rows(page)
        assert rows["Reward"]["words"] == "better"
        assert rows["Reward"]["direction"] == "up"
        assert rows["Reward"]["delta"].startswith("+")
        assert "\u00b1" in rows["Reward"]["delta"]
        assert (rows["KL to SFT"]["words"], rows["KL to SFT"]["tone"]) == ("further away", "bad")
        assert rows["sentiment"]["unit"] == "part of the reward"
        assert data_of(page, "position-metrics")["metrics"]["reference"] == "SFT policy"

    def test_differences_of_measured_points_are_paired(self, page, fake):
        asked = []
        original = fake.samples
        fake.samples = lambda selection, key: asked.append(key) or original(selection, key)
        release(page, p.Place(eta=0.3))
        assert asked == ["i1.slerp.e0.3.sft", "sft"]
        page.run()
        assert len(asked) == 2

    def test_the_reference_can_be_any_place(self, page):
        release(page, p.Place(eta=0.8))
        page.button(key="make-reference").click().run()
        assert (view_of(page).reference, view_of(page).pins) == (0, (Pin(place=p.Place(eta=0.8)),))
        assert self.rows(page)["Reward"]["words"] == "is the reference"
        release(page, p.Place(eta=0.3))
        assert data_of(page, "position-metrics")["metrics"]["reference"] == "SLERP, eta 0.8"
        assert self.rows(page)["KL to SFT"]["words"] == "closer"

    def test_a_sweep_measures_what_is_missing_on_the_curve(self, page, fake):
        place = p.Place(eta=0.3, weights=(0.5, 0.3, 0.2))
        release(page, place)
        page.button(key="sweep").click().run()
        request = requests_of(fake, "measure")[-1]
        assert [one.eta for one in request.places] == [0.1, 0.3, 0.5, 0.8, 1.0]
        assert {one.weights for one in request.places} == {place.weights}
        finish(fake, page)
        assert page.button(key="sweep").disabled

    def test_measuring_can_be_cancelled_and_keeps_what_it_has(self, page, fake):
        release(page, p.Place(eta=0.3, weights=(0.5, 0.3, 0.2)))
        page.button(key="sweep").click().run()
        fake.advance(9)
        page.run()
        job = next(job for job in fake.jobs() if job.kind == "measure")
        page.button(key=f"measure-cancel-{job.id}").click().run()
        assert fake.job(job.id).state is p.JobState.CANCELLED
        page.run()
        assert any(
            point["place"] and point["place"]["weights"]
            for point in data_of(page, "pilot")["points"]
            if point["kind"] == "merge" and point.get("place")
        )

    def test_a_failed_measurement_says_why(self, page, fake):
        release(page, p.Place(eta=1.99), extrapolate=True)
        page.button(key="measure").click().run()
        finish(fake, page)
        assert "task vectors are opposite" in words_of(page)

    def test_export_goes_to_its_page_with_the_view(self, page, monkeypatch):
        went = []
        monkeypatch.setattr("app.links.st.switch_page", lambda target, **query: went.append(target.url_path))
        release(page, PLACE)
        page.button(key="export").click().run()
        assert went == ["export"]
        assert view_of(page).place == PLACE

    def test_layers_are_drawn_on_demand(self, page):
        release(page, PLACE)
        assert len(page.dataframe) == 0
        recipe = data_of(page, "position-recipe")["recipe"]
        assert [share["name"] for share in recipe["shares"]] == ["SFT policy", "policy 1", "policy 2", "policy 3"]
        unfold(page, "How much of each policy, layer by layer")
        assert list(page.dataframe[0].value.columns) == ["layer", "policy 1", "policy 2", "policy 3"]
        assert len(data_of(page, "position-layers")["layers"]["series"]) == 3
