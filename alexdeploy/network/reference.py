"""The forward pass in NumPy float64, written from the formulas: the reference for float32 implementations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.spec import LRN
from alexdeploy.network.layers import Layer, conv_output

Array = NDArray[np.float64]


def forward(
    plan: tuple[Layer, ...], weights: Mapping[str, NDArray[np.floating]], images: NDArray[np.floating]
) -> Iterator[tuple[Layer, Array]]:
    """Run `images` [N, 3, H, W] through the plan; yield each layer and its output, float64, without dropout.

    `weights` are `<layer>.weight` and `<layer>.bias`, in the shapes of PyTorch and ONNX.
    """
    x = images.astype(np.float64)
    for layer in plan:
        if layer.kind == "dropout":
            continue
        x = _apply(layer, weights, x)
        yield layer, x


def _apply(layer: Layer, weights: Mapping[str, NDArray[np.floating]], x: Array) -> Array:
    if layer.kind == "conv":
        return _conv(x, _wide(weights, layer, "weight"), _wide(weights, layer, "bias"), layer)
    if layer.kind == "fc":
        return x @ _wide(weights, layer, "weight").T + _wide(weights, layer, "bias")
    if layer.kind == "lrn":
        assert layer.lrn is not None
        return np.concatenate([lrn(half, layer.lrn) for half in np.split(x, layer.groups, axis=1)], axis=1)
    if layer.kind == "pool":
        windows = _windows(x, layer.kernel, layer.stride)
        pooled: Array = windows.max(axis=(4, 5)) if layer.pooling == "max" else windows.mean(axis=(4, 5))
        return pooled
    if layer.kind == "flatten":
        return x.reshape(len(x), -1)
    return _ACTIVATIONS[layer.activation](x)


def lrn(x: Array, constants: LRN) -> Array:
    """x / (k + alpha / size * sum over the window of x^2)^beta, over the channels of [N, C, H, W]."""
    half = constants.size // 2
    padded = np.pad(x**2, ((0, 0), (half, half), (0, 0), (0, 0)))
    sums = np.stack([padded[:, shift : shift + x.shape[1]] for shift in range(constants.size)]).sum(axis=0)
    result: Array = x / (constants.k + constants.alpha / constants.size * sums) ** constants.beta
    return result


def _conv(x: Array, weight: Array, bias: Array, layer: Layer) -> Array:
    padding = layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    parts = [
        # [N, C, OH, OW, K, K] with [O, C, K, K] over C, K, K -> [N, OH, OW, O]
        np.tensordot(_windows(half, layer.kernel, layer.stride), kernels, axes=((1, 4, 5), (1, 2, 3)))
        for half, kernels in zip(np.split(x, layer.groups, axis=1), np.split(weight, layer.groups), strict=True)
    ]
    return np.concatenate(parts, axis=3).transpose(0, 3, 1, 2) + bias[:, None, None]


def _windows(x: Array, kernel: int, stride: int) -> Array:
    """A view [N, C, OH, OW, kernel, kernel] of every window of x [N, C, H, W]."""
    windows: Array = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[
        :, :, ::stride, ::stride
    ]
    assert windows.shape[2] == conv_output(x.shape[2], kernel, stride, 0)
    return windows


def _wide(weights: Mapping[str, NDArray[np.floating]], layer: Layer, kind: str) -> Array:
    return weights[f"{layer.name}.{kind}"].astype(np.float64)


def _gelu(x: Array) -> Array:
    erf: Array = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return x * 0.5 * (1 + erf)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": _gelu,
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(x / 2)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(x / 2)),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
}
