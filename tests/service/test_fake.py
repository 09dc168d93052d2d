"""The made-up engine behaves as the real one promises to: pages are tested against it."""

import itertools

import numpy as np
import pytest

from warp_core.errors import (
    EngineUnreachableError,
    RecipeError,
    UnknownJobError,
    UserError,
    WorkspaceError,
)
from warp_core.service.documents import (
    CheckReport,
    ExportReport,
    FrontDocument,
    FrontPoint,
    GeometryDocument,
    JudgeReport,
    Prediction,
    RunState,
)
from warp_core.service.fake import FakeEngine
from warp_core.service.fake_data import World, noise
from warp_core.service.fake_text import HOSTILE, completion
from warp_core.service.interface import Engine
from warp_core.service.places import same_place, single
from warp_core.service.protocol import (
    SFT,
    CheckRequest,
    ExportRequest,
    GeometryRequest,
    Job,
    JobState,
    JudgeRequest,
    MeasureRequest,
    PaneRequest,
    Place,
    PrepareRequest,
    PreviewRequest,
    Selection,
    TrainRequest,
    Vote,
)
from warp_core.weights.coefficients import slerp_coefficients

DEMO = Selection(run="demo-run")
NOW = Selection(run="training-now")
LOOSE = Selection(init="base", policies=("a", "b"))
OTHER = Place(iteration=2, eta=0.62)


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


def preview(*places: Place, session: str = "s", prompt: str = "The film", **other: object) -> PreviewRequest:
    panes = tuple(PaneRequest(id=f"p{i}", place=place) for i, place in enumerate(places or (SFT, OTHER)))
    return PreviewRequest(session=session, selection=DEMO, prompt=prompt, panes=panes, **other)  # type: ignore[arg-type]


def finished(fake: FakeEngine, job: Job) -> Job:
    fake.advance(2000)
    return fake.job(job.id)


def points_of(front: FrontDocument) -> dict[str, FrontPoint]:
    return {point.key: point for point in front.points}


def test_it_is_an_engine(fake: FakeEngine):
    engine: Engine = fake
    assert engine.status().queued == 0
    assert {name for name in dir(Engine) if not name.startswith("_")} <= set(dir(fake))


def test_two_engines_tell_the_same():
    first, second = FakeEngine(clock=lambda: 1.0), FakeEngine(clock=lambda: 1.0)
    assert first.front(DEMO) == second.front(DEMO)
    assert first.prediction(DEMO, 2) == second.prediction(DEMO, 2)
    assert first.samples(DEMO, "sft") == second.samples(DEMO, "sft")


def test_the_front_looks_like_a_measured_one(fake: FakeEngine):
    points = points_of(fake.front(DEMO))
    sft = points["sft"]
    assert sft.metrics["kl"].mean == 0
    assert sft.metrics["reward"].mean == pytest.approx(-0.15, abs=0.1)
    for iteration, method in itertools.product((1, 2), ("slerp", "lerp")):
        curve = [points[f"i{iteration}.{method}.e{eta}.sft"] for eta in (0.1, 0.3, 0.5, 0.8, 1)]
        assert all(a.metrics["kl"].mean < b.metrics["kl"].mean for a, b in itertools.pairwise(curve))
        assert all(a.metrics["reward"].mean < b.metrics["reward"].mean for a, b in itertools.pairwise(curve[::2]))
        assert all(metric.se is not None for point in curve for metric in point.metrics.values())
    kl = {method: points[f"i1.{method}.e1.sft"].metrics["kl"].mean for method in ("slerp", "lerp")}
    assert kl["slerp"] > 1.5 * kl["lerp"], "SLERP keeps the length of orthogonal task vectors"
    assert points["i1.p1"].dominated
    assert not sft.dominated


def test_rewards_are_the_weighted_sum_of_their_parts(fake: FakeEngine):
    assert fake.run("demo-run").config["reward"]["terms"] == ["sentiment", "length:-0.01"]
    for point in fake.front(DEMO).points:
        sentiment, length = (point.metrics[f"reward:{name}"].mean for name in ("sentiment", "length"))
        assert sentiment - 0.01 * length == pytest.approx(point.metrics["reward"].mean)
    for row in fake.samples(DEMO, "sft"):
        assert row.rewards["sentiment"] - 0.01 * row.rewards["length"] == pytest.approx(row.reward)


def test_keys_are_unique_and_places_lead_back(fake: FakeEngine):
    front = fake.front(DEMO)
    assert len(points_of(front)) == len(front.points)
    assert {point.kind for point in front.points} == {"sft", "policy", "merge", "training"}
    assert all((point.place is None) == (point.kind == "training") for point in front.points)
    assert [note.is_default for note in front.evaluations].count(True) == 1
    assert front.hypervolume is not None
    assert front.hypervolume > 0


def test_a_run_that_trains_has_what_it_has_come_to(fake: FakeEngine):
    before = fake.front(NOW)
    assert {point.kind for point in before.points} == {"sft", "policy", "training"}
    fake.advance(30)
    after = fake.front(NOW)
    assert "merge" in {point.kind for point in after.points}
    assert after.revision != before.revision


def test_the_geometry_is_that_of_nearly_orthogonal_vectors(fake: FakeEngine):
    for iteration in (1, 2):
        geometry = fake.geometry(DEMO, iteration)
        assert isinstance(geometry, GeometryDocument)
        gram_LKK = np.asarray(geometry.gram_LKK)
        assert gram_LKK.shape == (30, 3 + geometry.has_sft_column, 3 + geometry.has_sft_column)
        assert np.linalg.eigvalsh(gram_LKK).min() > 0
        angles_LMM = np.asarray(geometry.angles_deg_LMM)
        off = angles_LMM[:, ~np.eye(3, dtype=bool)]
        assert off.min() > 70
        assert off.max() < 110
        assert np.asarray(geometry.full_cosines_LMM).min() > 0.999
        norms_LM = np.sqrt(np.diagonal(gram_LKK[:, :3, :3], axis1=1, axis2=2))
        assert np.asarray(geometry.norms_LM) == pytest.approx(norms_LM)


def test_its_slerp_is_the_engines():
    world = World(3, 1)
    gram_LMM = np.asarray(world.geometry(1).gram_LKK)
    for weights in [(0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.5), (0.0, 0.0, 1.0)]:
        found_LM = world.coefficients(Place(weights=weights))
        for found_M, gram_MM in zip(found_LM, gram_LMM, strict=True):
            assert found_M == pytest.approx(slerp_coefficients(gram_MM, weights))


def predicted(prediction: Prediction, geometry: GeometryDocument, coef_LK: np.ndarray, name: str) -> float:
    """The formula of `Prediction`'s documentation, word for word."""
    gram_LKK = np.asarray(geometry.gram_LKK)

    def d2(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum((x - y) @ g @ (x - y) for x, y, g in zip(a, b, gram_LKK, strict=True))) / prediction.scale

    u = max(0.0, d2(coef_LK, np.asarray(prediction.sft_LK))) ** 0.5
    surface = prediction.surfaces[name]
    trend = surface.beta[0] + surface.beta[1] * u + surface.beta[2] * u**2
    near = [np.exp(-d2(coef_LK, np.asarray(p)) / (2 * surface.lengthscale**2)) for p in prediction.points_PLK]
    return float(trend + np.dot(surface.alpha, near))


@pytest.mark.parametrize("iteration", [1, 2])
def test_the_prediction_goes_through_the_points_and_between_them(fake: FakeEngine, iteration: int):
    prediction, geometry = fake.prediction(DEMO, iteration), fake.geometry(DEMO, iteration)
    assert prediction is not None
    assert geometry is not None
    points, world = points_of(fake.front(DEMO)), World(3, 2)
    for name, tolerance in (("reward", 0.3), ("kl", 1.2)):
        for key, coef_LK in zip(prediction.keys, prediction.points_PLK, strict=True):
            found = predicted(prediction, geometry, np.asarray(coef_LK), name)
            assert found == pytest.approx(points[key].metrics[name].mean, abs=tolerance)
        between = Place(iteration=iteration, eta=0.65)
        found = predicted(prediction, geometry, world.coefficients(between), name)
        assert found == pytest.approx(world.metrics(between)[name].mean, abs=tolerance)
        assert prediction.surfaces[name].loo_rmse is not None


def test_no_prediction_without_geometry_or_points(fake: FakeEngine):
    assert fake.geometry(LOOSE, 1) is None
    assert fake.prediction(LOOSE, 1) is None
    job = finished(fake, fake.submit(GeometryRequest(session="s", selection=LOOSE)))
    assert GeometryDocument.model_validate(job.result) == fake.geometry(LOOSE, 1)
    assert fake.prediction(LOOSE, 1) is None


def test_a_preview_goes_through_its_states(fake: FakeEngine):
    job = fake.submit(preview(num_completions=2))
    assert (job.state, job.position, job.panes) == (JobState.QUEUED, 0, ())
    seen: list[Job] = []
    while not seen or not seen[-1].state.is_final:
        seen.append(fake.job(job.id))
        assert len(seen) < 50
    states = [pane.state for one in seen for pane in one.panes[:1]]
    assert [state for state, _ in itertools.groupby(states)] == ["merging", "sampling", "scoring", "done"]
    lengths = [len(one.panes[1].completions[0].text) for one in seen if one.panes and one.panes[1].completions]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 4, "the token buffers grow"
    last = seen[-1]
    assert last.state is JobState.DONE
    for pane in last.panes:
        assert [completion.done for completion in pane.completions] == [True, True]
        assert all(c.reward is not None and c.kl is not None and c.num_tokens == 24 for c in pane.completions)
    assert list(last.timings_s) == ["started", "merged", "first_token", "sampled"]
    assert last.progress == 1


def test_the_same_seed_gives_the_same_text_and_another_another(fake: FakeEngine):
    def texts(**other: object) -> list[str]:
        job = finished(fake, fake.submit(preview(**other)))  # type: ignore[arg-type]
        return [pane.completions[0].text for pane in job.panes]

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    far = texts(seed=1)
    shared = [a == b for a, b in zip(far[0].split(), far[1].split(), strict=True)]
    assert 0.3 < sum(shared) / len(shared) < 1, "some words differ between the panes, not all"


def test_a_preview_without_scores_has_none(fake: FakeEngine):
    job = finished(fake, fake.submit(preview(score=False)))
    assert all(pane.state == "done" and pane.completions[0].reward is None for pane in job.panes)


def test_the_latest_preview_of_a_session_wins(fake: FakeEngine):
    first = fake.submit(preview(session="one"))
    other = fake.submit(preview(session="two"))
    second = fake.submit(preview(session="one"))
    assert fake.job(first.id).state is JobState.CANCELLED
    assert finished(fake, second).state is JobState.DONE
    assert fake.job(other.id).state is JobState.DONE
    assert [job.id for job in fake.jobs("one")] == [second.id, first.id]
    assert [job.id for job in fake.jobs()] == [second.id, other.id, first.id]


def test_previews_come_before_measurements(fake: FakeEngine):
    sweep = fake.submit(MeasureRequest(session="s", selection=DEMO, places=(OTHER, Place(eta=0.4))))
    fake.advance(3)
    assert fake.job(sweep.id).state is JobState.RUNNING
    look = fake.submit(preview(session="two"))
    waiting = fake.submit(MeasureRequest(session="two", selection=DEMO, places=(Place(eta=0.7),)))
    fake.advance(13)
    assert fake.job(look.id).state is JobState.DONE
    assert fake.job(sweep.id).state is JobState.RUNNING
    assert fake.job(waiting.id).position == 1


def test_a_measured_point_joins_the_front_as_soon_as_it_is_there(fake: FakeEngine):
    before = fake.front(DEMO)
    job = fake.submit(MeasureRequest(session="s", selection=DEMO, places=(OTHER, Place(eta=0.37))))
    fake.advance(8)
    halfway = fake.front(DEMO)
    assert len(halfway.points) == len(before.points) + 1
    assert halfway.revision != before.revision
    running = fake.job(job.id)
    assert running.state is JobState.RUNNING
    assert running.progress is not None
    assert 0 < running.progress < 1
    assert running.seconds_left is not None
    done = finished(fake, job)
    assert done.result is not None
    points = points_of(fake.front(DEMO))
    for key, place in zip(done.result["keys"], (OTHER, Place(eta=0.37)), strict=True):
        assert same_place(points[key].place or SFT, place)
    again = finished(fake, fake.submit(MeasureRequest(session="s", selection=DEMO, places=(OTHER,))))
    assert again.result == {"keys": done.result["keys"][:1]}
    assert len(fake.front(DEMO).points) == len(before.points) + 2


def test_another_measurement_is_another_point(fake: FakeEngine):
    small = MeasureRequest(session="s", selection=DEMO, places=(Place(eta=0.5),), num_prompts=8)
    job = finished(fake, fake.submit(small))
    assert job.result is not None
    (key,) = job.result["keys"]
    front = fake.front(DEMO)
    assert points_of(front)[key].evaluation == "8 prompts x 2"
    assert {note.id for note in front.evaluations} >= {"8 prompts x 2", "64 prompts x 2"}


def test_cancelled_jobs_keep_what_was_measured(fake: FakeEngine):
    count = len(fake.front(DEMO).points)
    job = fake.submit(MeasureRequest(session="s", selection=DEMO, places=(OTHER, Place(eta=0.37))))
    fake.advance(8)
    assert fake.cancel(job.id).state is JobState.CANCELLED
    fake.advance(20)
    assert fake.job(job.id).state is JobState.CANCELLED
    assert len(fake.front(DEMO).points) == count + 1
    assert fake.cancel(job.id).state is JobState.CANCELLED
    assert fake.status().running == 0


def test_failures_on_demand(fake: FakeEngine):
    job = finished(fake, fake.submit(preview(Place(eta=1.99))))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "model.layers.7" in job.error
    with pytest.raises(RecipeError, match="2 weights for 3 policies"):
        fake.submit(preview(Place(weights=(0.5, 0.5))))
    with pytest.raises(RecipeError, match="iteration 9 of 2"):
        fake.submit(preview(Place(iteration=9)))
    with pytest.raises(UnknownJobError, match="submit it again"):
        fake.job("nobody")


def test_down_is_down(fake: FakeEngine):
    fake.down = True
    for call in (fake.status, fake.runs, fake.jobs, lambda: fake.front(DEMO), lambda: fake.submit(preview())):
        with pytest.raises(EngineUnreachableError):
            call()
    fake.down = False
    assert fake.status().queued == 0


def test_hostile_text_on_demand(fake: FakeEngine):
    assert "<script>" in HOSTILE
    asked = finished(fake, fake.submit(preview(prompt="something hostile")))
    assert HOSTILE in asked.panes[0].completions[0].text
    assert HOSTILE not in fake.samples(DEMO, "sft")[0].completion
    fake.hostile = True
    assert HOSTILE in fake.samples(DEMO, "sft")[0].completion
    assert HOSTILE in finished(fake, fake.submit(preview())).panes[0].completions[0].text


def test_samples_are_those_of_the_point(fake: FakeEngine):
    points = points_of(fake.front(DEMO))
    for key in ("sft", "i1.slerp.e1.sft"):
        rows = fake.samples(DEMO, key)
        assert len(rows) == 2 * len(fake.prompts(DEMO))
        mean = sum(row.reward for row in rows) / len(rows)
        assert mean == pytest.approx(points[key].metrics["reward"].mean, abs=0.4)
    assert all(row.kl == 0 for row in fake.samples(DEMO, "sft"))
    with pytest.raises(UserError, match="measure it first"):
        fake.samples(DEMO, "nowhere")


def test_checks_exports_and_judges_report(fake: FakeEngine):
    check = CheckReport.model_validate(finished(fake, fake.submit(CheckRequest(session="s", selection=LOOSE))).result)
    assert check.ok
    assert [model.role for model in check.models] == ["init", "policy", "policy"]
    broken = Selection(init="base", policies=("a", "broken"))
    report = CheckReport.model_validate(finished(fake, fake.submit(CheckRequest(session="s", selection=broken))).result)
    assert not report.ok
    assert "broken" in report.problems[0]
    request = ExportRequest(session="s", selection=DEMO, place=OTHER, name="mine", form="adapter", verify=False)
    exported = ExportReport.model_validate(finished(fake, fake.submit(request)).result)
    assert exported.out.endswith("/mine")
    assert exported.verified is None
    assert "adapter_config.json" in exported.files
    request = request.model_copy(update={"form": "full", "verify": True})
    exported = ExportReport.model_validate(finished(fake, fake.submit(request)).result)
    assert exported.verified is True
    assert all(first == second for _, first, second in exported.completions)
    judge = JudgeRequest(session="s", selection=DEMO, keys=("sft", "i1.p1"), reward=("other",))
    judged = JudgeReport.model_validate(finished(fake, fake.submit(judge)).result)
    assert {key: len(scores) for key, scores in judged.scores.items()} == {"sft": 32, "i1.p1": 32}


def test_preparing_loads(fake: FakeEngine):
    assert fake.status().loaded == ()
    finished(fake, fake.submit(PrepareRequest(session="s", selection=DEMO)))
    assert fake.status().loaded == ("demo-run",)


def test_runs_and_their_lives(fake: FakeEngine):
    running, demo = fake.runs()
    assert (running.name, running.state) == ("training-now", RunState.RUNNING)
    assert (demo.name, demo.state, demo.finished_iterations, demo.is_bundled) == (
        "demo-run",
        RunState.FINISHED,
        2,
        True,
    )
    before = running.progress
    fake.advance(3)
    assert fake.run("training-now").summary.progress > before
    assert fake.stop("training-now").state is RunState.STOPPED
    still = fake.run("training-now").summary.progress
    fake.advance(3)
    assert fake.run("training-now").summary.progress == still
    assert fake.train(TrainRequest(name="training-now")).state is RunState.RUNNING
    fake.advance(100)
    assert fake.run("training-now").summary.state is RunState.FINISHED
    with pytest.raises(WorkspaceError, match="only a stopped run"):
        fake.train(TrainRequest(name="training-now"))
    with pytest.raises(WorkspaceError, match="there is no run 'nobody'"):
        fake.run("nobody")


def test_a_new_run_trains_with_its_configuration(fake: FakeEngine):
    config = {"warp": {"policies": 2, "iterations": 2}, "training": {"steps": [3, 2]}}
    assert fake.train(TrainRequest(name="mine", config=config)).progress == 0
    assert fake.runs()[0].name == "mine"
    fake.advance(4)
    curves = fake.curves("mine")
    assert (curves[0].iteration, curves[0].policy, len(curves[0].step_S)) == (1, 1, 3)
    assert all(len(values) == len(curve.step_S) for curve in curves for values in curve.metrics.values())
    fake.advance(20)
    assert [(c.iteration, c.policy, len(c.step_S)) for c in fake.curves("mine")] == [
        (1, 1, 3),
        (1, 2, 3),
        (2, 1, 2),
        (2, 2, 2),
    ]
    with pytest.raises(WorkspaceError, match="there is a run"):
        fake.train(TrainRequest(name="mine", config={}))
    with pytest.raises(WorkspaceError, match="letters"):
        fake.train(TrainRequest(name="../mine", config={}))


def test_configurations_are_really_checked(fake: FakeEngine):
    good = fake.check_config({"training": {"steps": 12}})
    assert good.ok
    assert "steps = [12]" in good.toml
    bad = fake.check_config({"training": {"steps": -1}})
    assert not bad.ok
    assert "training.steps" in bad.problems[0]
    assert "training" in str(fake.config_schema())


def test_votes(fake: FakeEngine):
    vote = Vote(session="s", prompt="p", first=SFT, second=OTHER, first_text="a", second_text="b", score=-1.5)
    kept = [fake.vote(DEMO, vote), fake.vote(DEMO, vote.model_copy(update={"score": 0.0}))]
    assert kept[0].id != kept[1].id
    assert fake.votes(DEMO) == kept
    assert fake.votes(LOOSE) == []
    fake.undo_vote(DEMO, kept[0].id)
    assert fake.votes(DEMO) == kept[1:]


def test_time_moves_jobs_where_a_pace_is_given():
    now = [100.0]
    fake = FakeEngine(seconds_per_tick=0.5, clock=lambda: now[0])
    job = fake.submit(preview())
    assert [fake.job(job.id).state for _ in range(5)] == [JobState.QUEUED] * 5
    now[0] += 1.6
    assert fake.job(job.id).state is JobState.RUNNING
    now[0] += 10
    assert fake.job(job.id).state is JobState.DONE


def test_noise_is_noise():
    values = np.array([noise(f"{i}") for i in range(4000)])
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1, abs=0.03)
    assert completion("x", seed=1, index=0, distance=0.2, num_words=0) == " "


def test_single_policies_are_at_their_place(fake: FakeEngine):
    points = points_of(fake.front(DEMO))
    assert points["i2.p3"].place == single(3, 3, iteration=2)
    assert points["i2.p3"].policy == 3
