"""Tensors that are held on the host and used on a device: the next pieces travel while the present ones are used."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["Staging", "place_for"]

Key = TypeVar("Key")
_SHARE = 0.8  # of the device's free memory that sources may take; the rest is for the model's own work


def place_for(device: torch.device, size_bytes: int) -> torch.device:
    """Where sources of so many bytes are held for a model on `device`: there, or on the host where they do not fit."""
    if device.type != "cuda":
        return device
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return device if size_bytes <= _SHARE * free_bytes else torch.device("cpu")


class Staging:
    """Brings pieces to `device` in their order, one step ahead of their use.

    On CUDA the copies run on a stream of their own and are asynchronous for pinned memory; elsewhere they are plain.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        streams: Any = torch.cuda  # its classes are not typed
        self._stream = streams.Stream(device) if device.type == "cuda" else None

    def staged(self, jobs: Iterable[tuple[Key, Sequence[torch.Tensor]]]) -> Iterator[tuple[Key, list[torch.Tensor]]]:
        """Yield every job with its pieces on the device."""
        ahead: tuple[Key, list[torch.Tensor], Any] | None = None
        for key, pieces in jobs:
            following = key, *self._bring(pieces)
            if ahead is not None:
                yield ahead[0], self._arrived(ahead[1], ahead[2])
            ahead = following
        if ahead is not None:
            yield ahead[0], self._arrived(ahead[1], ahead[2])

    def _bring(self, pieces: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        if self._stream is None:
            return [piece.to(self._device) for piece in pieces], None
        with torch.cuda.stream(self._stream):
            brought = [piece.to(self._device, non_blocking=True) for piece in pieces]
            return brought, self._stream.record_event()

    def _arrived(self, pieces: list[torch.Tensor], event: Any) -> list[torch.Tensor]:
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            for piece in pieces:
                piece.record_stream(stream)  # their memory is not given away before this stream has used it
        return pieces
