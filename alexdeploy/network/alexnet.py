"""The PyTorch module: one class that builds every variant from an Architecture."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from alexdeploy.core.recipe import Init
from alexdeploy.core.spec import Architecture
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.lrn import LocalResponseNorm

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class AlexNet(nn.Sequential):
    """float32 [N, 3, input, input] -> logits [N, num_classes]. Layers are named as in the plan: conv1, norm1 ..."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        self.plan = plan_layers(architecture, num_classes)
        super().__init__(OrderedDict((layer.name, make_module(layer)) for layer in self.plan))
        self.architecture = architecture

    def end_at(self, layer: str) -> None:
        """Remove the layers after `layer`; the network then gives its output instead of the logits."""
        names = [name for name, _ in self.named_children()]
        del self[names.index(layer) + 1 :]

    def activations(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The output of every layer by name, for comparing implementations layer by layer."""
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        with torch.inference_mode():
            for name, module in self.named_children():
                images = outputs[name] = module(images)
        return outputs


def initialize(network: AlexNet, init: Init, seed: int) -> None:
    """Draw zero-mean Gaussian weights; biases are `init.bias` in `init.biased_layers`, else 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.plan:
        if layer.weight_shape is None:
            continue
        module = network.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        fan_in = module.weight[0].numel()
        default = init.std if init.scheme == "gaussian" else (2.0 / fan_in) ** 0.5
        with torch.no_grad():
            module.weight.normal_(0.0, init.layer_std.get(layer.name, default), generator=generator)
            assert module.bias is not None
            module.bias.fill_(init.bias if layer.name in init.biased_layers else 0.0)


class _Flatten(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.features)


def make_module(layer: Layer) -> nn.Module:
    """The PyTorch module of one layer, with PyTorch's default initialization."""
    if layer.kind == "conv":
        return nn.Conv2d(
            layer.inputs,
            layer.outputs,
            layer.kernel,
            stride=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
        )
    if layer.kind == "lrn":
        assert layer.lrn is not None
        return LocalResponseNorm(layer.lrn, towers=layer.groups)
    if layer.kind == "pool":
        pool = nn.MaxPool2d if layer.pooling == "max" else nn.AvgPool2d
        return pool(layer.kernel, layer.stride)
    if layer.kind == "fc":
        return nn.Linear(layer.inputs, layer.outputs)
    if layer.kind == "flatten":
        # nn.Flatten exports as Shape, Gather, Concat, Reshape; this exports as one Reshape with a constant.
        return _Flatten(layer.outputs)
    if layer.kind == "dropout":
        return nn.Dropout(layer.rate)
    return _ACTIVATIONS[layer.activation]()
