"""Parsing Caffe's files: the layers and weights of a .caffemodel, and the mean image of a .binaryproto, unchanged.

Field numbers are those of BVLC's caffe.proto. Both forms of a network are supported: `layer` (LayerParameter), with
types as strings, and `layers` (V1LayerParameter) of old files such as bvlc_alexnet, with types as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError
from alexdeploy.core.protobuf_wire import Message, WireError

DATA_TYPES = ("Data", "ImageData", "HDF5Data", "MemoryData", "WindowData", "DummyData", "Input")
_TRANSFORMING_TYPES = ("Data", "ImageData", "MemoryData", "WindowData")
"""Data layers that crop and scale pixels, by default by 1; the others pass on their input unchanged."""

_V1_TYPES = {
    0: "None", 1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 7: "EuclideanLoss",
    8: "Flatten", 9: "HDF5Data", 10: "HDF5Output", 11: "Im2col", 12: "ImageData", 13: "InfogainLoss",
    14: "InnerProduct", 15: "LRN", 16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid",
    20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power",
    27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData", 30: "ArgMax", 31: "Threshold", 32: "DummyData",
    33: "Slice", 34: "MVN", 35: "AbsVal", 36: "Silence", 37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    outputs: int
    kernel: int
    stride: int
    padding: int
    groups: int
    has_bias: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerProduct:
    outputs: int
    has_bias: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """`rounds_up`: a last window that begins inside the image counts even if it extends beyond it.

    The average of such a window is that of the part inside the image.
    """

    kernel: int
    stride: int
    rounds_up: bool
    is_average: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LRNAcross:
    """y = x / (k + alpha / size * sum of x^2 over `size` neighbouring channels)^beta."""

    size: int
    alpha: float
    beta: float
    k: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReLU:
    negative_slope: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropout:
    rate: float


Parameters = Convolution | InnerProduct | Pooling | LRNAcross | ReLU | Dropout


@dataclass(frozen=True, kw_only=True, slots=True)
class CaffeLayer:
    """One layer. `parameters` is None where its type has none, or the file does not contain them.

    `blobs` are float32 in the shapes of the file: a bias may be (1, 1, 1, N), a fully connected weight (1, 1, O, I).
    """

    name: str
    type: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    parameters: Parameters | None = None
    blobs: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DataTransform:
    """What the data layer did: (pixel - mean) * scale, then a crop of `crop` pixels; None if the file does not say."""

    crop: int | None = None
    scale: float | None = None
    mean_values: tuple[float, ...] = ()
    mean_file: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CaffeNet:
    """A network as in the file, with its layers in order. `inputs` are declared at its top, instead of by a layer."""

    name: str
    layers: tuple[CaffeLayer, ...]
    inputs: tuple[str, ...] = ()
    transform: DataTransform = field(default_factory=DataTransform)


def read_caffemodel(content: bytes, source: str) -> CaffeNet:
    """Parse the bytes of a .caffemodel; the only large allocation is that of the weights that are converted later.

    Raises ModelError, naming the layer, for another kind of file, or for layers that this project does not support.
    """
    try:
        net = Message(memoryview(content))
        is_v1 = not net.has(100)
        if is_v1 and not net.has(2):
            raise ModelError(f"{source} contains no layer definitions", hint="Give the .caffemodel, not its .prototxt.")
        number = 2 if is_v1 else 100
        layers = tuple(_layer(entry, source, is_v1=is_v1) for entry in net.messages(number))
        transform = _transform(net, net.messages(number), source, is_v1=is_v1)
        return CaffeNet(name=net.text(1), layers=layers, inputs=net.texts(3), transform=transform)
    except WireError as exc:
        raise ModelError(
            f"{source} is not a caffemodel, or it is damaged or truncated ({len(content):,} bytes): {exc}"
        ) from exc


def read_binaryproto(content: bytes, source: str) -> NDArray[np.float32]:
    """The blob of a .binaryproto, such as a mean image: usually float32 [1, 3, H, W]. Raises ModelError."""
    try:
        return _blob(Message(memoryview(content)), source)
    except WireError as exc:
        raise ModelError(f"{source} is not a binaryproto, or it is damaged ({len(content):,} bytes): {exc}") from exc


def _layer(entry: Message, source: str, *, is_v1: bool) -> CaffeLayer:
    if is_v1 and entry.has(1):
        raise ModelError(
            f"{source} has layers in Caffe's format from before 2014 (V0)",
            hint="Upgrade it with Caffe's tool: upgrade_net_proto_binary OLD NEW",
        )
    name = entry.text(4 if is_v1 else 1)
    kind = entry.integer(5) if is_v1 else 0
    type_ = _V1_TYPES.get(kind, f"number {kind}") if is_v1 else entry.text(2)
    where = f"{source}: {name or 'a layer without a name'}"
    return CaffeLayer(
        name=name,
        type=type_,
        bottoms=entry.texts(2 if is_v1 else 3),
        tops=entry.texts(3 if is_v1 else 4),
        parameters=_parameters(type_, entry, where, is_v1=is_v1),
        blobs=tuple(_blob(blob, where) for blob in entry.messages(6 if is_v1 else 7)),
    )


_PARAMETER_FIELDS = {
    "Convolution": (10, 106),
    "InnerProduct": (17, 117),
    "Pooling": (19, 121),
    "LRN": (18, 118),
    "ReLU": (30, 123),
    "Dropout": (12, 108),
}
"""The field numbers of a type's parameters: in V1LayerParameter, in LayerParameter."""


def _parameters(type_: str, entry: Message, where: str, *, is_v1: bool) -> Parameters | None:
    if type_ not in _PARAMETER_FIELDS:
        return None
    number = _PARAMETER_FIELDS[type_][0 if is_v1 else 1]
    found = entry.message(number)
    if type_ == "ReLU":
        return ReLU(negative_slope=found.number(1, 0.0))
    if type_ == "Dropout":
        return Dropout(rate=found.number(1, 0.5))
    if type_ == "LRN":
        return _lrn(found, where)
    if not entry.has(number):
        # The others have no useful defaults: a file stripped to its weights lacks them.
        return None
    if type_ == "Convolution":
        return _convolution(found, where)
    return _pooling(found, where) if type_ == "Pooling" else _inner_product(found, where)


def _convolution(found: Message, where: str) -> Convolution:
    if any(dilation != 1 for dilation in found.integers(18)):
        raise ModelError(f"{where} is a dilated convolution, which no AlexNet has")
    return Convolution(
        outputs=_count(found.integer(1), "num_output", where),
        kernel=_square(found, (4, 11, 12), None, "kernel_size", where),
        stride=_square(found, (6, 13, 14), 1, "stride", where),
        padding=_square(found, (3, 9, 10), 0, "pad", where),
        groups=_count(found.integer(5, 1), "group", where),
        has_bias=bool(found.integer(2, 1)),
    )


def _inner_product(found: Message, where: str) -> InnerProduct:
    if found.integer(5, 1) != 1 or found.integer(6, 0):
        raise ModelError(f"{where} is an InnerProduct with axis or transpose set, which no AlexNet has")
    return InnerProduct(outputs=_count(found.integer(1), "num_output", where), has_bias=bool(found.integer(2, 1)))


def _pooling(found: Message, where: str) -> Pooling:
    method = found.integer(1)
    if method not in (0, 1):
        word = "STOCHASTIC" if method == 2 else f"method {method}"
        raise ModelError(f"{where} pools by {word}; only MAX and AVE are supported")
    if found.integer(12) or _square(found, (4, 9, 10), 0, "pad", where):
        raise ModelError(f"{where} is a pooling with padding or over the whole image, which is not supported")
    return Pooling(
        kernel=_square(found, (2, 5, 6), None, "kernel_size", where),
        stride=_square(found, (3, 7, 8), 1, "stride", where),
        rounds_up=found.integer(13) == 0,
        is_average=method == 1,
    )


def _lrn(found: Message, where: str) -> LRNAcross:
    if found.integer(4) != 0:
        raise ModelError(
            f"{where} is an LRN with norm_region: WITHIN_CHANNEL, for which ONNX and the engines have no operator",
            hint="Only ACROSS_CHANNELS, as in AlexNet, is supported.",
        )
    return LRNAcross(
        size=found.integer(1, 5), alpha=found.number(2, 1.0), beta=found.number(3, 0.75), k=found.number(5, 1.0)
    )


def _square(found: Message, numbers: tuple[int, int, int], default: int | None, name: str, where: str) -> int:
    """A size that is given once for both sides, or as height and width, which must be equal.

    If only height or width is given, the other is 0: `pad_h: 1` alone pads above and below only.
    """
    both, *sided = numbers
    values = found.integers(both)
    if any(found.has(number) for number in sided):
        values += tuple(found.integer(number) for number in sided)
    sides = set(values) or ({default} if default is not None else set())
    if len(sides) != 1:
        raise ModelError(f"{where} has {name} {list(values)}; expected one size for both sides")
    size = sides.pop()
    assert size is not None
    if not (0 if default == 0 else 1) <= size <= 4096:
        raise ModelError(f"{where} has {name} {size}")
    return size


def _count(value: int, name: str, where: str) -> int:
    if not 1 <= value <= 1 << 24:
        raise ModelError(f"{where} has {name} {value}")
    return value


def _blob(blob: Message, where: str) -> NDArray[np.float32]:
    data: NDArray[np.float32] | NDArray[np.float64] = blob.floats(5)
    if not data.size:
        data = blob.doubles(8)
    shape = blob.message(7).integers(1) if blob.has(7) else tuple(blob.integer(number) for number in (1, 2, 3, 4))
    if min(shape, default=0) < 0 or math.prod(shape) != data.size:
        raise ModelError(f"{where} has a blob of shape {list(shape)} with {data.size:,} values")
    return data.reshape(shape).astype(np.float32, copy=False)


def _transform(net: Message, entries: Iterable[Message], source: str, *, is_v1: bool) -> DataTransform:
    """The transform of the first layer that provides images. Before V1 had transform_param, it was in data_param."""
    for entry in entries:
        type_ = _V1_TYPES.get(entry.integer(5), "") if is_v1 else entry.text(2)
        if type_ not in (*_TRANSFORMING_TYPES, "Input"):
            continue
        found = entry.message(36 if is_v1 else 100)
        data = entry.message({"ImageData": 15, "WindowData": 20}.get(type_, 11) if is_v1 else 107)
        if type_ == "Input":
            return DataTransform(crop=_input_size(_first_shape(entry.message(143), 1), source))
        return DataTransform(
            crop=found.integer(3) or data.integer(5) or None,
            scale=found.number(1, data.number(2, 1.0)),
            mean_values=tuple(float(str(value)) for value in found.floats(5)),
            mean_file=found.text(4) or data.text(3) or None,
        )
    # A deployment network declares its inputs at the top of the file, each with four numbers or a shape.
    return DataTransform(crop=_input_size(net.integers(4)[:4] or _first_shape(net, 8), source))


def _first_shape(message: Message, number: int) -> tuple[int, ...]:
    return next((shape.integers(1) for shape in message.messages(number)), ())


def _input_size(shape: tuple[int, ...], source: str) -> int | None:
    """The side of an input [N, 3, H, H], None if its shape is unknown."""
    if len(shape) != 4:
        return None
    if shape[2] != shape[3]:
        raise ModelError(f"{source} takes images of {shape[2]}x{shape[3]}; expected as many rows as columns")
    return shape[3] or None
