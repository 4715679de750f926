"""A machine with real FP16 arithmetic: CPU runtimes compute FP16 graphs in float32 and would hide an overflow."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def run_in_fp16(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of a network. What reads float16 gives float16: rounded, and infinite beyond 65,504.

    Sums inside a layer are float32, as in a GPU's tensor cores; an LRN squares in the type that it reads.
    """
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors[model.graph.input[0].name] = images
    with np.errstate(over="ignore", invalid="ignore"):
        for node in model.graph.node:
            inputs = [tensors[name] for name in node.input]
            kinds = {value.dtype for value in inputs if value.dtype.kind == "f"}
            assert len(kinds) == 1, f"{node.name} mixes {kinds}"
            (kind,) = kinds
            tensors[node.output[0]] = _apply(node, inputs).astype(_cast_type(node) or kind)
    return tensors


def _cast_type(node: onnx.NodeProto) -> np.dtype | None:
    if node.op_type != "Cast":
        return None
    return helper.tensor_dtype_to_np_dtype(next(a.i for a in node.attribute if a.name == "to"))


def _apply(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    if node.op_type == "Cast":
        return inputs[0]
    if node.op_type == "LRN":
        return _lrn(node, inputs[0])
    wide = [value.astype(np.float32) if value.dtype.kind == "f" else value for value in inputs]
    names = [f"i{index}" for index in range(len(wide))]
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.input[:] = names
    single.output[:] = ["o"]
    graph = helper.make_graph(
        [single],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, wide, strict=True)
        ],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (result,) = onnxruntime.InferenceSession(content).run(None, dict(zip(names, wide, strict=True)))
    return result


def _lrn(node: onnx.NodeProto, x: np.ndarray) -> np.ndarray:
    values = {a.name: a.i or a.f for a in node.attribute}
    half = int(values["size"]) // 2
    squares = np.pad(x * x, ((0, 0), (half, half), (0, 0), (0, 0)))
    total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(int(values["size"])))
    scale = x.dtype.type(values["bias"]) + x.dtype.type(values["alpha"] / values["size"]) * total
    return x / scale ** x.dtype.type(values["beta"])
