"""Lines on stderr, and whether there is a screen. No torch here: `app` stays resident."""

import os
import sys

__all__ = ["has_screen", "say"]


def say(message: str) -> None:
    """Write a line to stderr at once."""
    print(message, file=sys.stderr, flush=True)


def has_screen() -> bool:
    """Whether a window can be opened here: a screen, or macOS."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) or os.uname().sysname == "Darwin"
