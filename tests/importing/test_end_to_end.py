"""Other people's classifiers all the way: imported, calibrated, exported to FP16 and INT8, run by both engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images, write_pictures
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize.calibrate import calibrate
from alexdeploy.graphs.edit import WEIGHTED_OPS
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.onnx import OnnxOptions, import_onnx

SIZE, MAPS, HIDDEN, CLASSES = 32, 16, 24, 5
STEPS = Preprocessing(channels="bgr", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), crop=SIZE)

TOLERANCES = {"fp32": 1e-5, "fp16": 0.002, "int8": 0.04}
"""How far answers may be from the file's: half the sum of |p - q| over the classes, averaged over the images.

FP32 keeps 24 bits, FP16 11 and INT8 7 in two to four layers, and logits are a few units. Seen: 6e-7, 3e-4 and 0.02.
"""

NUM_PICTURES = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """`num_layers` is how many nodes have weights; `fp32_layer` is the one that FP16 must leave alone, if any.

    `may_be_unfit`: precision and backend whose runtime may compute it wrongly, which the export has to notice.
    """

    nodes: list[NodeProto]
    weights: list[TensorProto]
    num_layers: int
    classes: int = CLASSES
    fp32_layer: str | None = None
    may_be_unfit: tuple[str, str] | None = None


def node(op: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    """One node; `inputs` is split at spaces."""
    return helper.make_node(op, inputs.split(), [output], **attributes)


def weight(name: str, *shape: int, size: float | None = None) -> TensorProto:
    """Normal numbers of deviation `size`, by default that of He et al. 2015 for [out, in, ...]."""
    values = np.random.default_rng(sum(map(ord, name))).normal(0, size or (2 / np.prod(shape[1:])) ** 0.5, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def head(convolution: NodeProto | None = None) -> list[NodeProto]:
    """From the image x to `flat` [N, 16]."""
    return [convolution or node("Conv", "x conv.w", "conv", strides=[2, 2]), *pooled("conv")]


def pooled(name: str) -> list[NodeProto]:
    return [
        node("Relu", name, "relu"),
        node("GlobalAveragePool", "relu", "pooled"),
        node("Flatten", "pooled", "flat"),
    ]


def tail(name: str = "flat") -> list[NodeProto]:
    return [node("Gemm", f"{name} fc.w fc.b", "scores", transB=1)]


CONV = weight("conv.w", MAPS, 3, 3, 3)
FC = [weight("fc.w", CLASSES, MAPS, size=1.0), weight("fc.b", CLASSES, size=0.1)]
HIDDEN_FC = [weight("fc.w", CLASSES, HIDDEN, size=0.7), weight("fc.b", CLASSES, size=0.1)]


def conv_without_bias() -> Case:
    return Case(nodes=[*head(), *tail()], weights=[CONV, *FC], num_layers=2)


def matmul_and_add() -> Case:
    nodes = [
        *head(),
        node("MatMul", "flat w2", "product"),
        node("Add", "product b2", "sum"),
        node("Relu", "sum", "hidden"),
        node("MatMul", "hidden w3", "last"),
        node("Add", "last fc.b", "scores"),
    ]
    matrices = [weight("w2", MAPS, HIDDEN, size=0.3), weight("b2", HIDDEN, size=0.1), weight("w3", HIDDEN, CLASSES)]
    return Case(nodes=nodes, weights=[CONV, *matrices, FC[1]], num_layers=3)


def gemm_of_untransposed_weights() -> Case:
    nodes = [*head(), node("Gemm", "flat fc.w fc.b", "scores", transB=0)]
    return Case(nodes=nodes, weights=[CONV, weight("fc.w", MAPS, CLASSES, size=1.0), FC[1]], num_layers=2)


def weights_in_constant_nodes() -> Case:
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in (CONV, *FC)]
    return Case(nodes=[*constants, *head(), *tail()], weights=[], num_layers=2)


def transposed_weights() -> Case:
    nodes = [
        helper.make_node("Constant", [], ["rows"], value=weight("rows", HIDDEN, MAPS)),
        node("Transpose", "rows", "columns", perm=[1, 0]),
        *head(),
        node("MatMul", "flat columns", "product"),
        node("Relu", "product", "hidden"),
        *tail("hidden"),
    ]
    # OpenVINO 2026.4 multiplies fewer than ten rows wrongly by INT8 weights that it transposes.
    return Case(nodes=nodes, weights=[CONV, *HIDDEN_FC], num_layers=3, may_be_unfit=("int8", "openvino"))


def weights_that_layers_share() -> Case:
    nodes = [
        node("Conv", "x conv.w", "first", strides=[2, 2]),
        node("Relu", "first", "first_relu"),
        node("Conv", "first_relu shared.w shared.b", "second"),
        node("Relu", "second", "second_relu"),
        node("Conv", "second_relu shared.w shared.b", "third"),
        *pooled("third"),
        *tail(),
    ]
    shared = [weight("shared.w", MAPS, MAPS, 3, 3), weight("shared.b", MAPS, size=0.1)]
    return Case(nodes=nodes, weights=[CONV, *shared, *FC], num_layers=4)


def two_convolutions_of_the_image() -> Case:
    nodes = [
        node("Conv", "x conv.w", "left", strides=[2, 2]),
        node("Conv", "x other.w", "right", strides=[2, 2]),
        node("Add", "left right", "both"),
        *pooled("both"),
        *tail(),
    ]
    return Case(nodes=nodes, weights=[CONV, weight("other.w", MAPS, 3, 3, 3), *FC], num_layers=3)


def depthwise_first_convolution() -> Case:
    nodes = [
        node("Conv", "x depth.w", "depth", strides=[2, 2], group=3),
        node("Relu", "depth", "depth_relu"),
        node("Conv", "depth_relu point.w", "point"),
        *pooled("point"),
        *tail(),
    ]
    weights = [weight("depth.w", 6, 1, 3, 3), weight("point.w", MAPS, 6, 1, 1), *FC]
    return Case(nodes=nodes, weights=weights, num_layers=3)


def tensors_called_as_ours() -> Case:
    nodes = [
        node("Mul", "x half", "pixels"),
        node("Conv", "pixels conv.w", "deploy/whole_pixels", strides=[2, 2]),
        *pooled("deploy/whole_pixels"),
        *tail(),
    ]
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    return Case(nodes=nodes, weights=[half, CONV, *FC], num_layers=2)


def two_classes() -> Case:
    nodes = [*head(), node("Gemm", "flat fc.w fc.b", "logits", transB=1), node("Softmax", "logits", "scores", axis=1)]
    weights = [CONV, weight("fc.w", 2, MAPS, size=1.0), weight("fc.b", 2, size=0.1)]
    return Case(nodes=nodes, weights=weights, num_layers=2, classes=2)


def padded_first_convolution() -> Case:
    """Half of what it sees is padding, so that it matters whether that is 0 or a pixel of 128."""
    padded = node("Conv", "x conv.w", "conv", strides=[2, 2], pads=[8, 8, 8, 8])
    return Case(nodes=[*head(padded), *tail()], weights=[CONV, *FC], num_layers=2)


def last_layer_beyond_fp16() -> Case:
    """Logits of some 30,000: infinity is near, and every answer is sure of itself."""
    nodes = [*head(), helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["scores"], transB=1, name="last")]
    weights = [CONV, weight("fc.w", CLASSES, MAPS, size=8000.0), FC[1]]
    return Case(nodes=nodes, weights=weights, num_layers=2, fp32_layer="last")


CASES = (
    conv_without_bias,
    matmul_and_add,
    gemm_of_untransposed_weights,
    weights_in_constant_nodes,
    transposed_weights,
    weights_that_layers_share,
    two_convolutions_of_the_image,
    depthwise_first_convolution,
    tensors_called_as_ours,
    two_classes,
    padded_first_convolution,
    last_layer_beyond_fp16,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("end_to_end") / "pictures", NUM_PICTURES)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_in_every_precision_both_engines_give_the_answers_of_the_file(
    make: Callable[[], Case], pictures: Path, any_drop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = make()
    content = _model(case).SerializeToString()
    Path("theirs.onnx").write_bytes(content)
    folder = ModelFolder(Path("models/theirs"))
    import_onnx(Path("theirs.onnx"), folder, OnnxOptions(preprocessing=STEPS))
    calibrate(folder, str(pictures))
    # With weights of 8 bits OpenVINO's sums saturate on processors without VNNI.
    kind = ExportOptions(int8_weights=7, images=str(pictures))
    exports = export_model(folder, dataclasses.replace(kind, fp16=True, int8=True))
    _, fp16, int8 = exports
    unfit = {(each.precision, each.backend) for done in exports for each in done.backends if each.problem}
    assert unfit <= {case.may_be_unfit}

    # Not those of the calibration.
    images = smooth_images(NUM_PICTURES, seed=1)
    expected = _answers_of_the_file(content, images)
    assert np.ptp(expected, axis=0).max() > 0.3, "the pictures must not all get one answer"
    errors = {}
    for precision in TOLERANCES:
        for backend in ("onnxruntime", "openvino"):
            if (precision, backend) in unfit:
                continue
            # What the export has compiled is in the cache.
            with open_engine(folder, backend, EngineOptions(batch_size=8, precision=precision)) as engine:
                halves = [engine.run(half).probabilities for half in np.split(images, NUM_PICTURES // 8)]
            probabilities = np.concatenate(halves)
            errors[precision, backend] = np.abs(probabilities - expected).sum(axis=1).mean() / 2
    assert all(error <= TOLERANCES[precision] for (precision, _), error in errors.items()), errors

    kept = [layer.layer for layer in fp16.half_layers if layer.op in WEIGHTED_OPS and layer.precision == "fp32"]
    assert kept == ([case.fp32_layer] if case.fp32_layer else [])
    assert _quantized_layers(onnx.load(int8.path)) == case.num_layers


def _model(case: Case) -> ModelProto:
    model = helper.make_model(
        helper.make_graph(
            case.nodes,
            "theirs",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", case.classes])],
            case.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _answers_of_the_file(content: bytes, images: np.ndarray) -> np.ndarray:
    """Of the original in ONNX Runtime: probabilities, float64 [N, C]."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = np.concatenate([network_input(image, STEPS, 1) for image in images])
    scores = session.run(None, {"x": inputs})[0].astype(np.float64)
    if np.allclose(scores.sum(axis=1), 1) and (scores >= 0).all():
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _quantized_layers(model: ModelProto) -> int:
    """How many layers read an activation by way of a pair of their own, and INT8 weights; every pair must be such."""
    makers = {name: each for each in model.graph.node for name in each.output}
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    pairs = set()
    for layer in model.graph.node:
        if layer.op_type in WEIGHTED_OPS:
            activation, weights = (makers[name] for name in layer.input[:2])
            assert (activation.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear"), layer.name
            assert constants[weights.input[0]] == TensorProto.INT8
            pairs.add(makers[activation.input[0]].output[0])
    assert len(pairs) == sum(each.op_type == "QuantizeLinear" for each in model.graph.node)
    return len(pairs)
