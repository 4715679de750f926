"""A row of features: one per input, whether or not it could be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureRow:
    """The features of one input, float32 [D], or its error.

    `shape` is that of one image's features in the network, (C, H, W) or (features,), with D values. `artifact` is
    `short_artifact` of the files that ran, as in `Row`. In a row that was read from a file for its origin alone,
    `features` is None too.
    """

    index: int
    source: str
    features: NDArray[np.float32] | None = None
    layer: str
    shape: tuple[int, ...]
    num_views: int
    model: str
    backend: str
    precision: str
    artifact: str
    error: str | None = None

    def origin(self) -> dict[str, Any]:
        """The fields of every format besides the features, in their order."""
        return {
            "index": self.index,
            "source": self.source,
            "layer": self.layer,
            "shape": list(self.shape),
            "num_views": self.num_views,
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "artifact": self.artifact,
            "error": self.error,
        }

    def to_json(self) -> bytes:
        """One line of JSON without a newline; the features are base64 of little-endian float32."""
        data = None if self.features is None else self.features.astype("<f4", copy=False).tobytes()
        return msgspec.json.encode({**self.origin(), "features": data})

    @staticmethod
    def from_json(line: bytes) -> FeatureRow:
        """Parse the output of `to_json`, or a line without features. Raises msgspec.DecodeError, a ValueError."""
        found = _DECODER.decode(line)
        fields = {name: getattr(found, name) for name in _Line.__struct_fields__}
        data = fields.pop("features")
        return FeatureRow(features=None if data is None else np.frombuffer(data, "<f4"), **fields)


class _Line(msgspec.Struct, kw_only=True):
    index: int
    source: str
    features: bytes | None = None
    layer: str
    shape: tuple[int, ...]
    num_views: int
    model: str
    backend: str
    precision: str
    artifact: str
    error: str | None = None


_DECODER = msgspec.json.Decoder(_Line)
