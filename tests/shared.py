"""What is made once for the tests of a run, whichever process they run in."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from alexdeploy.core.backend_checks import BackendCheck
from alexdeploy.core.errors import warn
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.export import engine_check
from alexdeploy.export.quantize.sensitivity import Evaluator
from alexdeploy.graphs.files import Graph
from alexdeploy.network.alexnet import AlexNet

Trace = Callable[[AlexNet], onnx.ModelProto]
CheckEngines = Callable[..., tuple[BackendCheck, ...]]


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of this run that its processes share."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """The folder `path`, which `make` has filled under another name; of two processes that do so one has its way."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")
        make(own)
        try:
            own.rename(path)
        except OSError:
            if not path.exists():
                raise
            shutil.rmtree(own)
    return path


def traced_once(folder: Path, trace: Trace) -> Trace:
    """`trace`, the same for all networks of an architecture: of PyTorch's export only the weights differ.

    Every export of a model compares its graph with the network, so wrong weights cannot go unnoticed.
    """

    def traced(network: AlexNet) -> onnx.ModelProto:
        facts = (network.architecture, [tuple(value.shape) for value in network.state_dict().values()])
        path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.onnx"
        if not path.exists():
            own = path.with_suffix(f".{os.getpid()}")
            own.write_bytes(trace(network).SerializeToString())
            own.replace(path)
        model = onnx.load(path)
        weights = network.state_dict()
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.raw_data = weights[tensor.name].numpy().tobytes()
        return model

    return traced


def checked_once(check: CheckEngines) -> CheckEngines:
    """`check_engines`, which runs a graph in every backend once; the same graph on the same photographs is known then.

    What raises is not kept, nor is anything shared with a test that changed a part of the check, or that has a cache of
    its own because it changed an engine.
    """
    known: dict[object, tuple[tuple[BackendCheck, ...], list[str]]] = {}

    def checked(
        graph: Graph,
        spec: ModelSpec,
        precision: Precision,
        mean_image: NDArray[np.float32] | None,
        photographs: NDArray[np.uint8],
        on_warning: Callable[[str], None] = warn,
    ) -> tuple[BackendCheck, ...]:
        parts = (
            os.environ.get("ALEXDEPLOY_CACHE"),
            engine_check._NUM_VIEWS,
            *(engine_check._run, engine_check.open_graph, engine_check.is_installed, engine_check.backend_version),
        )
        mean = b"" if mean_image is None else mean_image.tobytes()
        pictures = hashlib.sha256(photographs.tobytes() + mean).hexdigest()
        key = (graph.sha256, spec.contract_sha256, precision, pictures, parts)
        if key not in known:
            warnings: list[str] = []
            known[key] = check(graph, spec, precision, mean_image, photographs, warnings.append), warnings
        found, warnings = known[key]
        for each in warnings:
            on_warning(each)
        return found

    return checked


Answers = tuple[NDArray[np.floating], NDArray[np.int64]]
Answer = Callable[[Evaluator, onnx.ModelProto], Answers]


def answered_once(answer: Answer) -> Answer:
    """`Evaluator._run`, which answers for the same graph and images once: exports to INT8 rank the same layers."""
    known: dict[object, Answers] = {}

    def answered(self: Evaluator, network: onnx.ModelProto) -> Answers:
        mean = b"" if self._mean_image is None else self._mean_image.tobytes()
        content = network.SerializeToString(deterministic=True)
        facts = [hashlib.sha256(each).hexdigest() for each in (content, mean, self._images.tobytes())]
        key = (*facts, self._spec.contract_sha256, self._num_views)
        if key not in known:
            known[key] = answer(self, network)
        return known[key]

    return answered
