"""`warp-core app`: two processes that live and end together; with a light engine and a page of a few lines."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.standins import ended_at_last, environment, has_ended, wait_for, write_standins
from tests.service.served import TOKEN, served
from warp_core.commands import app as command
from warp_core.commands.token_file import TOKEN_VARIABLE
from warp_core.errors import ConfigError, EngineUnreachableError, WorkspaceError
from warp_core.service.client import HttpEngine
from warp_core.service.fake import FakeEngine
from warp_core.service.listening import listen
from warp_core.workspace.assets import assets_root


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def start(tmp_path):
    """Start `warp-core app`; the process and what it says first on stdout."""
    folder = write_standins(tmp_path)

    def start(*argv, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "standin_app", "app", "--headless", *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder, **variables),
        )
        return process, process.stdout.readline().strip()

    return start


def page(address):
    """What the page says, None where it does not answer."""
    try:
        return httpx.get(address, trust_env=False).json()
    except httpx.HTTPError:
        return None


def a_run(folder):
    """The least that is a run."""
    folder.mkdir(parents=True)
    shutil.copy(assets_root() / "demo-run" / "run.json", folder)
    return folder


def free_port():
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def status(said):
    with HttpEngine(said["engine"], page(said["url"])["token"]) as engine, suppress(EngineUnreachableError):
        return engine.status()


def test_both_start_are_kept_alive_and_end_together(start, tmp_path):
    outside = a_run(tmp_path / "elsewhere" / "my-run")
    process, line = start("--json", "--port", free_port(), outside)
    with ended_at_last(process):
        said = json.loads(line)
        assert (said["run"], said["pid"]) == ("my-run", process.pid)
        shown = page(said["url"])
        assert shown["arguments"] == [
            "--port", str(httpx.URL(said["url"]).port), "--engine", said["engine"], "--run", "my-run",
        ]  # fmt: skip
        engine = status(said)
        assert engine.workspace.endswith(str(outside))
        children = psutil.Process(process.pid).children()
        assert {child.pid for child in children} == {engine.pid, shown["pid"]}
        assert not any(shown["token"] in word for child in children for word in child.cmdline())

        os.kill(engine.pid, signal.SIGKILL)
        again = wait_for(lambda: (found := status(said)) and found.pid != engine.pid and found)
        os.kill(shown["pid"], signal.SIGKILL)
        wait_for(lambda: (found := page(said["url"])) and found["pid"] != shown["pid"])

        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 4
        assert (process.returncode, out) == (130, "")
        assert err.splitlines() == [
            "starting the engine and the web app; Ctrl-C ends both",
            "the engine ended (killed by SIGKILL): it is started again in 0.2 s",
            "the web app ended (killed by SIGKILL): it is started again in 0.2 s",
            "warp-core: interrupted; what was done is kept",
        ]
        assert has_ended(again.pid)
        assert page(said["url"]) is None


def test_nothing_is_left_when_it_is_killed(start):
    process, url = start("--port", free_port())
    with ended_at_last(process):
        shown = page(url)
        assert shown["arguments"][-2:] == ["--run", "demo-run"]
        children = [child.pid for child in psutil.Process(process.pid).children()]
        assert len(children) == 2
        process.kill()
        wait_for(lambda: all(has_ended(pid) for pid in children))


def test_an_engine_elsewhere(start):
    with served(FakeEngine()) as engine:
        process, line = start("--json", "--engine", f"{engine}/", "--port", free_port(), WARP_ENGINE_TOKEN=TOKEN)
        with ended_at_last(process):
            said = json.loads(line)
            assert said["engine"] == engine
            assert page(said["url"])["token"] == TOKEN
            assert len(psutil.Process(process.pid).children()) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 130
            assert process.stderr.readline() == "starting the web app; Ctrl-C ends it\n"
        with HttpEngine(engine, TOKEN) as still_there:
            assert still_there.is_up()


def test_an_engine_that_does_not_start_is_no_riddle(start):
    process, line = start("--port", free_port(), WARP_WORKSPACE="\udcff" * 3, PYTHONSAFEPATH="1", PYTHONPATH="/nowhere")
    with ended_at_last(process):
        assert (process.wait(20), line) == (1, "")


@pytest.mark.parametrize(
    ("argv", "token", "code", "said"),
    [
        (("--port", "x"), None, 2, "must be a port"),
        (("--token-file", "token"), None, 2, "give its address with --engine, too"),
        (("nowhere",), None, 2, "no run at 'nowhere', nor of that name in"),
        (("--engine", "nonsense"), TOKEN, 2, "'nonsense' is no address of an engine"),
        (("--engine", "http://127.0.0.1:1"), None, 2, "no token for the engine at http://127.0.0.1:1"),
        (("--engine", "http://127.0.0.1:1"), TOKEN, 1, "no engine answers at http://127.0.0.1:1"),
        (("--engine", "http://127.0.0.1:1", "a/b"), TOKEN, 2, "the name 'a/b' is not safe"),
        (
            ("--engine", "http://127.0.0.1:1", "--token-file", "/nowhere"),
            None,
            2,
            "--token-file /nowhere: No such file",
        ),
    ],
)
def test_mistakes(cli, monkeypatch, argv, token, code, said):
    if token:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    answer = cli("app", "--headless", *argv)
    assert (answer.code, answer.out) == (code, "")
    (line,) = answer.err.splitlines()
    assert line.startswith("warp-core")
    assert said in line


def test_a_wrong_token_is_said_before_anything_starts(cli, tmp_path):
    (tmp_path / "token").write_text("wrong", encoding="ascii")
    with served(FakeEngine()) as url:
        answer = cli("app", "--headless", "--engine", url, "--token-file", tmp_path / "token")
    assert answer.code == 2
    assert "does not take this token" in answer.err


def test_a_port_in_use_is_refused_where_it_was_asked_for(cli):
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        answer = cli("app", "--headless", "--port", port)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"warp-core: port {port} of 127.0.0.1 is in use")


def test_otherwise_the_next_one_is_taken(monkeypatch, capsys):
    with listen("127.0.0.1", 0) as taken:
        first = taken.getsockname()[1]
        monkeypatch.setattr(command, "DEFAULT_PORT", first)
        port = command._port(None)
        assert first < port < first + command.PORTS_TRIED
        assert capsys.readouterr().err == f"port {first} is in use: taking {port}\n"
        monkeypatch.setattr(command, "PORTS_TRIED", 1)
        with pytest.raises(ConfigError, match=f"all ports from {first} to {first} are in use"):
            command._port(None)
    monkeypatch.setattr(command, "DEFAULT_PORT", port)
    assert command._port(None) == port
    assert capsys.readouterr().err == ""


def test_which_run_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = a_run(tmp_path / "workspace" / "mine")
    outside = a_run(tmp_path / "elsewhere" / "theirs")
    assert command._run(None) == ("demo-run", None)
    assert command._run("demo-run") == ("demo-run", None)
    assert command._run(str(assets_root() / "demo-run")) == ("demo-run", None)
    assert command._run("mine") == command._run(str(inside)) == ("mine", None)
    assert command._run("elsewhere/theirs") == ("theirs", outside)
    (tmp_path / "linked").symlink_to(outside)
    assert command._run("linked") == ("theirs", outside)
    assert command._run(str(a_run(tmp_path / "demo-run"))) == ("demo-run", tmp_path / "demo-run")


@pytest.mark.parametrize("name", ["no run", "a run with spaces"])
def test_which_folders_are_no_runs(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir() if name == "no run" else a_run(folder)
    with pytest.raises(WorkspaceError, match=r"is not a run|rename the folder"):
        command._run(str(folder))


@pytest.mark.parametrize(("screen", "headless", "opened"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_browser_is_opened_where_there_is_a_screen(cli, monkeypatch, screen, headless, opened):
    calls = []

    class Started:
        def __init__(self, programs, *, say):
            self.programs = programs

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def wait_until_ready(self):
            assert [program.name for program in self.programs] == ["the engine", "the web app"]

        def watch(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "Supervisor", Started)
    monkeypatch.setattr(command, "has_screen", lambda: screen)
    monkeypatch.setattr(command.webbrowser, "open", calls.append)
    port = free_port()
    answer = cli("app", "--port", port, *(["--headless"] if headless else []))
    assert (answer.code, answer.out) == (130, f"http://127.0.0.1:{port}\n")
    assert calls == [f"http://127.0.0.1:{port}"] * opened


def test_the_process_that_stays_is_small():
    code = (
        "import sys, warp_core.cli, warp_core.commands.app;"
        "print(sorted({'torch', 'transformers', 'streamlit', 'fastapi', 'uvicorn', 'pandas'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_free_ports_are_free():
    port = command._free_port()
    with socket.create_server(("127.0.0.1", port)):
        pass
