"""Other people's classifiers, made with onnx.helper, and what ONNX Runtime makes of the files themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.onnx import OnnxOptions, import_onnx

SIZE, CLASSES, FEATURES = 32, 5, 6
STEPS = Preprocessing(channels="bgr", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), crop=SIZE)
Import = Callable[..., ModelFolder]
"""The fixture `imported`: import a graph, and compare both engines with the original file."""

TOLERANCE = 1e-4
"""Of a probability: the most that an engine may differ from the original file."""


def head(**names: str) -> list[NodeProto]:
    """Convolution, pooling to one pixel, fully connected: the tensor called "features" is [N, 6, 1, 1]."""
    image = names.get("image", "x")
    return [
        helper.make_node("Conv", [image, "conv.w", "conv.b"], ["conv"], kernel_shape=[5, 5], strides=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalMaxPool", ["relu"], ["features"]),
    ]


def tail(scores: str = "scores") -> list[NodeProto]:
    return [
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], [scores], transB=1),
    ]


def weights() -> list[TensorProto]:
    rng = np.random.default_rng(0)
    values = {
        "conv.w": rng.normal(0, 0.2, (FEATURES, 3, 5, 5)),
        "conv.b": rng.normal(0, 0.1, FEATURES),
        "fc.w": rng.normal(0, 0.5, (CLASSES, FEATURES)),
        "fc.b": rng.normal(0, 0.5, CLASSES),
    }
    return [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def classifier(
    nodes: Iterable[NodeProto] | None = None,
    *,
    batch: int | str = "N",
    shape: tuple[int | str, ...] = (3, SIZE, SIZE),
    image: str = "x",
    outputs: dict[str, list[int | str]] | None = None,
    constants: Iterable[TensorProto] = (),
    opset: int = 17,
    listed_inputs: bool = False,
    image_type: int = TensorProto.FLOAT,
) -> ModelProto:
    """A graph of `nodes`, by default head and tail; its weights are those of `weights()` that the nodes read."""
    nodes = list(nodes) if nodes is not None else [*head(image=image), *tail()]
    read = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in [*weights(), *constants] if tensor.name in read]
    inputs = [helper.make_tensor_value_info(image, image_type, [batch, *shape])]
    if listed_inputs:
        # Before the image: nobody may rely on its being the first.
        inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers] + inputs
    outputs = outputs or {"scores": [batch, CLASSES]}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "theirs",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=3 if listed_inputs else 8,
    )


def with_softmax(*after: NodeProto, last: str, constants: Iterable[TensorProto] = (), opset: int = 17) -> ModelProto:
    nodes = [*head(), *tail("logits"), helper.make_node("Softmax", ["logits"], ["p"], axis=1), *after]
    return classifier(nodes, outputs={last: ["N", CLASSES]}, constants=constants, opset=opset)


def save(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def original_scores(path: Path, images: np.ndarray, output: str, steps: Preprocessing) -> np.ndarray:
    """What the file itself answers in ONNX Runtime, in batches of the size it wants; float64 [N, C]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = next(value for value in session.get_inputs())
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    inputs = np.concatenate([network_input(picture, steps, 1) for picture in images])
    if image.shape[1] != 3:
        inputs = inputs.transpose(0, 2, 3, 1)
    inputs = inputs.astype(
        {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}[image.type]
    )
    answers = [session.run([output], {image.name: part})[0] for part in np.split(inputs, len(images) // batch)]
    return np.concatenate(answers).reshape(len(images), -1).astype(np.float64)


def smooth_images(count: int, seed: int = 0) -> np.ndarray:
    """Pictures of 8x8 blocks, uint8 [count, 256, 256, 3]: to a network, plain noise all looks alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return blocks.repeat(32, axis=1).repeat(32, axis=2)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def probabilities(folder: ModelFolder, images: np.ndarray, backend: str, **options: object) -> np.ndarray:
    options = {"batch_size": len(images), "num_threads": 1, **options}
    with open_engine(folder, backend, EngineOptions(**options)) as engine:
        return engine.run(images).probabilities


def refused(model: ModelProto | bytes, tmp_path: Path, error: type[AlexDeployError], **options: object) -> str:
    """Import it, expect `error`, see that nothing was left; returns message and hint."""
    path = tmp_path / "theirs.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    folder = ModelFolder(tmp_path / "models" / "theirs")
    with pytest.raises(error) as caught:
        import_onnx(path, folder, OnnxOptions(**{"preprocessing": STEPS, **options}))
    assert not folder.path.exists()
    return caught.value.text


def node_types(folder: ModelFolder) -> list[str]:
    return [node.op_type for node in onnx.load(folder.onnx_path()).graph.node]
