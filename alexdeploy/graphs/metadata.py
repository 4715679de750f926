"""The metadata of an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import decode_json
from alexdeploy.core.spec import ModelSpec

SPEC_KEY = "alexdeploy.spec"


SOURCE_KEY = "alexdeploy.source_sha256"


SOURCE_NAME_KEY = "alexdeploy.source"


WEIGHTS_KEY = "alexdeploy.weights_sha256"


RANGES_KEY = "alexdeploy.ranges_sha256"


PRECISION_KEY = "alexdeploy.precision"


VIEWS_KEY = "alexdeploy.num_views"
"""In a deployment graph: the number of views that it averages."""


FLOAT_LAYERS_KEY = "alexdeploy.float_layers"
"""In a graph with INT8 layers: the layers with weights that stay in float, joined by commas; "" for none."""


INT8_WEIGHTS_KEY = "alexdeploy.int8_weights"
"""In a graph with INT8 weights: the number of bits that they use, 7 or 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphMetadata:
    """A graph's metadata, and the hash of its file's bytes."""

    metadata: dict[str, str]
    sha256: str

    @property
    def weights_sha256(self) -> str | None:
        """The hash of the weights that it was derived from, directly or indirectly; None for an imported model."""
        return self.metadata.get(WEIGHTS_KEY)

    @property
    def network_sha256(self) -> str:
        """The hash that identifies the network: of its weights, or for an imported model of its FP32 file."""
        is_derived = self.metadata.get(SOURCE_NAME_KEY) == ModelFolder(Path()).onnx_path().name
        return self.weights_sha256 or (self.metadata[SOURCE_KEY] if is_derived else self.sha256)

    @property
    def num_views(self) -> int | None:
        """Of a deployment graph; None for a network."""
        text = self.metadata.get(VIEWS_KEY, "")
        return int(text) if text.isdecimal() else None

    @property
    def is_int8_throughout(self) -> bool:
        """Whether no layer with weights is in float; False if not recorded, as in an imported INT8 graph."""
        return self.metadata.get(FLOAT_LAYERS_KEY) == ""

    def spec(self) -> ModelSpec | None:
        """The spec in the file's metadata; None if alexdeploy did not write the file."""
        text = self.metadata.get(SPEC_KEY)
        try:
            return None if text is None else decode_json(text, ModelSpec)
        except msgspec.DecodeError:
            return None
