"""Which engine this process talks to, and who is asking.

WARP_ENGINE_URL     http://127.0.0.1:PORT of an engine, or `fake` for one without models
WARP_ENGINE_TOKEN   its token
"""

import os
import secrets
import threading
from typing import cast

import streamlit as st

from warp_core.errors import EngineUnreachableError
from warp_core.service.client import HttpEngine
from warp_core.service.fake import FakeEngine
from warp_core.service.interface import Engine

__all__ = ["TOKEN_VARIABLE", "URL_VARIABLE", "engine", "session_id", "use_engine"]

URL_VARIABLE = "WARP_ENGINE_URL"
TOKEN_VARIABLE = "WARP_ENGINE_TOKEN"
FAKE_TICK_S = 0.15
_lock = threading.Lock()
_engine: Engine | None = None


def engine() -> Engine:
    """Return the engine of this process; all browser sessions share it.

    Raises:
        EngineUnreachableError: no engine was named when the app was started.
    """
    global _engine
    with _lock:
        if _engine is None:
            _engine = _from_environment()
        return _engine


def use_engine(other: Engine | None) -> None:
    """Take another engine from now on; None: the one of the environment."""
    global _engine
    with _lock:
        _engine = other


def session_id() -> str:
    """Return the id of this browser session: previews of one session replace each other, those of others do not."""
    if "session_id" not in st.session_state:
        st.session_state["session_id"] = secrets.token_urlsafe(16)
    return cast(str, st.session_state["session_id"])


def _from_environment() -> Engine:
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise EngineUnreachableError(
            f"the app knows no engine: start both with `warp-core app`, or set {URL_VARIABLE} to an engine's address"
        )
    if url == "fake":
        return FakeEngine(seconds_per_tick=FAKE_TICK_S)
    return HttpEngine(url, token=os.environ.get(TOKEN_VARIABLE))
