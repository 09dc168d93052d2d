"""The HTTP API of an engine: FastAPI over any `Engine`, one route for each of its methods.

    GET /health             {"ok": true}, for everyone who reaches it
    GET /openapi.json       the API, for programs; like all the rest only with the token

Errors are JSON: `Failure`. What is nobody's mistake goes to the log with its trace, and not to the client.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

import warp_core
from warp_core.errors import EngineUnreachableError, UnknownJobError, UserError, WarpError
from warp_core.service.faults import explain
from warp_core.service.guard import HEALTH_PATH, Guard, failure
from warp_core.service.interface import Engine
from warp_core.service.protocol import Failure
from warp_core.service.routes import ROUTES, Route

__all__ = ["LOCAL_HOSTS", "create_app"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_LONGEST = 300  # characters of a message about a request
# Newer FastAPI can send traces of every request to a collector that the environment names; older ones ignore this.
_NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
_DOCUMENTED = {status: {"model": Failure} for status in (400, 401, 403, 404, 405, 413, 422, 500, 503)}


def create_app(engine: Engine, *, token: str, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the ASGI application that answers for an engine.

    Args:
        engine: does the work; its methods are called from several threads.
        token: what a request has to carry.
        hosts: names and addresses, beside the loopback ones, that requests may call this machine by (the Host header).
    """
    app = FastAPI(
        title="warp-core engine",
        version=warp_core.__version__,
        # The pages that FastAPI would serve here load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
        generate_unique_id_function=lambda route: route.name,
        dependencies=[Security(HTTPBearer(auto_error=False))],  # only says so in the document: Guard checks it
        responses=_DOCUMENTED,  # type: ignore[arg-type]
    )
    for route in ROUTES.values():
        app.add_api_route(route.path, _endpoint(engine, route), methods=[route.verb], description=route.does)
    app.add_route(HEALTH_PATH, _health, methods=["GET"], include_in_schema=False)
    # The one that is added last is asked first.
    app.add_middleware(Guard, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, *hosts], www_redirect=False)
    app.add_exception_handler(WarpError, _said)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _no_such)
    app.add_exception_handler(Exception, _fault)
    return app


async def _health(request: Request) -> Response:
    return Response('{"ok": true}', media_type="application/json")


def _endpoint(engine: Engine, route: Route) -> Callable[..., Any]:
    """A function with the signature of the method, from which FastAPI takes what it reads and writes."""
    method = getattr(engine, route.name)

    def endpoint(**arguments: Any) -> Any:
        return method(*(arguments[name] for name in route.signature.parameters))

    endpoint.__name__ = route.name
    endpoint.__signature__ = route.signature  # type: ignore[attr-defined]
    return endpoint


async def _said(request: Request, error: Exception) -> Response:
    """An error that was raised on purpose."""
    status = 500
    if isinstance(error, UnknownJobError):
        status = 404
    elif isinstance(error, UserError):
        status = 422
    elif isinstance(error, EngineUnreachableError):
        status = 503
    return failure(status, explain(error).message, kind=type(error).__name__)


async def _not_valid(request: Request, error: Exception) -> Response:
    """A request that does not fit: name the field, and never repeat what was sent at length."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    where = ".".join(_short(part) for part in found[0]["loc"] if part not in ("body", "query"))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = " ".join(str(found[0]["msg"]).split())[:_LONGEST]
    return failure(422, f"the request is not valid: {where or 'body'}: {message}{more}")


def _short(part: object) -> str:
    text = str(part)
    return text if len(text) <= 60 and text.isprintable() else f"{text[:60]!a}..."


async def _no_such(request: Request, error: Exception) -> Response:
    """No such path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    what = {404: "the engine has no such path: see /openapi.json", 405: "not with this method: see /openapi.json"}
    return failure(error.status_code, what.get(error.status_code, "the body of the request cannot be read"))


async def _fault(request: Request, error: Exception) -> Response:
    """Anything else; Starlette raises it again, and the server logs it with its trace."""
    fault = explain(error, see="the lines in the engine's log")
    kind = "UserError" if fault.is_users else "WarpError"
    answer = failure(422 if fault.is_users else 500, fault.message, kind=kind)
    # The server ends the connection after this: the client must not send its next request there.
    answer.headers["Connection"] = "close"
    return answer
