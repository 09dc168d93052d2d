"""Recipes: validation, identity, JSON."""

import json
import math

import pytest

from warp_core.errors import RecipeError
from warp_core.weights import Recipe

GOOD = {"init": "a" * 64, "policies": ("b" * 64, "c" * 64), "weights": (0.5, 0.5)}


def test_json_round_trip_keeps_the_id():
    recipe = Recipe(**GOOD, method="slerp-weights", eta=0.3, granularity="tensor", towards="d" * 64)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.id == recipe.id
    assert len(json.dumps(recipe.to_json())) < 1024


def test_the_id_is_of_the_content():
    assert Recipe(**GOOD, eta=1).id == Recipe(**GOOD, eta=1.0).id
    assert Recipe(**GOOD, eta=0.5).id != Recipe(**GOOD, eta=1.0).id
    swapped = GOOD | {"policies": ("c" * 64, "b" * 64)}
    assert Recipe(**swapped).id != Recipe(**GOOD).id


def test_the_id_does_not_change_between_versions():
    assert Recipe(init="i", policies=("p",), weights=(1.0,)).id.startswith("84b60645")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "slerp_weights"),
        ("granularity", "block"),
        ("weights", (0.5, 0.6)),
        ("weights", (1.0,)),
        ("weights", (-0.5, 1.5)),
        ("weights", (math.nan, 1.0)),
        ("weights", (True, False)),
        ("weights", (1e308, 1e308)),
        ("eta", -0.1),
        ("eta", 2.1),
        ("eta", math.inf),
        ("eta", "1"),
        ("policies", ()),
        ("init", ""),
        ("towards", ""),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(RecipeError, match=f"recipe: {field} = "):
        Recipe(**(GOOD | {field: value}))


def test_weights_may_be_off_by_rounding():
    Recipe(**(GOOD | {"weights": (0.3333333, 0.6666667)}))


def test_from_json_refuses_unknown_and_missing_fields():
    with pytest.raises(RecipeError, match="lambda"):
        Recipe.from_json({**GOOD, "lambda": 0.5})
    with pytest.raises(RecipeError, match="weights"):
        Recipe.from_json({"init": "a", "policies": ["b"]})
