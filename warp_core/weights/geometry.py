"""The geometry of a set of checkpoints: one small Gram matrix per layer, from which everything else follows.

Shape suffixes: L layers, M policies, N = 1 + M vectors [theta_init, delta_1, ..., delta_M].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warp_core.errors import GeometryError
from warp_core.weights.layers import GRANULARITIES

__all__ = ["Geometry", "LayerInfo"]

Floats = NDArray[np.float64]
_FIELDS = {"init", "policies", "granularity", "layers", "gram_LNN"}


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """A layer (or tensor, or the whole model) and the number of its parameters."""

    name: str
    num_params: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Inner products of theta_init and the task vectors, per layer.

    Attributes:
        init: id of theta_init.
        policies: ids of theta_1..theta_M, in the order of the columns.
        granularity: "layer", "tensor" or "model".
        layers: what the rows are. With adapters: only the layers that an adapter moves.
        gram_LNN: float64; [l, 0, 0] = |theta_init|^2, [l, 0, m] = <theta_init, delta_m>,
            [l, m, k] = <delta_m, delta_k>.
    """

    init: str
    policies: tuple[str, ...]
    granularity: str
    layers: tuple[LayerInfo, ...]
    gram_LNN: Floats

    def __post_init__(self) -> None:
        shape = (len(self.layers), 1 + len(self.policies), 1 + len(self.policies))
        if self.granularity not in GRANULARITIES or self.gram_LNN.shape != shape:
            raise GeometryError(
                f"geometry: a Gram of shape {self.gram_LNN.shape} with granularity {self.granularity[:20]!r} does not "
                f"fit {len(self.layers)} layers and {len(self.policies)} policies; compute it again"
            )
        if not np.isfinite(self.gram_LNN).all():
            raise GeometryError("geometry: the Gram holds NaN or infinity; compute it again")

    @property
    def gram_LMM(self) -> Floats:
        """Inner products of the task vectors."""
        return self.gram_LNN[:, 1:, 1:]

    @property
    def norms_LM(self) -> Floats:
        """Lengths |delta_m|."""
        return _lengths(self.gram_LMM)

    @property
    def cosines_LMM(self) -> Floats:
        """cos W of each pair of task vectors in [-1, 1]; 1 where one is zero (there the LERP limit is used)."""
        return _cosines(self.gram_LMM)

    @property
    def angles_LMM(self) -> Floats:
        """Angles W in radians; 0 where a task vector is zero."""
        return np.arccos(self.cosines_LMM)

    @property
    def full_gram_LMM(self) -> Floats:
        """Inner products of the full weights theta_m = theta_init + delta_m."""
        cross_LM = self.gram_LNN[:, :1, 1:]
        return self.gram_LNN[:, :1, :1] + cross_LM + np.swapaxes(cross_LM, 1, 2) + self.gram_LMM

    @property
    def full_cosines_LMM(self) -> Floats:
        """Cosines of the full weights theta_m, not of the task vectors: close to 1 for policies of one init."""
        return _cosines(self.full_gram_LMM)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` reads it back without loss."""
        return {
            "init": self.init,
            "policies": list(self.policies),
            "granularity": self.granularity,
            "layers": [{"name": layer.name, "num_params": layer.num_params} for layer in self.layers],
            "gram_LNN": self.gram_LNN.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Geometry":
        """Read what `to_json` wrote. Raises GeometryError if it is not that."""
        try:
            width = 1 + len(data["policies"])
            return cls(
                init=str(data["init"]),
                policies=tuple(str(p) for p in data["policies"]),
                granularity=str(data["granularity"]),
                layers=tuple(LayerInfo(name=str(x["name"]), num_params=int(x["num_params"])) for x in data["layers"]),
                gram_LNN=np.asarray(data["gram_LNN"], dtype=np.float64).reshape(-1, width, width),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as err:
            if isinstance(err, GeometryError):
                raise
            raise GeometryError(f"geometry: not readable ({str(err)[:200]}); compute it again") from err


def _lengths(gram_LMM: Floats) -> Floats:
    return np.sqrt(np.maximum(np.diagonal(gram_LMM, axis1=1, axis2=2), 0.0))


def _cosines(gram_LMM: Floats) -> Floats:
    lengths_LM = _lengths(gram_LMM)
    scale_LMM = lengths_LM[:, :, None] * lengths_LM[:, None, :]
    safe_LMM = np.where(scale_LMM > 0, scale_LMM, 1.0)
    cosines_LMM = np.where(scale_LMM > 0, np.clip(gram_LMM / safe_LMM, -1.0, 1.0), 1.0)
    diagonal = np.arange(gram_LMM.shape[1])
    cosines_LMM[:, diagonal, diagonal] = 1.0
    return cosines_LMM
