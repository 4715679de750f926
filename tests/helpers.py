"""Tiny models and pictures, made on the spot; nothing is downloaded, trained or read from elsewhere."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.graphs.files import write_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.network.alexnet import AlexNet

TINY = ("architecture.width=0.0625", "architecture.hidden=[512, 512]")
"""A sixteenth of the width: 8 to 24 maps a layer, 32 hidden units (512 / 16); the shapes of the real thing."""

STRIDE_2 = "architecture.convs=[{channels=64, kernel=7, stride=2, pool=true}, {channels=64, kernel=3, pool=true}]"

FIRST_LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("alexnet", ()),
    ("caffenet", ()),
    ("torchvision", ()),
    ("torchvision", (STRIDE_2,)),
    ("alexnet", ("preprocessing.channels=bgr",)),
)
"""Recipes, overrides: every kind of preprocessing before a first layer, with padding and without, of other strides."""


def make_model(
    path: Path,
    recipe: str = "alexnet",
    overrides: tuple[str, ...] = TINY,
    num_classes: int = 5,
    seed: int = 0,
) -> ModelFolder:
    """A model folder with random weights whose answers differ from image to image."""
    loaded = load_recipe(recipe, overrides)
    torch.manual_seed(seed)
    network = AlexNet(loaded.architecture, num_classes)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(0, (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.uniform_(-0.1, 0.1)
    folder = ModelFolder(path)
    path.mkdir(parents=True)
    steps = loaded.preprocessing
    mean, mean_image = (0.0, 0.0, 0.0), None
    if isinstance(steps.mean, tuple):
        mean = steps.mean
    elif steps.mean == "image":
        rng = np.random.default_rng(seed)
        np.save(folder.mean_path, rng.uniform(90, 130, (3, 256, 256)).astype(np.float32))
        mean_image = sha256_file(folder.mean_path)
    preprocessing = Preprocessing(
        resize=steps.resize,
        channels=steps.channels,
        scale=steps.scale,
        mean=mean,
        std=steps.std,
        mean_image=mean_image,
        crop=loaded.architecture.input,
    )
    _spread_answers(network, preprocessing, folder)
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, folder.weights_path)
    classes = tuple(f"class-{index}" for index in range(num_classes))
    folder.write_spec(
        ModelSpec(
            name=path.name,
            classes=classes,
            preprocessing=preprocessing,
            architecture=loaded.architecture,
            recipe=recipe,
        )
    )
    return folder


def smooth_images(count: int, seed: int = 0) -> np.ndarray:
    """Random pictures of 8x8 blocks, uint8 [count, 256, 256, 3]: to a network, plain noise all looks alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """The first `count` of `smooth_images` as PNG files, which decode to the same pixels."""
    folder.mkdir(parents=True)
    for index, content in enumerate(_encoded(count, seed)):
        (folder / f"{index:03}.png").write_bytes(content)
    return folder


@functools.cache
def _encoded(count: int, seed: int) -> list[bytes]:
    files = []
    for image in smooth_images(count, seed):
        Image.fromarray(image).save(file := io.BytesIO(), "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


def assert_int8_agrees(found: np.ndarray, other: np.ndarray, fp32: np.ndarray) -> None:
    """The probabilities of two engines for one INT8 graph are as near to each other as INT8 is to FP32.

    Each scales and rounds the activations in its own way, so each has its own error against FP32, of one size in root
    mean square: the two are at most twice that apart. A scale that is wrong, or sums that saturate, give ten times it.
    """
    error, apart = (float(np.sqrt(np.square(each).mean())) for each in (found - fp32, found - other))
    assert apart <= 2 * error, f"{apart:.4f} apart, where INT8 costs {error:.4f}"


def change_weights(folder: ModelFolder, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace weights by what a function makes of them; `conv1__weight` stands for conv1.weight."""
    weights = load_file(folder.weights_path)
    for name, change in changes.items():
        key = name.replace("__", ".")
        weights[key] = np.ascontiguousarray(change(weights[key]), np.float32)
    save_file(weights, folder.weights_path)


def replace_graph(folder: ModelFolder, precision: str, model: onnx.ModelProto) -> None:
    """Write another graph as an export would, with whatever metadata it has."""
    write_graph(folder, precision, model.SerializeToString(deterministic=True))


def _spread_answers(network: AlexNet, steps: Preprocessing, folder: ModelFolder) -> None:
    """Scale and shift the last layer so that its logits have mean 0 and deviation 2 over pictures."""
    mean = np.load(folder.mean_path) if steps.mean_image else None
    inputs = np.concatenate([network_input(image, steps, 1, mean) for image in smooth_images(32, seed=100)])
    logits = network.activations(torch.from_numpy(inputs))[network.plan[-1].name]
    last = network.get_submodule(network.plan[-1].name)
    with torch.no_grad():
        factor = 2.0 / logits.std(dim=0)
        last.weight.mul_(factor[:, None])
        last.bias.copy_((last.bias - logits.mean(dim=0)) * factor)
