"""The Compare page with a made-up engine: blind voting, preferences of people and judges, hostile text."""

import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.compare import booth
from app.view import Pin, View
from tests.app.compare_page import (
    FULL,
    HALF,
    RUN,
    chips,
    component,
    frame,
    labels,
    maps,
    pinned,
    shown,
    texts,
)
from tests.app.conftest import OpenPage
from warp_core.errors import EngineUnreachableError
from warp_core.service.fake import FakeEngine
from warp_core.service.fake_text import HOSTILE
from warp_core.service.protocol import SFT, Place, Vote


def voting(open_page: OpenPage, *places: Place, **state: Any) -> AppTest:
    """The page in the middle of voting."""
    page = open_page("compare", view=pinned(*(places or (HALF,))), compare_section="Vote", session_id="me", **state)
    return page.button(key="compare_start").click().run()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests look at a pair as long as they need."""
    monkeypatch.setattr(booth, "MIN_LOOK_S", 0.0)


# Voting


def test_a_vote_is_stored_blind_with_what_was_seen(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    left, right = component(page)["panes"]
    assert (left["title"], right["title"], left["share"]) == ("Left", "Right", None)
    prompt = texts(page)[0]
    assert page.get("progress")[0].proto.text == "0 of 32 voted"
    page.button(key="compare_grade_2").click().run()
    (vote,) = fake.votes(RUN)
    assert (vote.score, vote.blind, vote.source, vote.session, vote.prompt) == (1.0, True, "compare", "me", prompt)
    assert (vote.first_text.strip(), vote.second_text.strip()) == (
        left["completions"][0]["text"],
        right["completions"][0]["text"],
    )
    assert {vote.first, vote.second} == {SFT, HALF}
    stored = {row.prompt: [] for row in fake.samples(RUN, "sft")}
    for row in fake.samples(RUN, "sft" if vote.first == SFT else "i1.slerp.e0.5.sft"):
        stored[row.prompt].append(row.completion)
    assert vote.first_text in stored[prompt]
    assert page.get("progress")[0].proto.text == "1 of 32 voted"


def test_nothing_on_the_ballot_tells_the_models_apart(open_page: OpenPage):
    page = voting(open_page, HALF, FULL)
    assert not page.dataframe
    everything = json.dumps([texts(page), labels(page), component(page)])
    assert "SFT" not in everything
    assert "eta" not in everything.replace("beta", "")


def test_all_seven_grades(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    for key in "1234567":
        page.button(key=f"compare_grade_{key}").click().run()
    assert [vote.score for vote in fake.votes(RUN)] == [1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5]
    assert len({(vote.prompt, vote.first_text, vote.second_text) for vote in fake.votes(RUN)}) == 7


def test_skip_undo_and_stop(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    first = component(page)["panes"]
    assert page.button(key="compare_undo").disabled
    page.button(key="compare_skip").click().run()
    second = component(page)["panes"]
    assert second != first
    assert page.get("progress")[0].proto.text == "0 of 32 voted, 1 skipped"
    page.button(key="compare_grade_1").click().run()
    assert len(fake.votes(RUN)) == 1
    page.button(key="compare_undo").click().run()
    assert fake.votes(RUN) == []
    assert component(page)["panes"] == second
    page.button(key="compare_undo").click().run()
    assert component(page)["panes"] == first
    assert page.button(key="compare_undo").disabled
    page.button(key="compare_grade_7").click().run()
    page.button(key="compare_stop").click().run()
    assert "compare_start" in [button.key for button in page.button]
    assert page.button(key="compare_start").label == "Go on voting"
    assert list(frame(page, "Model")["Model"]) == ["A: SFT policy", "B: SLERP, eta 0.5"]
    page.button(key="compare_start").click().run()
    assert page.get("progress")[0].proto.text == "1 of 32 voted"


def test_undo_of_a_vote_that_is_gone_already_goes_on(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    page.button(key="compare_grade_1").click().run()
    fake.undo_vote(RUN, fake.votes(RUN)[0].id)
    page.button(key="compare_undo").click().run()
    assert page.button(key="compare_undo").disabled
    assert not page.exception


def test_a_key_held_down_casts_one_vote(open_page: OpenPage, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch):
    page = voting(open_page)
    page.button(key="compare_grade_1").click().run()
    monkeypatch.setattr(booth, "MIN_LOOK_S", 3600.0)
    for _ in range(3):
        page.button(key="compare_grade_1").click().run()
    assert len(fake.votes(RUN)) == 1


def test_the_order_is_the_sessions_and_what_is_voted_on_does_not_come_again(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    first = component(page)["panes"]
    assert component(voting(open_page))["panes"] == first
    other = open_page("compare", view=pinned(HALF), compare_section="Vote", session_id="another")
    assert component(other.button(key="compare_start").click().run())["panes"] != first
    page.button(key="compare_grade_4").click().run()
    second = component(page)["panes"]
    assert component(voting(open_page))["panes"] == second
    for _ in range(2):
        page.button(key="compare_grade_4").click().run()
    assert len({(vote.prompt, vote.first_text) for vote in fake.votes(RUN)}) == 3


def test_when_every_pair_has_a_vote_it_says_so(open_page: OpenPage, fake: FakeEngine):
    cast(fake, 0.5, count=30)
    page = voting(open_page)
    for _ in range(2):
        page.button(key="compare_grade_4").click().run()
    assert any(text.startswith("Every pair has a vote") for text in texts(page))
    assert "compare_grade_4" not in [button.key for button in page.button]
    page.button(key="compare_stop").click().run()
    assert page.button(key="compare_start").disabled


def test_one_pair_of_several_models(open_page: OpenPage, fake: FakeEngine):
    page = open_page("compare", view=pinned(HALF, FULL), compare_section="Vote", session_id="me")
    total = int(page.get("progress")[0].proto.text.split()[2])
    assert 90 < total <= 96
    page.selectbox(key="compare_pairs").set_value("B and C").run()
    assert int(page.get("progress")[0].proto.text.split()[2]) <= 32
    page.button(key="compare_start").click().run()
    page.button(key="compare_grade_1").click().run()
    assert {fake.votes(RUN)[0].first, fake.votes(RUN)[0].second} == {HALF, FULL}


def test_a_vote_that_cannot_be_stored_is_not_counted(
    open_page: OpenPage, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    page = voting(open_page)
    before = component(page)["panes"]

    def refuse(*args: object) -> Vote:
        raise EngineUnreachableError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(fake, "vote", refuse)
        page.button(key="compare_grade_1").click().run()
    assert ["did not answer, so nothing was stored" in warning.value for warning in page.warning] == [True]
    assert component(page)["panes"] == before
    assert page.get("progress")[0].proto.text == "0 of 32 voted"
    page.button(key="compare_grade_1").click().run()
    assert len(fake.votes(RUN)) == 1
    assert not page.warning


def test_an_engine_that_goes_away_is_waited_for_and_no_vote_is_lost(open_page: OpenPage, fake: FakeEngine):
    page = voting(open_page)
    page.button(key="compare_grade_3").click().run()
    before = component(page)["panes"]
    fake.down = True
    page.button(key="compare_grade_1").click().run()
    fake.down = False
    page.run()
    assert not page.exception
    assert [vote.score for vote in fake.votes(RUN)] == [0.5]
    assert component(page)["panes"] == before


# Preferences


def cast(fake: FakeEngine, score: float, *, count: int = 1, first: Place = HALF, second: Place = SFT) -> None:
    """Votes on stored completions, row by row."""
    keys = {HALF: "i1.slerp.e0.5.sft", FULL: "i1.slerp.e1.sft", SFT: "sft"}
    rows = zip(fake.samples(RUN, keys[first]), fake.samples(RUN, keys[second]), strict=True)
    for _, (one, other) in zip(range(count), rows, strict=False):
        vote = Vote(
            session="x",
            prompt=one.prompt,
            first=first,
            second=second,
            first_text=one.completion,
            second_text=other.completion,
            score=score,
        )
        fake.vote(RUN, vote)


def test_without_votes_the_judge_stands_alone(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF, FULL), compare_section="Preferences")
    assert any("Vote on pairs under Vote" in text for text in texts(page))
    (judge,) = maps(page)
    assert judge["y"] == ["A: SFT policy", "B: SLERP, eta 0.5", "C: SLERP, eta 1"]
    assert judge["z"][1][0] == -judge["z"][0][1] > 0.5
    assert judge["z"][0][0] is None
    assert "No votes on these completions yet: vote to see how far the judge agrees." in texts(page)
    assert not page.get("download_button")


def test_votes_of_both_pages_make_the_matrix(open_page: OpenPage, fake: FakeEngine):
    cast(fake, 1.5, count=4)
    cast(fake, -0.5, count=2)
    cast(fake, 1.0, count=1, first=FULL)
    page = open_page("compare", view=pinned(HALF), compare_section="Preferences")
    assert "6 votes on these models, 1 more on other models. Scores run from \u22121.5 to 1.5." in texts(page)
    votes, judge = maps(page)
    assert votes["z"] == [[None, pytest.approx(-5 / 6)], [pytest.approx(5 / 6), None]]
    assert "0.83" in votes["text"][1][0]
    assert votes["customdata"][1][0] == "4 won, 0 tied, 2 lost, 2 prompts"
    table = frame(page, "Pair")
    assert list(table["Pair"]) == ["A over B"]
    assert table["Votes: won / tied / lost"][0] == "2 / 0 / 4"
    assert len(page.get("download_button")) == 1
    assert judge["z"][1][0] > 0


def test_agreement_with_the_stored_reward(open_page: OpenPage, fake: FakeEngine):
    cast(fake, 1.0, count=32)
    page = open_page("compare", view=pinned(HALF), compare_section="Preferences")
    page.selectbox(key="compare_grading").set_value("Better or worse").run()
    gains = [
        b.reward - a.reward
        for a, b in zip(fake.samples(RUN, "sft"), fake.samples(RUN, "i1.slerp.e0.5.sft"), strict=True)
    ]
    share = sum(gain > 0 for gain in gains) / 32
    metrics = {metric.label: metric.value for metric in page.metric}
    assert metrics["Same preference"] == f"{share:.0%}"
    assert "32 votes on these completions, 32 pairs that neither calls a tie" in texts(page)


def test_parts_of_the_reward_can_judge(open_page: OpenPage):
    page = open_page("compare", view=pinned(HALF), compare_section="Preferences")
    assert page.selectbox(key="compare_judge").options == ["Stored reward", "length", "sentiment", "Another reward"]
    page.selectbox(key="compare_judge").set_value("length").run()
    (judge,) = maps(page)
    assert judge["z"] == [[None, 0.0], [0.0, None]]
    assert not page.exception


def test_another_reward_scores_the_stored_completions(open_page: OpenPage, fake: FakeEngine):
    cast(fake, 1.0, count=8)
    page = open_page("compare", view=pinned(HALF), compare_section="Preferences")
    page.selectbox(key="compare_judge").set_value("Another reward").run()
    assert any("let the judge score them" in text for text in texts(page))
    page.button(key="FormSubmitter:compare_judge_form-Score").click().run()
    assert any("no reward was named" in text for text in texts(page))
    page.text_input(key="compare_terms").set_value("folder/of a judge, length:-0.01")
    page.button(key="FormSubmitter:compare_judge_form-Score").click().run()
    assert "Score the completions" in texts(page)
    fake.advance(10)
    page.run()
    page.run()
    assert "Scored by folder/of a judge + length:-0.01." in texts(page)
    assert len(maps(page)) == 2
    page.multiselect(key="compare_models").set_value(["i1.slerp.e0.5.sft", "i1.slerp.e1.sft"]).run()
    assert any("It has not scored all of these models" in text for text in texts(page))
    assert len(maps(page)) == 1


def test_the_judge_of_the_preferences_is_the_judge_of_the_chips(open_page: OpenPage, fake: FakeEngine):
    cast(fake, -1.5, count=32)
    page = open_page("compare", view=pinned(HALF))
    against = int((frame(page, "Reward gain")["Reward gain"] > 0).sum())
    assert against > 20
    assert shown(chips(page, "Judge against vote")) == f"{against} of 32 shown"
    assert (frame(page, "Reward gain")["Vote"] == -1.5).all()
    page.session_state["compare_judge"] = "length"
    page.run()
    assert shown(page) == "0 of 32 shown"


def test_a_judge_that_is_lost_or_too_much_is_said(open_page: OpenPage):
    page = open_page(
        "compare",
        view=pinned(HALF),
        compare_section="Preferences",
        compare_judge="Another reward",
        compare_judge_job="lost",
    )
    assert any("was restarted while it scored" in text for text in texts(page))
    page.text_input(key="compare_terms").set_value(",".join("abcdefghi"))
    page.button(key="FormSubmitter:compare_judge_form-Score").click().run()
    assert any("9 reward terms: give at most 8" in text for text in texts(page))


# Safety


@pytest.mark.parametrize("section", ["Completions", "Vote", "Preferences"])
def test_what_a_model_or_a_user_wrote_is_never_markup(
    open_page: OpenPage, fake: FakeEngine, section: str, monkeypatch: pytest.MonkeyPatch
):
    fake.hostile = True
    samples = fake.samples
    monkeypatch.setattr(  # the same attack by two models would be equal texts, which are not voted on
        fake,
        "samples",
        lambda selection, key: [
            row.model_copy(update={"completion": row.completion + key, "prompt": f"{HOSTILE}{row.prompt}"})
            for row in samples(selection, key)
        ],
    )
    cast(fake, 1.0, count=3)
    pin = Pin(place=HALF, label="<b>bold</b> ![a](http://evil.example/c.png) :red[r]")
    page = open_page("compare", view=View(run="demo-run", pins=(pin,)), compare_section=section, session_id="me")
    if section == "Vote":
        page.button(key="compare_start").click().run()
        assert HOSTILE in component(page)["panes"][0]["completions"][0]["text"]
    assert not page.exception
    marked = [*page.markdown, *page.caption, *page.subheader, *page.title, *page.button, *page.metric, *page.expander]
    for element in marked:
        said = f"{getattr(element, 'value', '')} {getattr(element, 'label', '')}"
        assert "evil" not in said
        assert "<b>" not in said
    for heat in maps(page):
        assert not any("<" in name for name in heat["y"])


def test_an_engine_that_is_down_is_the_shells_business(open_page: OpenPage, fake: FakeEngine):
    fake.down = True
    page = open_page("compare", view=pinned(HALF))
    assert (
        "EngineUnreachableError" in page.exception[0].stack_trace[-1] or "does not answer" in page.exception[0].message
    )
