"""Compare a converted graph with its weights, layer by layer, against NumPy float64 and PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.errors import ParityError
from alexdeploy.graphs.features import layer_tensors
from alexdeploy.graphs.runner import GraphRunner, run_graph
from alexdeploy.network import reference
from alexdeploy.network.layers import Layer
from alexdeploy.network.weights import Weights

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest allowed error of a layer's output, as a fraction of that output's largest magnitude.

FP32 sums of up to 9,216 products in another order differ by about 1e-6. FP16 keeps 11 bits; its errors add up over
eight layers to a few 1e-3.
"""

Activations = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The result of a check. Errors are relative to the largest magnitude of the layer's output."""

    precision: str
    tolerance: float
    num_images: int
    worst_layer: str
    worst_error: float
    logit_error: float
    same_answers: int


def check_parity(
    model: onnx.ModelProto,
    plan: tuple[Layer, ...],
    weights: Weights,
    images: NDArray[np.float32],
    precision: str,
    peers: Mapping[str, Activations] | None = None,
) -> Parity:
    """Run `images` float32 [N, 3, H, W] through the graph in ONNX Runtime and through NumPy float64, and compare.

    `peers` are the activations of further implementations (PyTorch's) by name, compared with the same NumPy pass.
    Raises ParityError naming the first layer that differs by more than the tolerance of `precision`.
    """
    tolerance = TOLERANCES[precision]
    found: dict[str, Activations] = {"ONNX Runtime": run_layers(model, plan, images), **(peers or {})}
    last = plan[-1].name
    worst_layer, worst_error, errors = last, 0.0, dict.fromkeys(found, 0.0)
    expected: NDArray[np.float64] = np.empty(0)
    for layer, expected in reference.forward(plan, weights, images):
        scale = max(float(np.abs(expected).max()), 1e-30)
        for name, activations in found.items():
            actual = activations[layer.name].reshape(expected.shape)
            error = float(np.abs(actual - expected).max()) / scale
            # Not "error > tolerance": a NaN must fail as well.
            if not error <= tolerance:
                raise ParityError(
                    f"{precision}: {layer.name} is the first layer that differs: {name} is off by {error:.2e} of its "
                    f"largest output, allowed are {tolerance:.0e}",
                    hint="Nothing was replaced. Report this with the output of: alexdeploy inspect MODEL --json",
                )
            errors[name] = error
            if error > worst_error:
                worst_layer, worst_error = layer.name, error
    answers = found["ONNX Runtime"][last].reshape(expected.shape).argmax(axis=1)
    return Parity(
        precision=precision,
        tolerance=tolerance,
        num_images=len(images),
        worst_layer=worst_layer,
        worst_error=worst_error,
        logit_error=errors["ONNX Runtime"],
        same_answers=int((answers == expected.argmax(axis=1)).sum()),
    )


def compare_outputs(
    model: onnx.ModelProto, original: onnx.ModelProto, images: NDArray[np.float32], precision: str
) -> Parity:
    """Compare the outputs of two graphs in ONNX Runtime: for an imported model, which has no plan of layers.

    Raises ParityError if they differ by more than the tolerance of `precision`.
    """
    (actual,), (expected,) = run_graph(model, images), run_graph(original, images)
    error = float(np.abs(actual - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
    if not error <= TOLERANCES[precision]:
        raise ParityError(
            f"{precision}: the outputs are off by {error:.2e} of the largest, allowed are {TOLERANCES[precision]:.0e}",
            hint="Nothing was replaced.",
        )
    name = model.graph.output[0].name
    return Parity(
        precision=precision,
        tolerance=TOLERANCES[precision],
        num_images=len(images),
        worst_layer=name,
        worst_error=error,
        logit_error=error,
        same_answers=int((actual.argmax(axis=1) == expected.argmax(axis=1)).sum()),
    )


def run_layers(model: onnx.ModelProto, plan: tuple[Layer, ...], images: NDArray[np.float32]) -> Activations:
    """Every layer's output by layer name, computed by ONNX Runtime with graph optimizations disabled."""
    names = layer_tensors(model, plan)
    outputs = GraphRunner(model, names.values()).run(images)
    return {layer: outputs[name] for layer, name in names.items()}
