"""The full network and the graphs that are made from it: ours, the one of PyTorch's exporter, the one as deployed."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np

from alexdeploy import ExportOptions, ModelFolder, export_model
from alexdeploy.core.files import sha256_file
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Precision, Preprocessing, graph_precision
from alexdeploy.engines.base import NumViews
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.graphs.freshness import load_graph

NUM_CLASSES = 1000


def make_model(path: Path, photographs: list[str]) -> ModelFolder:
    """The 2012 network at full size with random weights, exported in FP32 and INT8. Needs torch."""
    import torch
    from safetensors.numpy import save_file

    from alexdeploy.network.alexnet import AlexNet

    torch.manual_seed(0)
    recipe = load_recipe("alexnet")
    network = AlexNet(recipe.architecture, NUM_CLASSES)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2.0 / parameter[0].numel()) ** 0.5)
    folder = ModelFolder(path)
    path.mkdir(parents=True)
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, folder.weights_path)
    np.save(folder.mean_path, np.full((3, 256, 256), 117, np.float32))
    preprocessing = Preprocessing(mean_image=sha256_file(folder.mean_path), crop=227)
    classes = tuple(f"class-{index}" for index in range(NUM_CLASSES))
    folder.write_spec(
        ModelSpec(name=path.name, classes=classes, preprocessing=preprocessing, architecture=recipe.architecture)
    )
    images = list_of(photographs, path.parent / "calibration.txt")
    # Random weights nearly tie every answer: the speed is what counts here.
    export_model(folder, ExportOptions(int8=True, calibrate=images, budget=Budget(max_drop=100.0)))
    return folder


def list_of(photographs: list[str], path: Path) -> str:
    """A list of them as a file, and what commands that take photographs call it."""
    path.write_text("\n".join(photographs) + "\n", encoding="utf-8")
    return f"@{path}"


def calibrate_anew(folder: ModelFolder, images: str) -> None:
    """Replace the INT8 graph by one that is calibrated on `images`, as `alexdeploy export --int8` does."""
    export_model(folder, ExportOptions(int8=True, calibrate=images))


def copy_model(source: Path, path: Path) -> ModelFolder:
    """A model of the user's, beside which nothing is written."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("checkpoints"))
    return ModelFolder(path)


def check_preprocessing(folder: ModelFolder) -> None:
    """Raise SystemExit unless it is what peer_images.py does."""
    steps = folder.spec().preprocessing
    if steps.resize != "crop":
        raise SystemExit(f"{folder.path} was trained on resized images ({steps.resize}); the peers crop")
    if (steps.channels, steps.scale, steps.crop, steps.mean_image is None) != ("rgb", 1.0, 227, False):
        raise SystemExit(
            f"{folder.path} does not subtract a mean image from RGB pixels and crop 227x227, as the peers do"
        )


def check_model(folder: ModelFolder) -> None:
    """Raise SystemExit unless it is the 2012 network: the peers are written for that one, and figures are of it."""
    architecture, expected = folder.spec().architecture, load_recipe("alexnet").architecture
    # Dropout is of training alone.
    if architecture is None or dataclasses.replace(architecture, dropout=expected.dropout) != expected:
        raise SystemExit(f"{folder.path} is not the network of the recipe alexnet; the peers know no other")
    check_preprocessing(folder)
    for path in (folder.weights_path, folder.mean_path, folder.onnx_path(), folder.onnx_path("int8")):
        if not path.is_file():
            raise SystemExit(f"{path} is missing; make it: alexdeploy export {folder.path} --int8 --calibrate DIR")


def export_decomposed(folder: ModelFolder, path: Path) -> Path:
    """What PyTorch's exporter makes of PyTorch's own layers: LRN in six nodes."""
    import torch
    from safetensors.torch import load_file

    from benchmarks.peer_pytorch import alexnet

    network = alexnet(load_file(folder.weights_path))
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 227, 227),),
            path,
            dynamo=True,
            opset_version=18,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    return path


def write_deployed(folder: ModelFolder, precision: Precision, num_views: NumViews, path: Path) -> Path:
    """The graph that our OpenVINO engine runs, its views and all, as a file for others to run."""
    from alexdeploy.engines.openvino import local_graph

    spec = folder.spec()
    graph = load_graph(folder, graph_precision(precision), spec)
    model = local_graph(graph.model, spec, precision, num_views, folder.mean_image(spec))
    path.write_bytes(model.SerializeToString())
    return path
