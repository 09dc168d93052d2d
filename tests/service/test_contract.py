"""Engines that are asked the same give the same answers: in this process, and through HTTP over a real socket."""

import importlib
import inspect
from typing import get_type_hints

import pytest
from pydantic import TypeAdapter

from tests.service.served import TOKEN, served
from warp_core.errors import UnknownJobError, UserError, WarpError
from warp_core.service import documents as d
from warp_core.service import protocol as p
from warp_core.service.client import HttpEngine
from warp_core.service.fake import FakeEngine
from warp_core.service.interface import Engine
from warp_core.service.routes import ROUTES

DEMO = p.Selection(run="demo-run")
LOOSE = p.Selection(init="smollm2-135m", policies=("a", "b"))
MEASURED = p.Place(iteration=2, eta=0.3, weights=(0.5, 0.25, 0.25))
PANES = tuple(p.PaneRequest(id=name, place=place) for name, place in (("left", p.SFT), ("here", MEASURED)))
VOTE = p.Vote(session="a", prompt="x", first=p.SFT, second=MEASURED, first_text="1", second_text="2", score=-1.5)
REQUESTS = {
    "preview": p.PreviewRequest(session="a", selection=DEMO, prompt="The film", panes=PANES, num_completions=2),
    "measure": p.MeasureRequest(session="a", selection=DEMO, places=(MEASURED, p.SFT)),
    "prepare": p.PrepareRequest(session="a", selection=DEMO),
    "check": p.CheckRequest(session="a", selection=LOOSE),
    "geometry": p.GeometryRequest(session="a", selection=LOOSE),
    "export": p.ExportRequest(session="a", selection=DEMO, place=MEASURED, name="chosen"),
    "judge": p.JudgeRequest(session="a", selection=DEMO, keys=("sft",), reward=("length",)),
}
CONFIG = {"training": {"steps": 5}, "warp": {"policies": 2}}


def fake():
    return FakeEngine(clock=lambda: 1_700_000_000.0)


@pytest.fixture
def pair():
    """Two engines in the same state, the second one behind HTTP."""
    with served(fake()) as url, HttpEngine(url, TOKEN) as engine:
        yield fake(), engine


def as_json(value):
    return TypeAdapter(object).dump_python(value, mode="json")


def both(pair, name, *arguments):
    """What both answer, after a check that it is the same."""
    answers = []
    for engine in pair:
        try:
            answers.append(getattr(engine, name)(*arguments))
        except WarpError as error:
            answers.append((type(error), str(error)))
    assert answers[0] == answers[1] or as_json(answers[0]) == as_json(answers[1])
    return answers[1]


@pytest.mark.parametrize(
    ("module", "name"), [("engine", "LocalEngine"), ("fake", "FakeEngine"), ("client", "HttpEngine")]
)
def test_every_implementation_has_every_method_with_the_same_arguments(module, name):
    implementation = getattr(importlib.import_module(f"warp_core.service.{module}"), name)
    for name in ROUTES:
        wanted, found = (inspect.signature(getattr(owner, name)) for owner in (Engine, implementation))
        assert list(found.parameters.items()) == list(wanted.parameters.items()), name
        assert get_type_hints(getattr(implementation, name)) == get_type_hints(getattr(Engine, name)), name


def test_what_needs_no_more_than_a_name(pair):
    assert both(pair, "status").version
    assert {run.name for run in both(pair, "runs")} == {"demo-run", "training-now"}
    assert both(pair, "run", "demo-run").summary.policies == 3
    assert all(isinstance(curve, d.Curve) for curve in both(pair, "curves", "demo-run"))
    assert both(pair, "config_schema")["properties"]
    assert both(pair, "jobs") == []


@pytest.mark.parametrize("selection", [DEMO, LOOSE])
def test_what_is_known_about_a_selection(pair, selection):
    front = both(pair, "front", selection)
    assert isinstance(front, d.FrontDocument)
    for point in front.points[:4]:
        assert both(pair, "samples", selection, point.key)
    for iteration in (1, 2):
        assert (both(pair, "geometry", selection, iteration) is None) is (selection is LOOSE)
        both(pair, "prediction", selection, iteration)
    assert both(pair, "prompts", selection)


def test_a_prediction_is_exact_to_the_last_digit(pair):
    direct, over_http = (engine.prediction(DEMO, 2) for engine in pair)
    assert direct is not None
    assert direct == over_http


@pytest.mark.parametrize("kind", REQUESTS)
def test_jobs_from_queue_to_result(pair, kind):
    job = both(pair, "submit", REQUESTS[kind])
    assert (job.kind, job.state) == (kind, p.JobState.QUEUED)
    for _ in range(40):
        job = both(pair, "job", job.id)
        if job.state.is_final:
            break
    assert job.state is p.JobState.DONE, job
    assert both(pair, "jobs", "a")[0].id == job.id
    assert both(pair, "jobs", "nobody") == []
    assert both(pair, "cancel", job.id).state is p.JobState.DONE
    both(pair, "front", REQUESTS[kind].selection)


def test_latest_wins_and_cancel(pair):
    first = both(pair, "submit", REQUESTS["preview"])
    second = both(pair, "submit", REQUESTS["preview"])
    assert both(pair, "job", first.id).state is p.JobState.CANCELLED
    assert both(pair, "cancel", second.id).state is p.JobState.CANCELLED
    kind, words = both(pair, "job", "nope")
    assert kind is UnknownJobError
    assert words
    assert both(pair, "cancel", "nope") == (kind, words)


def test_votes(pair):
    stored = both(pair, "vote", DEMO, VOTE)
    assert stored.id
    again = both(pair, "vote", DEMO, VOTE.model_copy(update={"score": 0.5, "blind": True}))
    assert both(pair, "votes", DEMO) == [stored, again]
    assert both(pair, "undo_vote", DEMO, stored.id) is None
    assert both(pair, "votes", DEMO) == [again]
    assert both(pair, "votes", LOOSE) == []


def test_training(pair):
    checked = both(pair, "check_config", CONFIG)
    assert checked.ok
    assert checked.config["training"]["steps"] == [5]
    assert not both(pair, "check_config", {"training": {"step": 5}}).ok
    assert both(pair, "train", p.TrainRequest(name="new", config=CONFIG)).state is d.RunState.RUNNING
    assert both(pair, "stop", "new").state is d.RunState.STOPPED
    assert both(pair, "train", p.TrainRequest(name="new")).state is d.RunState.RUNNING
    kind, _ = both(pair, "train", p.TrainRequest(name="new", config=CONFIG))
    assert issubclass(kind, UserError)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run", ("nowhere",)),
        ("run", ("../etc",)),
        ("curves", ("",)),
        ("stop", ("nowhere",)),
        ("front", (p.Selection(),)),
        ("front", (p.Selection(run="nowhere"),)),
        ("samples", (DEMO, "no such point")),
        ("prompts", (p.Selection(run="nowhere"),)),
        ("train", (p.TrainRequest(name="nowhere"),)),
        ("train", (p.TrainRequest(name="x", config={"warp": {"policies": "many"}}),)),
        ("submit", (p.PrepareRequest(session="a", selection=p.Selection(run="nowhere")),)),
    ],
)
def test_mistakes_have_the_same_class_and_words(pair, name, arguments):
    kind, words = both(pair, name, *arguments)
    assert issubclass(kind, UserError)
    assert words
    assert "\n" not in words
