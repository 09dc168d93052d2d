"""Places as text: what a link carries is the place it was made from, and nonsense is refused in a line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warp_core.errors import RecipeError
from warp_core.service.places import (
    full_weights,
    is_sft,
    parse_place,
    place_label,
    place_text,
    same_place,
    single,
)
from warp_core.service.protocol import SFT, Place

THIRDS = (1 / 3, 1 / 3, 1 / 3)


@st.composite
def places(draw: st.DrawFn) -> Place:
    shares = draw(st.lists(st.floats(0.001, 1), min_size=0, max_size=6))
    return Place(
        iteration=draw(st.integers(1, 1000)),
        method=draw(st.sampled_from(["slerp", "lerp", "slerp-weights"])),
        weights=tuple(share / math.fsum(shares) for share in shares),
        eta=draw(st.floats(0, 2)),
        towards=draw(st.sampled_from(["sft", "init"])),
    )


@given(places())
def test_a_link_gives_the_place_back(place: Place):
    text = place_text(place)
    back = parse_place(text)
    assert same_place(place, back)
    assert place_text(back) == text
    assert math.isclose(math.fsum(back.weights), 1.0, abs_tol=1e-12) or not place.weights


@given(places())
def test_a_link_needs_no_escaping(place: Place):
    assert set(place_text(place)) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(iteration=1, eta=0.3), "i1.slerp.e0.3.sft"),
        (Place(iteration=12, method="slerp-weights", eta=2), "i12.slerp-weights.e2.sft"),
        (Place(weights=(0.25, 0.75), eta=0.05, towards="init"), "i1.slerp.w0.25-0.75.e0.05.init"),
        (Place(weights=THIRDS), "i1.slerp.w0.333334-0.333333-0.333333.e1.sft"),
        (single(2, 3), "i1.lerp.w0-1-0.e1.init"),
        (SFT, "i1.slerp.e0.sft"),
    ],
)
def test_texts(place: Place, text: str):
    assert place_text(place) == text
    assert same_place(parse_place(text), place)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "i0.slerp.e0.3.sft",
        "i1.slerp.e9.sft",
        "i1.slerp.e-0.3.sft",
        "i1.slerp.e0.3.moon",
        "i1.mean.e0.3.sft",
        "i1.slerp.w.e0.3.sft",
        "i1.slerp.w0.5--0.5.e0.3.sft",
        "i1.slerp.w1e-5-1.e0.3.sft",
        "i1.slerp.w0.9-0.9.e0.3.sft",
        "i1.slerp.w0-0.e0.3.sft",
        "i1.slerp.w2.e0.3.sft",
        "i1.slerp.w" + "-".join(["0.05"] * 20) + ".e0.3.sft",
        "i1.slerp.e0.3.sft\n",
        "i\u0661.slerp.e0.3.sft",
        "<script>",
        "i1.slerp.e0.3.sft" * 1000,
    ],
)
def test_nonsense_is_refused_in_a_line(text: str):
    with pytest.raises(RecipeError, match="is no place") as caught:
        parse_place(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    assert "pydantic" not in message


def test_what_is_wrong_is_named():
    with pytest.raises(RecipeError, match=r"eta: input should be less than or equal to 2"):
        parse_place("i1.slerp.e3.sft")
    with pytest.raises(RecipeError, match=r"add up to 1\.8, not to 1"):
        parse_place("i1.slerp.w0.9-0.9.e0.3.sft")


def test_no_weights_are_equal_weights():
    assert full_weights(Place(), 4) == (0.25,) * 4
    assert full_weights(Place(weights=(0.2, 0.8)), 2) == (0.2, 0.8)
    with pytest.raises(RecipeError, match="2 weights for 3 policies"):
        full_weights(Place(weights=(0.2, 0.8)), 3)


def test_the_sft_policy_has_many_names():
    assert is_sft(SFT)
    assert is_sft(Place(iteration=3, method="lerp", eta=0, towards="sft"))
    assert is_sft(Place(iteration=1, eta=0, towards="init"))
    assert not is_sft(Place(iteration=2, eta=0, towards="init"))
    assert not is_sft(Place(iteration=1, eta=0.1))


SAME = [
    (Place(iteration=3, eta=0), SFT),
    (Place(), Place(weights=(0.5, 0.5))),
    (Place(weights=THIRDS), Place(weights=(0.333333, 0.333333, 0.333334))),
    (Place(iteration=1, eta=0.3, towards="init"), Place(iteration=1, eta=0.3, towards="sft")),
    (Place(iteration=2, eta=1, towards="init"), Place(iteration=2, eta=1, towards="sft")),
    (single(1, 2), Place(method="slerp", weights=(1.0, 0.0), eta=1, towards="sft")),
    (Place(method="slerp", weights=(0.0, 1.0), eta=0.4), Place(method="lerp", weights=(0.0, 1.0), eta=0.4)),
]
DIFFERENT = [
    (SFT, Place(iteration=2, eta=0, towards="init")),
    (Place(method="slerp"), Place(method="lerp")),
    (Place(eta=0.3), Place(eta=0.31)),
    (Place(weights=(0.5, 0.5)), Place(weights=THIRDS)),
    (Place(weights=(0.4, 0.6)), Place(weights=(0.6, 0.4))),
    (Place(iteration=2, eta=0.3, towards="init"), Place(iteration=2, eta=0.3, towards="sft")),
    (Place(iteration=1), Place(iteration=2)),
    (single(1, 2), single(2, 2)),
    (Place(weights=(0.5, 0.5)), Place(method="lerp", weights=(0.5, 0.5))),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_same_places(first: Place, second: Place):
    assert same_place(first, second)
    assert same_place(second, first)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_places(first: Place, second: Place):
    assert not same_place(first, second)
    assert not same_place(second, first)


@given(places(), places())
def test_sameness_is_mutual(first: Place, second: Place):
    assert same_place(first, first)
    assert same_place(first, second) == same_place(second, first)


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (SFT, "SFT policy"),
        (Place(iteration=2, eta=0, towards="init"), "SLERP, eta 0 to init, iteration 2"),
        (single(2, 3), "policy 2"),
        (single(2, 3, iteration=2), "policy 2, iteration 2"),
        (Place(weights=(0.0, 1.0), eta=0.5), "policy 2, eta 0.5"),
        (Place(eta=0.5), "SLERP, eta 0.5"),
        (Place(weights=THIRDS, eta=1), "SLERP, eta 1"),
        (Place(weights=(0.3, 0.7), eta=0.123456), "SLERP 0.3/0.7, eta 0.123"),
        (Place(method="lerp", weights=(1 / 3, 2 / 3)), "LERP 0.333/0.667, eta 1"),
        (Place(iteration=2, method="slerp-weights", eta=0.3), "SLERP of weights, eta 0.3 to SFT, iteration 2"),
        (Place(iteration=2, eta=1.5, towards="init"), "SLERP, eta 1.5 to init, iteration 2"),
    ],
)
def test_labels(place: Place, label: str):
    assert place_label(place) == label


def test_labels_know_the_names_of_policies():
    assert place_label(single(2, 2), policy_names=["helpful", "terse"]) == "terse"
    assert place_label(single(2, 2), policy_names=["helpful"]) == "policy 2"
