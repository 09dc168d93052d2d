"""What this machine can do at most: memory copies, file reads and writes, matrix products."""

from bench.rows import Row
from bench.settings import Settings

__all__ = ["measure"]


def measure(settings: Settings) -> list[Row]:
    """Return one row per limit; its `case` is the name under which `Settings.limits` has it."""
    return []
