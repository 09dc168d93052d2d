"""Votes beside the texts: seven answers, blind, undo, and the scores over all votes."""

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.explore.blind import order_of
from app.explore.state import Desk
from app.explore.votes import Pair, pairs_of, score_words, summary
from app.view import View
from tests.app.conftest import OpenPage
from tests.app.explore_tools import data_of, field, has, release, view_of, words_of
from warp_core.evaluation.preferences import SCALE
from warp_core.service import protocol as p
from warp_core.service.fake import FakeEngine

DEMO = p.Selection(run="demo-run")
PLACE = p.Place(iteration=1, eta=0.42)


@pytest.fixture
def page(open_page: OpenPage, fake: FakeEngine) -> AppTest:
    """The page with complete texts."""
    opened = open_page("explore", view=View(run="demo-run", place=PLACE))
    fake.advance(60)
    return opened.run()


def ballot(page: AppTest, number: int):
    """The answers of the first or second pair."""
    return next(one for one in page.segmented_control if (one.key or "").startswith(f"vote-{number}-"))


def answer(page: AppTest, number: int, score: float) -> AppTest:
    """Choose one of the seven answers."""
    return ballot(page, number).set_value(score).run()


def blind(page: AppTest, fake: FakeEngine) -> AppTest:
    """Switch blind voting on and wait for the new texts."""
    page.toggle(key="explore_blind").set_value(True).run()
    fake.advance(60)
    return page.run()


def panes_of(page: AppTest) -> list[dict]:
    return data_of(page, "panes")["panes"]


class TestVoting:
    def test_seven_answers_for_each_pair(self, page):
        assert ballot(page, 0).options == [score_words(score, "Left", "Merge") for score in SCALE]
        assert ballot(page, 1).options[0] == "Merge much better"
        assert ballot(page, 1).options[3] == "Tie"
        assert ballot(page, 1).options[6] == "Right much better"

    def test_a_vote_carries_places_and_texts(self, page, fake):
        answer(page, 0, -1.5)
        vote = fake.votes(DEMO)[0]
        left, current, _ = (pane["completions"][0]["text"] for pane in panes_of(page))
        assert (vote.first, vote.second, vote.score, vote.blind) == (p.Place(eta=0.0), PLACE, -1.5, False)
        assert (vote.first_text.strip(), vote.second_text.strip()) == (left, current)
        assert vote.prompt == field(page.text_area, "explore_prompt").value
        assert vote.source == "side-by-side"
        assert "Your vote: Merge much better." in words_of(page)

    def test_undo(self, page, fake):
        answer(page, 1, 0.5)
        assert len(fake.votes(DEMO)) == 1
        page.button(key="undo-1").click().run()
        assert fake.votes(DEMO) == []
        assert ballot(page, 1).value is None

    def test_undo_of_the_latest_vote_when_its_texts_are_gone(self, page, fake):
        answer(page, 0, 1.0)
        answer(page, 1, 0.5)
        page.button(key="regenerate").click().run()
        page.button(key="undo-latest").click().run()
        assert [vote.score for vote in fake.votes(DEMO)] == [1.0]
        page.button(key="undo-latest").click().run()
        assert fake.votes(DEMO) == []
        assert not has(page, "undo-latest")

    def test_texts_that_are_being_written_cannot_be_voted_on(self, page, fake):
        page.button(key="regenerate").click().run()
        assert ballot(page, 0).disabled
        fake.advance(60)
        page.run()
        assert not ballot(page, 0).disabled

    def test_new_texts_have_votes_of_their_own(self, page, fake):
        answer(page, 0, 1.0)
        page.button(key="regenerate").click().run()
        fake.advance(60)
        page.run()
        answer(page, 0, 0.0)
        assert [vote.score for vote in fake.votes(DEMO)] == [1.0, 0.0]

    def test_one_model_twice_is_nothing_to_choose_between(self, open_page, fake):
        page = open_page("explore", view=View(run="demo-run", place=p.Place(eta=1.0)))
        fake.advance(60)
        page.run()
        assert "Both are the same model." in words_of(page)
        assert not any((one.key or "").startswith("vote-1-") for one in page.segmented_control)

    def test_each_completion_has_its_vote(self, page, fake):
        page.number_input(key="explore_count").set_value(2).run()
        fake.advance(60)
        page.run()
        answer(page, 0, 1.0)
        page.segmented_control(key="explore_completion").set_value(1).run()
        answer(page, 0, -1.0)
        texts = [vote.first_text for vote in fake.votes(DEMO)]
        assert texts[0] != texts[1]
        assert texts[1].strip() == panes_of(page)[0]["completions"][1]["text"]


class TestBlind:
    def test_panes_are_letters_without_anything_that_tells(self, page, fake):
        blind(page, fake)
        panes = panes_of(page)
        assert [pane["title"] for pane in panes] == ["Model A", "Model B", "Model C"]
        assert all(pane["recipe"] == "" and pane["share"] is None and not pane["is_current"] for pane in panes)
        assert all(pane["completions"][0]["facts"] == [] for pane in panes)
        assert data_of(page, "panes")["position"] is None
        assert "Model A or Model B?" in words_of(page)

    def test_blind_texts_are_new_ones(self, page, fake):
        seen = panes_of(page)[0]["completions"][0]["text"]
        blind(page, fake)
        assert view_of(page).seed == 1
        assert all(pane["completions"][0]["text"] != seen for pane in panes_of(page))

    def test_no_text_stays_while_the_others_come(self, page, fake):
        blind(page, fake)
        release(page, p.Place(eta=0.9))
        fake.advance(2)
        page.run()
        assert not any(pane["completions"][0]["done"] for pane in panes_of(page) if pane["completions"])

    def test_names_appear_when_all_pairs_have_a_vote(self, page, fake):
        blind(page, fake)
        hidden = [pane["completions"][0]["text"] for pane in panes_of(page)]
        answer(page, 0, 0.5)
        assert panes_of(page)[0]["title"] == "Model A"
        assert len(page.dataframe) == 0, "the scores would tell the names"
        answer(page, 1, 0.0)
        assert [pane["title"] for pane in panes_of(page)] == ["SFT policy", "Current merge", "Other end, eta 1"]
        first, second = fake.votes(DEMO)
        assert first.blind
        assert second.blind
        assert (first.first_text.strip(), first.second_text.strip()) == (hidden[0], hidden[1])
        shown = {pane["title"]: pane["completions"][0]["text"] for pane in panes_of(page)}
        names = {0.0: "SFT policy", 0.42: "Current merge", 1.0: "Other end, eta 1"}
        assert shown[names[first.first.eta]] == hidden[0]

    def test_reveal_without_votes(self, page, fake):
        blind(page, fake)
        page.button(key="reveal").click().run()
        assert panes_of(page)[0]["title"] == "SFT policy"
        assert not has(page, "reveal")

    def test_switching_it_off_reveals(self, page, fake):
        blind(page, fake)
        page.toggle(key="explore_blind").set_value(False).run()
        assert panes_of(page)[0]["title"] == "SFT policy"
        answer(page, 0, 1.0)
        assert not fake.votes(DEMO)[0].blind

    def test_the_order_is_random_from_text_to_text_and_fixed_for_one(self, page, fake):
        blind(page, fake)
        preview = page.session_state["explore_shown"]
        from dataclasses import replace

        orders = {order_of(replace(preview, job_id=f"job-{number}")) for number in range(60)}
        assert len(orders) == 6
        assert len({order_of(preview) for _ in range(5)}) == 1
        assert order_of(replace(preview, blind=False)) == (0, 1, 2)

    def test_pairs_name_neighbours(self, page, fake):
        blind(page, fake)
        preview = page.session_state["explore_shown"]
        order = order_of(preview)
        pairs = pairs_of(preview, completion=0, is_hidden=True)
        assert [(pair.first, pair.second) for pair in pairs] == [order[:2], order[1:]]
        shown = pairs_of(preview, completion=0, is_hidden=False)
        names = ("Left", "Merge", "Right")
        assert [pair.first_name for pair in shown] == [names[order[0]], names[order[1]]]


def vote(first: p.Place, second: p.Place, score: float, prompt: str = "q") -> p.Vote:
    return p.Vote(session="s", prompt=prompt, first=first, second=second, first_text="", second_text="", score=score)


class TestSummary:
    def test_is_per_pair_of_models_in_either_order(self):
        sft, other = p.SFT, p.Place(eta=0.9)
        votes = [
            vote(sft, PLACE, -1.0, "a"),
            vote(PLACE, sft, 0.5, "b"),
            vote(p.Place(weights=(1 / 3,) * 3, eta=0.42, towards="init"), p.Place(iteration=1, eta=0.0), 1.5, "c"),
            vote(PLACE, other, 0.0),
        ]
        rows = summary(votes, 3)
        assert [(first.eta, second.eta, result.n) for first, second, result in rows] == [(0.0, 0.42, 3), (0.42, 0.9, 1)]
        assert rows[0][2].score == pytest.approx(-1.0)
        assert (rows[0][2].wins, rows[0][2].ties, rows[0][2].losses) == (0, 0, 3)
        assert rows[0][2].low <= -1.0 <= rows[0][2].high
        assert rows[1][2].low is None

    def test_a_model_against_itself_does_not_count(self):
        assert summary([vote(PLACE, PLACE, 1.0)], 3) == []

    def test_is_a_table_on_the_page(self, page, fake):
        assert "No votes yet on these models" in words_of(page)
        answer(page, 0, -1.0)
        answer(page, 1, 0.0)
        table = page.dataframe[0].value
        assert list(table["First"]) == ["SFT policy", "SLERP, eta 0.42"]
        assert list(table["Score"]) == [-1.0, 0.0]
        assert list(table["95 % interval"]) == ["needs more prompts"] * 2
        assert list(table["First / tie / second"]) == ["0 / 0 / 1", "0 / 1 / 0"]

    def test_counts_votes_of_all_sessions(self, page, fake):
        for index in range(9):
            fake.vote(DEMO, vote(p.SFT, PLACE, (-1.0, -0.5, 0.5)[index % 3], f"prompt {index}"))
        page.run()
        table = page.dataframe[0].value
        assert list(table["Votes"]) == [9]
        assert " to " in table["95 % interval"][0]

    def test_words(self):
        assert [score_words(score, "A", "B") for score in (1.5, 0.5, 0.0, -1.0)] == [
            "A much better",
            "A slightly better",
            "Tie",
            "B better",
        ]


def test_what_streamlit_keeps_of_a_control_is_small(page, monkeypatch):
    """It keeps the arguments of every control that a session has ever drawn."""
    kept = []
    draw = st.segmented_control
    monkeypatch.setattr(st, "segmented_control", lambda *a, **kw: kept.extend(kw.get("args", ())) or draw(*a, **kw))
    page.run()
    assert any(isinstance(one, Pair) for one in kept)
    assert not any(isinstance(one, Desk) for one in kept)
