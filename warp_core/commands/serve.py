"""The command `serve`: the engine behind HTTP, on this machine only unless told otherwise."""

import os
import secrets
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import cast

import uvicorn

from warp_core.commands.answer import INTERRUPTED, Answer
from warp_core.commands.console import say
from warp_core.commands.token_file import TOKEN_VARIABLE, given_token, token_path, write_token
from warp_core.service.interface import Engine
from warp_core.service.listening import host_names, is_loopback, listen
from warp_core.service.server import create_app
from warp_core.service.waking import ClosingEngine, WakingEngine
from warp_core.workspace.paths import find_run

__all__ = ["serve"]

END_WITHIN_S = 1.8
OPEN = (
    "listening on {host}: other machines reach this engine, and whoever has its token can read and write this workspace"
    " and start training; the connection is not encrypted (over a network that is not yours use a tunnel: ssh -L)"
)


def serve(args: Namespace) -> Answer:
    """Serve until a signal comes.

    Raises:
        ConfigError: the port is in use, the host is not this machine, the token file is not usable.
    """
    hosts: list[str] = args.host or ["127.0.0.1"]
    token = given_token(args.token_file)
    # Nothing that the engine starts, such as a reward function, needs to know it.
    os.environ.pop(TOKEN_VARIABLE, None)
    extra_runs = [find_run(run) for run in args.run or ()]
    with listen(hosts[0], args.port) as listener:
        port = listener.getsockname()[1]
        if not is_loopback(hosts[0]):
            say(OPEN.format(host=hosts[0]))
        token_file = token_path(port) if token is None else None
        try:
            if token is None:
                token = secrets.token_urlsafe(32)
                token_file = write_token(token, port)
                say(f"the token is in {token_file}")
            # Requests wait for it, so that the server and whoever asks it start meanwhile.
            engine = WakingEngine(lambda: _local_engine(extra_runs))
            url = f"http://{_name(hosts)}:{port}"
            args.announce({"url": url, "token_file": str(token_file) if token_file else None, "pid": os.getpid()}, url)
            names = [name for host in hosts for name in host_names(host)]
            _serve_until_signal(engine, listener, token=token, hosts=names, leave=partial(_leave, token_file))
        finally:
            if token_file:
                token_file.unlink(missing_ok=True)
    return Answer(document={"url": url}, text=url)


def _local_engine(extra_runs: Sequence[Path]) -> ClosingEngine:
    # Here, because it brings torch: a port in use is said at once.
    from warp_core.service.engine import LocalEngine

    return LocalEngine(extra_runs=extra_runs)


def _name(hosts: Sequence[str]) -> str:
    """The host of the URL that is printed."""
    if hosts[0] in ("0.0.0.0", "::"):
        return hosts[1] if len(hosts) > 1 else socket.gethostname()
    return f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]


def _leave(token_file: Path | None) -> None:
    """End the process with what still runs in it."""
    if token_file:
        token_file.unlink(missing_ok=True)
    say(f"warp-core: {INTERRUPTED}")
    os._exit(130)


def _serve_until_signal(
    engine: WakingEngine, listener: socket.socket, *, token: str, hosts: Sequence[str], leave: Callable[[], None]
) -> None:
    """Answer requests until SIGINT or SIGTERM, cancel the jobs, and raise that signal again.

    Raises what the making of the engine raises.
    """
    server = None
    try:
        config = uvicorn.Config(
            create_app(cast(Engine, engine), token=token, hosts=hosts),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=75,  # longer than our client keeps a connection
            timeout_graceful_shutdown=1,
        )
        server = _Server(config, leave=leave)
        engine.when_failed(server.stop)
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        if not engine.is_made:  # nothing runs in it, and imports that have begun cannot be stopped
            leave()
        raise
    finally:
        engine.close()
        if server:
            server.ended()


class _Server(uvicorn.Server):
    """Ends the process in time even where a job does not come to a checkpoint."""

    def __init__(self, config: uvicorn.Config, *, leave: Callable[[], None]) -> None:
        super().__init__(config)
        self._limit = threading.Timer(END_WITHIN_S, leave)
        self._limit.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What uvicorn calls at a signal."""
        if not self.should_exit:
            self._limit.start()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """End as at a signal, without one."""
        self.should_exit = True

    def ended(self) -> None:
        """Everything ended by itself."""
        self._limit.cancel()
