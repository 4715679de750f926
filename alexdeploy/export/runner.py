"""A plain network in ONNX Runtime, with any tensor inside it as an output: for checks, ranges and rankings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError


class GraphRunner:
    """One session on the CPU that gives the named tensors of a network, by default its outputs.

    With `optimize` off every node runs as it is written; with it on, Q/DQ become integer kernels and nodes are
    fused, so that only outputs of the graph can be asked for without slowing it down.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Iterable[str] | None = None, *, optimize: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise DeviceError("running a graph needs onnxruntime", cure="pip install 'alexdeploy[cpu]'") from exc
        known = [value.name for value in model.graph.output]
        self.outputs = tuple(known if outputs is None else outputs)
        self._input = model.graph.input[0].name
        probed = model
        if not set(self.outputs) <= set(known):
            probed = onnx.ModelProto()
            probed.CopyFrom(model)
            probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs if name not in known)
        options = onnxruntime.SessionOptions()
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        onnxruntime.disable_telemetry_events()
        self._session = onnxruntime.InferenceSession(
            probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: NDArray[np.float32] | NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
        """float32 [N, 3, H, W], or what else the graph takes -> the tensors by name."""
        values = self._session.run(list(self.outputs), {self._input: images})
        return dict(zip(self.outputs, values, strict=True))


def run_graph(
    model: onnx.ModelProto, images: NDArray[np.float32], outputs: Iterable[str] | None = None
) -> list[NDArray[np.floating]]:
    """Run a network once; `outputs` may name any tensors inside it, default its outputs."""
    return list(GraphRunner(model, outputs).run(images).values())
