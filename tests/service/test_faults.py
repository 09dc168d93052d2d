"""Exceptions in one line of plain words."""

import errno
import sqlite3

import pytest

import warp_core
from warp_core import errors
from warp_core.service.faults import Fault, explain


class OutOfMemoryError(RuntimeError):
    """Stands in for torch's."""


class PanicException(BaseException):
    """Stands in for that of PyO3."""


def test_errors_of_ours_speak_for_themselves():
    assert explain(errors.RecipeError("eta: 3\n is too large")) == Fault(message="eta: 3 is too large", is_users=True)
    assert explain(errors.DivergedError("loss is NaN")) == Fault(message="loss is NaN")


def test_a_full_disk_is_for_the_user_to_mend():
    fault = explain(OSError(errno.ENOSPC, "No space left on device", "/runs/x"))
    assert fault == Fault(message="/runs/x: No space left on device: mend that and try again", is_users=True)
    assert explain(OSError(errno.EROFS, "Read-only file system")).message.startswith("the disk: Read-only")


def wrapped(error):
    """An error as code makes it that knows nothing of memory."""
    made = errors.CheckpointError("cannot load a causal language model: remove it")
    made.__cause__ = error
    return made


def no_memory_of_sqlite():
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_NOMEM"
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        wrapped(no_memory_of_sqlite()),
        PanicException("PyObject pointer is null"),
        wrapped(MemoryError()),
        wrapped(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
    ],
)
def test_memory_in_plain_words(error):
    fault = explain(error)
    assert fault.message.startswith("out of memory: choose a smaller model")
    assert (fault.is_users, fault.is_known) == (False, True)


def test_a_file_that_is_gone_is_named():
    fault = explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "/runs/x"))
    assert fault == Fault(message="/runs/x: No such file or directory: mend that and try again", is_users=True)
    assert not explain(FileNotFoundError("a bug")).is_known


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(errno.EBADF, "Bad file"), SystemExit(3)])
def test_anything_else_is_a_fault_of_ours(error):
    fault = explain(error, see="the lines above")
    name = type(error).__name__
    said = f"a fault of warp-core {warp_core.__version__} ({name}): please report it with the lines above"
    assert fault == Fault(message=said, is_known=False)
