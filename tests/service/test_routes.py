"""The wire is derived from the interface: what goes where."""

import pytest

from warp_core.service.documents import EngineStatus, RunSummary
from warp_core.service.interface import Engine
from warp_core.service.protocol import SFT, Selection, Vote
from warp_core.service.routes import ROUTES

SELECTION = Selection(run="demo-run")


def test_every_method_is_one_route():
    assert list(ROUTES) == [name for name in vars(Engine) if callable(vars(Engine)[name]) and not name.startswith("_")]
    assert len({route.path for route in ROUTES.values()}) == len(ROUTES) == 22


@pytest.mark.parametrize("name", list(ROUTES))
def test_what_is_got_has_no_body_and_what_changes_something_is_posted(name):
    route = ROUTES[name]
    assert route.verb == ("GET" if route.path in _GETS else "POST")
    assert not (route.verb == "GET" and route.body)


_GETS = {"/status", "/runs", "/run", "/curves", "/config_schema", "/studies", "/study", "/job", "/jobs"}


def test_plain_values_go_into_the_query_and_one_message_is_the_body():
    assert ROUTES["samples"].split({"selection": SELECTION, "key": "k"}) == (SELECTION, {"key": "k"})
    assert ROUTES["geometry"].split({"selection": SELECTION, "iteration": 2}) == (SELECTION, {"iteration": 2})
    assert ROUTES["check_config"].split({"config": {}}) == ({}, {})
    assert ROUTES["jobs"].split({"session": None}) == (None, {})
    assert ROUTES["jobs"].split({"session": "a"}) == (None, {"session": "a"})


def test_two_messages_go_by_the_names_of_the_arguments():
    vote = Vote(session="a", prompt="", first=SFT, second=SFT, first_text="", second_text="", score=0)
    both = {"selection": SELECTION, "vote": vote}
    assert ROUTES["vote"].split(both) == (both, {})


def test_answers_are_read_as_what_the_method_returns():
    status = EngineStatus(
        version="1", pid=1, started_at=0, workspace="/", devices=(), loaded=(), memory_bytes=0, queued=0, running=0
    )
    assert ROUTES["status"].answer.validate_json(status.model_dump_json()) == status
    assert ROUTES["geometry"].answer.validate_json("null") is None
    assert ROUTES["prompts"].answer.validate_json('["a"]') == ["a"]
    run = RunSummary(name="r", state="failed", model="m", policies=2, iterations=1, finished_iterations=0, progress=0.5)
    assert ROUTES["runs"].answer.validate_json(f"[{run.model_dump_json()}]") == [run]
