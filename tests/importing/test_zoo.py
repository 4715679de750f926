"""Files as ONNX's model zoo has of bvlcalexnet and caffenet, at another width, with all their old ways.

Initializers listed as inputs, a batch of one, 224 pixels, a last pooling that is padded right and below, Dropout with
a mask that nobody reads, a Softmax at the end, and opsets from 3 on; the judge is PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import caffe_files as files
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.nn import functional

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.model_folder import read_mean_image
from alexdeploy.importing.onnx import OnnxOptions, import_onnx

SIZE = 224
STEPS = Preprocessing(resize="warp", channels="bgr", mean=(104.0, 117.0, 123.0), crop=SIZE)
CONVS = [(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)]
"""Stride, padding and groups."""


def zoo_model(
    weights: dict[str, np.ndarray], opset: int, *, pool_first: bool = False, reshapes: bool = True
) -> ModelProto:
    nodes, initializers, current = [], [], "data_0"

    def add(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        nonlocal current
        nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))
        current = outputs[0]

    for name, value in weights.items():
        layer, kind = name.split(".")
        initializers.append(numpy_helper.from_array(value, f"{layer}_{kind[0]}_0"))
    for index, (stride, padding, groups) in enumerate(CONVS, start=1):
        kernel = weights[f"conv{index}.weight"].shape[2]
        names = [current, f"conv{index}_w_0", f"conv{index}_b_0"]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "group": groups}
        add("Conv", names, [f"conv{index}_1"], **shape)
        add("Relu", [current], [f"conv{index}_2"])
        steps = ["LRN"] if index < 3 else []
        steps += ["MaxPool"] if index in (1, 2, 5) else []
        for step in reversed(steps) if pool_first else steps:
            if step == "LRN":
                add("LRN", [current], [f"norm{index}_1"], size=5, alpha=1e-4, beta=0.75, bias=1.0)
            else:
                pads = [0, 0, 1, 1] if index == 5 else [0, 0, 0, 0]
                add("MaxPool", [current], [f"pool{index}_1"], kernel_shape=[3, 3], strides=[2, 2], pads=pads)
    features = weights["fc6.weight"].shape[1]
    if reshapes and opset < 5:
        add("Reshape", [current], ["OC2_DUMMY_0"], shape=[1, features])
    elif reshapes:
        initializers.append(numpy_helper.from_array(np.array([1, features], np.int64), "OC2_DUMMY_1"))
        add("Reshape", [current, "OC2_DUMMY_1"], ["OC2_DUMMY_0"])
    for index in (6, 7, 8):
        old = {"broadcast": 1} if opset < 7 else {}
        names = [current, f"fc{index}_w_0", f"fc{index}_b_0"]
        add("Gemm", names, [f"fc{index}_1"], transB=1, alpha=1.0, beta=1.0, **old)
        if index < 8:
            add("Relu", [current], [f"fc{index}_2"])
            outputs = [f"fc{index}_3", f"_fc{index}_mask_1"]
            if opset < 12:
                old = {"is_test": 1} if opset < 7 else {}
                add("Dropout", [current], outputs, ratio=0.5, **old)
            else:
                # From 12 on the ratio is an input.
                initializers.append(numpy_helper.from_array(np.array(0.5, np.float32), f"ratio{index}"))
                add("Dropout", [current, f"ratio{index}"], outputs)
    add("Softmax", [current], ["prob_1"])
    inputs = [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, SIZE, SIZE])]
    inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in initializers]
    output = helper.make_tensor_value_info("prob_1", TensorProto.FLOAT, [1, len(weights["fc8.bias"])])
    graph = helper.make_graph(nodes, "AlexNet", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


def torch_scores(weights: dict[str, np.ndarray], inputs: np.ndarray, *, pool_first: bool) -> np.ndarray:
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in weights.items()}
    x = torch.from_numpy(inputs.astype(np.float64))
    for index, (stride, padding, groups) in enumerate(CONVS, start=1):
        name = f"conv{index}"
        x = functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding, groups=groups).relu()
        steps = [lambda t: functional.local_response_norm(t, 5, 1e-4, 0.75, 1.0)] if index < 3 else []
        if index in (1, 2):
            steps.append(lambda t: functional.max_pool2d(t, 3, 2))
        if index == 5:
            # What is added right and below never is the largest, as all values are at least 0.
            steps.append(lambda t: functional.max_pool2d(functional.pad(t, (0, 1, 0, 1)), 3, 2))
        for step in reversed(steps) if pool_first else steps:
            x = step(x)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]).relu()
    return functional.linear(x, w["fc8.weight"], w["fc8.bias"]).numpy()


def imported(model: ModelProto, tmp_path: Path, options: OnnxOptions | None = None) -> ModelFolder:
    path = tmp_path / "zoo.onnx"
    path.write_bytes(model.SerializeToString())
    folder = ModelFolder(tmp_path / "models" / "zoo")
    import_onnx(path, folder, options or OnnxOptions(preprocessing=STEPS))
    return folder


@pytest.mark.parametrize(
    ("opset", "pool_first"),
    [
        *((opset, False) for opset in (3, 6, 7, 8, 9, 12)),
        (3, True),
        *(pytest.param(opset, True, marks=pytest.mark.slow) for opset in (6, 7, 8, 9, 12)),
    ],
)
def test_a_zoo_file_gives_what_pytorch_computes_for_any_batch(tmp_path: Path, opset: int, pool_first: bool) -> None:
    weights = files.weights(seed=opset)
    folder = imported(zoo_model(weights, opset, pool_first=pool_first), tmp_path)
    network = onnx.load(folder.onnx_path())
    assert [value.name for value in network.graph.input] == ["images"]
    inputs = np.random.default_rng(0).normal(0, 60, (3, 3, SIZE, SIZE)).astype(np.float32)
    expected = torch_scores(weights, inputs, pool_first=pool_first)
    assert np.ptp(expected, axis=0).max() > 0.1
    session = onnxruntime.InferenceSession(folder.onnx_path(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": inputs})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [3, 6])
def test_a_zoo_file_without_the_reshape_before_its_first_gemm_is_mended(tmp_path: Path, opset: int) -> None:
    """bvlcalexnet-3 and caffenet-6 are so: onnx/models#444."""
    weights = files.weights()
    folder = imported(zoo_model(weights, opset, reshapes=False), tmp_path)
    inputs = np.random.default_rng(0).normal(0, 60, (2, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(folder.onnx_path(), providers=["CPUExecutionProvider"])
    expected = torch_scores(weights, inputs, pool_first=False)
    (logits,) = session.run(None, {"images": inputs})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_weights_stay_what_they_were(tmp_path: Path) -> None:
    weights = files.weights()
    found = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load(imported(zoo_model(weights, 3), tmp_path).onnx_path()).graph.initializer
    }
    for name, value in weights.items():
        layer, kind = name.split(".")
        np.testing.assert_array_equal(found[f"{layer}_{kind[0]}_0"], value)


def test_an_old_opset_with_other_operators_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = zoo_model(files.weights(), 3)
    model.graph.node.insert(1, helper.make_node("Add", ["conv1_1", "conv1_b_0"], ["sum"], broadcast=1, axis=1))
    model.graph.node[2].input[0] = "sum"
    with pytest.raises(ModelError, match=r"is opset 3 and cannot be converted to 17"):
        imported(model, tmp_path)


def test_a_mean_image_goes_with_a_graph_as_well(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(files.blob(mean[None], "legacy"))
    options = OnnxOptions(preprocessing=STEPS, mean_image=read_mean_image(tmp_path / "mean.binaryproto"))
    weights = files.weights()
    folder = imported(zoo_model(weights, 9), tmp_path, options)
    spec = folder.spec()
    np.testing.assert_array_equal(folder.mean_image(spec), mean)
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    inputs = network_input(image, spec.preprocessing, 1, folder.mean_image(spec))
    session = onnxruntime.InferenceSession(folder.onnx_path(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": inputs})
    by_hand = (image[16:240, 16:240, ::-1].transpose(2, 0, 1).astype(np.float64) - mean[:, 16:240, 16:240])[None]
    expected = torch_scores(weights, by_hand, pool_first=False)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
