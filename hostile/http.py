"""The engine's HTTP API: requests made from its own schema, valid and not, and bytes that are no request.

Schemathesis draws the requests from /openapi.json of a real engine over tiny models; every other one that has a
selection gets one that exists, so that what lies behind the first check is reached, too. Then raw sockets: half a
request, a header a second, ten thousand headers, wrong lengths, garbage, and hundreds of connections that say nothing.
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from hostile.outcomes import Outcome, Tally
from hostile.web_sockets import ask, head, open_socket, read_answer
from tests.service.served import TOKEN, served
from tests.tiny import make_adapter, make_model, make_policies
from warp_core.service.engine import LocalEngine

__all__ = ["attack"]

SLOW_S = 1.0
PATIENCE_S = 10.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
BEARER = f"Authorization: Bearer {TOKEN}"


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Fuzz an engine, then send it nonsense."""
    init = make_model("llama", place / "init")
    policies = make_policies(init, place, num=2)
    adapters = [make_adapter(init, place / f"adapter{m}", seed=m) for m in range(2)]
    selections = [
        {"init": str(init), "policies": [str(one) for one in policies]},
        {"init": str(init), "policies": [str(one) for one in adapters]},
    ]
    with mock.patch.dict(os.environ, OFFLINE), ExitStack() as stack:
        engine = LocalEngine(device="cpu")
        stack.callback(engine.close)
        url = stack.enter_context(served(engine))
        port = int(url.rpartition(":")[2])
        yield _schema(url, selections, count=12 if quick else 120)
        yield _nonsense(port, quick=quick)
        yield _crowd(port, count=60 if quick else 200)


def _schema(url: str, selections: list[dict[str, Any]], *, count: int) -> Outcome:
    """`count` requests for each route."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.generation import GenerationMode

    tally = Tally(
        "requests drawn from /openapi.json",
        promise="P13",
        holds="no status of 500 or more; status, type and body of every answer are as the document says; none takes "
        f"over {SLOW_S:.0f} s, twice",
    )
    with (
        warnings.catch_warnings(action="ignore"),
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=60) as client,
    ):
        asker = Asker(client=client, selections=selections, tally=tally)
        document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        for found in document.get_all_operations():
            operation = found.ok()  # type: ignore[union-attr]
            before = asker.answered
            for mode, share in ((GenerationMode.POSITIVE, 2), (GenerationMode.NEGATIVE, 1)):
                limits = settings(
                    max_examples=max(1, count * share // 3),
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                drawn = given(operation.as_strategy(generation_mode=mode))
                _give(seed(6)(limits(drawn(asker.ask))), tally, operation.label)
            jobs = client.get("/jobs").json()
            for job in jobs:
                client.post("/cancel", params={"job_id": job["id"]})
            tally.check(asker.answered > before, f"{operation.label}: no request could be drawn")
            # A fault of the server that came after the answer.
            faults = [job for job in jobs if "fault of warp-core" in (job["error"] or "")]
            tally.check(not faults, f"{operation.label}: {[(job['kind'], job['error']) for job in faults][:3]}")
        tally.check(client.get("/health").json() == {"ok": True}, "the engine is gone")
    return tally.outcome(f"slowest {1000 * asker.slowest_s:.0f} ms, {asker.reached} answered with 200")


@dataclass(kw_only=True)
class Asker:
    """Sends drawn requests and counts what must hold of the answers."""

    client: httpx.Client
    selections: list[dict[str, Any]]
    tally: Tally
    slowest_s: float = 0.0
    reached: int = 0
    asked: int = 0
    answered: int = 0

    def ask(self, case: Any) -> None:
        """Send one; every other one that has a selection gets one that exists."""
        from schemathesis.specs.openapi import checks

        self.asked += 1
        if self.asked % 2:
            _reach(case, self.selections[self.asked // 2 % len(self.selections)])
        drawn = case.as_transport_kwargs(base_url=str(self.client.base_url))
        wanted = {name: value for name, value in drawn.items() if name != "cookies"}
        # The token is not what is fuzzed here: hostile/access.py does that.
        wanted["headers"] = {k: v for k, v in (drawn.get("headers") or {}).items() if k.lower() != "authorization"}
        seen = f"{case.operation.label} {str(wanted.get('params', ''))[:100]} {str(wanted.get('json', ''))[:150]}"
        try:
            answer, took_s = self._timed(wanted)
            if took_s > SLOW_S:
                answer, again_s = self._timed(wanted)
                took_s = min(took_s, again_s)
        except (httpx.InvalidURL, ValueError):
            return  # the client itself refuses to send it
        except httpx.HTTPError as error:
            self.tally.check(False, f"{seen}: {type(error).__name__}: {error}")
            return
        self.slowest_s = max(self.slowest_s, took_s)
        self.answered += 1
        self.reached += answer.status_code == 200
        self.tally.check(answer.status_code < 500, f"{seen}: {answer.status_code} {answer.text[:200]}")
        self.tally.check(took_s <= SLOW_S, f"{seen}: {took_s:.1f} s")
        try:
            case.validate_response(
                answer,
                checks=[
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_headers_conformance,
                    checks.response_schema_conformance,
                ],
            )
        except (AssertionError, BaseExceptionGroup) as error:
            told = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
            self.tally.check(False, f"{seen}: {'; '.join(str(one)[:200] for one in told)}")
        else:
            self.tally.check(True, "")

    def _timed(self, wanted: dict[str, Any]) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        answer = self.client.request(**wanted)
        return answer, time.monotonic() - began


def _give(property_: Callable[[], None], tally: Tally, label: str) -> None:
    """Run a property; that nothing can be drawn for a route, as for one without parameters, is no finding."""
    from hypothesis.errors import Unsatisfiable

    try:
        property_()
    except Unsatisfiable:
        return
    except Exception as error:
        tally.check(False, f"{label}: the property broke: {type(error).__name__}: {error!s:.200}")


def _reach(case: Any, selection: dict[str, Any]) -> None:
    """Put a selection that exists in the place of a drawn one."""
    body = case.body
    if not isinstance(body, dict):
        return
    if "selection" in body:
        body["selection"] = selection
    elif set(body) <= {"run", "init", "policies", "base"}:
        case.body = selection


def _nonsense(port: int, *, quick: bool) -> Outcome:
    tally = Tally(
        "bytes that are no request",
        promise="P13",
        holds="each is refused with a status of 400 to 499, or the connection closes, or nothing is said until the "
        "rest comes; never a 200 for garbage, never a 500; meanwhile and afterwards others are answered within 1 s",
    )
    fine = head("GET", "/status", BEARER)
    garbage: dict[str, bytes] = {
        "nothing but line ends": b"\r\n" * 1000,
        "HTTP/0.9": b"GET /status\r\n\r\n",
        "HTTP/9.9": head("GET", "/status", BEARER, version="9.9"),
        "no version": b"GET /status \r\nHost: localhost\r\n\r\n",
        "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        "random bytes": bytes((7 * i * i + 13 * i) % 256 for i in range(5000)),
        "NUL in the path": head("GET", "/sta\x00tus", BEARER),
        "UTF-8 in the path": "GET /stat\u00fcs HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        "broken UTF-8, escaped": head("GET", "/%ff%fe%80?name=%ff", BEARER),
        "broken UTF-8 in a query": head("GET", "/run?name=%ff%fe", BEARER),
        "NUL in a query": head("GET", "/run?name=%00", BEARER),
        "a path of 100 kB": head("GET", "/" + "a" * 100_000, BEARER),
        "a header of 1 MB": head("GET", "/status", BEARER, "X: " + "x" * 1_000_000),
        "10,000 headers": head("GET", "/status", BEARER, *(f"X-{i}: y" for i in range(10_000))),
        "a header without a colon": head("GET", "/status", BEARER, "nonsense"),
        "a header of nothing": head("GET", "/status", BEARER, ": x"),
        "folded headers": head("GET", "/status", BEARER, "X: a\r\n b\r\n c"),
        "bare line feeds": fine.replace(b"\r\n", b"\n"),
        "a length that is no number": b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n{}",
        "a negative length": b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
        "two lengths": b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "length and chunks": b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a huge length": b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        "chunks of nonsense": f"POST /front HTTP/1.1\r\nHost: localhost\r\n{BEARER}\r\n"
        "Transfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n".encode(),
        "a chunk of a negative size": f"POST /front HTTP/1.1\r\nHost: localhost\r\n{BEARER}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n".encode(),
        "a chunk of 2^64 bytes": f"POST /front HTTP/1.1\r\nHost: localhost\r\n{BEARER}\r\n"
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx\r\n".encode(),
        "an encoding that nobody knows": head("POST", "/front", BEARER, "Transfer-Encoding: evil", body="{}"),
        "a body that is compressed, it says": head("POST", "/front", BEARER, "Content-Encoding: gzip", body="{}"),
        "an upgrade": head("GET", "/status", BEARER, "Upgrade: websocket", "Connection: Upgrade"),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "an asterisk": head("OPTIONS", "*", BEARER),
        "half a request line": b"GET /sta",
        "half the headers": fine[:-10],
        "half a body": head("POST", "/front", BEARER, body="{" + " " * 100)[:-50],
    }  # fmt: skip
    # Odd, but requests: RFC 9112 lets a server take them.
    answered = {"10,000 headers", "a header of 1 MB", "folded headers", "bare line feeds", "an upgrade", "HTTP/9.9"}
    slowest = 0.0
    for name, request in garbage.items():
        with closing(open_socket(port, patience_s=0.2 if quick else 1.0)) as connection:
            with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                connection.sendall(request)
            answer = read_answer(connection, patience_s=0.2 if quick else 1.0)
            ok = answer.status == 0 or 400 <= answer.status < 500 or (answer.status == 200 and name in answered)
            tally.check(ok, f"{name}: {answer.status} {answer.body[:100]!r}")
            slowest = max(slowest, _others_are_answered(tally, port, f"while {name} is open"))
    with closing(open_socket(port)) as connection:
        connection.sendall(fine * 20)
        connection.settimeout(PATIENCE_S)
        data = b""
        with suppress(TimeoutError):
            while data.count(b"HTTP/1.1 200") < 20:
                chunk = connection.recv(65536)
                if not chunk:
                    break
                data += chunk
        tally.check(data.count(b"HTTP/1.1 200") == 20, f"20 requests at once: {data.count(b'HTTP/1.1 200')} answers")
    with closing(open_socket(port)) as connection:
        for byte in fine[: 20 if quick else 200]:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
        slowest = max(slowest, _others_are_answered(tally, port, "while one sends byte by byte"))
    return tally.outcome(f"slowest answer to others {1000 * slowest:.0f} ms")


def _crowd(port: int, *, count: int) -> Outcome:
    tally = Tally(
        f"{count} connections that say nothing, {count} that stop half way",
        promise="P13",
        holds="others are answered within 1 s, before, meanwhile and after they are gone",
    )
    slowest = 0.0
    with ExitStack() as stack:
        for index in range(2 * count):
            connection = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)))
            if index % 2:
                connection.sendall(b"POST /front HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
            if index % 20 == 19:
                slowest = max(slowest, _others_are_answered(tally, port, f"with {index + 1} connections open"))
    for _ in range(5):
        slowest = max(slowest, _others_are_answered(tally, port, "after they are gone"))
    return tally.outcome(f"slowest answer to others {1000 * slowest:.0f} ms")


def _others_are_answered(tally: Tally, port: int, seen: str) -> float:
    """Ask as an honest client does, once more where it was slow; the seconds."""
    request = head("GET", "/status", BEARER, "Connection: close")
    answer = ask(port, request, patience_s=PATIENCE_S)
    if answer.seconds > SLOW_S:
        answer = ask(port, request, patience_s=PATIENCE_S)
    tally.check(answer.status == 200, f"{seen}: another client gets {answer.status}")
    tally.check(answer.seconds <= SLOW_S, f"{seen}: another client waits {answer.seconds:.1f} s")
    return answer.seconds
