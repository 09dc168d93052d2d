"""The engine over HTTP: `Engine` for whoever knows its address and token. No torch here: the app imports this."""

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import pydantic_core
from pydantic import ValidationError

from warp_core import errors
from warp_core.errors import ConfigError, EngineUnreachableError, UserError, WarpError
from warp_core.service import documents as d
from warp_core.service import protocol as p
from warp_core.service.routes import ROUTES

__all__ = ["HttpEngine", "engine_url"]

CONNECT_S, ANSWER_S = 2.0, 30.0
KEEP_S = 30.0  # less than the server keeps a connection, so that none ends in the moment it is used again


def engine_url(text: str) -> str:
    """Return the address of an engine, without a slash at its end.

    Raises:
        ConfigError: it is no address.
    """
    wrong = ConfigError(f"{text[:80]!r} is no address of an engine: give one like http://127.0.0.1:8765")
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise wrong from error
    is_host = re.fullmatch(rb"[A-Za-z0-9._:-]+", url.raw_host)
    is_port = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not is_host or not is_port or url.userinfo or url.query or url.fragment:
        raise wrong
    return str(url).rstrip("/")


class HttpEngine:
    """An engine at an address. Threads may share it: it keeps its connections in a pool.

    What an engine there raises is raised here, with the same class and words.

    Args:
        url: where it listens, like http://127.0.0.1:8765.
        token: what it wants to hear; None is refused like any other that is none.

    Raises:
        ConfigError: the address or the token is none.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self.url = engine_url(url)
        if not token:
            raise ConfigError(
                f"no token for the engine at {self.url}: set WARP_ENGINE_TOKEN to what its token file holds"
            )
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigError("the token of the engine has characters that no token has: letters, digits, - and _")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(keepalive_expiry=KEEP_S),
            trust_env=False,  # a proxy of the environment is none for an engine
        )

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def is_up(self) -> bool:
        """Whether an engine answers there, whatever it thinks of the token."""
        try:
            answer = self._client.get(f"{self.url}/health", timeout=CONNECT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and b'"ok"' in answer.content

    def status(self) -> d.EngineStatus:
        """See `Engine`."""
        return self._call("status")

    def runs(self) -> Sequence[d.RunSummary]:
        """See `Engine`."""
        return self._call("runs")

    def run(self, name: str) -> d.RunDetail:
        """See `Engine`."""
        return self._call("run", name)

    def curves(self, name: str) -> Sequence[d.Curve]:
        """See `Engine`."""
        return self._call("curves", name)

    def train(self, request: p.TrainRequest) -> d.RunSummary:
        """See `Engine`."""
        return self._call("train", request)

    def stop(self, name: str) -> d.RunSummary:
        """See `Engine`."""
        return self._call("stop", name)

    def config_schema(self) -> dict[str, Any]:
        """See `Engine`."""
        return self._call("config_schema")

    def check_config(self, config: dict[str, Any]) -> d.ConfigCheck:
        """See `Engine`."""
        return self._call("check_config", config)

    def front(self, selection: p.Selection) -> d.FrontDocument:
        """See `Engine`."""
        return self._call("front", selection)

    def samples(self, selection: p.Selection, key: str) -> Sequence[d.SampleRow]:
        """See `Engine`."""
        return self._call("samples", selection, key)

    def geometry(self, selection: p.Selection, iteration: int) -> d.GeometryDocument | None:
        """See `Engine`."""
        return self._call("geometry", selection, iteration)

    def prediction(self, selection: p.Selection, iteration: int) -> d.Prediction | None:
        """See `Engine`."""
        return self._call("prediction", selection, iteration)

    def prompts(self, selection: p.Selection) -> Sequence[str]:
        """See `Engine`."""
        return self._call("prompts", selection)

    def studies(self) -> Sequence[d.StudySummary]:
        """See `Engine`."""
        return self._call("studies")

    def study(self, name: str, scale: str) -> d.StudyDocument:
        """See `Engine`."""
        return self._call("study", name, scale)

    def submit(self, request: p.JobRequest) -> p.Job:
        """See `Engine`."""
        return self._call("submit", request)

    def job(self, job_id: str) -> p.Job:
        """See `Engine`."""
        return self._call("job", job_id)

    def jobs(self, session: str | None = None) -> Sequence[p.Job]:
        """See `Engine`."""
        return self._call("jobs", session)

    def cancel(self, job_id: str) -> p.Job:
        """See `Engine`."""
        return self._call("cancel", job_id)

    def votes(self, selection: p.Selection) -> Sequence[p.Vote]:
        """See `Engine`."""
        return self._call("votes", selection)

    def vote(self, selection: p.Selection, vote: p.Vote) -> p.Vote:
        """See `Engine`."""
        return self._call("vote", selection, vote)

    def undo_vote(self, selection: p.Selection, vote_id: str) -> None:
        """See `Engine`."""
        return self._call("undo_vote", selection, vote_id)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Ask for one method and return what it returns, or raise what it raises."""
        route = ROUTES[name]
        body, query = route.split(dict(zip(route.signature.parameters, arguments, strict=True)))
        answer = self._send(route.verb, route.path, body, query)
        if answer.status_code != 200:
            raise self._error(answer)
        try:
            return route.answer.validate_json(answer.content)
        except ValidationError as error:
            raise self._stranger() from error

    def _send(self, verb: str, path: str, body: Any, query: dict[str, Any]) -> httpx.Response:
        try:
            content = None if body is None else pydantic_core.to_json(body, inf_nan_mode="constants")
        except (ValueError, TypeError) as error:
            raise UserError(f"what was to be sent to the engine is no JSON: {str(error)[:200]}") from error
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            return self._client.request(verb, f"{self.url}{path}", params=query, content=content, headers=headers)
        except httpx.ConnectTimeout as error:
            raise self._nobody() from error
        except httpx.TimeoutException as error:
            raise EngineUnreachableError(
                f"the engine at {self.url} did not answer within {ANSWER_S:.0f} s: it is busy or stuck; try again"
            ) from error
        except httpx.HTTPError as error:
            raise self._nobody() from error

    def _nobody(self) -> EngineUnreachableError:
        return EngineUnreachableError(
            f"no engine answers at {self.url}: it is being started, or has ended; `warp-core serve` starts one"
        )

    def _stranger(self) -> EngineUnreachableError:
        return EngineUnreachableError(f"what answers at {self.url} is no engine of this version of warp-core")

    def _error(self, answer: httpx.Response) -> WarpError:
        """What an answer that is none says."""
        host = httpx.URL(self.url).host
        if answer.status_code == 400 and answer.content == b"Invalid host header":
            return ConfigError(
                f"the engine at {self.url} does not go by that name: start it with `warp-core serve --host {host}`"
            )
        try:
            said = p.Failure.model_validate_json(answer.content)
        except ValidationError:
            return self._stranger()
        if answer.status_code == 401:
            return ConfigError(
                f"the engine at {self.url} does not take this token: set WARP_ENGINE_TOKEN to what its token file holds"
            )
        kind: type[WarpError] = getattr(errors, said.type) if said.type in errors.__all__ else WarpError
        return kind(said.error)
