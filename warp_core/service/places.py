"""Places as text: for links, for people, and for comparing them.

place_text(place)          i1.slerp.w0.5-0.5.e0.3.sft        in a URL; parse_place reads it back
place_label(place)         SLERP 0.5/0.5, eta 0.3            for people
"""

import math
import re
from collections.abc import Sequence

from pydantic import ValidationError

from warp_core.errors import RecipeError
from warp_core.service.protocol import Place

__all__ = ["METHOD_NAMES", "full_weights", "is_sft", "parse_place", "place_label", "place_text", "same_place", "single"]

METHOD_NAMES = {"slerp": "SLERP", "lerp": "LERP", "slerp-weights": "SLERP of weights"}
_TEXT = re.compile(
    r"i(?P<iteration>\d{1,4})\.(?P<method>slerp-weights|slerp|lerp)(?:\.w(?P<weights>[0-9.e-]+?))?"
    r"\.e(?P<eta>\d(?:\.\d+)?)\.(?P<towards>sft|init)",
    flags=re.ASCII,
)
_TOLERANCE = 2e-6
_EXACT = 6  # decimals in a link: what is read back is the same place
_LEGIBLE = 3
_SUM_TOLERANCE = 1e-3


def single(policy: int, num_policies: int, *, iteration: int = 1) -> Place:
    """Return the place of one policy (1-based) alone."""
    weights = tuple(float(m == policy) for m in range(1, num_policies + 1))
    return Place(iteration=iteration, method="lerp", weights=weights, eta=1.0, towards="init")


def full_weights(place: Place, num_policies: int) -> tuple[float, ...]:
    """Return the weights of a place, all alike where it names none.

    Raises:
        RecipeError: it has another number of weights than there are policies.
    """
    if not place.weights:
        return (1.0 / num_policies,) * num_policies
    if len(place.weights) != num_policies:
        raise RecipeError(f"{len(place.weights)} weights for {num_policies} policies: give one for each")
    return place.weights


def is_sft(place: Place) -> bool:
    """Whether the place is the SFT policy itself."""
    return place.eta <= _TOLERANCE and (place.towards == "sft" or place.iteration == 1)


def same_place(first: Place, second: Place) -> bool:
    """Whether two places are one model, up to rounding of the weights and of eta.

    Where all weight is on one policy, the methods are the same; at eta 1 it does not matter what LITI starts from.
    """
    if is_sft(first) or is_sft(second):
        return is_sft(first) and is_sft(second)
    if first.iteration != second.iteration or not math.isclose(first.eta, second.eta, abs_tol=_TOLERANCE):
        return False
    at_the_end = math.isclose(first.eta, 1.0, abs_tol=_TOLERANCE)
    if first.iteration > 1 and first.towards != second.towards and not at_the_end:
        return False
    count = max(len(first.weights), len(second.weights))
    pair = [place.weights or (1.0 / max(1, count),) * count for place in (first, second)]
    if len(pair[0]) != len(pair[1]):
        return False
    alike = all(math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in zip(*pair, strict=True))
    return alike and (first.method == second.method or _alone(pair[0]) is not None)


def place_text(place: Place) -> str:
    """Return a place as a short text that is safe in a URL. Weights are rounded so that they still add up to 1."""
    weights = "-".join(_short(w, _EXACT) for w in _rounded(place.weights))
    eta = _short(place.eta, _EXACT)
    parts = [f"i{place.iteration}", place.method, *([f"w{weights}"] if weights else []), f"e{eta}"]
    return ".".join([*parts, place.towards])


def parse_place(text: str) -> Place:
    """Read what `place_text` wrote. Weights that add up to 1 but for their rounding, as of a person, are put right.

    Raises:
        RecipeError: it is no place.
    """
    found = _TEXT.fullmatch(text)
    if not found:
        raise RecipeError(f"{text[:60]!r} is no place: expected something like i1.slerp.w0.5-0.5.e0.3.sft")
    try:
        weights = tuple(float(w) for w in found["weights"].split("-")) if found["weights"] else ()
        total = math.fsum(weights)
        if weights and abs(total - 1.0) > _SUM_TOLERANCE:
            raise RecipeError(f"{text[:60]!r} is no place: its weights add up to {total:.4g}, not to 1")
        return Place(
            iteration=int(found["iteration"]),
            method=found["method"],  # type: ignore[arg-type]
            weights=tuple(w / total for w in weights),
            eta=float(found["eta"]),
            towards=found["towards"],  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].lower()}"
        raise RecipeError(f"{text[:60]!r} is no place: {message}") from error
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{text[:60]!r} is no place: its weights are no numbers") from error


def place_label(place: Place, *, policy_names: Sequence[str] = ()) -> str:
    """Return a short name for people: "SFT policy", "policy 2", "SLERP 0.3/0.7, eta 0.5, to SFT"."""
    if is_sft(place):
        return "SFT policy"
    alone = _alone(place.weights)
    if alone is not None:
        name = policy_names[alone] if alone < len(policy_names) else f"policy {alone + 1}"
        eta = "" if place.eta == 1 else f", eta {_short(place.eta, _LEGIBLE)}"
    else:
        even = len({round(w, _LEGIBLE) for w in place.weights}) < 2
        weights = "" if even else " " + "/".join(_short(w, _LEGIBLE) for w in place.weights)
        name, eta = f"{METHOD_NAMES[place.method]}{weights}", f", eta {_short(place.eta, _LEGIBLE)}"
    end = f" to {'SFT' if place.towards == 'sft' else 'init'}" if place.iteration > 1 and place.eta != 1 else ""
    later = f", iteration {place.iteration}" if place.iteration > 1 else ""
    return f"{name}{eta}{end}{later}"


def _alone(weights: Sequence[float]) -> int | None:
    """Index of the policy that has all the weight, if one has."""
    ones = [m for m, w in enumerate(weights) if math.isclose(w, 1.0, abs_tol=_TOLERANCE)]
    return ones[0] if ones else None


def _rounded(weights: Sequence[float]) -> list[float]:
    """The weights in whole millionths: rounded down, and what is missing given to those that lost most."""
    unit = 10.0**_EXACT
    parts = [math.floor(w * unit + 1e-6) for w in weights]
    missing = round(math.fsum(weights) * unit) - sum(parts)
    losers = sorted(range(len(parts)), key=lambda m: parts[m] - weights[m] * unit)
    for m in losers[: max(0, missing)]:
        parts[m] += 1
    return [part / unit for part in parts]


def _short(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return text or "0"
