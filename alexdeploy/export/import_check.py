"""Does a rewritten network give the answers of the ONNX file that it was imported from?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from alexdeploy.core.errors import AlexDeployError, ModelError, ParityError, first_line
from alexdeploy.core.spec import ModelSpec
from alexdeploy.export.deployment import deployment_graph
from alexdeploy.export.parity import TOLERANCES
from alexdeploy.export.runner import run_graph

_PROBABILITY_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Two images, uint8 [2, 256, 256, 3], the original's input for them, and its scores [2, C]."""

    images: NDArray[np.uint8]
    inputs: NDArray[np.float32]
    scores: NDArray[np.float32]

    @property
    def holds_probabilities(self) -> bool:
        return bool((self.scores >= 0).all() and np.allclose(self.scores.sum(axis=1), 1, atol=1e-3))

    @property
    def probabilities(self) -> NDArray[np.floating]:
        return self.scores if self.holds_probabilities else _softmax(self.scores)


def check_same_answers(network: ModelProto, probe: Probe, spec: ModelSpec, batch: int, path: Path) -> None:
    """Compare with the original, for one image and for two, the plain network and the deployment graph of one view.

    `batch` is what the original at `path` was built for. Raises ParityError if an answer differs, ModelError if the
    network cannot be run.
    """
    deployed = deployment_graph(network, spec, 1)
    for num in (1, 2):
        try:
            logits = run_graph(network, probe.inputs[:num])[0]
            # The deployment graph takes uint8.
            probabilities = run_graph(deployed, probe.images[:num])[0]  # type: ignore[arg-type]
        except AlexDeployError:
            raise
        except Exception as exc:
            raise ModelError(
                f"{path}, built for a batch of {batch}, cannot be rewritten to run one of {num}: {first_line(exc)}",
                cure="Export it with a dynamic batch.",
            ) from exc
        expected = probe.probabilities[:num]
        errors = [_largest(probabilities, expected), _largest(_softmax(logits), expected)]
        if not probe.holds_probabilities:
            scale = max(float(np.abs(probe.scores).max()), 1e-30)
            errors.append(_largest(logits, probe.scores[:num]) / scale * _PROBABILITY_TOLERANCE / TOLERANCES["fp32"])
        # Not "error > tolerance": a NaN must fail as well.
        if not all(error <= _PROBABILITY_TOLERANCE for error in errors):
            raise ParityError(
                f"{path}: rewritten, it does not give its own answers: off by {max(errors):.2e} for a batch of {num}, "
                f"allowed are {_PROBABILITY_TOLERANCE:.0e}",
                cure="Nothing was written. Export it with a dynamic batch and logits as its output.",
            )


def _largest(actual: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(actual - expected).max())


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.floating] = powers / powers.sum(axis=1, keepdims=True)
    return result
