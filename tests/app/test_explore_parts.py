"""The pure parts of the explore page: coefficients, predictions, differences, recipes in words, CSV."""

import csv
import io

import numpy as np
import pytest

from app.explore.differences import (
    Difference,
    default_evaluation,
    difference,
    metric_label,
    paired,
    point_at,
    verdict,
)
from app.explore.formula import formula, shares, shares_note
from app.explore.mixing import mix, predict
from app.explore.tables import pins_csv, points_csv
from app.view import Pin
from warp_core.errors import GeometryError, RecipeError
from warp_core.service.documents import FrontDocument, GeometryDocument, Metric, SampleRow
from warp_core.service.fake import FakeEngine
from warp_core.service.places import is_sft, parse_place
from warp_core.service.protocol import SFT, Place, Selection
from warp_core.weights import Geometry, LayerInfo, coefficients
from warp_core.weights.recipes import Recipe

DEMO = Selection(run="demo-run")


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


def geometry_of(gram_LMM: np.ndarray, *, has_sft_column: bool = False) -> GeometryDocument:
    count = gram_LMM.shape[1] - int(has_sft_column)
    nested = [[[float(v) for v in row] for row in gram] for gram in gram_LMM]
    square = [[[1.0] * count for _ in range(count)] for _ in gram_LMM]
    return GeometryDocument(
        iteration=2 if has_sft_column else 1,
        granularity="layer",
        layers=tuple(f"layer {i}" for i in range(len(gram_LMM))),
        num_params=(10,) * len(gram_LMM),
        policies=tuple(f"p{m}" for m in range(count)),
        has_sft_column=has_sft_column,
        gram_LKK=nested,
        norms_LM=[[1.0] * count for _ in gram_LMM],
        angles_deg_LMM=square,
        cosines_LMM=square,
    )


def random_gram(layers: int, columns: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(layers, columns, 6))
    return vectors @ np.swapaxes(vectors, 1, 2)


class TestMix:
    @pytest.mark.parametrize("method", ["slerp", "lerp"])
    @pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.0, 0.4, 0.6), (0.0, 0.0, 1.0)])
    @pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.7])
    def test_is_what_the_engine_computes(self, method, weights, eta):
        gram_LMM = random_gram(5, 3, seed=7)
        known = Geometry(
            init="i",
            policies=("a", "b", "c"),
            granularity="layer",
            layers=tuple(LayerInfo(name=f"layer {i}", num_params=10) for i in range(5)),
            gram_LNN=np.pad(gram_LMM, ((0, 0), (1, 0), (1, 0))),
        )
        recipe = Recipe(init="i", policies=("a", "b", "c"), method=method, weights=weights, eta=eta)
        expected = coefficients(recipe, known).coef_LM
        found = mix(Place(method=method, weights=weights, eta=eta), geometry_of(gram_LMM))
        np.testing.assert_allclose(found, expected, atol=1e-12)

    def test_of_three_orthonormal_vectors_is_that_of_equation_26(self):
        found = mix(Place(eta=1.0), geometry_of(np.eye(3)[None]))
        np.testing.assert_allclose(found, [[0.6124, 0.6124, 0.5]], atol=1e-4)

    def test_towards_sft_leaves_the_rest_to_the_sft_column(self):
        geometry = geometry_of(random_gram(2, 3, seed=1), has_sft_column=True)
        to_sft = mix(Place(iteration=2, method="lerp", weights=(0.5, 0.5), eta=0.3), geometry)
        to_init = mix(Place(iteration=2, method="lerp", weights=(0.5, 0.5), eta=0.3, towards="init"), geometry)
        np.testing.assert_allclose(to_sft, [[0.15, 0.15, 0.7]] * 2)
        np.testing.assert_allclose(to_init, [[0.15, 0.15, 0.0]] * 2)

    def test_parallel_vectors_have_the_lerp_limit(self):
        gram = np.array([[[1.0, 2.0], [2.0, 4.0]]])
        np.testing.assert_allclose(mix(Place(weights=(0.25, 0.75)), geometry_of(gram)), [[0.25, 0.75]])

    def test_opposite_vectors_are_named(self):
        gram = np.array([[[1.0, -1.0], [-1.0, 1.0]]])
        with pytest.raises(GeometryError, match="'layer 0' are opposite; choose LERP"):
            mix(Place(), geometry_of(gram))

    def test_slerp_of_weights_is_not_in_the_document(self):
        assert mix(Place(method="slerp-weights"), geometry_of(np.eye(2)[None])) is None

    def test_wrong_number_of_weights(self):
        with pytest.raises(RecipeError, match="2 weights for 3 policies"):
            mix(Place(weights=(0.5, 0.5)), geometry_of(np.eye(3)[None]))


class TestPredict:
    def test_goes_near_the_measured_points(self, engine):
        geometry, surface = engine.geometry(DEMO, 1), engine.prediction(DEMO, 1)
        front = {point.key: point for point in engine.front(DEMO).points}
        misses = []
        for key in surface.keys:
            place = SFT if front[key].kind == "sft" else front[key].place
            found = predict(surface, mix(place, geometry), geometry)
            misses.append(found["kl"] - front[key].metrics["kl"].mean)
        assert max(abs(miss) for miss in misses) < 1.5
        assert set(found) == {"reward", "kl", "length", "diversity"}

    def test_is_the_formula_of_the_document(self):
        from warp_core.service.documents import Prediction, Surface

        geometry = geometry_of(np.array([[[2.0]]]))
        surface = Surface(beta=(1.0, 2.0, 3.0), alpha=(0.5,), lengthscale=2.0)
        prediction = Prediction(
            iteration=1, scale=2.0, sft_LK=((0.0,),), points_PLK=(((1.0,),),), keys=("a",), surfaces={"reward": surface}
        )
        # u = sqrt(.5^2 * 2 / 2) = .5 and d2 to the point is .25
        expected = 1.0 + 2.0 * 0.5 + 3.0 * 0.25 + 0.5 * np.exp(-0.25 / 8.0)
        assert predict(prediction, np.array([[0.5]]), geometry) == {"reward": pytest.approx(expected)}


def rows(rewards: list[float], *, prompts: list[str], tokens: int = 20) -> list[SampleRow]:
    return [
        SampleRow(prompt=prompt, completion="x", reward=r, rewards={"a": r, "b": 0.0}, kl=2 * r, num_tokens=tokens)
        for prompt, r in zip(prompts, rewards, strict=True)
    ]


class TestDifferences:
    def test_are_paired_over_prompts(self):
        first = rows([1.0, 2.0, 3.0], prompts=["p", "q", "r"])
        second = rows([0.0, 1.5, 2.0], prompts=["p", "q", "r"])
        found = paired(first, second)
        assert found["reward"].mean == pytest.approx(2.5 / 3)
        assert found["reward"].se == pytest.approx(np.std([1.0, 0.5, 1.0], ddof=1) / np.sqrt(3))
        assert found["kl"].mean == pytest.approx(2 * 2.5 / 3)
        assert found["length"] == Difference(mean=0.0, se=0.0, is_paired=True)
        assert set(found) == {"reward", "kl", "length", "reward:a", "reward:b"}

    def test_of_other_prompts_are_not(self):
        assert paired(rows([1.0], prompts=["p"]), rows([1.0], prompts=["q"])) == {}
        assert paired([], []) == {}

    def test_of_metrics_take_the_error_of_the_pair(self):
        first, second = Metric(mean=2.0, se=0.3), Metric(mean=1.5, se=0.4)
        alone = difference(first, second)
        assert (alone.mean, alone.se, alone.is_paired) == (0.5, pytest.approx(0.5), False)
        pair = Difference(mean=0.5, se=0.1, is_paired=True)
        assert difference(first, second, pair) == pair
        assert difference(first, Metric(mean=1.0)).se is None

    @pytest.mark.parametrize(
        ("name", "mean", "se", "expected"),
        [
            ("reward", 1.0, 0.2, ("good", "better")),
            ("reward", -1.0, 0.2, ("bad", "worse")),
            ("reward", 0.3, 0.2, ("flat", "no clear difference")),
            ("reward:sentiment", 1.0, 0.2, ("flat", "higher")),
            ("kl", 3.0, 0.2, ("bad", "further away")),
            ("kl", -3.0, 0.2, ("good", "closer")),
            ("length", 3.0, 0.2, ("flat", "longer")),
            ("diversity", -0.1, 0.01, ("bad", "less varied")),
            ("kl", 0.0, None, ("flat", "no clear difference")),
            ("kl", 0.5, None, ("bad", "further away")),
        ],
    )
    def test_have_words_and_a_tone(self, name, mean, se, expected):
        assert verdict(name, Difference(mean=mean, se=se, is_paired=True)) == expected

    def test_point_of_a_place_prefers_the_default_evaluation(self, engine):
        front = engine.front(DEMO)
        place = Place(iteration=1, eta=0.3)
        point = point_at(front, place)
        other = point.model_copy(update={"key": "other", "evaluation": "5 prompts x 1", "n": 9999})
        both = FrontDocument(revision="x", points=(other, point), evaluations=front.evaluations)
        assert point_at(both, place).key == point.key
        assert point_at(both, place, evaluation="5 prompts x 1").key == "other"
        assert point_at(both, place, evaluation="none such") is None
        assert point_at(both, Place(eta=0.123)) is None
        assert default_evaluation(front) == point.evaluation
        assert default_evaluation(FrontDocument(revision="", points=(), evaluations=())) is None

    def test_labels(self):
        assert [metric_label(name) for name in ("reward", "kl", "reward:a")] == ["Reward", "KL to SFT", "a"]


def flat(lines) -> list[str]:
    return ["".join(f"_{text}" if kind == "sub" else text for text, kind in line) for line in lines]


class TestFormula:
    def test_of_a_merge(self):
        lines = flat(formula(Place(weights=(0.6, 0.4), eta=0.845), 2))
        assert lines == [
            "\u03b8 = (1 \u2212 \u03b7) \u00b7 \u03b8_SFT + \u03b7 \u00b7 \u03b8_SLERP",
            "  = 0.155 \u00b7 \u03b8_SFT + 0.845 \u00b7 \u03b8_SLERP",
            "\u03b8_SLERP = SLERP(\u03b8_1 at 0.6, \u03b8_2 at 0.4)",
        ]

    def test_of_lerp_and_extrapolation(self):
        lines = flat(formula(Place(method="lerp", eta=1.5), 2))
        assert lines[1] == "  = \u22120.5 \u00b7 \u03b8_SFT + 1.5 \u00b7 \u03b8_LERP"
        assert lines[2] == "\u03b8_LERP = 0.5 \u00b7 \u03b8_1 + 0.5 \u00b7 \u03b8_2"

    def test_of_the_ends(self):
        assert flat(formula(SFT, 3)) == ["\u03b8 = \u03b8_SFT"]
        assert flat(formula(parse_place("i2.lerp.w0-1-0.e1.init"), 3)) == ["\u03b8 = \u03b8_2"]
        assert flat(formula(Place(eta=1.0), 2))[0] == "\u03b8 = \u03b8_SLERP"

    def test_of_a_later_iteration_towards_its_init(self):
        first = flat(formula(Place(iteration=2, eta=0.5, towards="init"), 2))[0]
        assert "\u03b8_init,2" in first


class TestShares:
    def test_add_up_to_one(self, engine):
        for iteration in (1, 2):
            geometry = engine.geometry(DEMO, iteration)
            place = Place(iteration=iteration, weights=(0.5, 0.3, 0.2), eta=0.4)
            found = shares(place, geometry, mix(place, geometry))
            assert sum(share.mean for share in found) == pytest.approx(1.0)
            assert [share.policy for share in found if share.policy] == [1, 2, 3]
            assert found[0].name == "SFT policy"
            assert shares_note(found, 30).startswith("Means over 30 layers; ")

    def test_that_are_alike_in_all_layers_say_so(self):
        geometry = geometry_of(np.eye(2)[None].repeat(3, axis=0))
        place = Place(method="lerp", eta=0.5)
        assert shares_note(shares(place, geometry, mix(place, geometry)), 3) == "The same in all 3 layers."


class TestCsv:
    def test_of_all_points(self, engine):
        front = engine.front(DEMO)
        found = list(csv.DictReader(io.StringIO(points_csv(front, 3))))
        assert len(found) == len(front.points)
        merge = next(row for row in found if row["place"] == "i1.slerp.e0.3.sft")
        point = point_at(front, Place(eta=0.3))
        assert float(merge["reward"]) == point.metrics["reward"].mean
        assert float(merge["kl_se"]) == point.metrics["kl"].se
        assert (merge["kind"], merge["iteration"], merge["method"], merge["eta"]) == ("merge", "1", "slerp", "0.3")
        assert merge["weights"] == "0.333333 0.333333 0.333333"
        assert merge["evaluation"].startswith("64 prompts x 2")
        training = next(row for row in found if row["kind"] == "training")
        assert (training["place"], training["iteration"], training["policy"]) == ("", "1", "1")

    def test_of_pins(self, engine):
        front = engine.front(DEMO)
        pins = (Pin(place=Place(eta=0.3), label="care, ful"), Pin(place=Place(eta=0.123)))
        found = list(csv.DictReader(io.StringIO(pins_csv(pins, front, 3))))
        assert [row["label"] for row in found] == ["care, ful", "SLERP, eta 0.123"]
        assert float(found[0]["kl"]) == point_at(front, Place(eta=0.3)).metrics["kl"].mean
        assert (found[1]["kl"], found[1]["n"], found[1]["place"]) == ("", "", "i1.slerp.e0.123.sft")

    def test_label_from_a_link_is_no_formula(self, engine):
        pin = Pin(place=Place(eta=0.5), label='=HYPERLINK("http://evil.example")')
        found = next(csv.DictReader(io.StringIO(pins_csv((pin,), engine.front(DEMO), 3))))
        assert found["label"] == '\'=HYPERLINK("http://evil.example")'

    def test_negative_numbers_stay_numbers(self, engine):
        found = list(csv.DictReader(io.StringIO(points_csv(engine.front(DEMO), 3))))
        assert any(float(row["reward"]) < 0 for row in found)

    def test_sft_has_its_place(self, engine):
        found = list(csv.DictReader(io.StringIO(points_csv(engine.front(DEMO), 3))))
        sft = next(row for row in found if row["kind"] == "sft")
        assert is_sft(parse_place(sft["place"]))
