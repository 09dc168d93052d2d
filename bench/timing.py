"""Compare calls in one process: interleaved, so that a neighbour on the machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved_s", "median_s"]


def interleaved_s(calls: Mapping[str, Callable[[], object]], *, repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every call, `repeats` each, taken in turns after `warm` unmeasured rounds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= warm:
                found[name].append(time.perf_counter() - began)
    return found


def median_s(call: Callable[[], object], *, repeats: int, warm: int = 1) -> float:
    """Return the median seconds of a call."""
    return statistics.median(interleaved_s({"": call}, repeats=repeats, warm=warm)[""])
