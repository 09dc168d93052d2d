"""Places as text: for links, for people, and for comparing them.

place_text(place)          i1.slerp.w0.5-0.5.e0.3.sft        in a URL; parse_place reads it back
place_label(place)         SLERP 0.5/0.5, eta 0.3            for people
"""

import math
import re
from collections.abc import Sequence

from warp_core.errors import RecipeError
from warp_core.service.protocol import Place

__all__ = ["METHOD_NAMES", "full_weights", "is_sft", "parse_place", "place_label", "place_text", "same_place", "single"]

METHOD_NAMES = {"slerp": "SLERP", "lerp": "LERP", "slerp-weights": "SLERP of weights"}
_TEXT = re.compile(
    r"i(?P<iteration>\d{1,4})\.(?P<method>slerp-weights|slerp|lerp)(?:\.w(?P<weights>[0-9.e-]+?))?"
    r"\.e(?P<eta>\d(?:\.\d+)?)\.(?P<towards>sft|init)"
)
_TOLERANCE = 1e-6


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
    return place.eta == 0 and (place.towards == "sft" or place.iteration == 1)


def same_place(first: Place, second: Place) -> bool:
    """Whether two places are one model, up to rounding of the weights and of eta."""
    if is_sft(first) or is_sft(second):
        return is_sft(first) and is_sft(second)
    if (first.iteration, first.method) != (second.iteration, second.method):
        return False
    if first.iteration > 1 and first.towards != second.towards and not first.eta == second.eta == 1:
        return False
    if not math.isclose(first.eta, second.eta, abs_tol=_TOLERANCE):
        return False
    count = max(len(first.weights), len(second.weights))
    if count == 0:
        return True
    pair = [place.weights or (1.0 / count,) * count for place in (first, second)]
    return len(pair[0]) == len(pair[1]) and all(
        math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in zip(*pair, strict=True)
    )


def place_text(place: Place) -> str:
    """Return a place as a short text that is safe in a URL."""
    weights = "-".join(_short(w) for w in place.weights)
    parts = [f"i{place.iteration}", place.method, *([f"w{weights}"] if weights else []), f"e{_short(place.eta)}"]
    return ".".join([*parts, place.towards])


def parse_place(text: str) -> Place:
    """Read what `place_text` wrote.

    Raises:
        RecipeError: it is no place.
    """
    found = _TEXT.fullmatch(text)
    if not found:
        raise RecipeError(f"{text[:60]!r} is no place: expected something like i1.slerp.w0.5-0.5.e0.3.sft")
    try:
        return Place(
            iteration=int(found["iteration"]),
            method=found["method"],  # type: ignore[arg-type]
            weights=tuple(float(w) for w in found["weights"].split("-")) if found["weights"] else (),
            eta=float(found["eta"]),
            towards=found["towards"],  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise RecipeError(f"{text[:60]!r} is no place: {' '.join(str(error).split())[:120]}") from error


def place_label(place: Place, *, policy_names: Sequence[str] = ()) -> str:
    """Return a short name for people: "SFT policy", "policy 2", "SLERP 0.3/0.7, eta 0.5, to SFT"."""
    if is_sft(place):
        return "SFT policy"
    later = f", iteration {place.iteration}" if place.iteration > 1 else ""
    ones = [m for m, w in enumerate(place.weights) if math.isclose(w, 1.0, abs_tol=_TOLERANCE)]
    if ones and place.eta == 1:
        name = policy_names[ones[0]] if ones[0] < len(policy_names) else f"policy {ones[0] + 1}"
        return f"{name}{later}"
    even = len({round(w, 6) for w in place.weights}) < 2
    weights = "" if even else " " + "/".join(_short(w) for w in place.weights)
    end = f" to {'SFT' if place.towards == 'sft' else 'init'}" if place.iteration > 1 and place.eta != 1 else ""
    return f"{METHOD_NAMES[place.method]}{weights}, eta {_short(place.eta)}{end}{later}"


def _short(value: float) -> str:
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return text or "0"
