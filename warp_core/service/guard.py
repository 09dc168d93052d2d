"""Who may talk to the engine: the holder of the token, no browser, nobody with too much to say.

An ASGI middleware in front of everything but the check of the Host header, which is Starlette's own.
"""

import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warp_core.service.protocol import Failure

__all__ = ["HEALTH_PATH", "MAX_BODY_BYTES", "Guard", "failure"]

MAX_BODY_BYTES = 2_000_000
HEALTH_PATH = "/health"


def failure(status: int, message: str, *, kind: str = "UserError") -> Response:
    """Return an error as the protocol has it: a `Failure` with this status; `kind` is a class of `warp_core.errors`."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(Failure(error=message, type=kind).model_dump(), status_code=status, headers=headers)


class Guard:
    """Refuse requests of browsers (403), without the token (401) and with a body that is too large (413).

    Args:
        app: what is guarded.
        token: what `Authorization: Bearer TOKEN` has to say, for everything but GET /health.
    """

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self.app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            body = await _read(receive)
            if body is not None:
                await self.app(scope, _Replay(body, receive), send)
                return
            refusal = _too_large()
        await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is wrong with a request as far as its headers say."""
        headers = Headers(scope=scope)
        if "origin" in headers:
            # Browsers send it with whatever a page asks of another address; the web app asks from its own process.
            return failure(403, "the engine does not talk to web pages: a request has an Origin header")
        is_health = (scope["method"], scope["path"]) == ("GET", HEALTH_PATH)
        if not is_health and not self._has_token(headers.get("authorization", "")):
            return failure(401, "the token is missing or wrong: send the engine's as `Authorization: Bearer TOKEN`")
        length = headers.get("content-length", "0")
        return _too_large() if not length.isdecimal() or int(length) > MAX_BODY_BYTES else None

    def _has_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip(" ").encode(), self._token)


def _too_large() -> Response:
    return failure(413, f"the request is too large: at most {MAX_BODY_BYTES // 1_000_000} MB")


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body; None if it is too large."""
    chunks, size = [], 0
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(chunks)


class _Replay:
    """Gives a body that was read once more, then whatever comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
