"""What the client makes of answers, of errors and of nobody; and that it is light."""

import json
import math
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.served import TOKEN, served
from warp_core import errors
from warp_core.errors import ConfigError, EngineUnreachableError, RecipeError, UnknownJobError, UserError, WarpError
from warp_core.service import client as client_module
from warp_core.service.client import HttpEngine, engine_url
from warp_core.service.fake import FakeEngine
from warp_core.service.listening import listen
from warp_core.service.protocol import Place, PrepareRequest, PreviewRequest, Selection

DEMO = Selection(run="demo-run")
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def canned(answer):
    """An address at which every connection gets these bytes."""
    with listen("127.0.0.1", 0) as listener:
        listener.settimeout(5)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def response(status, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(data)}",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + data


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765"),
        (" http://127.0.0.1:8765/ \n", "http://127.0.0.1:8765"),
        ("HTTP://Localhost:8080//", "http://localhost:8080"),
        ("https://gpu.example.org/warp/", "https://gpu.example.org/warp"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_addresses(text, url):
    assert engine_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "fake", "127.0.0.1:8765", "localhost:8765", "ftp://x", "file:///etc/passwd", "http://", "http:///x", "//x",
        "http://x:99999", "http://x:port", "http://x:0", "http://user:word@x", "http://x?y", "http://x#y", "http://a b",
        "http://x\ny", "\x00", "http://" + "x" * 70_000,
    ],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match=r"no address of an engine: give one like http://127\.0\.0\.1:8765$") as error:
        engine_url(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("token", ["", None, " x", "x ", "a b", "a\nb", "caf\xe9", "\x00"])
def test_what_is_no_token(token):
    with pytest.raises(ConfigError, match="token"):
        HttpEngine("http://127.0.0.1:1", token)


def test_nobody_there():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with HttpEngine(f"http://127.0.0.1:{port}", TOKEN) as engine:
        assert not engine.is_up()
        started = time.monotonic()
        with pytest.raises(EngineUnreachableError) as error:
            engine.status()
    assert time.monotonic() - started < 2
    assert str(error.value).startswith(
        f"no engine answers at http://127.0.0.1:{port}: it is being started, or has ended"
    )
    assert error.value.__cause__ is not None


def test_somebody_who_never_answers(monkeypatch):
    monkeypatch.setattr(client_module, "ANSWER_S", 0.2)
    with listen("127.0.0.1", 0) as listener:
        engine = HttpEngine(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
        with pytest.raises(EngineUnreachableError, match="did not answer within 0 s: it is busy or stuck"):
            engine.status()
    engine.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        response(200, b"<html>", "text/html"),
        response(200, {"version": 1}),
        response(200, []),
        response(404, {"detail": "Not Found"}),
        response(302, b""),
        response(500, b"Internal Server Error", "text/plain"),
        response(502, b"<html>", "text/html"),
    ],
)
def test_somebody_else(answer):
    with canned(answer) as url, HttpEngine(url, TOKEN) as engine:
        with pytest.raises(EngineUnreachableError) as error:
            engine.status()
        assert url in str(error.value)
        assert not engine.is_up()


@pytest.mark.parametrize("name", errors.__all__)
def test_every_class_of_error_comes_back(name):
    with (
        canned(response(422, {"error": "what, where, what to do", "type": name})) as url,
        pytest.raises(WarpError) as error,
    ):
        HttpEngine(url, TOKEN).status()
    assert (type(error.value), str(error.value)) == (getattr(errors, name), "what, where, what to do")


@pytest.mark.parametrize("name", ["SystemExit", "Exception", "__all__", "__builtins__", "", "os.system"])
def test_and_no_other_does(name):
    with (
        canned(response(500, {"error": "words", "type": name})) as url,
        pytest.raises(WarpError, match="words") as error,
    ):
        HttpEngine(url, TOKEN).status()
    assert type(error.value) is WarpError


def test_a_wrong_token_and_a_wrong_name_are_for_the_user_to_mend():
    with served(FakeEngine()) as url, HttpEngine(url, "wrong") as engine:
        assert engine.is_up()
        with pytest.raises(ConfigError, match="does not take this token: set WARP_ENGINE_TOKEN"):
            engine.status()
    with canned(response(400, b"Invalid host header", "text/plain")) as url:
        engine = HttpEngine(url, TOKEN)
        with pytest.raises(ConfigError, match=r"start it with `warp-core serve --host 127\.0\.0\.1`"):
            engine.status()


def test_an_engine_under_a_path():
    with (
        canned(response(404, {"error": "none", "type": "UnknownJobError"})) as url,
        HttpEngine(url + "/a/b/", TOKEN) as engine,
    ):
        assert engine.url == f"{url}/a/b"
        with pytest.raises(UnknownJobError, match="none"):
            engine.job("x")


def test_the_environment_names_no_proxy_for_it(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with served(FakeEngine()) as url, HttpEngine(url, TOKEN) as engine:
        assert engine.status().pid == 4242


def test_text_of_all_kinds_arrives_as_it_was():
    text = '\u202e<script>\x00\u00e9\U0001f600 \\ " \n\u2028' + "x" * 19_000
    job = PreviewRequest(session="a", selection=DEMO, prompt=text, panes=({"id": text[:40], "place": Place()},))
    with served(FakeEngine()) as url, HttpEngine(url, TOKEN) as engine:
        engine.submit(job)
        done = engine.jobs("a")[0]
        while not done.panes:
            done = engine.job(done.id)
        assert done.panes[0].id == text[:40]
        for name in ("a/b", "../..", "%2e%2e", "?x=1&name=y", "", "caf\xe9", "a\nb"):
            with pytest.raises(UserError, match="there is no run"):
                engine.run(name)


def test_a_number_that_is_not_finite_gets_the_engines_own_answer():
    fake = FakeEngine()
    with served(fake) as url, HttpEngine(url, TOKEN) as engine:
        config = {"training": {"steps": math.nan, "learning_rate": math.inf}}
        assert engine.check_config(config).problems == fake.check_config(config).problems != ()


def test_what_is_no_json_is_said_before_it_is_sent():
    with HttpEngine("http://127.0.0.1:1", TOKEN) as engine:
        for value in (object(), "\ud800"):
            with pytest.raises(UserError, match="is no JSON"):
                engine.check_config({"a": value})


def test_threads_share_it():
    fake = FakeEngine(seconds_per_tick=0.01)
    with served(fake) as url, HttpEngine(url, TOKEN) as engine:
        jobs = [engine.submit(PrepareRequest(session=f"s{n}", selection=DEMO)).id for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: engine.job(jobs[n % 8]), range(200)))
    assert [job.id for job in found] == [jobs[n % 8] for n in range(200)]


def test_one_client_outlives_the_engines_it_talks_to():
    with served(FakeEngine()) as url:
        engine = HttpEngine(url, TOKEN)
        assert engine.status().pid == 4242
    with pytest.raises(EngineUnreachableError):
        engine.status()
    with served(FakeEngine(), port=httpx.URL(url).port):
        assert [engine.status().pid for _ in range(3)] == [4242] * 3
        with pytest.raises(UnknownJobError):
            engine.job("of the engine before")
    engine.close()


def test_errors_of_the_engine_over_http():
    fake = FakeEngine()
    with served(fake) as url, HttpEngine(url, TOKEN) as engine:
        pane = {"id": "a", "place": Place(weights=(0.5, 0.5))}
        request = PreviewRequest(session="a", selection=DEMO, prompt="x", panes=(pane,))
        with pytest.raises(RecipeError, match="weights for 3 policies"):
            engine.submit(request)
        fake.down = True
        with pytest.raises(EngineUnreachableError, match="at fake does not answer"):
            engine.status()


def test_it_brings_no_heavy_library_along():
    heavy = {"torch", "transformers", "peft", "safetensors", "numpy", "fastapi", "uvicorn"}
    code = (
        "import sys, warp_core.service.client as c; c.HttpEngine('http://127.0.0.1:1', 'x');"
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
