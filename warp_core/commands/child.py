"""Run a module as a child that ends with its parent: `python -m warp_core.commands.child MODULE [ARGUMENT ...]`.

The child's standard input is a pipe whose other end only the parent holds. When that end closes, because the parent
wants the child to end or because it is no more, however it went, the child gets a SIGTERM. This needs nothing of the
module, and no particular system.
"""

import os
import runpy
import signal
import sys
import threading
import time

__all__ = ["main"]

PATIENCE_S = 3.0


def main() -> None:
    """Run the module in this process."""
    pipe = os.dup(sys.stdin.fileno())
    # The module and what it starts must neither read from the pipe nor hold it.
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    threading.Thread(target=_end_with, args=(pipe,), name="parent", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with(pipe: int) -> None:
    while os.read(pipe, 4096):
        pass
    # Nobody waits for what there is to say any more: the parent says that all is over.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main_thread = threading.main_thread().ident
    if main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
