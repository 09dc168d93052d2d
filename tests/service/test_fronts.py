"""Stored points as the app draws them: places, labels, domination, evaluations; without any model on the disk."""

import json
import shutil
import time

import numpy as np
import pytest

from tests.service.selections import TINY, Heard
from warp_core.errors import ConfigError, WorkspaceError
from warp_core.evaluation.points import Point
from warp_core.evaluation.sweep import Sweep
from warp_core.service import fronts as fronts_module
from warp_core.service import geometry as geometry_module
from warp_core.service.fronts import front_document, prediction_document, sample_rows
from warp_core.service.geometry import coefficients_at, compute, known_geometry
from warp_core.service.library import Library
from warp_core.service.places import is_sft, single
from warp_core.service.protocol import SFT, GeometryRequest, Place, Selection
from warp_core.training import warp as warp_module
from warp_core.weights import opening as opening_module
from warp_core.workspace.results import Results

DEMO = Selection(run="demo-run")


def by_kind(document, kind):
    return [point for point in document.points if point.kind == kind]


def add(library, selection, *places, **asked):
    """Measure places as a job does."""
    ask = library.ask(selection, **asked)
    store = Results(library.store_path(selection))
    keys = []
    for place in places:
        sources = library.sources(selection, place.iteration)
        iteration = place.iteration if selection.run else None
        sweep = Sweep(
            sft=sources.sft, init=sources.init, policies=sources.policies, ask=ask, store=store, iteration=iteration
        )
        keys.append(sweep.point(library.recipe(selection, place)).key)
    store.close()
    return keys


@pytest.fixture
def no_models(library, made, monkeypatch):
    """A run whose base model is gone."""
    config = library.run_folder("tiny").config_file
    config.write_text(config.read_text().replace(str(made.init), "/gone/model"))
    for module, name in ((warp_module, "resolve_model"), (opening_module, "resolve_model")):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail("a model is looked for"))
    return library


class TestPointsOfARun:
    def test_are_all_there_without_a_model(self, no_models):
        found = front_document(no_models, TINY)
        assert [len(by_kind(found, kind)) for kind in ("sft", "policy", "merge", "training")] == [1, 4, 18, 8]
        assert len({point.key for point in found.points}) == len(found.points)

    def test_their_places_are_the_recipes_they_were_measured_at(self, library):
        store = Results(library.store_path(TINY))
        merges = by_kind(front_document(library, TINY), "merge")
        for point in merges:
            recipe = store.get_point(point.key)["recipe"]
            assert library.recipe(TINY, point.place).to_json() == recipe
        store.close()
        assert {point.place.towards for point in merges if point.iteration == 2} == {"sft", "init"}
        assert {point.place.weights for point in merges} == {()}

    def test_places_of_the_others(self, library):
        found = front_document(library, TINY)
        assert [point.place for point in by_kind(found, "sft")] == [SFT]
        assert [(p.iteration, p.policy) for p in by_kind(found, "policy")] == [(1, 1), (1, 2), (2, 1), (2, 2)]
        for point in by_kind(found, "policy"):
            assert point.place == single(point.policy, 2, iteration=point.iteration)
        assert {point.place for point in by_kind(found, "training")} == {None}

    def test_labels(self, library):
        labels = [point.label for point in front_document(library, TINY).points]
        assert labels[:5] == ["SFT policy", "policy 1", "policy 2", "policy 1, iteration 2", "policy 2, iteration 2"]
        assert {"SLERP, eta 0.5", "LERP, eta 1, iteration 2", "SLERP, eta 0.5 to init, iteration 2"} <= set(labels)
        assert {"policy 1, step 1", "policy 2, iteration 2, step 2"} <= set(labels)

    def test_metrics_are_the_stored_means_and_errors(self, library):
        store = Results(library.store_path(TINY))
        for shown in front_document(library, TINY).points:
            point = Point.from_json(store.get_point(shown.key))
            pairs = {name: (metric.mean, metric.se) for name, metric in shown.metrics.items()}
            assert pairs["reward"] == (point.reward, point.reward_se)
            assert pairs["kl"] == (point.kl, point.kl_se)
            assert pairs["length"] == (point.length, point.length_se)
            if point.diversity is not None:
                assert pairs["diversity"] == (point.diversity, point.diversity_se)
            parts = {f"reward:{name}": (mean, None) for name, mean in point.rewards.items()}
            assert len(parts) == 2
            assert parts.items() <= pairs.items()
            assert shown.n == point.n
        store.close()

    def test_domination_is_among_measured_points_and_the_hypervolume_is_theirs(self, library):
        found = front_document(library, TINY)
        measured = [point for point in found.points if point.kind != "training"]
        pairs = {point.key: (point.metrics["kl"].mean, point.metrics["reward"].mean) for point in measured}
        for point in measured:
            kl, reward = pairs[point.key]
            beaten = any(k <= kl and r >= reward and (k, r) != (kl, reward) for k, r in pairs.values())
            assert point.dominated == beaten
        assert not any(point.dominated for point in found.points if point.kind == "training")
        assert found.reference[1] == pytest.approx(by_kind(found, "sft")[0].metrics["reward"].mean)
        assert found.hypervolume >= 0

    def test_another_granularity_has_no_place(self, library):
        sources, ask = library.sources(TINY, 1), library.ask(TINY)
        store = Results(library.store_path(TINY))
        sweep = Sweep(sft=sources.sft, init=sources.init, policies=sources.policies, ask=ask, store=store, iteration=1)
        key = sweep.point(sweep.recipe(eta=0.5, granularity="model")).key
        weighted = sweep.point(sweep.recipe(eta=0.5, weights=[0.25, 0.75])).key
        store.close()
        found = {point.key: point for point in front_document(library, TINY).points}
        assert (found[key].place, found[key].label) == (None, "SLERP, eta 0.5 per model")
        assert found[weighted].place == Place(weights=(0.25, 0.75), eta=0.5)
        assert found[weighted].label == "SLERP 0.25/0.75, eta 0.5"


class TestEvaluations:
    def test_moments_of_training_are_drawn_with_the_default(self, library):
        found = front_document(library, TINY)
        (note,) = found.evaluations
        assert note.id == library.ask(TINY).evaluation.id
        assert note.is_default
        assert note.label == "3 prompts x 2, 4 tokens, exact KL, seed 1234"
        assert {point.evaluation for point in found.points} == {note.id}

    def test_a_moment_with_fewer_completions_says_so(self, library):
        config = library.run_folder("tiny").config_file
        config.write_text(config.read_text().replace("samples_per_prompt = 2\n", "samples_per_prompt = 3\n", 1))
        add(library, TINY, Place(eta=0.5))
        labels = {point.label for point in by_kind(front_document(library, TINY), "training")}
        assert "policy 1, step 1 (6 completions)" in labels

    def test_another_evaluation_is_kept_apart(self, library):
        before = front_document(library, TINY)
        (key,) = add(library, TINY, Place(eta=0.5), num_prompts=2, samples_per_prompt=1)
        found = front_document(library, TINY)
        assert [(note.label, note.is_default) for note in found.evaluations] == [
            ("3 prompts x 2, 4 tokens, exact KL, seed 1234", True),
            ("2 prompts x 1, 4 tokens, exact KL, seed 1234, other prompts", False),
        ]
        (other,) = (point for point in found.points if point.key == key)
        assert other.evaluation == found.evaluations[1].id
        assert not other.dominated
        assert found.hypervolume == before.hypervolume

    def test_another_reward_is_another_evaluation(self, library):
        """Even one with the same parts and other weights, measured at more points than the run's own."""
        store = Results(library.store_path(TINY))
        for key, point in store.items():
            if point["kind"] == "merge":
                for copy in "ab":
                    store.put_point(
                        f"{key}{copy}", point | {"evaluation": point["evaluation"] | {"reward_id": "other"}}
                    )
        store.close()
        found = front_document(library, TINY)
        assert found.evaluations[0].id == library.ask(TINY).evaluation.id
        assert [note.label.endswith("another reward") for note in found.evaluations] == [False, True]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"temperature": 0.5}, "temperature 0.5"),
            ({"dtype": "bfloat16"}, "bfloat16"),
            ({"chat_template": True}, "chat template"),
            ({"seed": 7}, "seed 7"),
            ({"kl_estimator": "mc"}, "mc KL"),
            ({"speech": "x"}, "another tokenizer"),
            ({"anchor": "x"}, "KL to another model"),
        ],
    )
    def test_what_differs_is_named(self, library, change, words):
        store = Results(library.store_path(TINY))
        key, point = next((key, point) for key, point in store.items() if point["kind"] == "merge")
        store.put_point(f"{key}x", point | {"evaluation": point["evaluation"] | change})
        store.close()
        default, other = front_document(library, TINY).evaluations
        assert (default.is_default, other.is_default) == (True, False)
        assert words in other.label.split(", ")
        assert words not in default.label.split(", ")

    def test_a_run_in_training_has_its_moments(self, library):
        """No point of the front is measured yet."""
        whole = front_document(library, TINY)
        path = library.store_path(TINY)
        store = Results(path)
        moments = [(key, point) for key, point in store.items() if point["kind"] == "training"]
        store.close()
        path.unlink()
        fresh = Results(path)
        for key, point in moments:
            fresh.put_point(key, point)
        fresh.close()
        found = front_document(library, TINY)
        assert {point.kind for point in found.points} == {"training"}
        assert [note.id for note in found.evaluations] == [whole.evaluations[0].id]
        assert (found.hypervolume, found.reference) == (None, None)

    def test_a_run_that_has_just_begun_has_no_point(self, library):
        library.store_path(TINY).unlink()
        found = front_document(library, TINY)
        assert (found.points, found.evaluations, found.hypervolume) == ((), (), None)


class TestPointsOfModels:
    def test_belong_to_the_models_that_were_given(self, library, made):
        assert front_document(library, made.full).points == ()
        asked = {"num_prompts": 2, "samples_per_prompt": 1, "reward": ["words"]}
        keys = add(library, made.full, SFT, Place(eta=0.5), Place(weights=(0.2, 0.3, 0.5)), **asked)
        add(library, made.lora, Place(eta=0.5), **asked)
        found = front_document(library, made.full)
        assert {point.key for point in found.points} >= set(keys)
        assert [(point.kind, point.place) for point in found.points] == [
            ("sft", SFT),
            ("merge", SFT),
            ("merge", Place(eta=0.5)),
            ("merge", Place(weights=(0.2, 0.3, 0.5))),
        ]
        assert [note.is_default for note in found.evaluations] == [False]
        assert {point.kind for point in front_document(library, made.lora).points} == {"sft", "merge"}
        assert len(front_document(library, made.lora).points) == 3 - 1

    def test_are_known_once_the_models_are_open(self, library, made):
        add(library, made.full, Place(eta=0.5), num_prompts=2, samples_per_prompt=1, reward=["words"])
        other = Library()
        assert front_document(other, made.full).points == ()
        other.sources(made.full, 1)
        assert len(front_document(other, made.full).points) == 1

    def test_whatever_they_were_measured_as(self, library, made):
        """`evaluate` stores the SFT policy, and policies alone, as policies of nothing."""
        ask = library.ask(made.full, num_prompts=2, samples_per_prompt=1, reward=["words"])
        sources = library.sources(made.full, 1)
        store = Results(library.store_path(made.full))
        sweep = Sweep(sft=sources.sft, init=sources.init, policies=sources.policies, ask=ask, store=store)
        for point in (sweep.sft_point(), sweep.policy_point(3)):
            alone = point.to_json() | {"kind": "policy", "run": None, "iteration": None}
            store.put_point(point.key, alone, store.samples(point.key))
        store.close()
        found = front_document(library, made.full)
        assert [(p.kind, p.policy, p.place) for p in found.points] == [
            ("sft", None, SFT),
            ("policy", 3, single(3, 3)),
        ]

    def test_an_init_that_is_an_adapter_is_no_place(self, library, made):
        """The sliders of models start at the SFT policy, which is the base there."""
        asked = {"num_prompts": 2, "samples_per_prompt": 1, "reward": ["words"]}
        add(library, made.later, Place(eta=0.5), **asked)
        sources, ask = library.sources(made.later, 1), library.ask(made.later, **asked)
        store = Results(library.store_path(made.later))
        sweep = Sweep(sft=sources.sft, init=sources.init, policies=sources.policies, ask=ask, store=store)
        sweep.point(sweep.recipe(eta=0.5, to_init=True))
        sweep.point(sweep.recipe(eta=1.0, to_init=True))
        store.close()
        places = [point.place for point in front_document(library, made.later).points]
        assert sorted(places, key=str) == [None, Place(eta=0.5), Place(eta=1.0)]


class TestRevision:
    def test_changes_when_a_point_does_and_only_then(self, library):
        first = front_document(library, TINY)
        assert front_document(Library(), TINY).revision == first.revision
        add(library, TINY, Place(eta=0.7))
        second = front_document(library, TINY)
        assert second.revision != first.revision
        assert len(second.points) == len(first.points) + 1

    def test_a_point_that_another_process_stores_is_seen_at_once(self, library):
        first = front_document(library, TINY)
        key, point = Results(library.store_path(TINY)).items()[-1]
        writer = Results(library.store_path(TINY))
        writer.put_point(f"{key}:9", point | {"step": 9})
        assert len(front_document(library, TINY).points) == len(first.points) + 1
        writer.close()

    def test_the_bundled_front_is_quick(self):
        library = Library()
        front_document(library, DEMO)
        times = []
        for _ in range(5):
            library.memo._kept.clear()
            started = time.process_time()
            front_document(library, DEMO)
            times.append(time.process_time() - started)
        assert min(times) < 0.05  # about 6 ms on a quiet core


class TestSamples:
    def test_are_those_behind_the_point(self, library):
        for point in front_document(library, TINY).points:
            rows = sample_rows(library, TINY, point.key)
            assert len(rows) == point.n
            assert sum(row.reward for row in rows) / len(rows) == pytest.approx(point.metrics["reward"].mean)
            assert sum(row.kl for row in rows) / len(rows) == pytest.approx(point.metrics["kl"].mean)

    @pytest.mark.parametrize("key", ["", "none", "a:b", "x" * 5000])
    def test_of_no_point(self, library, key):
        with pytest.raises(WorkspaceError, match="measure it first"):
            sample_rows(library, TINY, key)

    def test_of_no_run(self, library):
        with pytest.raises(WorkspaceError):
            front_document(library, Selection(run="none"))
        with pytest.raises(ConfigError):
            sample_rows(library, Selection(), "a")


class TestPrediction:
    @pytest.fixture
    def predicted(self, library):
        for iteration in (1, 2):
            compute(library, GeometryRequest(session="s", selection=TINY, iteration=iteration), Heard())
        return {iteration: prediction_document(library, TINY, iteration) for iteration in (1, 2)}

    def test_goes_through_one_iteration_and_the_sft_policy(self, library, predicted):
        points = {point.key: point for point in front_document(library, TINY).points}
        for iteration, found in predicted.items():
            through = [points[key] for key in found.keys]
            assert [point.kind for point in through].count("sft") == 1
            assert all(point.iteration == iteration for point in through if point.kind != "sft")
            assert not any(is_sft(point.place) for point in through if point.kind != "sft")
            assert found.surfaces.keys() == set(through[0].metrics)
            assert len(found.points_PLK) == len(found.keys)
        # SLERP and LERP at 0.5 and 1, two policies, the SFT policy; then also 0 and 0.5 towards the init, where 0 is
        # the same init for both methods, and eta = 1 is the same model whatever it comes from.
        assert [len(found.keys) for found in predicted.values()] == [7, 10]

    def test_is_evaluated_by_the_formula_of_the_document(self, library, predicted):
        """In plain Python, as the page does; near every measured point, and nothing at the SFT policy."""
        points = {point.key: point for point in front_document(library, TINY).points}
        for iteration, found in predicted.items():
            gram = known_geometry(library, TINY, iteration).gram_LKK
            for key, c_LK in zip(found.keys, found.points_PLK, strict=True):
                for name in ("reward", "kl"):
                    measured = points[key].metrics[name]
                    value = by_the_formula(found, gram, c_LK, name)
                    assert abs(value - measured.mean) <= 1.5 * (measured.se or 0.0) + 0.01
            assert abs(by_the_formula(found, gram, found.sft_LK, "kl")) < 0.01

    def test_is_known_without_a_model(self, predicted, no_models):
        fresh = Library()
        assert prediction_document(fresh, TINY, 2) == predicted[2]

    def test_without_geometry_or_with_few_points_there_is_none(self, library, made):
        assert prediction_document(library, TINY, 1) is None
        library.store_path(TINY).unlink()
        compute(library, GeometryRequest(session="s", selection=TINY), Heard())
        assert prediction_document(library, TINY, 1) is None
        add(library, TINY, SFT, Place(eta=0.3), Place(eta=0.6))
        assert len(front_document(library, TINY).points) == 4  # the SFT policy counts once, however it was reached
        assert prediction_document(library, TINY, 1) is None
        add(library, TINY, Place(eta=0.9))
        assert len(prediction_document(library, TINY, 1).keys) == 4

    def test_policies_that_did_not_move_make_no_surface(self, library, monkeypatch):
        compute(library, GeometryRequest(session="s", selection=TINY), Heard())
        path = library.run_folder("tiny").iteration(1) / "geometry.json"
        data = json.loads(path.read_text())
        data["geometry"]["gram_LNN"] = np.zeros(np.shape(data["geometry"]["gram_LNN"])).tolist()
        path.write_text(json.dumps(data))
        assert prediction_document(library, TINY, 1) is None


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Library(tmp_path_factory.mktemp("workspace"))


class TestBundledPrediction:
    """Numbers on the run that ships: 64 prompts x 2, three policies, two iterations."""

    @pytest.mark.parametrize("iteration", [1, 2])
    def test_the_kl_is_nowhere_negative(self, demo, iteration):
        found = prediction_document(demo, DEMO, iteration)
        geometry = geometry_module.stored_geometry(demo, DEMO, iteration)
        rng = np.random.default_rng(0)
        for method in ("slerp", "lerp"):
            for weights in [(), *(tuple(w / w.sum()) for w in rng.dirichlet(np.ones(3), 12))]:
                for eta in np.linspace(0, 2, 15):
                    place = Place(iteration=iteration, method=method, weights=weights, eta=float(eta))
                    c_LK = coefficients_at(geometry, place, 3)
                    assert by_the_formula(found, geometry.gram_LMM, c_LK, "kl") > -0.01

    @pytest.mark.parametrize("iteration", [1, 2])
    @pytest.mark.parametrize("name", ["reward", "kl"])
    def test_it_beats_straight_lines_between_neighbours(self, demo, iteration, name):
        """Leave one inner point of a LITI curve out, fit again, and compare with its two neighbours on the curve."""
        front = front_document(demo, DEMO)
        geometry = geometry_module.stored_geometry(demo, DEMO, iteration)
        start = by_kind(front, "sft")[0]
        ours, lines = [], []
        for method in ("slerp", "lerp"):
            curve = [p for p in by_kind(front, "merge") if (p.iteration, p.place.method) == (iteration, method)]
            curve = [start, *sorted((p for p in curve if p.place.eta > 0), key=lambda p: p.place.eta)]
            for before, point, after in zip(curve, curve[1:], curve[2:], strict=False):
                rest = front.model_copy(update={"points": tuple(p for p in front.points if p.key != point.key)})
                found = fronts_module.prediction_through(rest, geometry, iteration=iteration, num_policies=3)
                c_LK = coefficients_at(geometry, point.place, 3)
                value = by_the_formula(found, geometry.gram_LMM, c_LK, name)
                etas = [one.place.eta for one in (before, point, after)]
                line = np.interp(etas[1], [etas[0], etas[2]], [one.metrics[name].mean for one in (before, after)])
                ours.append(value - point.metrics[name].mean)
                lines.append(line - point.metrics[name].mean)
        rmse = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (ours, lines)]
        assert rmse[0] < (0.8 if name == "reward" else 0.6) * rmse[1]


def by_the_formula(found, gram_LKK, c_LK, name):
    """The formula of `Prediction`, term by term."""
    gram, c = np.asarray(gram_LKK), np.asarray(c_LK)

    def d2(other):
        apart = c - np.asarray(other)
        return sum(float(row @ g @ row) for row, g in zip(apart, gram, strict=True)) / found.scale

    surface = found.surfaces[name]
    u = max(0.0, d2(found.sft_LK)) ** 0.5
    value = surface.beta[0] + surface.beta[1] * u + surface.beta[2] * u * u
    for alpha, point in zip(surface.alpha, found.points_PLK, strict=True):
        value += alpha * np.exp(-d2(point) / (2 * surface.lengthscale**2))
    return value


def test_a_run_that_is_moved_keeps_its_points(made, tmp_path):
    moved = shutil.copytree(made.run, tmp_path / "elsewhere")
    library = Library(extra_runs=[moved])
    assert len(front_document(library, Selection(run="elsewhere")).points) == 31
