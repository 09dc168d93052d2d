"""The HTTP API, derived from the interface: every method of `Engine` is one route, named after it.

    GET /job?job_id=...                     what only reads and needs no more than a name
    POST /samples?key=...   {selection}     everything else: messages in the body, plain values in the query

One message is the body itself; several are an object with the names of the arguments. The server builds its routes
from this and the client its requests, so that they cannot differ.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import TypeAdapter

from warp_core.service.interface import Engine

__all__ = ["ROUTES", "Route"]

_READS = ("status", "runs", "run", "curves", "config_schema", "studies", "study", "job", "jobs")
_PLAIN = (str, int, str | None)


@dataclass(frozen=True, kw_only=True)
class Route:
    """How a method of `Engine` goes over the wire."""

    name: str
    verb: Literal["GET", "POST"]
    signature: inspect.Signature
    """Of the method, without self."""
    does: str
    """Its documentation."""
    answer: TypeAdapter[Any]
    """Reads what it returns from JSON."""

    @property
    def path(self) -> str:
        """Of the URL."""
        return f"/{self.name}"

    @property
    def body(self) -> tuple[str, ...]:
        """The arguments that are messages."""
        return tuple(name for name, one in self.signature.parameters.items() if one.annotation not in _PLAIN)

    def split(self, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what goes into the body (None: there is none) and into the query."""
        query = {name: value for name, value in arguments.items() if name not in self.body and value is not None}
        if not self.body:
            return None, query
        if len(self.body) == 1:
            return arguments[self.body[0]], query
        return {name: arguments[name] for name in self.body}, query


def _route(name: str) -> Route:
    method = getattr(Engine, name)
    whole = inspect.signature(method)
    signature = whole.replace(parameters=list(whole.parameters.values())[1:])
    return Route(
        name=name,
        verb="GET" if name in _READS else "POST",
        signature=signature,
        does=inspect.getdoc(method) or "",
        answer=TypeAdapter(signature.return_annotation),
    )


ROUTES: Mapping[str, Route] = MappingProxyType(
    {name: _route(name) for name, member in vars(Engine).items() if inspect.isfunction(member) and name[0] != "_"}
)
