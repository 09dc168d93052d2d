"""The pilot's mathematics in JavaScript against the engine's in Python, on random geometries."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from app.components import lines
from app.components.pilot import pilot_script
from warp_core.errors import GeometryError
from warp_core.evaluation import series
from warp_core.evaluation.prediction import FittedSurface, predict, squared_distances
from warp_core.service.places import same_place
from warp_core.service.protocol import Place
from warp_core.weights import Geometry, LayerInfo, Recipe, coefficients

LAYERS = 4
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def run(page: Page, script: str, data: Any) -> Any:
    """Evaluate the body of a function of `data` after the pilot's pure scripts."""
    return page.evaluate(f"(data) => {{ {pilot_script('../axes', 'maths', 'format', 'points')}\n{script} }}", data)


def random_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Task vectors [L, count, 12] of different lengths, correlated; some zero, some parallel."""
    common = rng.normal(size=(LAYERS, 1, 12))
    vectors = rng.normal(size=(LAYERS, count, 12)) + rng.uniform(0, 2) * common
    vectors *= rng.uniform(0.1, 3.0, size=(LAYERS, count, 1))
    if count > 1:
        vectors[0, 1] = 2.5 * vectors[0, 0]
        vectors[1, rng.integers(count)] = 0.0
    return vectors


def random_weights(rng: np.random.Generator, count: int) -> list[float]:
    weights = rng.dirichlet(np.ones(count))
    if count > 2:
        weights[rng.integers(count)] = 0.0
    return (weights / weights.sum()).tolist()


def random_case(seed: int) -> dict[str, Any]:
    """A geometry document's fields with a place on it."""
    rng = np.random.default_rng(seed)
    count = 1 + seed % 5
    has_sft = bool(rng.integers(2))
    vectors = random_vectors(rng, count + has_sft)
    gram = np.einsum("lkd,lmd->lkm", vectors, vectors)
    return {
        "geometry": {
            "iteration": 1 + has_sft,
            "layers": [f"layer {layer}" for layer in range(LAYERS)],
            "num_params": [int(n) for n in rng.integers(1, 1000, size=LAYERS)],
            "has_sft_column": has_sft,
            "gram_LKK": gram.tolist(),
        },
        "count": count,
        "method": ("slerp", "lerp")[seed % 2] if seed < 20 else "slerp",
        "weights": random_weights(rng, count),
        "eta": float(rng.choice([0.0, 1.0, rng.uniform(0, 2)])),
        "towards": "sft" if has_sft and rng.integers(2) else "init",
    }


def expected_coefficients(case: dict[str, Any]) -> np.ndarray:
    """c_LK as the engine finds it."""
    gram = np.asarray(case["geometry"]["gram_LKK"])
    count, policies = case["count"], tuple(f"p{m}" for m in range(case["count"]))
    inner = np.zeros((LAYERS, count + 1, count + 1))
    inner[:, 1:, 1:] = gram[:, :count, :count]
    geometry = Geometry(
        init="i",
        policies=policies,
        granularity="layer",
        layers=tuple(LayerInfo(name=name, num_params=1) for name in case["geometry"]["layers"]),
        gram_LNN=inner,
    )
    recipe = Recipe(
        init="i",
        policies=policies,
        method=case["method"],
        weights=tuple(case["weights"]),
        eta=case["eta"],
        towards="sft" if case["towards"] == "sft" else None,
    )
    found = coefficients(recipe, geometry)
    if not case["geometry"]["has_sft_column"]:
        return found.coef_LM
    return np.concatenate([found.coef_LM, found.towards_L[:, None]], axis=1)


COEFFICIENTS = """
  return data.map((each) => {
    const geometry = prepareGeometry(each.geometry);
    const line = makeLine(geometry, each.method, each.weights, each.towards);
    return line.opposite !== undefined ? line.opposite : [...coefficientsAt(line, each.eta)];
  });
"""


def test_coefficients_are_those_of_the_engine(blank: Page):
    cases = [random_case(seed) for seed in range(60)]
    for case, found in zip(cases, run(blank, COEFFICIENTS, cases), strict=True):
        expected = expected_coefficients(case)
        assert np.abs(np.asarray(found).reshape(expected.shape) - expected).max() < TOLERANCE, case


def test_a_slerp_of_opposite_vectors_names_the_layer(blank: Page):
    case = random_case(1) | {"method": "slerp", "weights": [0.5, 0.5], "count": 2}
    gram = np.tile(np.eye(2), (LAYERS, 1, 1))
    gram[2] = [[1.0, -2.0], [-2.0, 4.0]]
    case["geometry"] |= {"gram_LKK": gram.tolist(), "has_sft_column": False}
    assert run(blank, COEFFICIENTS, [case, case | {"method": "lerp"}])[0] == "layer 2"
    assert run(blank, COEFFICIENTS, [case | {"method": "lerp", "eta": 1.0}])[0] == [0.5] * (2 * LAYERS)
    with pytest.raises(GeometryError, match="layer 2"):
        expected_coefficients(case | {"towards": "init"})


def test_equation_26_on_three_orthonormal_vectors(blank: Page):
    found = run(blank, "return [...slerpCoefficients(data, [1/3, 1/3, 1/3])];", np.eye(3).tolist())
    assert found == pytest.approx([0.6123724, 0.6123724, 0.5], abs=1e-7)


def random_surface(seed: int) -> dict[str, Any]:
    """A case with a prediction document of random numbers, through 9 random models and the model of the case."""
    rng = np.random.default_rng(1000 + seed)
    case = random_case(seed)
    shape = (LAYERS, len(case["geometry"]["gram_LKK"][0]))
    points = rng.uniform(0, 1, size=(10, *shape))
    points[0] = expected_coefficients(case)
    sft = np.zeros(shape)
    if case["geometry"]["has_sft_column"]:
        sft[:, -1] = 1.0
    surface = {
        "beta": rng.normal(size=3).tolist(),
        "alpha": rng.normal(size=10).tolist(),
        "lengthscale": float(rng.uniform(0.1, 3)),
    }
    prediction = {
        "scale": float(rng.uniform(0.5, 50)),
        "sft_LK": sft.tolist(),
        "points_PLK": points.tolist(),
        "surfaces": {"reward": surface},
    }
    return case | {"prediction": prediction}


def test_predictions_are_those_of_the_engine(blank: Page):
    cases = [random_surface(seed) for seed in range(60)]
    script = """
      return data.map((each) => {
        const geometry = prepareGeometry(each.geometry);
        const surface = makeSurface(geometry, each.prediction);
        const line = makeLine(geometry, each.method, each.weights, each.towards);
        const quadratics = lineDistances(surface, line);
        const here = coefficientsAt(line, each.eta);
        const distances = surface.anchors.map((anchor) => squaredDistance(geometry, here, anchor) / surface.scale);
        return { distances, value: predictAt(surface, quadratics, each.eta, "reward") };
      });
    """
    for case, found in zip(cases, run(blank, script, cases), strict=True):
        prediction, gram = case["prediction"], np.asarray(case["geometry"]["gram_LKK"])
        here = expected_coefficients(case)[None]
        anchors = np.asarray([*prediction["points_PLK"], prediction["sft_LK"]])
        d2 = squared_distances(here, anchors, gram, scale=prediction["scale"])
        assert np.abs(np.asarray(found["distances"]) - d2[0]).max() < TOLERANCE * max(1.0, d2.max())
        surface = prediction["surfaces"]["reward"]
        fitted = FittedSurface(
            beta=tuple(surface["beta"]),
            alpha_P=np.asarray(surface["alpha"]),
            lengthscale=surface["lengthscale"],
            loo_rmse=None,
        )
        expected = float(predict(fitted, d2[:, :-1], np.sqrt(d2[:, -1]))[0])
        # sqrt near zero turns the rounding of a distance, 1e-16, into 1e-8 of u.
        slack = TOLERANCE if d2[0, -1] > 1e-9 else 1e-6
        assert abs(found["value"] - expected) < slack * max(1.0, abs(expected)), case


def test_shares_are_means_over_layers_weighted_by_parameters(blank: Page):
    geometry = {
        "iteration": 1,
        "layers": ["a", "b"],
        "num_params": [100, 300],
        "has_sft_column": False,
        "gram_LKK": [np.eye(2).tolist(), [[1.0, 1.0], [1.0, 1.0]]],
    }
    script = """
      const geometry = prepareGeometry(data);
      return policyShares(geometry, makeLine(geometry, "slerp", [0.5, 0.5], "sft"));
    """
    half = math.sqrt(0.5)
    for share in run(blank, script, geometry):
        assert share["mean"] == pytest.approx(0.25 * half + 0.75 * 0.5)
        assert (share["least"], share["most"]) == pytest.approx((0.5, half))


def test_numbers_are_written_as_everywhere_else(blank: Page):
    values = [0.0, 0.1, 1.2345, 12.345, 123.4, 0.0123, 0.00056, -0.146, -0.0004, 4.88, 1234.6, 0.99951]
    errors = [None, 0.0, 0.11, 0.0098, 1.3, 0.5]
    pairs = [[value, error] for value in values for error in errors]
    found = run(blank, "return data.map(([mean, error]) => formatWithError(mean, error));", pairs)
    for (value, error), text in zip(pairs, found, strict=True):
        expected = series.with_error(value, error, sign="+-") if error else series.number(value)
        assert text == expected.replace("-", "\u2212").replace("+\u2212", "\u00b1"), (value, error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        (" ,25 ", 0.25),
        ("1e-2", 0.01),
        ("-1", -1.0),
        ("", None),
        ("half", None),
        ("1.2.3", None),
        ("0x1", None),
    ],
)
def test_typed_numbers_are_read_strictly(blank: Page, text: str, value: float | None):
    assert run(blank, "const v = parseNumber(data); return Number.isNaN(v) ? null : v;", text) == value


def test_ticks_are_round_and_inside(blank: Page):
    ranges = [[-0.3, 25.1], [0, 0.031], [3, 3.4]]
    found = run(blank, "return data.map(([low, high]) => niceTicks(low, high, 6));", ranges)
    assert found[0] == {"values": [0, 5, 10, 15, 20, 25], "decimals": 0}
    assert found[1]["values"] == pytest.approx([0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03])
    assert (found[1]["decimals"], found[2]["decimals"]) == (3, 2)


def test_ticks_of_a_span_that_is_next_to_nothing_end(blank: Page):
    ranges = [[4 - 4.5e-16, 4 + 8.9e-16], [1e6, 1e6 + 1.2e-10], [3, 3]]
    found = run(blank, "return data.map(([low, high]) => niceTicks(low, high, 6).values.length);", ranges)
    assert all(number <= 201 for number in found)


@pytest.mark.parametrize(("value", "error"), [(4.0, 1e-16), (1e6, 1e-11), (-3.0, 0.0), (0.0, 0.0)])
def test_a_metric_that_is_the_same_everywhere_has_an_axis(blank: Page, value: float, error: float):
    """Rewards that are alike but for rounding, as of a constant reward, with a prediction that is off by a digit."""
    points = [{"metrics": {"reward": [value, error]}}, {"metrics": {"reward": [value, 0.0]}}]
    model = {"etaMax": 1, "series": [{"kind": "merge", "points": points}], "curve": [value * (1 + 3e-16), value]}
    code = (
        "const [low, high] = extentOf({...data, curve: () => data.curve}, 'reward');"
        "return [low, high, niceTicks(low, high, 6).values];"
    )
    script = pilot_script("../axes", "maths", "format", "points", "drawing")
    low, high, ticks = blank.evaluate(f"(data) => {{ {script}\n{code} }}", model)
    assert low < value < high
    assert high - low == pytest.approx(0.08 * (abs(value) or 1.0))
    assert 2 <= len(ticks) <= 10


@pytest.mark.parametrize("values", [[4.0, 4.0 + 1e-15], [1e6, 1e6 - 2e-10], [0.0], [-3.0, -3.0]])
def test_a_training_curve_of_values_that_are_alike_has_an_axis(blank: Page, values: list[float]):
    script = "\n".join((Path(lines.__file__).parent / name).read_text() for name in ("axes.js", "lines.js"))
    code = (
        "const [low, high] = extent([{ x: data.map((_, k) => k), y: data }], 0, data.length - 1);"
        "return [low, high, niceTicks(low, high, 4).values];"
    )
    low, high, ticks = blank.evaluate(
        f"(data) => {{ {script.replace('export default function', 'const draw = function')}\n{code} }}", values
    )
    assert low < min(values) <= max(values) < high
    assert high - low == pytest.approx(0.12 * (abs(values[0]) or 1.0))
    assert 2 <= len(ticks) <= 7


def test_ticks_of_steps_are_whole_numbers(blank: Page):
    ranges = [[0, 0], [1, 1], [1, 2], [0, 3], [5, 12], [1, 60], [1, 9000]]
    for low, high in ranges:
        ticks = run(blank, "return niceTicks(...data, Math.min(4, data[1] - data[0])).values;", [low, high])
        assert ticks
        assert all(low <= tick == int(tick) <= high for tick in ticks)
        assert len(ticks) <= 7


def test_colours_are_those_of_the_printed_front(blank: Page):
    assert tuple(run(blank, "return ITERATION_COLORS;", None)) == series.ITERATION_COLORS


def test_places_are_told_apart_as_in_python(blank: Page):
    rng = random.Random(0)

    def place() -> Place:
        weights = rng.choice([(), (0.5, 0.5), (0.3, 0.7), (0.3 + 1e-8, 0.7), (1.0, 0.0)])
        return Place(
            iteration=rng.choice([1, 2]),
            method=rng.choice(["slerp", "lerp"]),
            weights=weights,
            eta=rng.choice([0.0, 0.3, 0.3 + 1e-8, 1.0]),
            towards=rng.choice(["sft", "init"]),
        )

    pairs = [(place(), place()) for _ in range(3000)]
    data = [[a.model_dump(mode="json"), b.model_dump(mode="json")] for a, b in pairs]
    found = run(blank, "return data.map(([a, b]) => samePlace(a, b, 2));", json.loads(json.dumps(data)))
    assert [pair for pair, same in zip(pairs, found, strict=True) if same != same_place(*pair)] == []
    assert 100 < sum(found) < 2900
