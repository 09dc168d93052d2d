"""What went wrong, in one line for people: the same words in a terminal, in a job and over HTTP."""

import errno
from dataclasses import dataclass

import warp_core
from warp_core.errors import UserError, WarpError

__all__ = ["Fault", "explain"]

DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
FILE_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE)  # behind our back
NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "Cannot allocate memory (os error 12)",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN
    "can't start new thread",  # there is no room for its stack
    "PyObject pointer is null",  # PyO3, of a Python object that could not be made
)
NO_MEMORY_OF_SQLITE = ("SQLITE_NOMEM", "SQLITE_IOERR_NOMEM")
OUT_OF_MEMORY = "out of memory: choose a smaller model, fewer completions at once or a shorter length"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An exception in words.

    Attributes:
        message: one line, without the word "error" and without a final full stop.
        is_users: the user can mend it (exit code 2, HTTP 422).
        is_known: it was foreseen; what was not belongs in a log with its trace.
    """

    message: str
    is_users: bool = False
    is_known: bool = True


def explain(error: BaseException, *, see: str = "the lines in the log") -> Fault:
    """Put an exception into words.

    Args:
        error: what was raised.
        see: where the trace of an unforeseen exception is to be found.
    """
    if _is_want_of_memory(error):
        return Fault(message=OUT_OF_MEMORY)
    if isinstance(error, WarpError):
        return Fault(message=" ".join(str(error).split()), is_users=isinstance(error, UserError))
    named = isinstance(error, OSError) and error.filename is not None and error.errno in FILE_GONE
    if isinstance(error, OSError) and (named or error.errno in DISK_REFUSES):
        return Fault(
            message=f"{error.filename or 'the disk'}: {error.strerror}: mend that and try again", is_users=True
        )
    version = warp_core.__version__
    return Fault(
        message=f"a fault of warp-core {version} ({type(error).__name__}): please report it with {see}",
        is_known=False,
    )


def _is_want_of_memory(error: BaseException | None) -> bool:
    """Whether memory that ran out is behind an error, however a library or we have wrapped it."""
    while error is not None:
        # torch's own class goes by its name: nothing here imports torch.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if getattr(error, "sqlite_errorname", "") in NO_MEMORY_OF_SQLITE:
            return True
        # On the CPU torch has no class for it, nor has safetensors.
        if not isinstance(error, WarpError) and any(words in str(error) for words in NO_MEMORY):
            return True
        error = error.__cause__
    return False
