"""Grad-CAM (Selvaraju et al. 2017): the last convolution's maps, weighted by their gradients, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.torch import load_network
from alexdeploy.explaining.heatmap import Box, Heatmap, peak_of
from alexdeploy.images.crops import view_boxes
from alexdeploy.images.preprocess import network_input
from alexdeploy.network.layers import Layer


def open_grad_cam(
    folder: ModelFolder, num_views: int, num_threads: int | None = None
) -> Callable[[NDArray[np.uint8], int], Heatmap]:
    """A function of an image, uint8 [256, 256, 3], and a class. It runs the FP32 weights on the CPU.

    The maps are those after the activation of the last convolution, the score is the class's logit. The result is the
    mean over the views that see a pixel. Raises ModelError if the folder has no PyTorch weights.
    """
    spec = folder.spec()
    if spec.architecture is None or not folder.weights_path.is_file():
        raise ModelError(
            f"{folder.path} has no PyTorch weights, whose gradients Grad-CAM is made of", hint="Use --method occlusion."
        )
    network = load_network(folder, spec)[0].eval()
    steps, mean_image = spec.preprocessing, folder.mean_image(spec)
    last = max(number for number, layer in enumerate(network.plan) if layer.kind == "conv")
    until = last + 1 + (network.plan[last + 1].kind == "activation")
    start, step = _grid(network.plan[:until])
    modules = list(network)
    features, rest = nn.Sequential(*modules[:until]), nn.Sequential(*modules[until:])

    def explain(image: NDArray[np.uint8], index: int) -> Heatmap:
        torch.set_num_threads(num_threads or available_processors())
        views = torch.from_numpy(network_input(image, steps, num_views, mean_image))
        with torch.no_grad():
            maps = features(views)
        maps.requires_grad_()
        with torch.enable_grad():
            # The gradient of one view's logit does not depend on the other views.
            rest(maps)[:, index].sum().backward()
        assert maps.grad is not None
        weights = maps.grad.mean(dim=(2, 3), keepdim=True)
        cams = torch.relu((weights * maps.detach()).sum(dim=1)).numpy()
        values = _in_image(cams, num_views, steps.crop, start, step)
        peak = peak_of(values)
        return Heatmap(method="grad-cam", values=values, peak=peak, box=_cell(peak, step))

    return explain


def _grid(layers: tuple[Layer, ...]) -> tuple[float, float]:
    """Where the first unit of the last layer's map looks, in pixels of the crop, and how far apart units look."""
    start, step = 0.0, 1.0
    for layer in layers:
        if layer.kind in ("conv", "pool"):
            start += step * ((layer.kernel - 1) / 2 - layer.padding)
            step *= layer.stride
    return start, step


def _in_image(cams: NDArray[np.float32], num_views: int, crop: int, start: float, step: float) -> NDArray[np.float32]:
    """Maps of the views, [V, h, w], as one map of the image: linear between the units, and to zero around them."""
    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    count = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    places = (np.arange(crop) - start) / step
    for cam, (top, left, mirror) in zip(cams, view_boxes(num_views, crop), strict=True):
        padded = np.pad(cam, 1)
        units = np.arange(len(padded)) - 1
        down = np.stack([np.interp(places, units, column) for column in padded.T], axis=1)
        shown = np.stack([np.interp(places, units, row) for row in down])
        total[top : top + crop, left : left + crop] += shown[:, ::-1] if mirror else shown
        count[top : top + crop, left : left + crop] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def _cell(peak: tuple[int, int], step: float) -> Box:
    half = round(step) // 2
    x, y = peak
    right, bottom = min(x + half, IMAGE_SIZE), min(y + half, IMAGE_SIZE)
    return Box(max(x - half, 0), max(y - half, 0), right, bottom)
