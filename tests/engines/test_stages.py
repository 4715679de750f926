from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from alexdeploy.core.errors import DeviceError
from alexdeploy.engines.stages import open_stage

BARE = "AzureExecutionProvider"
"""Comes with ONNX Runtime for CPUs, and has no kernel for any operator: like a GPU's provider with a part missing."""


def _sum_and_product() -> bytes:
    pair = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("sum", "product")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    graph = helper.make_graph(nodes, "two", pair, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def test_a_stage_maps_tensors_to_tensors_by_name() -> None:
    run = open_stage(_sum_and_product(), "cpu", 1)
    found = run({"b": np.array([5, 7], np.float32), "a": np.array([2, 3], np.float32)})
    assert {name: value.tolist() for name, value in found.items()} == {"sum": [7, 10], "product": [10, 21]}


def test_what_onnxruntime_raises_is_an_error_of_ours() -> None:
    with pytest.raises(DeviceError, match="ONNX Runtime failed"):
        open_stage(b"not a graph", "cpu", 1)
    with pytest.raises(DeviceError, match="ONNX Runtime failed"):
        open_stage(_sum_and_product(), "cpu", 1)({"a": np.zeros(2, np.float32)})


@pytest.mark.skipif(BARE not in onnxruntime.get_available_providers(), reason=f"no {BARE} here")
def test_a_part_that_would_run_on_the_cpu_instead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexdeploy.engines.onnxruntime._CUDA", BARE)
    with pytest.raises(DeviceError, match="would run part of the graph on the CPU") as caught:
        open_stage(_sum_and_product(), "cuda:0", 1)
    assert caught.value.hint == "Use the CPU: --devices cpu (with --placement: cpu,cpu)"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has the provider")
def test_a_gpu_is_refused_where_onnxruntime_has_no_provider_for_it() -> None:
    with pytest.raises(DeviceError, match=r"cuda:1 needs .* does not have") as caught:
        open_stage(_sum_and_product(), "cuda:1", 1)
    assert "alexdeploy[gpu]" in str(caught.value)
