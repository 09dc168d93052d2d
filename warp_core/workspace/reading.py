"""Read small files that may have become something else: a pipe in the place of a file would be waited for for ever."""

import errno
import os
import stat
from io import UnsupportedOperation
from pathlib import Path

__all__ = ["read_regular"]


def read_regular(path: Path, *, errors: str = "strict") -> str:
    """Return the text of a regular file in UTF-8, with \\n for every line end; links are followed.

    Args:
        path: the file.
        errors: what happens to bytes that are no UTF-8, as in `bytes.decode`.

    Raises:
        OSError: there is none, it cannot be read, or it is a pipe, a device or a folder.
        UnicodeDecodeError: it is not UTF-8 and `errors` is "strict".
    """
    # Without waiting for somebody to write into a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise UnsupportedOperation(f"{path} is not a regular file")
        with open(descriptor, encoding="utf-8", errors=errors, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
