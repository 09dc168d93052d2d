"""`warp-core serve`: address, token, signals, and what it says when it cannot; processes with a light engine."""

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.cli.standins import ended_at_last, environment, wait_for, write_standins
from warp_core.commands.token_file import TOKEN_VARIABLE, given_token, write_token
from warp_core.errors import ConfigError
from warp_core.service.client import HttpEngine
from warp_core.service.listening import listen
from warp_core.service.protocol import PrepareRequest, Selection


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Start `warp-core serve` with these options; the process and its first line on stdout."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    folder = write_standins(tmp_path)

    def start(*argv, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "standin_engine", "serve", "--port", "0", *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder, **variables),
        )
        return process, process.stdout.readline().strip()

    return start


def is_up(url):
    with HttpEngine(url, "any") as engine:
        return engine.is_up()


def token_of(process):
    """The token in the file that stderr names, and the file."""
    said = process.stderr.readline()
    assert said.startswith("the token is in ")
    file = Path(said.removeprefix("the token is in ").strip())
    return given_token(str(file)), file


def test_it_serves_until_sigterm_and_leaves_nothing_behind(serve):
    process, url = serve()
    with ended_at_last(process):
        assert url.startswith("http://127.0.0.1:")
        token, file = token_of(process)
        assert len(token) == 43
        assert file.name == f"engine-{httpx.URL(url).port}.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with HttpEngine(url, token) as engine:
            status = engine.status()
            assert (status.pid, status.workspace) == (process.pid, "knows no token; ")
            engine.submit(PrepareRequest(session="a", selection=Selection(run="demo-run")))
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 4
        assert (process.returncode, out) == (130, "")
        assert err.splitlines() == ["closing", "warp-core: interrupted; what was done is kept"]
        assert not file.exists()


def test_an_engine_that_does_not_end_is_left(serve):
    process, url = serve(CLOSE_S="30")
    with ended_at_last(process):
        _, file = token_of(process)
        wait_for(lambda: is_up(url))
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert 1 < time.monotonic() - started < 4
        assert (process.returncode, err) == (130, "closing\nwarp-core: interrupted; what was done is kept\n")
        assert not file.exists()


def test_it_answers_while_the_engine_is_still_being_made(serve, tmp_path):
    ready = tmp_path / "ready"
    process, url = serve(MADE_AFTER=str(ready))
    with ended_at_last(process):
        token, _ = token_of(process)
        assert is_up(url)
        ready.touch()
        with HttpEngine(url, token) as engine:
            assert engine.status().pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_engine_that_is_still_being_made_is_not_waited_for(serve, tmp_path, number):
    process, url = serve(MADE_AFTER=str(tmp_path / "never"))
    with ended_at_last(process):
        _, file = token_of(process)
        wait_for(lambda: is_up(url))
        started = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 2
        assert (process.returncode, err) == (130, "warp-core: interrupted; what was done is kept\n")
        assert not file.exists()


def test_an_engine_that_cannot_be_made_ends_the_server(serve):
    process, _ = serve(FAILS="there is no room for it")
    with ended_at_last(process):
        _, file = token_of(process)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1] == "warp-core: there is no room for it"
    assert not file.exists()


def test_a_token_of_the_environment_stays_with_the_server(serve, tmp_path):
    process, line = serve("--json", "--host", "localhost", "--run", tmp_path, WARP_ENGINE_TOKEN="a-token")
    with ended_at_last(process):
        said = json.loads(line)
        assert said == {"url": said["url"], "token_file": None, "pid": process.pid}
        assert said["url"].startswith("http://localhost:")
        with HttpEngine(said["url"], "a-token") as engine:
            assert engine.status().workspace == f"knows no token; {tmp_path}"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert err == "closing\nwarp-core: interrupted; what was done is kept\n"
        assert not (tmp_path / "cache").exists()


def test_other_machines_only_on_purpose(serve, tmp_path):
    (tmp_path / "token").write_text("a-token\n", encoding="ascii")
    process, url = serve("--host", "0.0.0.0", "--host", "gpu.example.org", "--token-file", tmp_path / "token")
    with ended_at_last(process):
        assert url.startswith("http://gpu.example.org:")
        local = f"http://127.0.0.1:{httpx.URL(url).port}/status"
        headers = {"Authorization": "Bearer a-token"}
        for host, status in (("gpu.example.org", 200), ("127.0.0.1", 200), ("elsewhere.example.org", 400)):
            asked = httpx.get(local, headers=headers | {"Host": host}, trust_env=False)
            assert asked.status_code == status, host
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1].splitlines()[0]
        assert said.startswith("listening on 0.0.0.0: other machines reach this engine")
        assert "not encrypted" in said


def test_a_reader_that_leaves_before_the_address_is_there(tmp_path):
    command = [sys.executable, "-m", "standin_engine", "serve", "--port", "0"]
    env = environment(write_standins(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        process.stdout.close()
        assert process.stderr.read().count("\n") == 1  # where the token was
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--port", "eight"), "must be a port, 0 to 65535 (got 'eight')"),
        (("--port", "65536"), "must be a port"),
        (("--port", "-1"), "must be a port"),
        (("--port", "9" * 5000), "must be a port"),
        (("--host", "192.0.2.1"), "192.0.2.1"),
        (("--host", "no such machine"), "no address of this machine"),
        (("--token-file", "/nowhere/at/all"), "No such file or directory: give a file that holds the token"),
        (("--run", "nowhere"), "no run at 'nowhere'"),
        (("--nonsense",), "unrecognized arguments"),
    ],
)
def test_mistakes(cli, monkeypatch, argv, said):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    answer = cli("serve", *argv)
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert line.startswith("warp-core")
    assert said in line


def test_a_port_in_use_is_said_before_torch_is_loaded(cli):
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        answer = cli("serve", "--port", port)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"warp-core: port {port} of 127.0.0.1 is in use: stop what listens there, or choose another port\n"
    )


def test_the_environment_comes_before_the_file(monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text(" of-the-file \n", encoding="ascii")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert given_token(None) is None
    assert given_token(str(file)) == "of-the-file"
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    assert given_token(str(file)) == "of-the-environment"
    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    assert given_token(str(file)) == "of-the-file"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"two\nlines", b"\xff", b"a\x00b"])
def test_what_is_no_token_file(monkeypatch, tmp_path, content):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--token-file .*token: (it holds no token|it is no ASCII text)"):
        given_token(str(file))


def test_a_signal_before_the_server_runs_leaves_no_token(cli, monkeypatch, tmp_path):
    def interrupted(message):
        assert list(tmp_path.rglob("engine-*.token")), "it is written by then"
        raise KeyboardInterrupt

    monkeypatch.setattr("warp_core.commands.serve.say", interrupted)
    assert cli("serve", "--port", "0").code == 130
    assert not list(tmp_path.rglob("engine-*.token"))


def test_a_token_file_is_private_whatever_was_there(tmp_path):
    old = tmp_path / "cache" / "engine-8765.token"
    old.parent.mkdir()
    old.write_text("of an engine that was killed", encoding="ascii")
    old.chmod(0o644)
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("keep", encoding="ascii")
    (old.parent / "engine-1.token").symlink_to(elsewhere)
    for port in (8765, 1):
        file = write_token("secret", port)
        assert (file.read_text(encoding="ascii"), stat.S_IMODE(file.stat().st_mode)) == ("secret\n", 0o600)
        assert not file.is_symlink()
    assert elsewhere.read_text(encoding="ascii") == "keep"
