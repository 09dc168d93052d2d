"""An engine that can be asked while it is still being made: importing torch and transformers takes seconds.

waking = WakingEngine(make)          # `make` runs in a thread
waking.runs()                        # waits until it has returned, and asks what it made
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from warp_core.service.interface import Engine
from warp_core.service.routes import ROUTES

__all__ = ["ClosingEngine", "WakingEngine"]


class ClosingEngine(Engine, Protocol):
    """An engine that can be ended."""

    def close(self) -> None:
        """Cancel what waits and runs."""


class WakingEngine:
    """Has every method of `Engine`; each waits for the engine that is being made and is answered by it.

    Args:
        make: makes it. What it raises, every method raises.
    """

    def __init__(self, make: Callable[[], ClosingEngine]) -> None:
        self._made: Future[ClosingEngine] = Future()
        threading.Thread(target=self._wake, args=(make,), name="waking", daemon=True).start()

    def _wake(self, make: Callable[[], ClosingEngine]) -> None:
        try:
            self._made.set_result(make())
        except BaseException as error:
            self._made.set_exception(error)

    def when_failed(self, call: Callable[[], None]) -> None:
        """Call something when it turns out that there will be no engine; at once where that is known."""
        self._made.add_done_callback(lambda made: call() if made.exception() else None)

    @property
    def is_made(self) -> bool:
        """Whether it is there, or will never be."""
        return self._made.done()

    def close(self) -> None:
        """Wait for the engine and end it. Raises what `make` has raised."""
        self._made.result().close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method of `Engine`."""
        if name not in ROUTES:
            raise AttributeError(name)
        return lambda *arguments: getattr(self._made.result(), name)(*arguments)
