"""From a Caffe network to an Architecture and its weights, using only the file's layer definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, RecipeError
from alexdeploy.core.spec import LRN, Activation, Architecture, Conv, Pooling
from alexdeploy.importing.caffe import parse
from alexdeploy.importing.caffe.parse import CaffeLayer, CaffeNet
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.weights import Weights, check_weights

_ACTIVATIONS: dict[str, Activation] = {"ReLU": "relu", "Sigmoid": "sigmoid", "TanH": "tanh"}
_LEAK = 0.01
"""The negative slope of "leaky_relu", in PyTorch and here."""

_AFTER_CONV = (
    ("activation",),
    ("activation", "Pooling"),
    ("activation", "LRN"),
    ("activation", "LRN", "Pooling"),
    ("activation", "Pooling", "LRN"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A converted network. `chain` are the Caffe layers that it represents, from the image to the scores."""

    architecture: Architecture
    num_classes: int
    weights: Weights
    chain: tuple[CaffeLayer, ...]


@dataclass(slots=True)
class _Block:
    """A convolution or fully connected layer, and the layers up to the next one."""

    layer: CaffeLayer
    followers: list[CaffeLayer] = field(default_factory=list)

    def first(self, type_: str) -> CaffeLayer | None:
        return next((layer for layer in self.followers if layer.type == type_), None)

    @property
    def order(self) -> tuple[str, ...]:
        """The types of the following layers, without dropout, which does not affect the answers."""
        types = ("activation" if layer.type in _ACTIVATIONS else layer.type for layer in self.followers)
        return tuple(type_ for type_ in types if type_ != "Dropout")


def convert(net: CaffeNet, source: str, input_size: int | None) -> Converted:
    """Convert; `input_size` is used if the file does not contain its own (`net.transform.crop`).

    Weights are copied bit for bit. Raises ModelError naming the first layer that an Architecture cannot represent.
    """
    if not tells_its_layers(net):
        raise ModelError(f"{source} does not contain the parameters of all its layers")
    size = net.transform.crop or input_size
    if size is None:
        raise ModelError(
            f"{source} does not contain the size of its input",
            hint="Give a recipe with the same input: --recipe caffe-alexnet (227 pixels).",
        )
    chain = tuple(layer for layer in _chain(net, source) if layer.type != "Flatten")
    blocks = _blocks(chain, source)
    convs = [block for block in blocks if block.layer.type == "Convolution"]
    hidden = [block for block in blocks if block.layer.type == "InnerProduct"]
    architecture = _architecture(convs, hidden, size, source)
    last = hidden[-1].layer.parameters
    assert isinstance(last, parse.InnerProduct)
    try:
        plan = plan_layers(architecture, last.outputs)
    except RecipeError as exc:
        raise ModelError(f"{source}: {exc.message}", hint=exc.hint) from exc
    _check_rounding(blocks, plan, source, is_size_told=net.transform.crop is not None)
    weights = take_weights([block.layer for block in blocks], plan, source)
    return Converted(architecture=architecture, num_classes=last.outputs, weights=weights, chain=chain)


def tells_its_layers(net: CaffeNet) -> bool:
    """Whether the layers with weights also have their parameters; files stripped to the weights do not."""
    return all(
        layer.parameters is not None
        for layer in net.layers
        # Some stripped files lack the types too: "" in LayerParameter, "None" in V1LayerParameter.
        if layer.type in ("Convolution", "InnerProduct") or (layer.blobs and layer.type in ("", "None"))
    )


def count_classes(net: CaffeNet, source: str) -> int:
    """The number of rows of the last layer with weights."""
    shaped = [layer for layer in net.layers if layer.blobs]
    if not shaped:
        raise ModelError(f"{source} contains no weights", hint="Give the .caffemodel, not its .prototxt.")
    return math.prod(shaped[-1].blobs[0].shape[:-1])


def take_weights(layers: list[CaffeLayer], plan: tuple[Layer, ...], source: str) -> Weights:
    """The blobs of `layers`, in order, as the weights of the plan. Raises ModelError naming the first that differs."""
    planned = [layer for layer in plan if layer.weight_shape is not None]
    if len(layers) != len(planned):
        names = ", ".join(layer.name for layer in layers)
        raise ModelError(
            f"{source} has {len(layers)} layers with weights ({names}); the architecture expects {len(planned)}: "
            + ", ".join(layer.name for layer in planned)
        )
    weights: dict[str, NDArray[np.float32]] = {}
    for layer, ours in zip(layers, planned, strict=True):
        assert ours.weight_shape is not None
        has_bias = not isinstance(layer.parameters, parse.Convolution | parse.InnerProduct) or layer.parameters.has_bias
        if len(layer.blobs) != 1 + has_bias:
            raise ModelError(
                f"{source}: {layer.name} has {len(layer.blobs)} blobs; expected its weight"
                + (" and its bias" if has_bias else "")
            )
        weights[f"{ours.name}.weight"] = _shaped(layer, 0, ours.weight_shape, source)
        bias = _shaped(layer, 1, (ours.outputs,), source) if has_bias else np.zeros(ours.outputs, np.float32)
        weights[f"{ours.name}.bias"] = bias
    check_weights(weights, plan, source)
    return weights


def _shaped(layer: CaffeLayer, index: int, expected: tuple[int, ...], source: str) -> NDArray[np.float32]:
    """A blob in our shape: Caffe's old files always have four dimensions, with leading ones."""
    blob = layer.blobs[index]
    surplus = blob.ndim - len(expected)
    if surplus < 0 or blob.shape[surplus:] != expected or any(size != 1 for size in blob.shape[:surplus]):
        kind = ("weight", "bias")[index]
        raise ModelError(f"{source}: {layer.name} has a {kind} of {list(blob.shape)}; expected {list(expected)}")
    return blob.reshape(expected)


def _chain(net: CaffeNet, source: str) -> Iterator[CaffeLayer]:
    """The layers between the image and the scores, each of which must read the output of the one before it."""
    current, names = "", set(net.inputs[:1]) or {"data"}
    for layer in net.layers:
        if layer.type in parse.DATA_TYPES:
            # There may be a second data layer for the labels.
            if not current:
                names |= set(layer.tops[:1])
        elif layer.type == "Split" and names.intersection(layer.bottoms):
            names |= set(layer.tops)
        elif layer.type in ("Softmax", "SoftmaxWithLoss", "MultinomialLogisticLoss", "Accuracy", "Silence", "Split"):
            if overwritten := names.intersection(layer.tops):
                # An in-place layer: the blob of that name no longer has the chain's output.
                names -= overwritten
                current = f"what {layer.name} ({layer.type}) has not overwritten"
        else:
            if not names.intersection(layer.bottoms[:1]) or len(layer.bottoms) != 1 or len(layer.tops) != 1:
                reads, what = ", ".join(layer.bottoms) or "nothing", current or "the image"
                raise ModelError(
                    f"{source}: {layer.name} ({layer.type}) reads {reads}; expected {what}: "
                    "an AlexNet is one chain of layers"
                )
            yield layer
            current, names = layer.name, {layer.tops[0]}


def _blocks(chain: tuple[CaffeLayer, ...], source: str) -> list[_Block]:
    blocks: list[_Block] = []
    for layer in chain:
        if layer.type in ("Convolution", "InnerProduct"):
            if blocks and layer.type == "Convolution" and blocks[-1].layer.type == "InnerProduct":
                raise ModelError(f"{source}: {layer.name} is a Convolution after {blocks[-1].layer.name}, InnerProduct")
            blocks.append(_Block(layer))
        elif layer.type not in (*_ACTIVATIONS, "LRN", "Pooling", "Dropout"):
            raise ModelError(f"{source}: {layer.name} is of type {layer.type}, which no AlexNet has")
        elif not blocks:
            raise ModelError(f"{source} begins with {layer.name} ({layer.type}); expected a Convolution")
        else:
            blocks[-1].followers.append(layer)
    types = [block.layer.type for block in blocks]
    if "Convolution" not in types or "InnerProduct" not in types:
        raise ModelError(f"{source} has {', '.join(types) or 'no layers'}; expected convolutions and fully connected")
    return blocks


def _architecture(convs: list[_Block], hidden: list[_Block], size: int, source: str) -> Architecture:
    for block in convs:
        if block.order not in _AFTER_CONV:
            found = ", ".join(f"{each.name} {each.type}" for each in block.followers) or "nothing"
            raise ModelError(
                f"{source}: {block.layer.name} is followed by {found}; expected an activation, then LRN and Pooling "
                "in either order"
            )
    for block in hidden:
        if block.order != (() if block is hidden[-1] else ("activation",)):
            found = ", ".join(f"{each.name} {each.type}" for each in block.followers) or "nothing"
            what = "nothing, as it gives the scores" if block is hidden[-1] else "an activation"
            raise ModelError(f"{source}: {block.layer.name} is followed by {found}; expected {what}")
    blocks = [*convs, *hidden]
    groups = max(_convolution(block).groups for block in convs)
    orders = {block.order[1:] for block in convs if len(block.order) == 3}
    if len(orders) == 2:
        raise ModelError(f"{source} pools before LRN in one layer and after it in another; expected one order")
    lrn = _one("LRN", blocks, source)
    pooling = _one("Pooling", blocks, source)
    rates = {_dropout(block) for block in hidden[:-1]}
    parts = {
        "input": size,
        "towers": groups,
        "order": "pool-lrn" if orders == {("Pooling", "LRN")} else "lrn-pool",
        "activation": _activation(blocks, source),
        # Does not affect the answers; training uses it if all hidden layers have the same value.
        "dropout": rates.pop() if len(rates) == 1 else 0.0,
        "pooling": Pooling() if pooling is None else _pooling(pooling),
        "lrn": None if lrn is None else _lrn(lrn, source),
        "convs": [_conv(block, index, groups, source) for index, block in enumerate(convs)],
        "hidden": [_outputs(block) for block in hidden[:-1]],
    }
    try:
        return msgspec.convert(msgspec.to_builtins(parts), Architecture)
    except msgspec.ValidationError as exc:
        raise ModelError(f"{source} cannot be expressed as an AlexNet: {exc}") from exc


def _convolution(block: _Block) -> parse.Convolution:
    assert isinstance(block.layer.parameters, parse.Convolution)
    return block.layer.parameters


def _outputs(block: _Block) -> int:
    assert isinstance(block.layer.parameters, parse.InnerProduct)
    return block.layer.parameters.outputs


def _dropout(block: _Block) -> float:
    layer = block.first("Dropout")
    return layer.parameters.rate if layer is not None and isinstance(layer.parameters, parse.Dropout) else 0.0


def _conv(block: _Block, index: int, groups: int, source: str) -> Conv:
    found = _convolution(block)
    if found.groups not in (1, groups) or (index == 0 and found.groups != 1):
        raise ModelError(f"{source}: {block.layer.name} has group {found.groups}; expected 1 or {groups}")
    return Conv(
        channels=found.outputs,
        kernel=found.kernel,
        stride=found.stride,
        padding=found.padding,
        crossing=index > 0 and groups > 1 and found.groups == 1,
        lrn="LRN" in block.order,
        pool="Pooling" in block.order,
    )


def _one(type_: str, blocks: list[_Block], source: str) -> CaffeLayer | None:
    """The first layer of the type, if all of them have equal parameters; None if there is none. Raises ModelError."""
    layers = [layer for block in blocks for layer in block.followers if layer.type == type_]
    for layer in layers:
        if layer.parameters is None:
            raise ModelError(f"{source}: {layer.name} has no parameters")
        if layer.parameters != layers[0].parameters:
            raise ModelError(
                f"{source}: {layer.name} is {layer.parameters}, {layers[0].name} is {layers[0].parameters}; "
                "expected one form in all layers"
            )
    return layers[0] if layers else None


def _pooling(layer: CaffeLayer) -> Pooling:
    assert isinstance(layer.parameters, parse.Pooling)
    found = layer.parameters
    return Pooling(kernel=found.kernel, stride=found.stride, kind="average" if found.is_average else "max")


def _lrn(layer: CaffeLayer, source: str) -> LRN:
    found = layer.parameters
    assert isinstance(found, parse.LRNAcross)
    try:
        return LRN(size=found.size, alpha=found.alpha, beta=found.beta, k=found.k)
    except ValueError as exc:
        raise ModelError(f"{source}: {layer.name}: {exc}") from exc


def _activation(blocks: list[_Block], source: str) -> Activation:
    found: dict[Activation, CaffeLayer] = {}
    for layer in (each for block in blocks for each in block.followers if each.type in _ACTIVATIONS):
        slope = layer.parameters.negative_slope if isinstance(layer.parameters, parse.ReLU) else 0.0
        if slope not in (0.0, _LEAK):
            raise ModelError(f"{source}: {layer.name} has negative_slope {slope}; expected 0 or {_LEAK}")
        found.setdefault("leaky_relu" if slope else _ACTIVATIONS[layer.type], layer)
    if len(found) > 1:
        kinds = " and ".join(f"{layer.name} is {kind}" for kind, layer in found.items())
        raise ModelError(f"{source}: {kinds}; expected one activation in all layers")
    return next(iter(found))


def _check_rounding(blocks: list[_Block], plan: tuple[Layer, ...], source: str, *, is_size_told: bool) -> None:
    """Raise ModelError where Caffe's rounding up of the size after pooling differs from rounding down, as done here."""
    recipe = "If it was trained with another input size, give a recipe with that size: --recipe NAME"
    pools = [block.first("Pooling") for block in blocks]
    found = iter([pool for pool in pools if pool is not None])
    size = 0
    for layer in plan:
        if layer.kind == "pool":
            caffe_layer = next(found)
            assert isinstance(caffe_layer.parameters, parse.Pooling)
            windows = (size - layer.kernel) / layer.stride
            rounded = math.ceil(windows) if caffe_layer.parameters.rounds_up else math.floor(windows)
            if rounded + 1 != layer.output_shape[1]:
                raise ModelError(
                    f"{source}: {caffe_layer.name} makes {size} pixels into {rounded + 1}, as Caffe rounds up; "
                    f"here they become {layer.output_shape[1]}",
                    hint=None if is_size_told else recipe,
                )
        size = layer.output_shape[1] if len(layer.output_shape) == 3 else 0
