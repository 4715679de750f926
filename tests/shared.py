"""What is made once for the tests of a run, whichever process they run in."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from alexdeploy.network.alexnet import AlexNet

Trace = Callable[[AlexNet], onnx.ModelProto]


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
