"""Caffe's forward pass in NumPy float64: the reference that converted networks are checked against.

It reads the layers and blobs as they are in the file and shares no code with `reference`: convolutions by im2col and
one matrix product per group, pooling window by window with sizes rounded up, LRN from running sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.importing.caffe import parse
from alexdeploy.importing.caffe.parse import CaffeLayer

Array = NDArray[np.float64]


def transform(images: NDArray[np.uint8], crop: int, channels: str, mean: NDArray[np.floating], scale: float) -> Array:
    """Caffe's data layer in the test phase: uint8 [N, 256, 256, 3] RGB -> float64 [N, 3, crop, crop].

    Computes (pixel - mean) * scale, then the centre crop. `mean` is 3 values or an image [3, 256, 256], in pixels of 0
    to 255 and in the order of `channels`.
    """
    planes = images.transpose(0, 3, 1, 2).astype(np.float64)
    if channels == "bgr":
        planes = planes[:, [2, 1, 0]]
    planes = (planes - np.asarray(mean, np.float64).reshape(3, *([1, 1] if mean.size == 3 else mean.shape[1:]))) * scale
    offset = (IMAGE_SIZE - crop) // 2
    return planes[:, :, offset : offset + crop, offset : offset + crop]


def forward(layers: Iterable[CaffeLayer], x: Array) -> Array:
    """Run [N, 3, H, W] through a chain of layers from `convert`; returns the scores [N, C]."""
    for layer in layers:
        x = _apply(layer, x)
    return x


def _apply(layer: CaffeLayer, x: Array) -> Array:
    found = layer.parameters
    if isinstance(found, parse.Convolution):
        return _convolution(layer, found, x)
    if isinstance(found, parse.InnerProduct):
        weight = layer.blobs[0].reshape(found.outputs, -1).astype(np.float64)
        scores: Array = x.reshape(len(x), -1) @ weight.T
        return scores + layer.blobs[1].reshape(-1) if found.has_bias else scores
    if isinstance(found, parse.Pooling):
        return _pool(found, x)
    if isinstance(found, parse.LRNAcross):
        return _lrn(found, x)
    if isinstance(found, parse.ReLU):
        return np.maximum(x, 0) + found.negative_slope * np.minimum(x, 0)
    if layer.type == "Sigmoid":
        return 1 / (1 + np.exp(-x))
    return np.tanh(x) if layer.type == "TanH" else x


def _convolution(layer: CaffeLayer, found: parse.Convolution, x: Array) -> Array:
    padding, kernel, stride = found.padding, found.kernel, found.stride
    num, channels, height, width = x.shape
    padded = np.zeros((num, channels, height + 2 * padding, width + 2 * padding))
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows, columns = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    inputs, outputs = channels // found.groups, found.outputs // found.groups
    weight = layer.blobs[0].reshape(found.groups, outputs, inputs * kernel * kernel).astype(np.float64)
    result = np.empty((num, found.groups, outputs, rows * columns))
    for index in range(num):
        for group in range(found.groups):
            maps = padded[index, group * inputs : (group + 1) * inputs]
            patches = [
                maps[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                for i in range(kernel)
                for j in range(kernel)
            ]
            # [inputs, kernel * kernel, rows, columns]
            unrolled = np.stack(patches, axis=1).reshape(inputs * kernel * kernel, rows * columns)
            result[index, group] = weight[group] @ unrolled
    result = result.reshape(num, found.outputs, rows, columns)
    return result + layer.blobs[1].reshape(-1, 1, 1) if found.has_bias else result


def _pool(found: parse.Pooling, x: Array) -> Array:
    kernel, stride = found.kernel, found.stride
    rounded = math.ceil if found.rounds_up else math.floor
    rows, columns = (rounded((side - kernel) / stride) + 1 for side in x.shape[2:])
    result = np.empty((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            # A slice ends at the image border, as Caffe's last window does.
            window = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            result[:, :, i, j] = window.mean(axis=(2, 3)) if found.is_average else window.max(axis=(2, 3))
    return result


def _lrn(found: parse.LRNAcross, x: Array) -> Array:
    sums = np.cumsum(np.concatenate([np.zeros_like(x[:, :1]), x * x], axis=1), axis=1)
    num, reach = x.shape[1], found.size // 2
    first = np.maximum(np.arange(num) - reach, 0)
    last = np.minimum(np.arange(num) + reach + 1, num)
    scale = found.k + found.alpha / found.size * (sums[:, last] - sums[:, first])
    result: Array = x * np.power(scale, -found.beta)
    return result
