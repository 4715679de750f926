"""The layers of an Architecture as plain data: names, shapes, parameters, multiply-accumulates.

The PyTorch module, the NumPy reference, the exporter's check and `inspect` all read this one plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from alexdeploy.core.errors import RecipeError
from alexdeploy.core.spec import LRN, Activation, Architecture, Pooling, PoolingKind

_CHANNEL_STEP = 8
"""Scaled widths are multiples of this: each of two towers then has a multiple of 4 maps, which INT8 kernels need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer. `output_shape` excludes the batch: (C, H, W), or (features,) after flatten."""

    kind: Literal["conv", "activation", "lrn", "pool", "flatten", "fc", "dropout"]
    name: str
    output_shape: tuple[int, ...]
    inputs: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    activation: Activation = "relu"
    lrn: LRN | None = None
    pooling: PoolingKind = "max"
    rate: float = 0.0

    @property
    def outputs(self) -> int:
        """Number of output channels or features."""
        return self.output_shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """Shape of the weight as PyTorch and ONNX store it; None for a layer without weights."""
        if self.kind == "conv":
            return (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)
        if self.kind == "fc":
            return (self.outputs, self.inputs)
        return None

    @property
    def num_parameters(self) -> int:
        return 0 if self.weight_shape is None else math.prod(self.weight_shape) + self.outputs

    @property
    def num_neurons(self) -> int:
        """Outputs of a layer with weights, as the paper counts its 650,000; 0 for the others."""
        return 0 if self.weight_shape is None else math.prod(self.output_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per view; 0 except for convolutions and fully connected layers."""
        if self.weight_shape is None:
            return 0
        return math.prod(self.weight_shape) * math.prod(self.output_shape[1:])


def plan_layers(architecture: Architecture, num_classes: int) -> tuple[Layer, ...]:
    """Every layer in order, from `conv1` to the logits. Raises RecipeError if the shapes do not work out."""
    return tuple(_features(architecture)) + tuple(_classifier(architecture, num_classes))


def conv_output(size: int, kernel: int, stride: int, padding: int) -> int:
    """(W + 2P - F) / S + 1, rounded down."""
    return (size + 2 * padding - kernel) // stride + 1


def _features(architecture: Architecture) -> Iterator[Layer]:
    channels, size = 3, architecture.input
    for index, conv in enumerate(architecture.convs, start=1):
        name = f"conv{index}"
        if name in architecture.remove:
            # Keep its pooling: without pool5, fc6 would have seven times the parameters of the whole network.
            if conv.pool:
                pool = _pool(index, channels, size, architecture.pooling)
                size = pool.output_shape[-1]
                yield pool
            continue
        inputs, channels = channels, _scaled(conv.channels, architecture.width)
        size = _grid(name, size, conv.kernel, conv.stride, conv.padding)
        # conv1 sees the image, which no tower owns.
        groups = 1 if index == 1 or conv.crossing else architecture.towers
        if inputs % groups or channels % groups:
            raise RecipeError(f"{name}: {inputs} input and {channels} output maps do not divide into {groups} towers")
        shape = (channels, size, size)
        yield Layer(
            kind="conv",
            name=name,
            output_shape=shape,
            inputs=inputs,
            kernel=conv.kernel,
            stride=conv.stride,
            padding=conv.padding,
            groups=groups,
        )
        yield Layer(kind="activation", name=f"relu{index}", output_shape=shape, activation=architecture.activation)
        steps = ("lrn", "pool") if architecture.order == "lrn-pool" else ("pool", "lrn")
        for step in steps:
            if step == "lrn" and conv.lrn and architecture.lrn is not None:
                towers = architecture.towers if architecture.lrn.per_tower else 1
                if channels % towers:
                    # The Reshape that halves an odd number of maps would mix images of the batch.
                    raise RecipeError(
                        f"norm{index}: {channels} maps do not divide into {towers} towers",
                        hint=f"Change the number of channels of {name}, or set architecture.lrn.per_tower=false.",
                    )
                yield Layer(
                    kind="lrn",
                    name=f"norm{index}",
                    output_shape=(channels, size, size),
                    lrn=architecture.lrn,
                    groups=towers,
                )
            if step == "pool" and conv.pool:
                pool = _pool(index, channels, size, architecture.pooling)
                size = pool.output_shape[-1]
                yield pool
    yield Layer(kind="flatten", name="flatten", output_shape=(channels * size * size,))


def _pool(index: int, channels: int, size: int, pooling: Pooling) -> Layer:
    size = _grid(f"pool{index}", size, pooling.kernel, pooling.stride, 0)
    return Layer(
        kind="pool",
        name=f"pool{index}",
        output_shape=(channels, size, size),
        kernel=pooling.kernel,
        stride=pooling.stride,
        pooling=pooling.kind,
    )


def _classifier(architecture: Architecture, num_classes: int) -> Iterator[Layer]:
    *_, flatten = _features(architecture)
    features = flatten.outputs
    first = len(architecture.convs) + 1
    for index, width in enumerate(architecture.hidden, start=first):
        width = _scaled(width, architecture.width)
        yield Layer(kind="fc", name=f"fc{index}", output_shape=(width,), inputs=features)
        yield Layer(kind="activation", name=f"relu{index}", output_shape=(width,), activation=architecture.activation)
        if architecture.dropout > 0:
            yield Layer(kind="dropout", name=f"drop{index}", output_shape=(width,), rate=architecture.dropout)
        features = width
    yield Layer(kind="fc", name=f"fc{first + len(architecture.hidden)}", output_shape=(num_classes,), inputs=features)


def _scaled(channels: int, width: float) -> int:
    if width == 1:
        return channels
    return max(_CHANNEL_STEP, round(channels * width / _CHANNEL_STEP) * _CHANNEL_STEP)


def _grid(name: str, size: int, kernel: int, stride: int, padding: int) -> int:
    output = conv_output(size, kernel, stride, padding)
    if output < 1:
        raise RecipeError(
            f"{name}: a kernel of {kernel} with padding {padding} does not fit its input of {size}x{size}",
            hint="Use a larger architecture.input, smaller kernels or less pooling.",
        )
    return output
