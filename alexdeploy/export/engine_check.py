"""Compare each installed backend with the reference, on the graph that it will run, before the graph is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from alexdeploy.core.backend_checks import BackendCheck
from alexdeploy.core.errors import AlexDeployError, DeviceMemoryError, ParityError, first_line, warn
from alexdeploy.core.packages import backend_version
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import (
    ENGINE_BACKENDS,
    Backend,
    EngineOptions,
    NumViews,
    Predictions,
    can_run,
    is_installed,
    join_predictions,
    open_graph,
)
from alexdeploy.export.parity import TOLERANCES
from alexdeploy.graphs.edit import all_nodes, attribute
from alexdeploy.graphs.ensemble import Part, parts
from alexdeploy.graphs.files import Graph
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.images.preprocess import network_input

_NUM_VIEWS: tuple[NumViews, ...] = (1, 10)

_TOLERANCES = {**TOLERANCES, "int8": 0.1}
"""Largest allowed error of a logit, as a fraction of the largest logit, by `arithmetic`.

INT8: engines round sums of products at other points than the graph does, and without VNNI OpenVINO saturates some.
"""

_SMALLEST_PROBABILITY = 1e-7
"""Classes with a smaller reference probability are not compared: float32 has few digits left for them."""

_SMALLEST_LARGEST = 0.05
"""Lower bound of the largest logit in a relative error: with smaller logits, float32's rounding of a softmax over 1,000
classes, 1e-5 of a probability, would count as an error of the logits."""


def check_engines(
    graph: Graph,
    spec: ModelSpec,
    precision: Precision,
    mean_image: NDArray[np.float32] | None,
    photographs: NDArray[np.uint8],
    on_warning: Callable[[str], None] = warn,
) -> tuple[BackendCheck, ...]:
    """Run `photographs` uint8 [N, 256, 256, 3] through the deployment graph in every installed backend for the CPU.

    The probabilities of one view and of ten are compared with those of the plain network, which ONNX Runtime computes
    node by node after the reference preprocessing in NumPy; those of an ensemble with the mean over its members.
    PyTorch does not run the graph and is skipped. Warns about each backend that gives different answers or cannot load
    the graph; raises ParityError if all of them do.
    """
    backends = [
        backend
        for backend in get_args(Backend)
        if backend not in (*ENGINE_BACKENDS, "torch") and is_installed(backend) and can_run(backend, precision)
    ]
    tolerance = _TOLERANCES[arithmetic(graph.model)]
    expected = _expected(graph.model, spec, mean_image, photographs, _NUM_VIEWS)
    checks = []
    for backend in backends:
        error, problem = None, None
        try:
            errors = [
                _error(_run(backend, graph, spec, mean_image, photographs, precision, each.num_views), each)
                for each in expected
            ]
            # Not max(), which passes over a NaN.
            error = float(np.max(errors))
        except DeviceMemoryError:
            # Not the model's fault.
            raise
        except AlexDeployError as exc:
            problem = f"cannot run the graph: {first_line(exc)}"
        # Not "error > tolerance": a NaN must fail as well.
        if error is not None and not error <= tolerance:
            problem = f"gives other answers: off by {error:.2g} of the largest logit, {tolerance:g} is allowed"
        checks.append(
            BackendCheck(
                backend=backend,
                version=backend_version(backend),
                precision=precision,
                artifact=graph.sha256,
                num_images=len(photographs),
                error=error if error is not None and np.isfinite(error) else None,
                problem=problem,
            )
        )
    problems = [f"{each.backend} {each.version} {each.problem}" for each in checks if each.problem is not None]
    if len(problems) == len(checks):
        raise ParityError(
            f"no installed backend runs the {precision} graph: {'; '.join(problems)}", hint="Nothing was written."
        )
    for problem in problems:
        on_warning(f"{precision}: {problem}; it will not be chosen for this model unless --backend names it")
    return tuple(checks)


def check_deployed(
    deployed: ModelProto,
    network: ModelProto,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    photographs: NDArray[np.uint8],
    num_views: NumViews,
) -> float:
    """Run a deployment graph in ONNX Runtime as a program elsewhere does, and return the error of its logits.

    The error is a fraction of the largest logit, against the plain network as in `check_engines`. Raises ParityError if
    it is too large.
    """
    (expected,) = _expected(network, spec, mean_image, photographs, (num_views,))
    tensors: dict[str, NDArray[Any]] = dict(GraphRunner(deployed, optimize=True).run(photographs))
    error = _error(Predictions(tensors["probabilities"], tensors["view_classes"]), expected)
    tolerance = _TOLERANCES[arithmetic(network)]
    if not error <= tolerance:
        raise ParityError(
            f"the deployment graph of {num_views} views gives other answers: off by {error:.2g} of the largest logit, "
            f"{tolerance:g} is allowed",
            hint="Nothing was written.",
        )
    return error


def arithmetic(model: ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """The coarsest arithmetic in a graph: an imported graph may contain any, whatever its file name says."""
    nodes = list(all_nodes(model.graph.node))
    operators = {node.op_type for node in nodes}
    if any(each.startswith("Q") or "QuantizeLinear" in each or each.endswith("Integer") for each in operators):
        return "int8"
    casts = [attribute(node, "to", 0) for node in nodes if node.op_type == "Cast"]
    types = {*casts, *(tensor.data_type for tensor in model.graph.initializer)}
    return "fp16" if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16} else "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Expected:
    """The reference answers, as log probabilities: `by_image` [N, C] of the mean over views, `by_view` [N, V, C].

    `largest` is the largest logit, relative to the mean of its row, since softmax ignores a constant offset. If the
    logits are off by e, the answer of a view may be a class whose log probability is `slack` times e below the best.
    """

    num_views: NumViews
    by_image: NDArray[np.float64]
    by_view: NDArray[np.float64]
    largest: float
    slack: int


def _expected(
    network: ModelProto,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    photographs: NDArray[np.uint8],
    counts: tuple[NumViews, ...],
) -> list[_Expected]:
    # By member, then by number of views: [M][counts].
    members = [_references(part, photographs, counts) for part in parts(network, spec, mean_image)]
    found = []
    for num_views, references in zip(counts, zip(*members, strict=True), strict=True):
        # Not the logarithm of a mean: a probability may be too small for float64.
        by_view = np.logaddexp.reduce([each.by_view for each in references]) - np.log(len(references))
        found.append(
            _Expected(
                num_views=num_views,
                by_image=np.logaddexp.reduce(by_view, axis=1) - np.log(num_views),
                by_view=by_view,
                largest=max(*(each.largest for each in references), _SMALLEST_LARGEST),
                # Of one network, the sum that softmax divides by is the same for both classes.
                slack=2 if len(references) == 1 else 4,
            )
        )
    return found


class _Reference(NamedTuple):
    """The log probabilities of one network, and its largest logit."""

    by_view: NDArray[np.float64]
    largest: float


def _references(part: Part, photographs: NDArray[np.uint8], counts: tuple[NumViews, ...]) -> list[_Reference]:
    runner = GraphRunner(part.network)
    (output,) = runner.outputs
    found = []
    for num_views in counts:
        # Image by image: the activations of 60 views at once take a gigabyte.
        inputs = (network_input(each, part.spec.preprocessing, num_views, part.mean_image) for each in photographs)
        logits = np.stack([runner.run(views)[output] for views in inputs]).astype(np.float64)
        shifted = logits - logits.max(axis=2, keepdims=True)
        found.append(
            _Reference(
                by_view=shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True)),
                largest=float(np.abs(logits - logits.mean(axis=2, keepdims=True)).max()),
            )
        )
    return found


def _run(
    backend: Backend,
    graph: Graph,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    photographs: NDArray[np.uint8],
    precision: Precision,
    num_views: NumViews,
) -> Predictions:
    # Opened as `predict` opens it, so that the compiled model is then in the cache.
    options = EngineOptions(precision=precision, num_views=num_views)
    with open_graph(backend, graph, spec, mean_image, options) as engine:
        return join_predictions(
            [
                engine.run(photographs[start : start + options.batch_size])
                for start in range(0, len(photographs), options.batch_size)
            ]
        )


def _error(found: Predictions, expected: _Expected) -> float:
    """The largest error of a logit that follows from the answers, as a fraction of the largest logit.

    If logits are off by e, log probabilities, also those of a mean over views or members, are off by at most 2 e.
    """
    compared = expected.by_image > np.log(_SMALLEST_PROBABILITY)
    with np.errstate(divide="ignore"):
        off = np.abs(np.log(found.probabilities.astype(np.float64)) - expected.by_image)[compared].max()
    answers = np.take_along_axis(expected.by_view, found.view_classes[..., None].astype(np.int64), axis=2)[..., 0]
    behind = (expected.by_view.max(axis=2) - answers).max()
    return float(max(off / 2, behind / expected.slack) / expected.largest)
