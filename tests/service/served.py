"""An engine behind HTTP on a free port of this machine, in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from warp_core.service.interface import Engine
from warp_core.service.listening import listen
from warp_core.service.server import create_app

TOKEN = "token-of-the-tests"


@contextmanager
def served(engine: Engine, *, port: int = 0, token: str = TOKEN) -> Iterator[str]:
    """The address of the engine."""
    listener = listen("127.0.0.1", port)
    config = uvicorn.Config(create_app(engine, token=token), log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()
