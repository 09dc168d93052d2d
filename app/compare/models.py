"""Which models are compared: the SFT policy and the pins, each with the point that was measured there."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from app.view import MAX_PINS, Pin
from warp_core.service.documents import FrontDocument, FrontPoint
from warp_core.service.places import is_sft, same_place
from warp_core.service.protocol import SFT, Place

__all__ = ["CompareModel", "compared", "default_evaluation", "measured_places", "point_at", "unlike"]


@dataclass(frozen=True, kw_only=True)
class CompareModel:
    """One model of the comparison."""

    letter: str
    """A, B, ...: what tables and pictures call it."""
    label: str
    place: Place
    point: FrontPoint | None
    """None: not measured yet."""

    @property
    def name(self) -> str:
        """Letter and label."""
        return f"{self.letter}: {self.label}"


def default_evaluation(front: FrontDocument) -> str | None:
    """Return the evaluation that a new measurement will have; else the one with most points; None without points."""
    for note in front.evaluations:
        if note.is_default:
            return note.id
    counts = [(sum(point.evaluation == note.id for point in front.points), note.id) for note in front.evaluations]
    return max(counts)[1] if counts else None


def point_at(front: FrontDocument, place: Place, evaluation: str | None) -> FrontPoint | None:
    """Return the measured point of a place under an evaluation, or None."""
    for point in front.points:
        if point.place is not None and point.evaluation == evaluation and same_place(point.place, place):
            return point
    return None


def measured_places(front: FrontDocument, evaluation: str | None) -> list[Place]:
    """Return the place of every measured model that sliders can reach, without the SFT policy."""
    found: list[Place] = []
    for point in front.points:
        place = point.place
        if place is None or point.evaluation != evaluation or is_sft(place):
            continue
        if not any(same_place(place, other) for other in found):
            found.append(place)
    return found


def compared(front: FrontDocument, pins: Sequence[Pin], evaluation: str | None) -> tuple[CompareModel, ...]:
    """Return the models: A is the SFT policy, then the pins in their order, each model once."""
    wanted: list[tuple[Place, str]] = [(SFT, "SFT policy")]
    for pin in pins:
        if not any(same_place(pin.place, other) for other, _ in wanted):
            wanted.append((pin.place, pin.name))
    return tuple(
        CompareModel(letter=letter, label=label, place=place, point=point_at(front, place, evaluation))
        for letter, (place, label) in zip(ascii_uppercase, wanted[: MAX_PINS + 1], strict=False)
    )


def unlike(labels: Sequence[str]) -> list[str]:
    """Return the labels with a number behind each that was there before: a list of choices needs them unlike."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found
