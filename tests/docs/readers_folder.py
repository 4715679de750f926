"""What a reader has when a page begins: photographs, and a classifier that knows them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from helpers import make_model
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from PIL import Image, ImageDraw, ImageEnhance
from safetensors.numpy import load_file, save_file

from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import Preprocessing
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.images.decode import decode
from alexdeploy.images.preprocess import network_input
from alexdeploy.network.alexnet import AlexNet

FLOWERS = {"daisy": ("#f4f4ee", "#e8b923"), "rose": ("#c2183c", "#7d0f27"), "sunflower": ("#f2b705", "#4a2c12")}
"""Class -> the colours of its petals and of its middle."""

_NUM_TRAIN, _NUM_LABELLED, _NUM_NEW = 12, 4, 2
_FEATURES = 8
_NARROW = ("architecture.width=0.0625", "architecture.hidden=[2048, 2048]")


def write_folder(root: Path) -> Path:
    """Write photo.jpg, photographs/, labelled/, new/, models/flowers, classifier.onnx and labels.txt; about 2 MB."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for label, name in enumerate(FLOWERS):
        for number in range(1, _NUM_TRAIN + _NUM_LABELLED + _NUM_NEW + 1):
            folder = root / "photographs" / name
            if number > _NUM_TRAIN:
                folder = root / "labelled" / name if number <= _NUM_TRAIN + _NUM_LABELLED else root / "new"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}-{number:02}.jpg"
            _picture(name, rng).save(path, quality=85)
            if number <= _NUM_TRAIN:
                images.append(decode(path.read_bytes()))
                labels.append(label)
    shutil.copy(root / "photographs" / "rose" / "rose-01.jpg", root / "photo.jpg")
    (root / "labels.txt").write_text("".join(f"{name}\n" for name in FLOWERS), encoding="utf-8")
    onnx.save(_classifier(images, np.array(labels)), root / "classifier.onnx")
    _write_model(root, images, np.array(labels))
    return root


def _picture(name: str, rng: np.random.Generator) -> Image.Image:
    """One flower before leaves: petals around a middle, of any size, place and light."""
    width, height = (320, 240) if rng.random() < 0.7 else (240, 320)
    leaves = rng.integers(0, 90, (height // 20, width // 20, 3)) * (0.5, 1.2, 0.4) + (20, 50, 20)
    image = Image.fromarray(leaves.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    petals, middle = FLOWERS[name]
    radius = rng.uniform(0.25, 0.45) * min(width, height)
    x, y = (rng.uniform(0.4, 0.6) * side for side in (width, height))
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(9, 15)), endpoint=False) + rng.uniform(0, 1):
        _disc(draw, x + 0.6 * radius * np.cos(angle), y + 0.6 * radius * np.sin(angle), 0.3 * radius, petals)
    _disc(draw, x, y, 0.4 * radius, middle)
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.2))


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: str) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _write_model(root: Path, images: list[np.ndarray], labels: np.ndarray) -> None:
    """A two-tower AlexNet of random weights but for its last layer, with INT8 measured on photographs/."""
    folder = make_model(root / "models" / "flowers", "alexnet", _NARROW, num_classes=len(FLOWERS))
    spec = folder.spec()
    network = AlexNet(spec.architecture, len(FLOWERS))
    weights = load_file(folder.weights_path)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    network.eval()
    mean = np.load(folder.mean_path) if spec.preprocessing.mean_image else None
    inputs = np.concatenate([network_input(image, spec.preprocessing, 10, mean) for image in images])
    with torch.no_grad():
        features = network.activations(torch.from_numpy(inputs))["relu7"].numpy()
    weights["fc8.weight"], weights["fc8.bias"] = _fitted(features, labels.repeat(10))
    save_file(weights, folder.weights_path)
    folder.write_spec(dataclasses.replace(spec, classes=tuple(FLOWERS)))
    before = Path.cwd()
    os.chdir(root)
    try:
        export_model("models/flowers", ExportOptions(fp16=True, int8=True, calibrate="photographs"), on_event=_ignore)
    finally:
        os.chdir(before)


def _ignore(_: object) -> None:
    """The warning that these are too few images for a limit of one point."""


def _classifier(images: list[np.ndarray], labels: np.ndarray) -> onnx.ModelProto:
    """Somebody's ONNX file: pixels in torchvision's preprocessing to the logits of the flowers."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(0, 0.2, (_FEATURES, 3, 7, 7)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "conv.weight"], ["conv"], strides=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("AveragePool", ["relu"], ["pool"], kernel_shape=[18, 18], strides=[18, 18]),
        helper.make_node("Flatten", ["pool"], ["features"]),
    ]
    value = helper.make_tensor_value_info
    image = value("images", TensorProto.FLOAT, ["batch", 3, 224, 224])
    conv = numpy_helper.from_array(kernels, "conv.weight")
    half = _model(nodes, image, value("features", TensorProto.FLOAT, ["batch", 16 * _FEATURES]), [conv])
    steps = load_recipe("torchvision").preprocessing
    preprocessing = Preprocessing(scale=steps.scale, mean=steps.mean, std=steps.std, crop=224)
    inputs = np.concatenate([network_input(image, preprocessing, 1) for image in images])
    (features,) = InferenceSession(half.SerializeToString()).run(None, {"images": inputs})
    weight, bias = _fitted(features, labels)
    tensors = [conv, numpy_helper.from_array(weight, "fc.weight"), numpy_helper.from_array(bias, "fc.bias")]
    nodes.append(helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], transB=1))
    return _model(nodes, image, value("logits", TensorProto.FLOAT, ["batch", len(FLOWERS)]), tensors)


def _model(
    nodes: list[onnx.NodeProto], image: onnx.ValueInfoProto, out: onnx.ValueInfoProto, tensors: list[TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "classifier", [image], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _fitted(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, F] and bias [C] of ridge regression to logits of 6 and 0: no training, the same on every machine."""
    inputs = np.hstack([features, np.ones((len(features), 1))]).astype(np.float64)
    inputs[:, :-1] -= (centre := inputs[:, :-1].mean(axis=0))
    penalty = 1e-3 * np.trace(inputs.T @ inputs) / inputs.shape[1] * np.eye(inputs.shape[1])
    found = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (6.0 * np.eye(len(FLOWERS))[labels]))
    weight = np.ascontiguousarray(found[:-1].T, np.float32)
    return weight, (found[-1] - centre @ found[:-1]).astype(np.float32)
