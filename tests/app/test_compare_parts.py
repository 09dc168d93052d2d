"""What the Compare page computes: aligned rows, chips, slices, the order of ballots, judges, files. Hand-worked."""

import csv
import io
from collections import Counter

import pytest

from app.compare.files import completions_csv, votes_csv
from app.compare.judges import (
    Grading,
    Judge,
    agreement_with,
    from_report,
    judge_names,
    judgements_of,
    stored,
    thresholds,
)
from app.compare.models import CompareModel, compared, default_evaluation, measured_places, point_at, unlike
from app.compare.rows import Chip, Pair, Row, Slice, Sort, aligned, chosen, shown_text, slices, sort_rows, summary
from app.compare.votes import VoteIndex
from app.compare.voting import GRADES, ballots, next_ballot, progress, vote_of
from app.view import Pin
from warp_core.evaluation.preferences import SCALE, preference
from warp_core.service.documents import EvaluationNote, FrontDocument, FrontPoint, JudgeReport, Metric, SampleRow
from warp_core.service.protocol import SFT, Place, Vote

HALF, FULL = Place(eta=0.5), Place(eta=1.0)
AB = Pair(model="B", reference="A")


def cell(prompt: str, text: str, *, reward: float = 0.0, kl: float = 1.0, tokens: int = 5, **parts: float) -> SampleRow:
    return SampleRow(prompt=prompt, completion=text, reward=reward, rewards=parts, kl=kl, num_tokens=tokens)


def point(place: Place, key: str, *, evaluation: str = "e") -> FrontPoint:
    return FrontPoint(
        key=key, kind="merge", label=key, place=place, evaluation=evaluation, metrics={"reward": Metric(mean=1.0)}
    )


def front(*points: FrontPoint, default: str | None = "e") -> FrontDocument:
    notes = [
        EvaluationNote(id=name, label=name, is_default=name == default)
        for name in sorted({p.evaluation for p in points} | ({default} if default else set()))
    ]
    return FrontDocument(revision="1", points=points, evaluations=tuple(notes))


MODELS = compared(
    front(point(SFT, "a"), point(HALF, "b"), point(FULL, "c")), [Pin(place=HALF), Pin(place=FULL, label="end")], "e"
)
# Two prompts, two completions each; rewards and lengths of A, B, C by row.
ROWS = aligned(
    {
        "A": [
            cell("p", "a1", reward=0.0),
            cell("p", "a2", reward=1.0),
            cell("q q", "a3", reward=2.0, tokens=9),
            cell("q q", "a4", reward=3.0),
        ],
        "B": [
            cell("p", "b1", reward=1.0, kl=4.0),
            cell("p", "b2", reward=0.5),
            cell("q q", "b3", reward=2.0),
            cell("q q", "b4 Fox", reward=7.0, tokens=8),
        ],
        "C": [
            cell("p", "c1", reward=2.0),
            cell("p", "b2", reward=2.0),
            cell("q q", "c3", reward=3.0),
            cell("q q", "c4", reward=4.0),
        ],
    }
)


def vote(first: Place, second: Place, prompt: str, texts: tuple[str, str], score: float) -> Vote:
    return Vote(
        session="s", prompt=prompt, first=first, second=second, first_text=texts[0], second_text=texts[1], score=score
    )


def index(*votes: Vote) -> VoteIndex:
    return VoteIndex(votes, MODELS)


def only(*chips: Chip, votes: VoteIndex | None = None, text: str = "", judge: float = 1.0) -> list[int]:
    found = chosen(ROWS, pair=AB, chips=chips, votes=votes or index(), judge=lambda row: judge, text=text)
    return [row.number for row in found]


def test_the_sft_policy_stands_first_and_every_model_once():
    pins = [
        Pin(place=HALF),
        Pin(place=Place(eta=0.5, weights=(0.5, 0.5))),
        Pin(place=SFT),
        Pin(place=Place(eta=0.7), label="x"),
    ]
    found = compared(front(point(SFT, "a"), point(HALF, "b")), pins, "e")
    assert [(m.name, m.point and m.point.key) for m in found] == [
        ("A: SFT policy", "a"),
        ("B: SLERP, eta 0.5", "b"),
        ("C: x", None),
    ]


def test_only_points_measured_alike_count():
    document = front(point(HALF, "b", evaluation="other"), point(FULL, "c"), point(SFT, "a"))
    assert point_at(document, HALF, "e") is None
    assert measured_places(document, "e") == [FULL]
    assert measured_places(document, "other") == [HALF]
    assert default_evaluation(document) == "e"
    assert default_evaluation(front(point(HALF, "b", evaluation="x"), default=None)) == "x"
    assert default_evaluation(FrontDocument(revision="0", points=(), evaluations=())) is None


def test_choices_are_told_apart():
    assert unlike(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_rows_belong_together_by_prompt_and_count():
    rows = aligned(
        {
            "A": [cell("p", "a1"), cell("q", "a2"), cell("p", "a3"), cell("only A", "a4")],
            "B": [cell("q", "b1"), cell("p", "b2"), cell("p", "b3"), cell("p", "b4")],
        }
    )
    assert [(r.number, r.prompt, r.sample, r.cells["A"].completion, r.cells["B"].completion) for r in rows] == [
        (0, "p", 1, "a1", "b2"),
        (1, "q", 1, "a2", "b1"),
        (2, "p", 2, "a3", "b3"),
    ]
    assert [r.index for r in rows] == [{"A": 0, "B": 1}, {"A": 1, "B": 0}, {"A": 2, "B": 2}]
    assert aligned({}) == []


def test_chips_of_one_kind_are_alternatives_and_kinds_have_to_hold_together():
    assert only() == [0, 1, 2, 3]
    assert only(Chip.HIGHER) == [0, 3]
    assert only(Chip.LOWER) == [1]
    assert only(Chip.HIGHER, Chip.LOWER) == [0, 1, 3]
    assert only(Chip.LONGER) == [3]
    assert only(Chip.SHORTER) == [2]
    assert only(Chip.HIGHER, Chip.SHORTER) == []
    assert only(Chip.HIGHER, Chip.LONGER) == [3]


def test_chips_about_votes_look_at_both_texts_in_either_order():
    votes = index(vote(SFT, HALF, "p", ("a1", "b1"), 1.0), vote(HALF, SFT, "q q", ("b4 Fox", "a4"), 0.5))
    assert only(Chip.VOTED, votes=votes) == [0, 3]
    assert only(Chip.UNVOTED, votes=votes) == [1, 2]
    assert only(Chip.DISAGREE, votes=votes) == [0]
    assert only(Chip.DISAGREE, votes=votes, judge=-1.0) == [3]
    assert only(Chip.DISAGREE, votes=votes, judge=0.0) == []
    assert AB.vote(ROWS[0], votes) == -1.0
    assert AB.vote(ROWS[1], votes) is None
    elsewhere = index(vote(SFT, HALF, "p", ("another text", "b1"), 1.0))
    assert only(Chip.VOTED, votes=elsewhere) == []


def test_the_text_is_looked_for_everywhere_whatever_its_case():
    assert only(text=" fox ") == [3]
    assert only(text="C1") == [0]
    assert only(text="q q") == [2, 3]
    assert only(Chip.LOWER, text="fox") == []


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.PROMPTS, [0, 1, 2, 3]),
        (Sort.GAIN, [3, 0, 2, 1]),
        (Sort.LOSS, [1, 2, 0, 3]),
        (Sort.LONGER, [3, 0, 1, 2]),
        (Sort.KL, [0, 1, 2, 3]),
    ],
)
def test_orders(sort: Sort, order: list[int]):
    assert [row.number for row in sort_rows(ROWS, sort=sort, pair=AB)] == order


def test_slices_are_thirds_by_what_the_model_did_not_do():
    rewards = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    rows = aligned(
        {
            "A": [cell("one two", f"{i}", reward=reward, tokens=i) for i, reward in enumerate(rewards)],
            "B": [cell("one two", f"{i}", reward=9.0, tokens=99) for i in range(6)],
        }
    )
    found = {part.name: [row.number for row in part.rows] for part in slices(rows, pair=AB)}
    assert found == {
        "Reference reward: low": [0, 1, 2],
        "Reference reward: middle": [3],
        "Reference reward: high": [4, 5],
        "Reference length: short": [0, 1],
        "Reference length: middle": [2, 3],
        "Reference length: long": [4, 5],
    }
    assert slices([], pair=AB) == []


def test_the_summary_of_a_slice():
    votes = index(vote(HALF, SFT, "p", ("b1", "a1"), 1.5), vote(HALF, SFT, "p", ("b1", "a1"), 0.5))
    found = summary(Slice(name="all", rows=tuple(ROWS)), pair=AB, votes=votes)
    # gains 1, -.5 | 0, 4: mean 1.125; residual sums -1.75 and 1.75 over 4, se^2 = 2 (.4375^2 + .4375^2)
    assert (found.num_rows, found.gain.mean, found.share_higher, found.vote) == (4, 1.125, 0.5, 1.0)
    assert found.gain.se == pytest.approx((4 * 0.4375**2) ** 0.5)


def test_the_space_before_a_completion_is_not_shown():
    assert [shown_text(text) for text in (" a b", "a", "\n a")] == ["a b", "a", "\n a"]


def test_votes_on_other_models_are_counted_apart():
    votes = index(
        vote(SFT, FULL, "p", ("x", "y"), -0.5),
        vote(SFT, Place(eta=0.9), "p", ("x", "y"), 1.0),
        vote(SFT, SFT, "p", ("x", "y"), 1.0),
    )
    assert votes.num_others == 2
    found = preference(votes.judgements, "C", "A")
    assert found is not None
    assert found.score == 0.5


def test_the_scale_of_the_buttons_is_the_papers():
    assert tuple(grade.score for grade in GRADES) == SCALE
    assert [grade.key for grade in GRADES] == list("1234567")


def all_pairs() -> list[tuple[CompareModel, CompareModel]]:
    return [(MODELS[0], MODELS[1]), (MODELS[0], MODELS[2]), (MODELS[1], MODELS[2])]


def test_ballots_leave_equal_texts_out_and_keep_their_order_for_a_seed():
    found, num_equal = ballots(ROWS, all_pairs(), seed="s")
    assert (len(found), num_equal) == (11, 1)  # b2 is what both B and C wrote
    assert [b.id for b in ballots(ROWS, all_pairs(), seed="s")[0]] == [b.id for b in found]
    assert [b.id for b in ballots(ROWS, all_pairs(), seed="t")[0]] != [b.id for b in found]
    fewer, _ = ballots(ROWS, all_pairs()[:1], seed="s")
    assert [b.id for b in fewer] == [b.id for b in found if {b.left.letter, b.right.letter} == {"A", "B"}]
    assert [(b.left, b.right) for b in fewer] == [
        (b.left, b.right) for b in found if {b.left.letter, b.right.letter} == {"A", "B"}
    ]


def test_each_side_gets_each_model_about_as_often():
    rows = aligned({letter: [cell(f"p{i}", f"{letter}{i}") for i in range(400)] for letter in "AB"})
    found, _ = ballots(rows, all_pairs()[:1], seed="s")
    assert 160 < Counter(ballot.left.letter for ballot in found)["A"] < 240
    first_quarter = {ballot.row.number for ballot in found[:100]}
    assert 20 < len(first_quarter & set(range(200))) < 80


def test_a_walk_through_the_ballots():
    found, _ = ballots(ROWS, all_pairs(), seed="s")
    cast: list[Vote] = []
    skipped: list[str] = []
    first = next_ballot(found, index(), skipped=skipped)
    assert first == found[0]
    cast.append(vote_of(first, GRADES[1], session="me"))
    assert (cast[0].first, cast[0].first_text, cast[0].score) == (first.left.place, first.texts[0], 1.0)
    assert (cast[0].blind, cast[0].source, cast[0].session) == (True, "compare", "me")
    skipped += [found[1].id, found[2].id]
    assert next_ballot(found, index(*cast), skipped=skipped) == found[3]
    now = progress(found, index(*cast), skipped=skipped)
    assert (now.voted, now.skipped, now.total) == (1, 2, 11)
    cast += [vote_of(ballot, GRADES[3], session="me") for ballot in found[3:]]
    assert next_ballot(found, index(*cast), skipped=skipped) == found[1]
    assert next_ballot(found, index(*cast), skipped=skipped[::-1]) == found[2]
    cast += [vote_of(ballot, GRADES[6], session="me") for ballot in found[1:3]]
    assert next_ballot(found, index(*cast), skipped=skipped) is None
    assert progress(found, index(*cast), skipped=skipped).skipped == 0


def test_stored_judges_are_the_reward_and_its_parts():
    rows = aligned({letter: [cell("p", letter, reward=ord(letter), sentiment=1.0, length=-2.0)] for letter in "AB"})
    assert judge_names(rows) == ["Stored reward", "length", "sentiment"]
    assert judge_names(ROWS) == ["Stored reward"]
    assert judge_names([]) == ["Stored reward"]
    assert stored(rows, MODELS[:2], "length").scores == {"A": [-2.0], "B": [-2.0]}
    judge = stored(ROWS, MODELS, "Stored reward")
    assert judge.scores["B"] == [1.0, 0.5, 2.0, 7.0]
    assert judge.gain(ROWS[3], AB) == 4.0


def test_a_report_is_read_in_the_order_of_its_samples():
    rows = aligned({"A": [cell("p", "a"), cell("q", "a")], "B": [cell("q", "b"), cell("p", "b")]})
    report = JudgeReport(judge="other", scores={"a": (1.0, 2.0), "b": (3.0, 4.0)})
    judge = from_report(rows, MODELS[:2], report)
    assert judge is not None
    assert judge.scores == {"A": [1.0, 2.0], "B": [4.0, 3.0]}
    assert from_report(rows, MODELS, report) is None


def test_grades_by_quarters_and_by_sign():
    judge = Judge(name="j", scores={"A": [0.0, 0.0, 0.0, 0.0], "B": [1.0, -2.0, 3.0, 4.0]})
    limits = thresholds(judge, Grading.QUARTERS)
    assert limits == (1.75, 2.5, 3.25)
    found = preference(judgements_of(judge, ROWS, limits), "B", "A")
    assert found is not None
    assert (found.score, found.wins, found.ties, found.losses) == (0.5, 2, 1, 1)  # 0, -.5, 1, 1.5
    assert thresholds(judge, Grading.SIGN) is None
    by_sign = preference(judgements_of(judge, ROWS, None), "B", "A")
    assert by_sign is not None
    assert by_sign.score == 0.5


def test_agreement_takes_the_votes_on_these_texts():
    judge = stored(ROWS, MODELS[:2], "Stored reward")  # gains of B: 1, -.5, 0, 4
    votes = index(
        vote(HALF, SFT, "p", ("b1", "a1"), 1.0),
        vote(SFT, HALF, "p", ("a2", "b2"), -1.5),
        vote(SFT, HALF, "q q", ("a4", "b4 Fox"), -0.5),
        vote(HALF, SFT, "q q", ("something else", "a4"), -1.5),
    )
    found = agreement_with(judge, ROWS, votes, None)
    assert (found.n, found.num_decided) == (3, 3)
    assert found.share == pytest.approx(2 / 3)
    assert agreement_with(judge, ROWS, index(), None).n == 0


def read(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_completions_as_csv():
    rows: list[Row] = aligned(
        {
            "A": [cell("p\n,", 'say "x"', reward=0.1, sentiment=0.5)],
            "B": [cell("p\n,", "=1+1", reward=-2.0, kl=0.25, tokens=3)],
        }
    )
    assert read(completions_csv(rows, MODELS[:2])) == [
        ["prompt", "sample", "model", "place", "completion", "reward", "reward:sentiment", "kl_nats", "num_tokens"],
        ["p\n,", "1", "SFT policy", "i1.slerp.e0.sft", 'say "x"', "0.1", "0.5", "1.0", "5"],
        ["p\n,", "1", "SLERP, eta 0.5", "i1.slerp.e0.5.sft", "=1+1", "-2.0", "", "0.25", "3"],
    ]


def test_votes_as_csv():
    cast = vote(SFT, HALF, "p", ("a", "b"), -0.5).model_copy(update={"time": 86400.0, "blind": True})
    head, line = read(votes_csv([cast]))
    named = dict(zip(head, line, strict=True))
    assert named["time"] == "1970-01-02T00:00:00+00:00"
    assert (named["score"], named["blind"], named["source"]) == ("-0.5", "1", "side-by-side")
    assert (named["first"], named["second_place"], named["second_text"]) == ("SFT policy", "i1.slerp.e0.5.sft", "b")
