"""`python -m app --port P --engine URL`: the web app alone; `warp-core app` starts it together with an engine."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m app", description="The web app; it asks an engine for everything.")
    made.add_argument("--port", type=int, default=8501, help="where to listen (default: 8501)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    made.add_argument("--engine", metavar="URL", help="the engine's address, or `fake` (default: $WARP_ENGINE_URL)")
    made.add_argument("--run", metavar="NAME", help="the run to open at first (default: the bundled one)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve; the engine's token comes in WARP_ENGINE_TOKEN."""
    asked = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    if asked.engine:
        os.environ["WARP_ENGINE_URL"] = asked.engine
    if asked.run:
        os.environ["WARP_APP_RUN"] = asked.run
    if not os.environ.get("WARP_ENGINE_URL"):
        parser().error("no engine: give --engine URL, or start both with `warp-core app`")

    from app.server import run

    try:
        run(port=asked.port, host=asked.host)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
