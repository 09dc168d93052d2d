"""The web server: who may ask, what it says about itself, what it never loads. Sockets by hand, as attackers have."""

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import streamlit

from app.server import (
    SCRIPT,
    SETTINGS_FILE,
    SecurityHeaders,
    content_security_policy,
    host_names,
    settings,
)
from tests.browser.conftest import free_port, running_app

ROOT = Path(__file__).resolve().parents[2]
INDEX = (Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_app(tmp_path_factory.mktemp("server") / "log.txt") as app:
        yield app


def port_of(server: Any) -> int:
    return int(server.url.rpartition(":")[2])


def raw(port: int, request: str) -> Answer:
    """Send bytes and read the head of the answer, and the body where its length is told."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                break
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
    return Answer(int(lines[0].split()[1]), headers, body)


def get(port: int, path: str = "/", *, host: str | None = None, extra: str = "") -> Answer:
    return raw(port, f"GET {path} HTTP/1.1\nHost: {host or f'127.0.0.1:{port}'}\nConnection: close\n{extra}\n")


def upgrade(port: int, *, host: str | None = None, origin: str | None = None) -> Answer:
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{port}'}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: streamlit",
        *([f"Origin: {origin}"] if origin else []),
    ]
    return raw(port, "\n".join(lines) + "\n\n")


def test_this_machine_may_ask(server: Any):
    port = port_of(server)
    assert get(port).status == 200
    assert get(port, host=f"localhost:{port}").status == 200
    assert get(port, "/_stcore/health").body == b"ok"
    assert upgrade(port).status == 101
    assert upgrade(port, origin=f"http://127.0.0.1:{port}").status == 101


FORGED = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "", "[::1"]


@pytest.mark.parametrize("host", FORGED)
def test_a_forged_host_gets_nothing(server: Any, host: str):
    port = port_of(server)
    lines = f"GET /_stcore/health HTTP/1.1\nHost: {host}\nConnection: close\n\n"
    plain = raw(port, lines)
    assert plain.status == 400
    assert plain.body != b"ok"
    socket_ = raw(
        port,
        f"GET /_stcore/stream HTTP/1.1\nHost: {host}\nUpgrade: websocket\nConnection: Upgrade\n"
        "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n",
    )
    assert socket_.status in (400, 403)


def test_a_page_elsewhere_cannot_open_our_socket(server: Any):
    port = port_of(server)
    assert upgrade(port, origin="http://evil.example").status == 403
    assert upgrade(port, origin=f"http://127.0.0.1:{port}.evil.example").status == 403
    assert upgrade(port, origin="http://127.0.0.1:3000").status == 403, "another program of this machine"
    assert upgrade(port, origin=f"http://localhost:{port}").status == 403
    assert upgrade(port, origin="null").status == 403, "a file, or a frame without an origin"
    put = f"PUT /_stcore/upload_file/a/b HTTP/1.1\nHost: 127.0.0.1:{port}\nContent-Length: 0\nConnection: close\n"
    assert raw(port, f"{put}Origin: http://evil.example\n\n").status == 403
    assert "access-control-allow-origin" not in get(port, extra="Origin: http://evil.example\n").headers


@pytest.mark.parametrize(
    "path", ["/", "/help", "/_stcore/health", "/static/media/nothing.woff2", "/media/nothing", "/%2e%2e/etc/passwd"]
)
def test_every_answer_carries_the_headers(server: Any, path: str):
    headers = get(port_of(server), path).headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy


def test_no_path_leads_out(server: Any):
    for path in ("/static/../../../../etc/passwd", "/media/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/static/%2e%2e/x"):
        assert b"root:" not in get(port_of(server), path).body


def test_the_first_page_has_a_name_too(server: Any):
    answer = get(port_of(server), "/explore?run=demo-run&at=i1.slerp.e0.3.sft")
    assert answer.status == 307
    assert answer.headers["location"] == "/?run=demo-run&at=i1.slerp.e0.3.sft"
    assert get(port_of(server), "/explore").headers["location"] == "/"


def test_it_listens_on_this_machine_alone(server: Any):
    connections = psutil.Process(server.process.pid).net_connections(kind="inet")
    listening = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_the_process_loads_no_tensor_library(server: Any):
    get(port_of(server))
    maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
    assert not re.search(r"libtorch|/torch/|transformers|safetensors|peft", maps)


def test_ctrl_c_ends_it_quietly(tmp_path: Path):
    with running_app(tmp_path / "log.txt") as app:
        app.process.send_signal(signal.SIGINT)
        app.process.wait(15)
    log = app.log.read_text(encoding="utf-8")
    assert "Traceback" not in log


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WARP_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_an_engine_it_says_what_to_do():
    done = started("--port", str(free_port()))
    assert done.returncode == 2
    assert "give --engine URL, or start both with `warp-core app`" in done.stderr
    assert "Traceback" not in done.stderr


# Settings


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def test_the_settings_are_those_of_the_file():
    of_the_file = flat(tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8")))
    assert settings(port=1234) == of_the_file | {"server.port": 1234}


def test_what_keeps_it_to_itself_is_set():
    wanted = {
        "server.address": "127.0.0.1",
        "server.allowedHosts": ["localhost", "127.0.0.1"],
        "server.headless": True,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        "runner.postScriptGC": False,
        "runner.magicEnabled": False,
    }
    assert {name: settings(port=1).get(name) for name in wanted} == wanted


ALIKE = """
import json, sys
from streamlit import config
config._main_script_path = sys.argv[1]
names = json.loads(sys.argv[2])
print(json.dumps({name: config.get_option(name) for name in names}))
"""


def test_a_plain_streamlit_run_has_the_same_settings(tmp_path: Path):
    ours = {name: value for name, value in settings(port=1).items() if name != "server.port"}
    done = subprocess.run(
        [sys.executable, "-c", ALIKE, str(SCRIPT), json.dumps(sorted(ours))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == ours


def test_both_schemes_set_the_same_colours():
    theme = tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))["theme"]
    assert theme["light"].keys() == theme["dark"].keys()
    assert theme["light"]["sidebar"].keys() == theme["dark"]["sidebar"].keys()
    assert "base" not in theme, "the scheme follows the system"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str):
    theme = tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))["theme"][scheme]
    for background in (
        theme["backgroundColor"],
        theme["secondaryBackgroundColor"],
        theme["sidebar"]["backgroundColor"],
    ):
        assert contrast(theme["textColor"], background) > 10
        for name in ("linkColor", "grayColor", "redTextColor", "greenTextColor", "primaryColor"):
            assert contrast(theme[name], background) > 4.5, f"{name} on {background}"
    for colour in theme["chartCategoricalColors"]:
        assert contrast(colour, theme["backgroundColor"]) > 2.2, colour


# The policy and the headers


def test_the_policy_lets_in_streamlits_own_script_and_nothing_from_elsewhere():
    policy = content_security_policy(index_html=INDEX)
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    inline = re.search(r"<script>(.*?)</script>", INDEX, flags=re.DOTALL)
    assert inline is not None
    digest = base64.b64encode(hashlib.sha256(inline.group(1).encode()).digest()).decode()
    assert f"'sha256-{digest}'" in directives["script-src"]
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in directives["script-src"]
    assert not re.search(r"https?:|\*", policy)
    assert directives["connect-src"] == "'self'"
    assert directives["form-action"] == "'none'"


def test_the_headers_replace_those_of_the_same_name():
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"X-Frame-Options", b"ALLOWALL"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing to receive")

    asyncio.run(SecurityHeaders(inner, policy="p")({"type": "http"}, receive, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"content-type"] == b"text/plain"
    assert headers[b"content-security-policy"] == b"p"
    assert b"X-Frame-Options" not in headers
    assert sent[1]["body"] == b"x"


def test_hosts_of_a_wider_address():
    assert host_names("127.0.0.1") == ("localhost", "127.0.0.1")
    assert host_names("localhost") == ("localhost", "127.0.0.1")
    wide = host_names("0.0.0.0")
    assert wide[:2] == ("localhost", "127.0.0.1")
    assert socket.gethostname() in wide
    assert "0.0.0.0" not in wide
    assert "*" not in wide
    assert "192.0.2.7" in host_names("192.0.2.7")
    assert settings(port=1, host="192.0.2.7")["server.allowedHosts"][-1] in host_names("192.0.2.7")
