"""Data that come late do not replace newer ones in a component."""

import json

import pytest

from app.components import ordered as ordered_module
from app.components.ordered import ordered

DRAWS = "export default function ({ data, parentElement }) { parentElement.textContent = data.text; return () => 0 }"


@pytest.fixture
def script(monkeypatch) -> str:
    """What is registered for a script that shows a text."""
    kept: list[str] = []
    monkeypatch.setattr(ordered_module.st.components.v2, "component", lambda name, **parts: kept.append(parts["js"]))
    ordered("late", js=DRAWS, css="")
    return kept[0]


def test_the_latest_data_stay_whatever_the_order(browser, script):
    page = browser.new_context().new_page()
    blob = f"new Blob([{json.dumps(script)}], {{type: 'text/javascript'}})"
    shown = page.evaluate(
        f"""async () => {{
            const draw = (await import(URL.createObjectURL({blob}))).default;
            const [one, other] = [document.createElement("p"), document.createElement("p")];
            const seen = [];
            for (const [parentElement, drawn, text] of [
                [one, 2, "new"], [one, 1, "old"], [other, 1, "old elsewhere"], [one, 2, "again"], [one, 3, "newest"],
            ]) {{
                const cleanup = draw({{ data: {{ drawn, text }}, parentElement }});
                seen.push([one.textContent, other.textContent, typeof cleanup]);
            }}
            return seen;
        }}"""
    )
    page.context.close()
    assert shown == [
        ["new", "", "function"],
        ["new", "", "undefined"],
        ["new", "old elsewhere", "function"],
        ["again", "old elsewhere", "function"],
        ["newest", "old elsewhere", "function"],
    ]


def test_a_script_without_the_entry_is_refused():
    with pytest.raises(ValueError, match="export default function"):
        ordered("none", js="export default 1", css="")
