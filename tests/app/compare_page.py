"""The Compare page as its tests see it."""

import json
from typing import Any

from streamlit.testing.v1 import AppTest

from app.view import Pin, View
from warp_core.service.protocol import Place, Selection

RUN = Selection(run="demo-run")
HALF, FULL = Place(eta=0.5), Place(eta=1.0)
UNMEASURED = Place(eta=0.42)


def pinned(*places: Place, **fields: Any) -> View:
    return View(run="demo-run", pins=tuple(Pin(place=place) for place in places), **fields)


def texts(page: AppTest) -> list[str]:
    return [element.value for element in page.text]


def shown(page: AppTest) -> str:
    return next(text for text in texts(page) if text.endswith(" shown"))


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def frame(page: AppTest, column: str) -> Any:
    """The table with a column of that name."""
    return next(element.value for element in page.dataframe if column in element.value.columns)


def chips(page: AppTest, *names: str) -> AppTest:
    return page.button_group(key="compare_chips").set_value(list(names)).run()


def component(page: AppTest) -> dict[str, Any]:
    """What the panes show."""
    (element,) = page.get("bidi_component")
    return json.loads(element.proto.json)


def maps(page: AppTest) -> list[dict[str, Any]]:
    """The data of the heat maps."""
    return [json.loads(element.proto.spec)["data"][0] for element in page.get("plotly_chart")]
