"""The web server: Streamlit with settings that keep it on this machine, and headers that keep pages to themselves.

Every request and WebSocket must name a host that is ours (a page elsewhere that points its own name at 127.0.0.1 gets
nothing), a page of another origin opens no socket, and the browser is told to fetch nothing from anywhere else and to
show the app in no other page's frame.
"""

import base64
import hashlib
import ipaddress
import logging
import re
import socket
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import streamlit as st
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SETTINGS_FILE", "SameOrigin", "SecurityHeaders", "content_security_policy", "host_names", "run", "settings"]

APP = Path(__file__).resolve().parent
SCRIPT = APP / "entry" / "warp.py"
SETTINGS_FILE = APP / "entry" / ".streamlit" / "config.toml"
FIRST_PAGE = "explore"
LOCAL = ("localhost", "127.0.0.1")

log = logging.getLogger("warp.app")


def settings(*, port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """Return all of Streamlit's settings by dotted name: those of the file, for this port and address."""
    flat = dict(_flattened(tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))))
    return flat | {"server.port": port, "server.address": host, "server.allowedHosts": list(host_names(host))}


def host_names(host: str) -> tuple[str, ...]:
    """Return what a request may call this machine: itself, and on a wider address its names and addresses there."""
    if _is_loopback(host):
        return LOCAL
    names = {host, socket.gethostname(), socket.getfqdn()}
    names |= {
        found.address for all_ in psutil.net_if_addrs().values() for found in all_ if found.family == socket.AF_INET
    }
    return (*LOCAL, *sorted(names - {"", "0.0.0.0", *LOCAL}))


def content_security_policy(*, index_html: str) -> str:
    """Return the policy for Streamlit's page.

    What it needs beyond its own files: its inline script (by hash), the JavaScript of components as blob:, inline
    styles, pictures in data:. Not eval: what would need it (Graphviz, Plotly's WebGL traces) is not used here.
    """
    scripts = re.findall(r"<script>(.*?)</script>", index_html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(["'self'", "blob:", *(f"'sha256-{one}'" for one in hashes)]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "media-src": "'self'",
        "connect-src": "'self'",
        "worker-src": "'self' blob:",
        "manifest-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


class SecurityHeaders:
    """ASGI middleware that adds the headers to every answer."""

    def __init__(self, app: ASGIApp, *, policy: str) -> None:
        self._app = app
        headers = {
            "content-security-policy": policy,
            "x-frame-options": "DENY",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; what comes back carries the headers in place of any of the same name."""
        names = {name for name, _ in self._headers}

        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                kept = [pair for pair in message.get("headers", ()) if bytes(pair[0]).lower() not in names]
                message["headers"] = [*kept, *self._headers]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] in ("http", "websocket") else send)


class SameOrigin:
    """ASGI middleware that refuses sockets and changes which a page of another origin asks for.

    Streamlit alone would let in every page of this machine, whatever port it came from.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it comes from our own pages, or from no page at all."""
        if scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in ("GET", "HEAD")):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != headers.get("host"):
                await PlainTextResponse("this page may not ask that", status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def application(*, host: str = "127.0.0.1") -> st.App:
    """Return the ASGI application."""
    index = Path(st.__file__).parent / "static" / "index.html"
    policy = content_security_policy(index_html=index.read_text(encoding="utf-8"))
    return st.App(
        SCRIPT,
        middleware=[
            Middleware(SecurityHeaders, policy=policy),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(host_names(host)), www_redirect=False),
            Middleware(SameOrigin),
        ],
        # The first page has the empty path; its name leads there, too.
        routes=[Route(f"/{FIRST_PAGE}", _to_first_page)],
        lifespan=_lifespan,
        on_script_error=_log_error,
    )


def run(*, port: int, host: str = "127.0.0.1") -> None:
    """Serve until stopped."""
    application(host=host).run(config=settings(port=port, host=host))


async def _to_first_page(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/{query}")


@asynccontextmanager
async def _lifespan(app: st.App) -> AsyncIterator[None]:
    """While the server opens its port, a thread imports what the first page will need."""
    threading.Thread(target=_import_pages, daemon=True).start()
    yield


def _import_pages() -> None:
    from app.main import import_pages

    import_pages()


def _log_error(error: Exception) -> bool:
    """An error that no page caught goes to the log; the page says so in a line of its own."""
    from app.ui import error_box

    log.error("a page failed", exc_info=error)
    error_box(error)
    return True


def _flattened(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_loopback(host: str) -> bool:
    if host in LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
