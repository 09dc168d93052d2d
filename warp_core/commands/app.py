"""The command `app`: the engine and the web app, each a process of its own, kept alive until Ctrl-C."""

import os
import secrets
import threading
import webbrowser
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import httpx

from warp_core.commands.answer import Answer
from warp_core.commands.console import has_screen, say
from warp_core.commands.supervise import Program, Supervisor
from warp_core.commands.token_file import TOKEN_VARIABLE, given_token
from warp_core.errors import ConfigError, WarpError, WorkspaceError
from warp_core.service.client import HttpEngine
from warp_core.service.listening import listen
from warp_core.service.protocol import PrepareRequest, Selection
from warp_core.workspace.assets import assets_root
from warp_core.workspace.bundled import BUNDLED
from warp_core.workspace.paths import find_run, safe_name, workspace_root
from warp_core.workspace.runs import open_run

__all__ = ["app"]

HOST = "127.0.0.1"
SESSION = "start"
ENGINE_MODULE, WEB_MODULE = "warp_core", "app"
DEFAULT_PORT = 8501
PORTS_TRIED = 50


def app(args: Namespace) -> Answer:
    """Start both, say where the app is, and look after them until a signal comes.

    Raises:
        UserError: the port is in use, there is no such run, the engine's address or token is none.
        EngineUnreachableError: nobody answers at --engine.
        WarpError: one of the two does not start.
    """
    if args.token_file and not args.engine:
        raise ConfigError("--token-file is for an engine elsewhere: give its address with --engine, too")
    port = _port(args.port)
    engine = None
    if args.engine is None:
        run, extra = _run(args.run)
        url, token = f"http://{HOST}:{_free_port()}", secrets.token_urlsafe(32)
        engine = _engine_program(url, token, extra)
    else:
        run = safe_name(args.run) if args.run else BUNDLED
        url, token = _engine_elsewhere(args.engine, args.token_file)
    web = _web_program(port, url, token, run)
    say(f"starting {'the engine and ' if engine else ''}the web app; Ctrl-C ends {'both' if engine else 'it'}")
    with Supervisor([engine, web] if engine else [web], say=say) as supervisor:
        supervisor.wait_until_ready()
        address = f"http://{HOST}:{port}"
        args.announce({"url": address, "engine": url, "run": run, "pid": os.getpid()}, address)
        if engine:
            # Until somebody has opened the page, the models of its first run are on their way into memory.
            threading.Thread(target=_prepare, args=(url, token, run), name="prepare", daemon=True).start()
        if not args.headless and has_screen():
            webbrowser.open(address)
        supervisor.watch()


def _prepare(url: str, token: str, run: str) -> None:
    """Let the engine load the models of a run; what goes wrong is said where the page asks for them itself."""
    with suppress(WarpError), HttpEngine(url, token) as engine:
        engine.submit(PrepareRequest(session=SESSION, selection=Selection(run=run)))


def _port(asked: int | None) -> int:
    """The port of the app: the one asked for, or the first free one from 8501 on.

    Raises:
        ConfigError: it is in use.
    """
    if asked is not None:
        with listen(HOST, asked) as listener:
            return int(listener.getsockname()[1])
    for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        try:
            listen(HOST, port).close()
        except ConfigError:
            continue
        if port != DEFAULT_PORT:
            say(f"port {DEFAULT_PORT} is in use: taking {port}")
        return port
    raise ConfigError(f"all ports from {DEFAULT_PORT} to {port} are in use: choose another with --port")


def _free_port() -> int:
    with listen(HOST, 0) as listener:
        return int(listener.getsockname()[1])


def _run(asked: str | None) -> tuple[str, Path | None]:
    """The run to open at first, by name, and its folder where it lies outside the workspace.

    Raises:
        WorkspaceError: there is none.
    """
    if asked is None or (asked == BUNDLED and not Path(asked).is_dir()):
        return BUNDLED, None
    folder = open_run(find_run(asked)).path.resolve()
    if folder == (assets_root() / BUNDLED).resolve():
        return BUNDLED, None
    try:
        name = safe_name(folder.name)
    except WorkspaceError as error:
        raise WorkspaceError(f"{folder}: {error}; rename the folder") from error
    return name, None if folder.parent == workspace_root().resolve() else folder


def _engine_elsewhere(address: str, token_file: str | None) -> tuple[str, str]:
    """The engine's address and token, after it has been asked for its status.

    Raises:
        ConfigError: one of them is wrong or missing.
        EngineUnreachableError: nobody answers there.
    """
    token = given_token(token_file)
    with HttpEngine(address, token) as engine:
        engine.status()
        return engine.url, token or ""


def _engine_program(url: str, token: str, extra: Path | None) -> Program:
    port = url.rpartition(":")[2]
    with_run = ["--run", str(extra)] if extra else []
    client = HttpEngine(url, token)
    return Program(
        name="the engine",
        command=[ENGINE_MODULE, "serve", "--port", port, *with_run],
        environment={TOKEN_VARIABLE: token},
        answers=client.is_up,
    )


def _web_program(port: int, engine_url: str, token: str, run: str) -> Program:
    return Program(
        name="the web app",
        command=[WEB_MODULE, "--port", str(port), "--engine", engine_url, "--run", run],
        environment={TOKEN_VARIABLE: token},
        answers=lambda: _is_up(f"http://{HOST}:{port}/_stcore/health"),
    )


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
