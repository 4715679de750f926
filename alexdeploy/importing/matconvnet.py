"""Reading a MatConvNet SimpleNN network (imagenet-caffe-alex.mat) as Caffe layers, for conversion and checks.

Both layouts are supported: `filters` and `biases`, `normalization` and `classes` of the first versions, and `weights`
and `meta` as vl_simplenn_tidy writes them. Filters are [H, W, in / groups, out], channels are RGB. A fully connected
layer is a convolution that covers its whole input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.importing.caffe import parse
from alexdeploy.importing.caffe.parse import CaffeLayer, CaffeNet, DataTransform
from alexdeploy.importing.matlab import read_matlab

_TYPES = {"normalize": "LRN", "lrn": "LRN", "relu": "ReLU", "sigmoid": "Sigmoid", "dropout": "Dropout"}
_OUTPUTS = ("softmax", "softmaxloss")
_DEFAULT_LRN = (5.0, 1.0, 1e-4 / 5, 0.75)
"""vl_simplenn_tidy's defaults, for a layer without parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatConvNet:
    """`mean` is per channel, `mean_image` float32 [3, S, S], where S is the input's side or 256: RGB, pixels 0 to 255.

    `keeps_aspect`: whether images are cropped to a square instead of warped; None if the file does not say.
    """

    net: CaffeNet
    classes: tuple[str, ...] | None
    keeps_aspect: bool | None
    mean: tuple[float, ...] = ()
    mean_image: NDArray[np.float32] | None = None


def read_matconvnet(content: bytes, source: str) -> MatConvNet:
    """Raises ModelError, naming the layer, for another kind of file, or for layers that no AlexNet has."""
    found = read_matlab(content, ("layers", "meta", "normalization", "classes", "params"), source)
    layers = found.get("layers")
    if "params" in found:
        raise ModelError(f"{source} is a DagNN network of MatConvNet; only SimpleNN networks are supported")
    if not isinstance(layers, list) or not layers or not all(isinstance(each, dict) for each in layers):
        raise ModelError(
            f"{source} contains no MatConvNet network: expected a cell array `layers`",
            hint="Save one in MATLAB: save('net.mat', '-struct', 'net')",
        )
    meta = found.get("meta")
    meta = meta if isinstance(meta, dict) else found
    normalization = meta.get("normalization")
    normalization = normalization if isinstance(normalization, dict) else {}
    size = _input_size(normalization, source)
    mean, mean_image = _average(normalization.get("averageImage"), size, source)
    keeps_aspect = normalization.get("keepAspect")
    return MatConvNet(
        net=CaffeNet(
            name="", inputs=("data",), layers=_chain(layers, size, source), transform=DataTransform(crop=size)
        ),
        classes=_classes(meta.get("classes")),
        keeps_aspect=bool(keeps_aspect.any()) if isinstance(keeps_aspect, np.ndarray) else None,
        mean=mean,
        mean_image=mean_image,
    )


def _input_size(normalization: Mapping[str, Any], source: str) -> int:
    sides = _numbers(normalization.get("imageSize", np.zeros(0)))[:2]
    if len(sides) != 2 or sides[0] != sides[1] or not 1 <= sides[0] <= IMAGE_SIZE or sides[0] % 1:
        found = " x ".join(f"{side:g}" for side in sides) or "nothing"
        raise ModelError(
            f"{source}: normalization.imageSize is {found}; expected a square of at most {IMAGE_SIZE} pixels"
        )
    return int(sides[0])


def _average(value: Any, size: int, source: str) -> tuple[tuple[float, ...], NDArray[np.float32] | None]:
    """The mean per channel, or the mean image [3, size, size] or [3, 256, 256]."""
    # imagenet-*.mat without a mean have [0, 0].
    if not isinstance(value, np.ndarray) or value.size < 3:
        return (), None
    if not np.isfinite(value).all() or value.min() < 0 or value.max() > 255:
        raise ModelError(f"{source}: averageImage contains values outside 0 to 255")
    if value.size == 3:
        return tuple(float(each) for each in value.reshape(-1)), None
    if value.ndim != 3 or value.shape not in ((size, size, 3), (IMAGE_SIZE, IMAGE_SIZE, 3)):
        raise ModelError(f"{source}: averageImage is {list(value.shape)}; expected [{size}, {size}, 3] or 3 values")
    return (), np.ascontiguousarray(value.transpose(2, 0, 1), np.float32)


def _classes(value: Any) -> tuple[str, ...] | None:
    """WordNet id and words, "n01440764 tench, Tinca tinca", as in ILSVRC's lists; or the one of them in the file."""
    if not isinstance(value, dict):
        return None
    lists = [each for key in ("name", "description") if isinstance(each := value.get(key), list)]
    columns = [each for each in lists if each and all(isinstance(name, str) for name in each)]
    if not columns or len({len(each) for each in columns}) != 1:
        return None
    return tuple(" ".join(dict.fromkeys(names)) for names in zip(*columns, strict=True))


def _chain(layers: list[dict[str, Any]], size: int, source: str) -> tuple[CaffeLayer, ...]:
    """The layers in order. `size` is the side of a layer's input, `maps` its channels."""
    chain: list[CaffeLayer] = []
    maps, previous = 3, "data"
    for index, layer in enumerate(layers):
        type_ = layer.get("type")
        name = layer.get("name") or f"layer {index + 1}"
        if not isinstance(type_, str) or not isinstance(name, str):
            raise ModelError(f"{source}: layer {index + 1} has no type")
        where = f"{source}: {name}"
        blobs: tuple[NDArray[np.float32], ...] = ()
        parameters: parse.Parameters | None = None
        if type_ in _OUTPUTS:
            kind = "Softmax"
        elif type_ == "conv":
            kind, parameters, blobs = _convolution(layer, size, maps, where)
            maps = parameters.outputs
            if isinstance(parameters, parse.Convolution):
                size = (size + 2 * parameters.padding - parameters.kernel) // parameters.stride + 1
            else:
                size = 1
        elif type_ == "pool":
            kind, (parameters, size) = "Pooling", _pooling(layer, size, where)
        else:
            # The conversion refuses a layer of another type, by its name.
            kind, parameters = _TYPES.get(type_, type_), _elementwise(type_, layer, where)
        if size < 1:
            raise ModelError(f"{where} leaves nothing of its input")
        chain.append(
            CaffeLayer(
                name=name, type=kind, bottoms=(previous,), tops=(f"{index}",), parameters=parameters, blobs=blobs
            )
        )
        previous = f"{index}"
    return tuple(chain)


def _convolution(
    layer: Mapping[str, Any], size: int, maps: int, where: str
) -> tuple[str, parse.Convolution | parse.InnerProduct, tuple[NDArray[np.float32], ...]]:
    weights = layer.get("weights")
    pair = weights if isinstance(weights, list) else [layer.get("filters"), layer.get("biases")]
    arrays = [each for each in pair if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
    if len(pair) != 2 or len(arrays) != 2:
        raise ModelError(f"{where} has no filters and biases of floating-point numbers")
    filters, biases = arrays
    # MATLAB drops dimensions of one at the end.
    filters = filters.reshape(filters.shape + (1,) * (4 - filters.ndim))
    if filters.ndim != 4 or not filters.size or filters.shape[0] != filters.shape[1]:
        raise ModelError(f"{where} has filters of {list(filters.shape)}; expected square ones")
    kernel, _, inputs, outputs = filters.shape
    padding, stride = _same(layer, "pad", 0, where), _same(layer, "stride", 1, where)
    if _same(layer, "dilate", 1, where) != 1:
        raise ModelError(f"{where} is dilated, as no AlexNet is")
    if maps % inputs or outputs % (maps // inputs) or biases.size not in (0, outputs):
        raise ModelError(
            f"{where} has filters of {list(filters.shape)} and {biases.size} biases, for an input of {maps} maps"
        )
    blobs = [np.ascontiguousarray(filters.transpose(3, 2, 0, 1), np.float32)]
    if biases.size:
        blobs.append(np.ascontiguousarray(biases.reshape(-1), np.float32))
    if kernel == size and padding == 0 and inputs == maps:
        blobs[0] = blobs[0].reshape(outputs, -1)
        return "InnerProduct", parse.InnerProduct(outputs=outputs, has_bias=len(blobs) == 2), tuple(blobs)
    parameters = parse.Convolution(
        outputs=outputs,
        kernel=kernel,
        stride=stride,
        padding=padding,
        groups=maps // inputs,
        has_bias=len(blobs) == 2,
    )
    return "Convolution", parameters, tuple(blobs)


def _pooling(layer: Mapping[str, Any], size: int, where: str) -> tuple[parse.Pooling, int]:
    """The layer, and the side of its output."""
    method = layer.get("method", "max")
    if method not in ("max", "avg"):
        raise ModelError(f"{where} pools by {method}; expected max or avg")
    kernel, stride = _same(layer, "pool", 0, where), _same(layer, "stride", 1, where)
    # Rows above, below, columns left, right: Caffe's rounding up is padding below and on the right.
    padding = _numbers(layer.get("pad", np.zeros(1)))
    before, after = (padding[[0, 2]], padding[[1, 3]]) if len(padding) == 4 else (padding, padding)
    if kernel < 1 or before.any() or len(set(after)) > 1 or not 0 <= after[0] < stride:
        raise ModelError(
            f"{where} pools {kernel} pixels with padding {padding.tolist()}; expected none at the top left"
        )
    num_windows = (size + int(after[0]) - kernel) // stride + 1
    rounds_up = num_windows > (size - kernel) // stride + 1
    return (
        parse.Pooling(kernel=kernel, stride=stride, rounds_up=rounds_up, is_average=method == "avg"),
        num_windows,
    )


def _elementwise(type_: str, layer: Mapping[str, Any], where: str) -> parse.Parameters | None:
    if type_ == "relu":
        return parse.ReLU(negative_slope=_one(layer, "leak", 0.0))
    if type_ == "dropout":
        return parse.Dropout(rate=_one(layer, "rate", 0.5))
    if type_ not in ("normalize", "lrn"):
        return None
    # [size, k, alpha, beta]; Caffe's alpha, unlike this one, is divided by the size.
    numbers = _numbers(layer.get("param", np.array(_DEFAULT_LRN)))
    if len(numbers) != 4 or numbers[0] < 1 or numbers[0] % 1:
        raise ModelError(f"{where} has the parameters {numbers.tolist()}; expected size, k, alpha and beta")
    size, k, alpha, beta = (float(str(number)) for number in numbers)
    return parse.LRNAcross(size=int(size), k=k, alpha=float(f"{size * alpha:.12g}"), beta=beta)


def _same(layer: Mapping[str, Any], key: str, default: int, where: str) -> int:
    """One integer, or several equal ones."""
    numbers = _numbers(layer.get(key, np.array([default])))
    if not len(numbers) or (numbers != numbers[0]).any() or numbers[0] % 1 or not 0 <= numbers[0] < 1 << 16:
        raise ModelError(f"{where} has {key} {numbers.tolist()}; expected the same whole number in all directions")
    return int(numbers[0])


def _one(layer: Mapping[str, Any], key: str, default: float) -> float:
    numbers = _numbers(layer.get(key, np.zeros(0)))
    return float(str(numbers[0])) if len(numbers) else default


def _numbers(value: Any) -> NDArray[Any]:
    return value.reshape(-1) if isinstance(value, np.ndarray) else np.zeros(0)
