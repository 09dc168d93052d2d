"""The HTTP API as somebody sees it who does not mean well, or is mistaken; over a real socket."""

import json
import logging
import socket

import httpx
import pytest

from tests.service.served import TOKEN, served
from warp_core.errors import EngineUnreachableError
from warp_core.service.fake import FakeEngine
from warp_core.service.guard import MAX_BODY_BYTES
from warp_core.service.interface import Engine
from warp_core.service.routes import ROUTES
from warp_core.service.server import create_app

DEMO = {"run": "demo-run"}


class Faulty(FakeEngine):
    """Has a bug, a full disk and too little memory."""

    def status(self):
        return {}["the secret of the house"]

    def runs(self):
        raise OSError(28, "No space left on device", "/runs/demo")

    def prompts(self, selection):
        raise MemoryError

    def jobs(self, session=None):
        raise EngineUnreachableError("the engine is being shut down")


@pytest.fixture(scope="module")
def address():
    with served(FakeEngine()) as address:
        yield address


@pytest.fixture
def ask(address):
    """Ask with the token, and anything else that is given."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as client:
        yield client.request


def refused(answer, status, *, kind="UserError"):
    """The message, after a check that it is one line of the right form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert said.keys() == {"error", "type"}
    assert said["type"] == kind
    assert "\n" not in said["error"]
    assert len(said["error"]) < 500
    assert "Traceback" not in said["error"]
    return said["error"]


def test_health_is_for_everyone_and_says_nothing_else(address):
    answer = httpx.get(f"{address}/health", trust_env=False)
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert "server" not in answer.headers or "warp" not in answer.headers["server"]


@pytest.mark.parametrize(
    "path", ["/status", "/openapi.json", "/runs", "/nowhere", "/health/", "/health/../status", "/"]
)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_nothing_without_the_token(address, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.get(f"{address}{path}", headers=headers, trust_env=False)
    assert "token is missing or wrong" in refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("verb", ["POST", "HEAD", "OPTIONS", "PUT"])
def test_health_is_no_way_around_the_token(address, verb):
    assert httpx.request(verb, f"{address}/health", trust_env=False).status_code == 401


@pytest.mark.parametrize("token", ["t\xe4ken", TOKEN + "\xa0", "\x00"])
def test_a_token_of_strange_bytes_is_wrong(address, token):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer "
            + token.encode("latin-1")
            + b"\r\n\r\n"
        )
        status = connection.makefile("rb").readline().split()[1]
    assert status in (b"400", b"401")


def test_the_scheme_of_the_token_may_be_in_any_case(address):
    answer = httpx.get(f"{address}/status", headers={"Authorization": f"bearer {TOKEN}"}, trust_env=False)
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:8765", "LOCALHOST", "[::1]:80"])
def test_a_local_name_is_answered(ask, host):
    assert ask("GET", "/status", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "evil.example:80", "", "[::1"],
)
@pytest.mark.parametrize("path", ["/status", "/health"])
def test_another_name_is_not(ask, host, path):
    answer = ask("GET", path, headers={"Host": host})
    assert (answer.status_code, answer.content) == (400, b"Invalid host header")


def test_a_name_that_was_given_is_answered():
    app = create_app(FakeEngine(), token=TOKEN, hosts=["gpu.example.org"])
    (hosts,) = [each.kwargs["allowed_hosts"] for each in app.user_middleware if "allowed_hosts" in each.kwargs]
    assert hosts == ["localhost", "127.0.0.1", "[::1]", "gpu.example.org"]


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8501", "https://evil.example", "null", ""])
@pytest.mark.parametrize(
    ("verb", "path"), [("GET", "/status"), ("GET", "/health"), ("POST", "/stop"), ("OPTIONS", "/front")]
)
def test_no_browser_has_business_here(ask, origin, verb, path):
    answer = ask(verb, path, headers={"Origin": origin})
    assert "does not talk to web pages" in refused(answer, 403)
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_body_that_is_too_large_is_not_read(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /front HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        assert connection.makefile("rb").readline().split()[1] == b"413"


def test_nor_is_one_that_hides_its_size(ask):
    def chunks():
        for _ in range(MAX_BODY_BYTES // 50_000 + 1):
            yield b" " * 50_000

    answer = ask("POST", "/front", content=chunks(), headers={"Content-Type": "application/json"})
    assert refused(answer, 413) == "the request is too large: at most 2 MB"


def test_a_body_in_pieces_is_read(ask):
    body = json.dumps(DEMO).encode()
    answer = ask("POST", "/front", content=iter([body[:5], body[5:]]), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


def test_a_request_just_small_enough_is_read(ask):
    body = json.dumps(DEMO).encode().ljust(MAX_BODY_BYTES)
    answer = ask("POST", "/front", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/front", {"run": 5}, "the request is not valid: run: Input should be a valid string"),
        ("/front", {"rum": "demo-run"}, "rum: Extra inputs are not permitted"),
        ("/front", [], "body: Input should be a valid dictionary"),
        ("/front", {"policies": ["x"] * 17}, "policies: Tuple should have at most 16 items"),
        ("/samples", DEMO, "key: Field required"),
        ("/geometry?iteration=one", DEMO, "iteration: Input should be a valid integer"),
        ("/geometry?iteration=1e999", DEMO, "iteration: "),
        ("/submit", {"kind": "dance"}, "Input tag 'dance'"),
        ("/submit", {"kind": "check", "session": "a b", "selection": DEMO}, "check.session: String should match"),
        ("/submit", {"kind": "check", "session": "a", "selection": DEMO, "x": 1}, "check.x: Extra inputs"),
        ("/vote", {"selection": DEMO}, "vote: Field required"),
        ("/train", {"name": ""}, "name: String should have at least 1 character"),
    ],
)
def test_a_request_that_does_not_fit_names_the_field(ask, path, body, said):
    assert said in refused(ask("POST", path, json=body), 422)


def test_what_is_wrong_in_many_places_is_counted(ask):
    body = {"kind": "preview", "session": "a", "selection": DEMO, "prompt": "", "panes": [], "seed": -1}
    assert refused(ask("POST", "/submit", json=body), 422).endswith("(and 2 more)")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"run": "\\ud800"}', b"null"])
def test_a_body_that_is_no_json(ask, body):
    answer = ask("POST", "/front", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    refused(answer, answer.status_code)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(ask, value):
    body = '{"kind": "measure", "session": "a", "selection": {"run": "demo-run"}, "places": [{"eta": ETA}]}'
    answer = ask("POST", "/submit", content=body.replace("ETA", value), headers={"Content-Type": "application/json"})
    assert "measure.places.0.eta: Input should be" in refused(answer, 422)


def test_what_was_sent_is_not_repeated_at_length(ask):
    long = "x" * 100_000
    for body in ({"run": long}, {long: 1}, {"policies": [long]}, {"run": ["<script>" + long]}):
        assert "x" * 400 not in refused(ask("POST", "/front", json=body), 422)
    refused(ask("POST", "/submit", json={"kind": long}), 422)
    refused(ask("GET", "/run", params={"name": "y" * 20_000}), 422, kind="WorkspaceError")
    refused(ask("POST", "/front", json={"line\nbreak": 1}), 422)


def test_errors_of_the_engine_keep_class_and_words(ask):
    said = refused(ask("GET", "/run", params={"name": "nowhere"}), 422, kind="WorkspaceError")
    assert said.startswith("there is no run 'nowhere'")
    refused(ask("GET", "/job", params={"job_id": "nope"}), 404, kind="UnknownJobError")


@pytest.mark.parametrize("path", ["/nowhere", "/docs", "/redoc", "/docs/oauth2-redirect", "/runs/", "//runs"])
def test_there_are_no_other_pages(ask, path):
    assert "no such path" in refused(ask("GET", path), 404)


def test_another_verb(ask):
    assert "not with this method" in refused(ask("DELETE", "/status"), 405)
    assert "not with this method" in refused(ask("GET", "/front"), 405)


def test_faults_are_told_without_a_trace_and_logged_with_one(caplog):
    with served(Faulty()) as address:
        log = logging.getLogger("uvicorn.error")
        log.setLevel(logging.ERROR)
        log.addHandler(caplog.handler)
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as client:
            said = refused(client.get("/status"), 500, kind="WarpError")
            assert "a fault of warp-core" in said
            assert "KeyError" in said
            assert "secret" not in said
            said = refused(client.get("/runs"), 422)
            assert said == "/runs/demo: No space left on device: mend that and try again"
            assert "out of memory" in refused(client.post("/prompts", json=DEMO), 500, kind="WarpError")
            refused(client.get("/jobs"), 503, kind="EngineUnreachableError")
            assert client.post("/front", json=DEMO).status_code == 200
    log.removeHandler(caplog.handler)
    assert "the secret of the house" in str(caplog.records[0].exc_info[1])


def test_nothing_is_reported_to_a_collector(monkeypatch):
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    settings = getattr(create_app(FakeEngine(), token=TOKEN), "_telemetry", {})
    assert not any(settings.values())


def test_the_document_of_the_api_is_complete(ask):
    document = ask("GET", "/openapi.json").json()
    assert set(document["paths"]) == {f"/{name}" for name in ROUTES}
    names = {name for name in vars(Engine) if not name.startswith("_")}
    assert names == set(ROUTES)
    for name, route in ROUTES.items():
        (operation,) = document["paths"][route.path].values()
        assert operation["operationId"] == name
        assert operation["description"] == getattr(Engine, name).__doc__.strip()
        assert operation["security"] == [{"HTTPBearer": []}]
        assert {"401", "404", "413", "422", "500"} <= set(operation["responses"])
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer or name == "undo_vote"
        assert ("requestBody" in operation) is bool(route.body)
    schemas = document["components"]["schemas"]
    assert {"Failure", "Job", "FrontDocument", "Selection", "PreviewRequest", "Prediction", "Vote"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    assert document["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
