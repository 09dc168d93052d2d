"""What an export is called and how to do the same on a command line. Pure functions."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from warp_core.service.places import is_sft
from warp_core.service.protocol import ExportRequest, Place, Selection

__all__ = ["DEFAULT_SHARD", "command", "default_name", "no_adapter", "place_problem", "shard_problem"]

DEFAULT_SHARD = "5GB"
_SIZE = re.compile(r"\s*\d+(\.\d+)?\s*([KMGT]?i?B)?\s*", re.IGNORECASE)


def default_name(selection: Selection, place: Place) -> str:
    """Return a name that says what the model is, such as demo-run-i1-slerp-eta0.3."""
    stem = selection.run or PurePath(selection.policies[0]).name if selection.run or selection.policies else "model"
    stem = re.sub(r"[^A-Za-z0-9._+=-]+", "-", str(stem)).strip(".-_+=")[:50] or "model"
    if is_sft(place):
        return f"{stem}-sft"
    ones = [m for m, weight in enumerate(place.weights, 1) if math.isclose(weight, 1.0, abs_tol=1e-6)]
    if ones and place.eta == 1:
        return f"{stem}-i{place.iteration}-policy-{ones[0]}"
    even = len({round(weight, 6) for weight in place.weights}) < 2
    weights = "" if even else "-w" + "-".join(f"{weight:.3g}" for weight in place.weights)
    end = "-to-init" if place.towards == "init" and place.iteration > 1 and place.eta != 1 else ""
    return f"{stem}-i{place.iteration}-{place.method}{weights}-eta{place.eta:.4g}{end}"


def place_problem(place: Place, num_policies: int) -> str | None:
    """Return what is wrong with the shares of a place, or None."""
    total = math.fsum(place.weights)
    if place.weights and not math.isclose(total, 1.0, abs_tol=1e-3):
        return f"The shares add up to {total:g}; they have to add up to 1."
    if place.weights and len(place.weights) != num_policies:
        return f"There are {len(place.weights)} shares for {num_policies} policies."
    return None


def shard_problem(size: str) -> str | None:
    """Return what is wrong with a shard size, or None."""
    return None if _SIZE.fullmatch(size) else "A size such as 5GB or 200MB."


def no_adapter(place: Place, *, kinds: set[str]) -> str | None:
    """Return why the model has no adapter form, or None where it has one.

    Args:
        place: the model.
        kinds: of the policies' checkpoints, full or adapter.
    """
    if kinds != {"adapter"}:
        return "Full model only: the policies are full checkpoints, so what they add is no adapter."
    if place.method == "slerp-weights":
        return "Full model only: SLERP of weights scales the base weights, too, which no adapter can hold."
    if is_sft(place):
        return "Full model only: the SFT policy is the base itself, without an adapter."
    return None


def command(request: ExportRequest, *, run_path: str | None, out: str, config: Mapping[str, Any] | None) -> str:
    """Return the command line that writes the same folder.

    Args:
        request: what is exported.
        run_path: the run folder; None for models named one by one.
        out: the folder to make.
        config: of the run.
    """
    place, selection = request.place, request.selection
    words: list[str] = ["warp-core"]
    if run_path is not None:
        words += ["export", run_path, "--iteration", str(place.iteration)]
        words += ["--to-init"] if place.towards == "init" and place.iteration > 1 else []
        granularity = config["merge"]["granularity"] if config else "layer"
    else:
        words += ["merge", "--init", selection.init or "", "--policies", *selection.policies]
        granularity = "layer"
    words += ["--base", selection.base] if selection.base else []
    words += ["--method", place.method]
    words += ["--weights", *(f"{weight:.10g}" for weight in place.weights)] if place.weights else []
    words += ["--eta", f"{place.eta:.10g}"]
    words += ["--granularity", granularity] if granularity != "layer" else []
    words += ["--as", "adapter"] if request.form == "adapter" else []
    words += ["--dtype", request.dtype] if request.dtype else []
    words += ["--max-shard-size", request.max_shard_size] if request.max_shard_size != DEFAULT_SHARD else []
    return shlex.join([*words, "--out", out])
