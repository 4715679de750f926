"""Comparing an imported network with the file that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from alexdeploy.core.errors import AlexDeployError, ModelError, ParityError
from alexdeploy.core.metrics import softmax
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.export.parity import TOLERANCES
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.runner import run_graph, runtime_message
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.caffe import reference as caffe_reference
from alexdeploy.importing.caffe.convert import Converted
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers

_CAFFE_TOLERANCE = 1e-5
"""Of the largest score. Both sides compute in float64; they differ by the rounding of the input to float32."""


def probe_images() -> NDArray[np.uint8]:
    """Two pictures of coloured blocks, uint8 [2, 256, 256, 3]. Noise would not do: a network hardly tells it apart."""
    blocks = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return blocks.repeat(IMAGE_SIZE // 8, axis=1).repeat(IMAGE_SIZE // 8, axis=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceRun:
    """Two images, uint8 [2, 256, 256, 3], the original's input for them, and its scores [2, C].

    The scores are logits unless `holds_probabilities`. `precision` is that of the original's arithmetic, to which its
    answers are rounded.
    """

    images: NDArray[np.uint8]
    inputs: NDArray[np.float32]
    scores: NDArray[np.float32]
    holds_probabilities: bool
    mean_image: NDArray[np.float32] | None = None
    precision: Literal["fp32", "fp16"] = "fp32"

    @property
    def probabilities(self) -> NDArray[np.floating]:
        return self.scores if self.holds_probabilities else softmax(self.scores)


def check_same_answers(network: ModelProto, probe: ReferenceRun, spec: ModelSpec, batch: int, path: Path) -> None:
    """Compare the plain network and the one-view deployment graph with the original, for one image and for two.

    `batch` is the batch size of the original at `path`. Raises ParityError if an answer differs, ModelError if the
    network cannot be run.
    """
    deployed = deployment_graph(network, spec, 1, probe.mean_image)
    tolerance = TOLERANCES[probe.precision]
    for num in (1, 2):
        try:
            logits = run_graph(network, probe.inputs[:num])[0]
            probabilities = run_graph(deployed, probe.images[:num])[0]
        except AlexDeployError:
            raise
        except Exception as exc:
            raise ModelError(
                f"{path}, built for a batch of {batch}, cannot be rewritten to run one of {num}: "
                + runtime_message(exc),
                hint="Export it with a dynamic batch.",
            ) from exc
        expected = probe.probabilities[:num]
        errors = [_largest(probabilities, expected), _largest(softmax(logits), expected)]
        if not probe.holds_probabilities:
            scale = max(float(np.abs(probe.scores).max()), 1e-30)
            errors.append(_largest(logits, probe.scores[:num]) / scale)
        # Not "error > tolerance": a NaN must fail as well.
        if not all(error <= tolerance for error in errors):
            raise ParityError(
                f"{path}: the rewritten graph differs from the original by {max(errors):.2e} for a batch of {num}, "
                f"allowed {tolerance:.0e}",
                hint="Nothing was written. Export it with a dynamic batch and logits as its output.",
            )


def check_against_caffe(
    converted: Converted, spec: ModelSpec, mean_image: NDArray[np.float32] | None, path: Path
) -> float:
    """Compare the converted network with Caffe's arithmetic on the layers of the file, from pixels to scores.

    Both sides use the channel order, mean and scale of `spec`, so an error in these is not detected. Returns the
    largest difference as a fraction of the largest score. Raises ParityError if it exceeds rounding errors.
    """
    steps, images = spec.preprocessing, probe_images()
    mean = np.asarray(steps.mean if mean_image is None else mean_image, np.float64) / steps.scale
    planes = caffe_reference.transform(images, steps.crop, steps.channels, mean, steps.scale)
    expected = caffe_reference.forward(converted.chain, planes / np.reshape(steps.std, (3, 1, 1)))
    inputs = np.concatenate([network_input(image, steps, 1, mean_image) for image in images])
    assert spec.architecture is not None
    *_, (_, actual) = reference.forward(plan_layers(spec.architecture, spec.num_classes), converted.weights, inputs)
    error = _largest(actual, expected) / max(float(np.abs(expected).max()), 1e-30)
    # Not "error > tolerance": a NaN must fail as well.
    if not error <= _CAFFE_TOLERANCE:
        raise ParityError(
            f"{path}: the converted network differs from Caffe's result by {error:.2e} of the largest score, allowed "
            f"{_CAFFE_TOLERANCE:.0e}",
            hint="Nothing was written. Report this with the .prototxt of the network.",
        )
    return error


def _largest(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(actual - expected).max())
