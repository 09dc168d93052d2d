"""Run cases in a process of its own: bounded in memory, watched by the clock, and gone in any case at the end.

    for found in watched("hostile.headers:read_cases", {"first": 0}, answer_s=10): ...

The function yields a JSON-ready dictionary per case; what kills or stalls the process comes as {"problem": ...}.
"""

import importlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hostile.document import ROOT

__all__ = ["Found", "limit_memory", "watched"]

Found = dict[str, Any]
START_S = 120.0


def watched(function: str, arguments: Mapping[str, Any], *, answer_s: float) -> Iterator[Found]:
    """Yield what `function` ("module:name") yields in a process of its own.

    answer_s: longest silence after the first answer.
    """
    command = [sys.executable, "-m", "hostile.input_child", function, json.dumps(dict(arguments))]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    said: list[bytes] = []
    threads = [
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=lambda err: said.append(err.read()), args=(child.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    last, wait_s = "the start", START_S
    try:
        while True:
            try:
                line = lines.get(timeout=wait_s)
            except queue.Empty:
                yield {"problem": f"no answer within {wait_s:.0f} s after {last}"}
                return
            if line is None:
                break
            found = json.loads(line)
            last, wait_s = str(found.get("case", last)), answer_s
            yield found
        child.wait(answer_s)
        threads[1].join(answer_s)
        if child.returncode:
            tail = b"".join(said).decode(errors="replace").strip().splitlines()[-1:]
            yield {"problem": f"the process ended with {child.returncode} after {last}: {' '.join(tail)}"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _pump(stream: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    for line in stream:
        if line.startswith(b"{"):
            lines.put(line)
    lines.put(None)


def limit_memory(extra_bytes: int) -> None:
    """Allow this process so many bytes of address space beyond what it has now; nothing where that is unknown."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + extra_bytes, now + extra_bytes))


def main() -> None:
    """Call the function named on the command line and print each dictionary as a line."""
    module, name = sys.argv[1].split(":")
    for found in getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2])):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
