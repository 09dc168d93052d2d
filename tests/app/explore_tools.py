"""What the tests of the explore page share: reading components, and doing in them what a browser would do."""

import json
from typing import Any

from streamlit.testing.v1 import AppTest

from app.view import View
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import Place


def element(page: AppTest, key: str) -> Any:
    """The element of a key, of whatever kind."""
    return next(one for one in page._tree if getattr(one, "key", None) == key)


def has(page: AppTest, key: str) -> bool:
    """Whether there is an element with this key."""
    return any(getattr(one, "key", None) == key for one in page._tree)


def field(widgets: Any, name: str) -> Any:
    """The input of this name; its key has a number, see `app.explore.fields`."""
    return next(one for one in widgets if (one.key or "").rpartition("-")[0] == name)


def data_of(page: AppTest, key: str) -> dict[str, Any]:
    """The data that a component draws."""
    proto = element(page, key).proto
    return json.loads(proto.json or proto.mixed.json)


def say(page: AppTest, key: str, **value: Any) -> AppTest:
    """Run the page with what a component or table of this key reports."""
    states = page._tree.get_widget_states()
    found = element(page, key)
    state = states.widgets.add()
    state.id = found.proto.id
    if found.type == "dataframe":
        state.string_value = json.dumps(value)
    else:
        state.json_value = json.dumps(value)
    return page._run(states)


def choose_row(page: AppTest, key: str, *rows: int) -> AppTest:
    """Select rows of a table."""
    return say(page, key, selection={"rows": list(rows), "columns": [], "cells": []})


def release(page: AppTest, place: Place, **changes: Any) -> AppTest:
    """Let go of a slider of the pilot at a place."""
    view = view_of(page)
    seen = {"x": view.x, "y": view.y, "budget": view.budget, "hidden": [], "extrapolate": view.extrapolate}
    count = page.session_state["told"] + 1 if "told" in page.session_state else 1
    page.session_state["told"] = count
    event = seen | {"place": place.model_dump(mode="json"), "seq": count} | changes
    return say(page, "pilot", view=event)


def unfold(page: AppTest, label: str) -> AppTest:
    """Open an expander that draws its content on demand."""
    state = page._tree.get_widget_states()
    found = state.widgets.add()
    found.id = next(one for one in page.expander if one.label == label).proto.id
    found.bool_value = True
    return page._run(state)


def view_of(page: AppTest) -> View:
    """The view of the session."""
    return page.session_state["view"]


def words_of(page: AppTest) -> str:
    """All text that is not a component's."""
    found = [one.value for kind in ("text", "caption", "markdown", "subheader") for one in page.get(kind)]
    return "\n".join(str(one) for one in found)


def requests_of(fake: FakeEngine, kind: str) -> list[Any]:
    """Requests of a kind, oldest first."""
    return [job.request for job in fake._queue._jobs.values() if job.request.kind == kind]


def finish(fake: FakeEngine, page: AppTest) -> AppTest:
    """Let all jobs end and draw the page."""
    fake.advance(200)
    return page.run()
