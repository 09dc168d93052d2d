"""Who may ask: every mix of Host, Origin, token, verb and form of the target, against the engine and the web app.

What is expected stands in `HOSTS`, `ORIGINS` and the functions `engine_says` and `app_says`; the requests go over raw
sockets, because no client would send most of them.
"""

import itertools
import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from hostile.document import ROOT
from hostile.outcomes import Outcome, Tally
from hostile.web_sockets import Answer, ask, head
from tests.browser.conftest import running_app
from tests.service.served import TOKEN, served
from warp_core.service.fake import FakeEngine

__all__ = ["attack"]

START_S = 90.0
PORT = "{port}"  # stands for the server's own in the tables
# The Host header, and whether it names this machine.
HOSTS: dict[str, bool] = {
    f"127.0.0.1:{PORT}": True,
    f"localhost:{PORT}": True,
    "127.0.0.1": True,
    "localhost": True,
    "127.0.0.1:1": True,
    "LOCALHOST": True,
    "evil.example": False,
    f"evil.example:{PORT}": False,
    "127.0.0.1.evil.example": False,
    "localhost.evil.example": False,
    "127.0.0.1.nip.io": False,
    "7f000001.c0a80001.rbndr.us": False,
    "evil-127.0.0.1": False,
    "localhost.": False,
    "127.1": False,
    "2130706433": False,
    "0x7f000001": False,
    "0.0.0.0": False,
    "127.0.0.2": False,
    "127.0.0.1@evil.example": False,
    "evil.example@127.0.0.1": False,
    "evil.example#127.0.0.1": False,
    "evil.example/127.0.0.1": False,
    "evil.example\t127.0.0.1": False,
    "localhost, evil.example": False,
    "*": False,
    "*.localhost": False,
    "[::1": False,
    "[::ffff:127.0.0.1]": False,
    "[::]": False,
    "[fe80::1]": False,
    "": False,
    "a" * 2000: False,
}
IPV6_HOSTS = ("[::1]", f"[::1]:{PORT}")  # the engine can listen there, the app does not
# The Origin header, and whether it is the page of `http://127.0.0.1:PORT`; None: no header.
ORIGINS: dict[str | None, bool] = {
    None: True,
    f"http://127.0.0.1:{PORT}": True,
    "http://evil.example": False,
    "https://evil.example": False,
    f"http://evil.example:{PORT}": False,
    f"http://127.0.0.1:{PORT}.evil.example": False,
    f"http://evil.example/?http://127.0.0.1:{PORT}": False,
    f"http://evil.example://127.0.0.1:{PORT}": False,
    f"http://evil@127.0.0.1:{PORT}": False,
    "http://127.0.0.1:3000": False,
    "http://127.0.0.1": False,
    f"http://localhost:{PORT}": False,
    f"http://[::1]:{PORT}": False,
    "null": False,
    "file://": False,
    "chrome-extension://abcdefghijklmnop": False,
    "": False,
}
TOKENS: dict[str | None, bool] = {
    f"Bearer {TOKEN}": True,
    f"bearer {TOKEN}": True,
    None: False,
    "": False,
    "Bearer": False,
    "Bearer ": False,
    f"Bearer {TOKEN}x": False,
    f"Bearer {TOKEN[:-1]}": False,
    f"Bearer {TOKEN.upper()}": False,
    f"Bearer {TOKEN} {TOKEN}": False,
    f"Basic {TOKEN}": False,
    TOKEN: False,
    "Bearer *": False,
    "Bearer t\xe4ken": False,
}
VERBS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "FOO")
APP_PATHS = (
    "/",
    "/help",
    "/_stcore/health",
    "/_stcore/host-config",
    "/_stcore/script-health-check",
    "/_stcore/metrics",
    "/_stcore/upload_file/a/b",
    "/_stcore/bidi-components/x/y.js",
    "/component/x/index.html",
    "/media/0123456789abcdef.png",
    "/static/index.html",
    "/app/static/x",
    "/_stcore/stream",
)
STRAY_PATHS = ("/../../etc/passwd", "/media/..%2f..%2fetc%2fpasswd", "//evil.example/")  # refused by any name
FORWARDED = ("X-Forwarded-Host", "X-Host", "X-Original-Host", "X-HTTP-Host-Override", "Forwarded", "X-Forwarded-Server")


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Ask everything of an engine and of an app, and look at what they show of themselves."""
    draw = random.Random(6)
    with served(FakeEngine()) as url:
        yield from _engine(int(url.rpartition(":")[2]), draw, quick=quick)
    with running_app(place / "app.txt") as app:
        yield from _app(int(app.url.rpartition(":")[2]), draw, quick=quick)
    yield _own_engine(place)
    if not quick:
        yield _whole_app(place)


def engine_says(*, host: bool, origin: str | None, token: bool, verb: str, path: str) -> Collection[int]:
    """The statuses that the engine may answer with; what is checked first decides."""
    if verb == "CONNECT":
        return (400, 401, 403, 404, 405)  # its target is no path: any refusal will do
    if not host:
        return (400,)
    if origin is not None:
        return (403,)
    if not token and (verb, path) != ("GET", "/health"):
        return (401,)
    return (200,) if verb == "GET" else (404, 405)


def _engine(port: int, draw: random.Random, *, quick: bool) -> Iterator[Outcome]:
    tally = Tally(
        "engine: Host x Origin x token x verb",
        promise="P12",
        holds="a request is answered only with a name of this machine, without an Origin, with the token; "
        "no answer lets a page of another origin read it, and no refusal says more than that",
    )
    hosts = HOSTS | dict.fromkeys(IPV6_HOSTS, True)
    mixes = list(itertools.product(hosts, ORIGINS, TOKENS, VERBS, ("/status", "/health")))
    alone = [
        *((one, None, f"Bearer {TOKEN}", "GET", "/status") for one in hosts),
        *((f"127.0.0.1:{PORT}", one, f"Bearer {TOKEN}", "GET", "/status") for one in ORIGINS),
        *((f"127.0.0.1:{PORT}", None, one, "GET", "/status") for one in TOKENS),
        *((f"127.0.0.1:{PORT}", None, f"Bearer {TOKEN}", one, "/status") for one in VERBS),
    ]
    for host, origin, token, verb, path in [*alone, *draw.sample(mixes, 60 if quick else 1500)]:
        lines = [f"Origin: {_here(origin, port)}"] if origin is not None else []
        lines += [f"Authorization: {token}"] if token is not None else []
        answer = ask(port, head(verb, path, *lines, "Connection: close", host=_here(host, port)))
        wanted = engine_says(host=hosts[host], origin=origin, token=TOKENS[token], verb=verb, path=path)
        seen = f"{verb} {path}, Host {host[:60]!r}, Origin {origin!r}, Authorization {token!r}"
        tally.check(answer.status in wanted, f"{seen}: {answer.status}, not {wanted}")
        if 200 not in wanted:
            tally.check(not _tells(answer, b"workspace", b"devices"), f"{seen}: the refusal holds {answer.body[:80]!r}")
        tally.check(not _shared_with(answer), f"{seen}: open to {_shared_with(answer)!r}")
    yield tally.outcome()
    yield _forms_of_a_target(
        "engine: forms of the target, doubled and forwarded names",
        port,
        path="/status",
        secret=b"devices",
        token=f"Authorization: Bearer {TOKEN}",
    )


def _app(port: int, draw: random.Random, *, quick: bool) -> Iterator[Outcome]:
    tally = Tally(
        "app: Host x path x verb x Origin",
        promise="P12",
        holds="with any name but this machine's every path is refused, without a word of the page; no page of another "
        "origin may read an answer",
    )
    hosts = HOSTS | dict.fromkeys(IPV6_HOSTS, False)
    paths = (*APP_PATHS, *STRAY_PATHS)
    own, ours = f"127.0.0.1:{PORT}", (f"http://localhost:{port}", f"http://127.0.0.1:{port}")
    mixes = list(itertools.product(hosts, paths, ("GET", "HEAD", "OPTIONS"), ORIGINS))
    alone = [
        *((one, "/", "GET", None) for one in hosts),
        *((own, one, "GET", None) for one in paths),
        *((own, path, verb, "http://evil.example") for path in paths for verb in ("GET", "OPTIONS")),
        *((own, "/_stcore/host-config", "GET", one) for one in ORIGINS),
    ]
    for host, path, verb, origin in [*alone, *draw.sample(mixes, 60 if quick else 1000)]:
        lines = [f"Origin: {_here(origin, port)}"] if origin is not None else []
        answer = ask(port, head(verb, path, *lines, "Connection: close", host=_here(host, port)))
        seen = f"{verb} {path}, Host {host[:60]!r}, Origin {origin!r}"
        if hosts[host] and path in STRAY_PATHS:
            tally.check(400 <= answer.status < 500, f"{seen}: {answer.status}")
        elif hosts[host]:
            tally.check(100 < answer.status < 500 and answer.status != 400, f"{seen}: {answer.status}")
        else:
            tally.check(answer.status == 400, f"{seen}: {answer.status}")
            tally.check(not _tells(answer, b"treamlit", b"<script", b"ok"), f"{seen}: {answer.body[:80]!r}")
        tally.check(b"root:" not in answer.body, f"{seen}: a file of this machine")
        tally.check(_shared_with(answer) in ("", *ours), f"{seen}: open to {_shared_with(answer)!r}")
    yield tally.outcome()
    yield _sockets_of_the_app(port, draw, quick=quick)
    yield _forms_of_a_target(
        "app: forms of the target, doubled and forwarded names", port, path="/_stcore/health", secret=b"ok"
    )


def _sockets_of_the_app(port: int, draw: random.Random, *, quick: bool) -> Outcome:
    tally = Tally(
        "app: WebSockets and changes, Host x Origin",
        promise="P12",
        holds="a socket opens for the app's own pages alone; no page of another origin uploads or deletes",
    )
    hosts = HOSTS | dict.fromkeys(IPV6_HOSTS, False)
    own = f"127.0.0.1:{PORT}"
    mixes = [
        *((own, origin) for origin in ORIGINS),
        *((host, None) for host in hosts),
        *((host, f"http://{host}") for host in hosts),  # what a browser sends after DNS rebinding
        *draw.sample(list(itertools.product(hosts, ORIGINS)), 20 if quick else 200),
    ]
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: streamlit",
    )
    for host, origin in mixes:
        same = origin is None or _here(origin, port).partition("://")[2] == _here(host, port)
        lines = [f"Origin: {_here(origin, port)}"] if origin is not None else []
        answer = ask(port, head("GET", "/_stcore/stream", *upgrade, *lines, host=_here(host, port)))
        wanted = (101,) if hosts[host] and same else (400, 403)
        tally.check(answer.status in wanted, f"socket, Host {host[:60]!r}, Origin {origin!r}: {answer.status}")
        if same and hosts[host]:
            continue
        for verb in ("PUT", "DELETE"):
            put = head(verb, "/_stcore/upload_file/a/b", *lines, "Connection: close", host=_here(host, port), body="x")
            answer = ask(port, put)
            said = f"{verb}, Host {host[:60]!r}, Origin {origin!r}: {answer.status}"
            tally.check(answer.status in (400, 403), said)
    return tally.outcome()


def _forms_of_a_target(case: str, port: int, *, path: str, secret: bytes, token: str = "") -> Outcome:
    """Absolute-form targets, two Host headers, none, and headers of proxies that nobody asked for."""
    tally = Tally(case, promise="P12", holds="only the Host header counts, and a strange name in it is refused")
    more = [token] if token else []
    close = [*more, "Connection: close"]
    foreign = ("evil.example", f"evil.example:{port}", "[::1].evil.example")
    refused = [
        *(
            (f"absolute target {one} with its name", head("GET", f"http://{one}{path}", *close, host=one))
            for one in foreign
        ),
        *(
            (f"our name in the target, {one} as Host", head("GET", f"http://127.0.0.1:{port}{path}", *close, host=one))
            for one in foreign
        ),
        *(
            (f"{one} in the target, ours as Host", head("GET", f"http://{one}{path}", *close, host=f"127.0.0.1:{port}"))
            for one in foreign
        ),
        *((f"two Hosts, {one} first", head("GET", path, "Host: 127.0.0.1", *close, host=one)) for one in foreign),
        *((f"two Hosts, {one} last", head("GET", path, f"Host: {one}", *close)) for one in foreign),
        ("no Host", head("GET", path, *close, host=None)),
        ("no Host, HTTP/1.0", head("GET", path, *close, host=None, version="1.0")),
        *(
            (f"{name}: localhost", head("GET", path, f"{name}: localhost", *close, host="evil.example"))
            for name in FORWARDED
        ),
        ("Forwarded: host=localhost", head("GET", path, "Forwarded: host=localhost", *close, host="evil.example")),
        ("a Host header folded over two lines", head("GET", path, *close, host="localhost\r\n .evil.example")),
        ("a blank before the colon", head("GET", path, "Host : 127.0.0.1", *close, host="evil.example")),
    ]
    for seen, request in refused:
        answer = ask(port, request)
        tally.check(
            400 <= answer.status < 500 and not _tells(answer, secret), f"{seen}: {answer.status} {answer.body[:60]!r}"
        )
    for name in FORWARDED:
        answer = ask(port, head("GET", path, f"{name}: evil.example", *close, host=f"127.0.0.1:{port}"))
        tally.check(answer.status == 200, f"{name}: evil.example beside our Host: {answer.status}")
        tally.check(b"evil" not in answer.body, f"{name}: the answer repeats it")
        tally.check("evil" not in " ".join(answer.headers.values()), f"{name}: the headers repeat it")
    return tally.outcome()


def _own_engine(place: Path) -> Outcome:
    """`warp-core serve` as it is: where it listens, and where its token is to be found."""
    tally = Tally(
        "engine process: addresses and token",
        promise="P12",
        holds="it listens on loopback alone; the token is in one file, of mode 0600 from its creation on, and in no "
        "argument, log, URL or answer; the file is gone at the end",
    )
    log = place / "serve.txt"
    with _started(["serve", "--port", "0", "--json"], log, place) as (process, said):
        file = Path(str(said["token_file"]))
        token = file.read_text(encoding="ascii").strip()
        port = int(str(said["url"]).rpartition(":")[2])
        tally.check(stat.S_IMODE(file.stat().st_mode) == 0o600, f"mode {file.stat().st_mode:o}")
        tally.check(file.stat().st_uid == os.getuid(), "the file is somebody else's")
        tally.check(len(token) >= 32, f"a token of {len(token)} characters")
        answers = [
            ask(port, head("GET", path, f"Authorization: Bearer {token}", "Connection: close"), patience_s=START_S)
            for path in ("/status", "/runs", "/openapi.json", "/nowhere", f"/{token}")
        ]
        tally.check(answers[0].status == 200, f"GET /status: {answers[0].status}")
        for answer in answers:
            tally.check(token.encode() not in answer.body, f"an answer holds the token: {answer.body[:80]!r}")
        _check_process(tally, process, [token], loopback={"127.0.0.1"})
    tally.check(token not in log.read_text(encoding="utf-8"), "the log holds the token")
    tally.check(token not in json.dumps(said), "what it prints holds the token")
    tally.check(not file.exists(), "the token file outlives the engine")
    return tally.outcome()


def _whole_app(place: Path) -> Outcome:
    """`warp-core app`: both processes, and the page that a browser gets."""
    tally = Tally(
        "app and engine as processes: addresses and token",
        promise="P12",
        holds="both listen on loopback alone; the token is in no argument, log, URL or page",
    )
    log = place / "whole.txt"
    with _started(["app", "--headless", "--json"], log, place) as (process, said):
        port = int(str(said["url"]).rpartition(":")[2])
        tokens = {
            value
            for child in psutil.Process(process.pid).children(recursive=True)
            if len(value := child.environ().get("WARP_ENGINE_TOKEN", "")) > 0
        }
        tally.check(len(tokens) == 1, f"{len(tokens)} tokens in the environments of the children")
        page = ask(port, head("GET", "/", "Connection: close"))
        tally.check(page.status == 200, f"GET /: {page.status}")
        for token in tokens:
            tally.check(token.encode() not in page.body, "the page holds the token")
            tally.check(token not in json.dumps(said), "what it prints holds the token")
        _check_process(tally, process, tokens, loopback={"127.0.0.1"})
    for token in tokens:
        tally.check(token not in log.read_text(encoding="utf-8"), "the log holds the token")
    return tally.outcome()


def _check_process(
    tally: Tally, process: "subprocess.Popen[str]", tokens: Collection[str], *, loopback: set[str]
) -> None:
    """Where a process and its children listen, and what `ps` shows of them."""
    root = psutil.Process(process.pid)
    family = [root, *root.children(recursive=True)]
    listening = {
        one.laddr.ip for each in family for one in each.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN
    }
    tally.check(listening == loopback, f"listening on {sorted(listening)}")
    for each in family:
        words = " ".join(each.cmdline())
        tally.check(not any(token in words for token in tokens), f"an argument holds the token: {each.name()}")


@contextmanager
def _started(
    arguments: Sequence[str], log: Path, place: Path
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, object]]]:
    """A command of ours, and the document that it prints when it is ready; ended at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "WARP_ENGINE_TOKEN"}
    environment |= {"WARP_CACHE": str(place / "cache"), "WARP_WORKSPACE": str(place / "workspace")}
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("w", encoding="utf-8"))
        process = subprocess.Popen(
            [sys.executable, "-m", "warp_core", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        until, line = time.monotonic() + START_S, ""
        while not line.endswith("\n"):
            line += process.stdout.readline() or ""
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError(f"warp-core {arguments[0]} did not start: {log.read_text(encoding='utf-8')[-500:]}")
            time.sleep(0.02)
        yield process, json.loads(line)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _here(text: str | None, port: int) -> str:
    return (text or "").replace(PORT, str(port))


def _tells(answer: Answer, *words: bytes) -> bool:
    return any(word in answer.body for word in words)


def _shared_with(answer: Answer) -> str:
    """The origin whose pages a browser lets read the answer, beside the server's own."""
    return answer.headers.get("access-control-allow-origin", "")
