"""Attack: no attack, a look: every system call that reaches for a network, by the commands and by the app in use.

Programs run as a person starts them, without the variables that tell libraries to stay offline, under `strace`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from app.main import PAGES
from hostile.document import ROOT
from hostile.outcomes import Outcome, Tally
from hostile.running_programs import wait_for
from tests.browser.conftest import CHROMIUM, FLAGS, free_port
from tests.tiny import make_model, make_policies
from tests.training.runs import tiny_config
from warp_core.training.config import config_to_toml

LIMIT_S = 240.0
# Variables with which a person, or a test, keeps libraries from asking the network.
QUIETED = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
_CALL = re.compile(r"^(?:\d+ +)?(?P<name>connect|sendto|sendmsg|sendmmsg)\((?P<rest>.*)$")
_GIVEN = re.compile(r'inet_addr\("(?P<v4>[^"]+)"\)|inet_pton\(AF_INET6, "(?P<v6>[^"]+)"')
_PEER = re.compile(r"<(?P<kind>TCP|UDP|TCPv6|UDPv6):\[[^\]]*->\[?(?P<host>[0-9a-fA-F.:]+?)\]?:\d+\]>")
_SOCKET = re.compile(r"^\d+<(?P<kind>[A-Za-z0-9]+):")
CONTROL = """
import socket
stream = socket.socket(); stream.setblocking(False)
stream.connect_ex(("192.0.2.1", 80))
for family, host in ((socket.AF_INET, "192.0.2.2"), (socket.AF_INET6, "2001:db8::3")):
    try:
        socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", (host, 53))
    except OSError:
        pass
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    other.connect(("192.0.2.4", 53))
    other.send(b"x")
except OSError:
    pass
"""
# It runs in a network namespace of its own, whose only interface has these addresses: nothing leaves this machine.
APART = """
import ctypes, fcntl, os, socket, struct, sys
unshare = ctypes.CDLL(None).unshare
if unshare(0x40000000) and unshare(0x50000000):  # CLONE_NEWNET; without the right to it with CLONE_NEWUSER
    raise SystemExit("no network namespace can be made here")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
    for call, address in ((0x8916, "192.0.2.1"), (0x891C, "255.255.255.0")):  # SIOCSIFADDR, SIOCSIFNETMASK
        fcntl.ioctl(asks, call, struct.pack("16sHH4s16x", b"lo", socket.AF_INET, 0, socket.inet_aton(address)))
    fcntl.ioctl(asks, 0x8914, struct.pack("16sh22x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
os.execv(sys.argv[1], sys.argv[1:])
"""
SEEN_OF_CONTROL = {"192.0.2.1", "192.0.2.2", "2001:db8::3", "192.0.2.4"}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A program under strace."""

    process: "subprocess.Popen[bytes]"
    log: Path
    out: Path
    err: Path

    def strangers(self) -> list[str]:
        """Hosts other than this machine that something was sent to, or asked for a connection."""
        return sorted(set(strangers_of(self.log.read_text(encoding="utf-8", errors="replace"))))

    def network_calls(self) -> int:
        """How many calls concerned sockets at all."""
        return self.log.read_text(encoding="utf-8", errors="replace").count("(")


def strangers_of(log: str) -> Iterator[str]:
    """Hosts off this machine in the log of `strace -yy -e trace=network`.

    A datagram socket that is only connected has sent nothing: programs ask so which address is their own.
    """
    for line in log.splitlines():
        if (call := _CALL.match(line)) is None:
            continue
        socket = _SOCKET.match(call["rest"])
        if call["name"] == "connect" and socket is not None and socket["kind"].startswith("UDP"):
            continue
        hosts = [one["v4"] or one["v6"] for one in _GIVEN.finditer(call["rest"])]
        if call["name"] != "connect":
            hosts += [one["host"] for one in _PEER.finditer(call["rest"])]
        for host in hosts:
            address = ip_address(host)
            if not (address.is_loopback or address.is_unspecified):
                yield host


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Run the commands, then use the app."""
    place.mkdir(parents=True, exist_ok=True)
    yield _control(place)
    yield _commands(place, quick=quick)
    yield _app(place, quick=quick)


def _control(place: Path) -> Outcome:
    tally = Tally("a program that does reach for other machines", promise="", holds="each of its four calls is seen")
    apart = [sys.executable, "-c", APART]
    with _traced(place / "control", ["-c", CONTROL], under=apart) as program:
        code = program.process.wait(LIMIT_S)
    found = set(program.strangers())
    tally.check(not code, f"it ended with {code}: {program.err.read_text(encoding='utf-8', errors='replace')[-300:]}")
    for host in sorted(SEEN_OF_CONTROL):
        tally.check(host in found, f"{host} was not seen, only {sorted(found)}")
    return tally.outcome()


def _commands(place: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "commands on local models",
        promise="P14",
        holds="the command succeeds; no connection to, and no datagram for, another machine",
    )
    calls = 0
    init = make_model("llama", place / "init")
    policies = make_policies(init, place, num=2)
    for number, argv in enumerate(_argvs(place, init, policies, quick=quick)):
        with _traced(place / f"command-{number}", ["-m", "warp_core", *argv]) as program:
            program.process.wait(LIMIT_S)
        code, said = program.process.returncode, program.err.read_text(encoding="utf-8", errors="replace")
        tally.check(not code, f"{argv[0]} ended with {code}: {said[-300:]}")
        tally.check(not program.strangers(), f"{argv[0]} reached for {program.strangers()}")
        calls += program.network_calls()
    return tally.outcome(f"{calls} calls that concern sockets")


def _argvs(place: Path, init: Path, policies: Sequence[Path], *, quick: bool) -> list[list[str]]:
    config = tiny_config(place, init, reward={"terms": ["length"]}, training={"steps": [2]}, warp={"policies": 2})
    (place / "run.toml").write_text(config_to_toml(config), encoding="utf-8")
    run, models = str(place / "workspace" / "tiny"), ["--init", str(init), "--policies", *map(str, policies)]
    short = ["--reward", "length", "--prompts", str(place / "evaluation.txt"), "--max-new-tokens", "4"]
    everything = [
        ["merge", *models, "--out", str(place / "merged")],
        ["train", str(place / "run.toml"), "--out", run],
        ["geometry", *models],
        ["evaluate", "--policy", str(policies[0]), "--anchor", str(init), *short],
        ["front", run, "--etas", "0.5", "--html", str(place / "front.html")],
        ["sample", "--policy", str(init), "--prompt", "it is", "--max-new-tokens", "4", "--reward", "sentiment"],
        ["export", run, "--eta", "0.5", "--out", str(place / "exported")],
        *(["check", str(policy), "--init", str(init)] for policy in policies),
        ["study", "slerp", "--scale", "smoke", "--out", str(place / "studies")],
        ["doctor"],
    ]
    return everything[:2] if quick else everything


def _app(place: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "the app and its engine" + (", asked for its page" if quick else f", {len(PAGES)} pages in a browser"),
        promise="P14",
        holds="no connection to, and no datagram for, another machine",
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _traced(place / "app", ["-m", "warp_core", "app", "tiny", "--headless", "--port", str(port)]) as program:
        wait_for(lambda: program.out.read_text(encoding="utf-8").strip() == url, within_s=LIMIT_S)
        if quick:
            tally.check(httpx.get(url, trust_env=False).status_code == 200, "the app does not answer")
        else:
            for page, problem in _visited(url):
                tally.check(not problem, f"{page}: {problem}")
    tally.check(not program.strangers(), f"reached for {program.strangers()}")
    tally.check(program.network_calls() > 0, "strace saw no call at all")
    return tally.outcome(f"{program.network_calls()} calls that concern sockets")


def _visited(url: str) -> Iterator[tuple[str, str]]:
    """Open each page in Chromium; the page and what was wrong with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            for name in PAGES:
                page = browser.new_page()
                page.goto(f"{url}/{'' if name == 'explore' else name}?run=tiny")
                page.wait_for_selector(
                    "[data-testid=stApp][data-test-script-state=notRunning]", timeout=1000 * LIMIT_S, state="attached"
                )
                if name == "explore":
                    page.wait_for_selector("section.pane[data-state='done']", timeout=1000 * LIMIT_S)
                yield (
                    name,
                    " ".join(page.locator("[data-testid=stException], [data-testid=stAlert]").all_text_contents()),
                )
                page.close()
        finally:
            browser.close()


@contextmanager
def _traced(folder: Path, arguments: Sequence[str], *, under: Sequence[str] = ()) -> Iterator[Traced]:
    """Start `python ARGUMENTS` under strace, that `under` a command that becomes it; all ends with the block."""
    folder.mkdir(parents=True)
    if (strace := shutil.which("strace")) is None:
        raise RuntimeError("strace is not installed: `apt-get install strace`")
    log, out, err = (folder / name for name in ("strace.log", "out.txt", "err.txt"))
    environment = {name: value for name, value in os.environ.items() if name not in QUIETED}
    watched = [strace, "-f", "-qq", "-yy", "-s", "0", "-e", "trace=network", "-o", str(log)]
    with out.open("wb") as first, err.open("wb") as second:
        process = subprocess.Popen(
            [*under, *watched, sys.executable, *arguments],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=first,
            stderr=second,
            start_new_session=True,
        )
    try:
        yield Traced(process=process, log=log, out=out, err=err)
    finally:
        for sign in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sign)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
