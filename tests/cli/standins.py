"""Programs that stand in for the engine and the web app, so that a test of processes takes a second."""

import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]

# `warp_core` with an engine that needs no torch; $MADE_AFTER: a file that it waits for; $CLOSE_S: how long its close()
# takes; $FAILS: why there is none.
ENGINE = """
import os, sys, time
import warp_core.commands.serve as command
from warp_core.cli import main
from warp_core.errors import WorkspaceError
from warp_core.service.fake import FakeEngine


class Engine(FakeEngine):
    def status(self):
        known = "knows the token" if "WARP_ENGINE_TOKEN" in os.environ else "knows no token"
        runs = " ".join(map(str, self.extra_runs))
        return super().status().model_copy(update={"pid": os.getpid(), "workspace": f"{known}; {runs}"})

    def close(self):
        print("closing", file=sys.stderr, flush=True)
        time.sleep(float(os.environ.get("CLOSE_S", 0)))


def open_engine(extra_runs):
    while "MADE_AFTER" in os.environ and not os.path.exists(os.environ["MADE_AFTER"]):
        time.sleep(0.02)
    if "FAILS" in os.environ:
        raise WorkspaceError(os.environ["FAILS"])
    engine = Engine()
    engine.extra_runs = extra_runs
    return engine


command._local_engine = open_engine
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

# `app` with a page that says what it was given.
WEB = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        said = {"arguments": sys.argv[1:], "pid": os.getpid(), "token": os.environ["WARP_ENGINE_TOKEN"]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *args):
        pass


HTTPServer.allow_reuse_address = True
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Page).serve_forever()
"""

# `warp-core` whose `app` starts the two above.
APP = """
import sys
import warp_core.commands.app as command
from warp_core.cli import main

command.ENGINE_MODULE, command.WEB_MODULE = "standin_engine", "standin_web"
sys.exit(main(sys.argv[1:]))
"""


def write_standins(folder: Path) -> Path:
    """Write the programs above as modules, and return their folder."""
    for name, text in (("standin_engine", ENGINE), ("standin_web", WEB), ("standin_app", APP)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a process that imports modules of `folder`."""
    return dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT), *sys.path])) | changes


def wait_for(what, *, seconds: float = 20.0):
    """Return the first value of `what()` that is not false."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)
    return found


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what is left of it."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@contextmanager
def ended_at_last(process):
    """A process that does not outlive the test."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
