"""Components whose latest data win.

Streamlit starts a component's script anew for each change of its data, after waiting for its module. Two changes
that come close together may run in the wrong order, and the older one would stay on the screen. So every drawing
carries the time at which its data changed, and what is older than what is shown is left out.
"""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import streamlit as st

__all__ = ["ordered"]

_ENTRY = "export default function"
_GUARD = """
const drawnLast = new WeakMap();
export default function (component) {
  const { data, parentElement } = component;
  if (data.drawn < (drawnLast.get(parentElement) ?? -Infinity)) return undefined;
  drawnLast.set(parentElement, data.drawn);
  return drawIt(component);
}
"""


def ordered(name: str, *, js: str, css: str, html: str | None = None) -> Callable[..., Any]:
    """Register a component and return what mounts it: `mount(key=..., data={...}, on_x_change=...)`.

    js: a module whose default export, a plain function, draws `data` (an object) into `parentElement`.
    """
    if js.count(_ENTRY) != 1:
        raise ValueError(f"the script of {name} needs one `{_ENTRY}`")
    script = js.replace(_ENTRY, "const drawIt = function") + _GUARD
    component = st.components.v2.component(name, html=html, css=css, js=script)

    def mount(*, key: str, data: dict[str, Any], **callbacks: Callable[[], None]) -> Any:
        return component(key=key, data=data | {"drawn": _changed_at(key, data)}, **callbacks)

    return mount


def _changed_at(key: str, data: dict[str, Any]) -> float:
    """Return when the data of a component last changed, in Unix seconds: the same data are sent but once."""
    digest = hashlib.sha1(json.dumps(data, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    before = st.session_state.get(f"drawn {key}")
    if before is None or before[0] != digest:
        # Later than before even if the clock was set back meanwhile.
        at = time.time() if before is None else max(time.time(), before[1] + 1e-3)
        before = st.session_state[f"drawn {key}"] = (digest, at)
    return float(before[1])
