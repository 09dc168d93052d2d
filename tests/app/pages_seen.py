"""What the tests of the pages Train, Geometry and Export share: reading what a page shows, and acting in it."""

import json
from typing import Any

from streamlit.testing.v1 import AppTest


def seen(page: AppTest) -> str:
    """All plain text, Markdown and captions of a page, without the backslashes of escaped Markdown."""
    elements = (*page.title, *page.subheader, *page.markdown, *page.caption, *page.text)
    return "\n".join(element.value for element in elements).replace("\\", "")


def button(page: AppTest, key: str) -> Any:
    """The button with this key, or None."""
    return next((one for one in page.button if one.key == key), None)


def press(page: AppTest, key: str) -> AppTest:
    """Click a button that can be clicked."""
    found = button(page, key)
    assert found is not None, f"no button {key} among {[one.key for one in page.button]}"
    assert not found.disabled, f"{key} is disabled"
    return found.click().run()


def choose(page: AppTest, key: str, value: Any) -> AppTest:
    """Choose in a segmented control."""
    return page.button_group(key=key).set_value(value).run()


def component(page: AppTest, key: str) -> dict[str, Any]:
    """What a component of ours was given to draw."""
    found = next(one for one in page.get("bidi_component") if one.key == key)
    return json.loads(found.proto.json)


def figures(page: AppTest) -> list[dict[str, Any]]:
    """The plotly figures, in the order of the page."""
    return [json.loads(one.proto.spec) for one in page.get("plotly_chart")]


def codes(page: AppTest) -> list[str]:
    """The contents of all code blocks."""
    return [one.value for one in page.code]
