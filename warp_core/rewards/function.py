"""Your own reward: `python:module.function`, called as `function(prompts, completions)`, returns one number each.

    # my_rewards.py, in the folder where you start warp-core
    def brevity(prompts: list[str], completions: list[str]) -> list[float]:
        return [-len(text) / 100 for text in completions]

    warp-core train demo.toml --out runs/brief --set reward.terms='["sentiment", "python:my_rewards.brevity:0.5"]'

This is the one kind of reward that runs code. A call that hangs is given up after `timeout_s`; its thread cannot be
ended and is left behind, so the run should stop, which the RewardError makes it do.
"""

import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from warp_core.errors import RewardError
from warp_core.rewards.base import RewardBatch, one_line
from warp_core.workspace.hashing import sha256_file

__all__ = ["PREFIX", "FunctionReward", "load_function"]

PREFIX = "python:"

RewardFunction = Callable[[list[str], list[str]], Sequence[float] | torch.Tensor]


class FunctionReward:
    """A reward computed by a function of the user, in a thread of its own so that it cannot hang the run."""

    def __init__(self, function: RewardFunction, *, name: str, timeout_s: float) -> None:
        self.name = name
        self.function = function
        self.timeout_s = timeout_s

    @property
    def id(self) -> str:
        """Name and hash of the file that defines the function; files which that imports are not looked at."""
        try:
            path = Path(inspect.getfile(inspect.unwrap(self.function)))
            return f"{self.name}@{sha256_file(path)[:16]}"
        except (TypeError, OSError):  # defined in C, or in a file that is gone
            return self.name

    def __call__(self, batch: RewardBatch) -> Sequence[float] | torch.Tensor:
        """Return what the function returns, unchecked.

        Raises:
            RewardError: no answer within `timeout_s`.
            Exception: whatever the function raises.
        """
        outcome: dict[str, Any] = {}

        def work() -> None:
            try:
                value = self.function(list(batch.prompts), list(batch.completions))
                # Here, because an iterator may hang as the function may, or never end.
                outcome["value"] = list(islice(value, len(batch) + 1)) if isinstance(value, Iterator) else value
            except BaseException as error:  # SystemExit in a thread would vanish without a word
                outcome["error"] = error

        thread = threading.Thread(target=work, name=f"reward {self.name}", daemon=True)
        with _settings_kept():
            thread.start()
            thread.join(self.timeout_s)
        if not outcome:
            raise RewardError(
                f"reward {self.name!r} gave no answer for {len(batch)} completions in {self.timeout_s:g} s: "
                "mend it, or make its batches smaller"
            )
        error = outcome.get("error")
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RewardError(f"reward {self.name!r} tried to end the program ({error!r}): raise an exception instead")
        return outcome["value"]  # type: ignore[no-any-return]


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what a function may change for the whole process, and keep what it prints off stdout."""
    folder, dtype, precision = Path.cwd(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the document of --json
            yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)


def load_function(name: str, *, timeout_s: float) -> FunctionReward:
    """Import the function of a name `python:module.function`; the current folder is searched last.

    Raises:
        RewardError: no such module or function, it is not callable, or the import raised.
    """
    module_name, _, function_name = name.removeprefix(PREFIX).rpartition(".")
    if not module_name or not function_name:
        raise RewardError(f"reward {name!r}: write python:module.function")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that a file here cannot stand in for an installed package
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RewardError(
            f"reward {name!r}: there is no module {error.name!r} in {here} or among the installed packages"
        ) from error
    except Exception as error:
        raise RewardError(
            f"reward {name!r}: importing {module_name!r} raised {type(error).__name__}: {one_line(str(error), 200)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        fault = "is not a function" if hasattr(module, function_name) else "does not exist"
        raise RewardError(f"reward {name!r}: {function_name!r} {fault} in module {module_name!r}")
    return FunctionReward(function, name=name, timeout_s=timeout_s)
