"""The moves of the attack `sessions` in a browser, and how it notices that a page stands elsewhere."""

import pytest

from hostile.session_pages import Slide, last_of_bursts, slides, unlike_its_sliders, unlike_the_move


def test_moves_have_a_fixed_seed_and_end_in_one_that_is_waited_for():
    assert slides(3, 50) == slides(3, 50) != slides(4, 50)
    plan = slides(3, 50)
    assert len(plan) == 50
    assert not plan[-1].hurried
    assert any(one.hurried for one in plan)
    assert {one.kind for one in plan} == {"eta", "lambda", "method", "keys", "drag"}


def test_the_last_of_a_burst_is_waited_for():
    plan = [Slide(kind="eta", value=0.1, hurried=hurried) for hurried in (True, True, False, False, True, False)]
    assert last_of_bursts(plan) == [2, 3, 5]


def shown(*, eta: str = "0.3", share: str = "0.25", recipe: str = "SLERP 0.75/0.25, eta 0.3"):
    return {"sliders": [eta, share], "methods": ["slerp"], "recipes": ["", recipe, ""]}


@pytest.mark.parametrize(
    ("move", "is_there"),
    [
        (Slide(kind="eta", value=0.3), True),
        (Slide(kind="eta", value=0.31), False),
        (Slide(kind="lambda", value=0.25), True),
        (Slide(kind="lambda", value=0.3), False),
        (Slide(kind="method", value=0.7), True),
        (Slide(kind="method", value=0.2), False),
        (Slide(kind="drag", value=0.31), True),
        (Slide(kind="drag", value=0.4), False),
        (Slide(kind="keys", value=0.3), False),
    ],
)
def test_a_slider_that_is_elsewhere_is_noticed(move, is_there):
    assert (unlike_the_move(move, shown()) == "") is is_there


def test_an_address_or_a_pane_of_another_position_is_noticed():
    url = "http://127.0.0.1:1/?run=one&at=i1.slerp.w0.75-0.25.e0.3.sft"
    assert unlike_its_sliders(url, shown()) == ""
    assert "the sliders at" in unlike_its_sliders(url, shown(eta="0.4"))
    assert "the sliders at" in unlike_its_sliders(url, shown(share="0.5"))
    assert "the merge is called" in unlike_its_sliders(url, shown(recipe="SLERP, eta 0.3"))
    assert "is no place" in unlike_its_sliders("http://127.0.0.1:1/?run=one", shown())
