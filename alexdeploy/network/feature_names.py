"""The names of layers whose outputs are features, and what they mean in the plan of layers."""

from __future__ import annotations

from alexdeploy.core.errors import UsageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.network.layers import Layer, plan_layers

BEFORE = ":pre"
"""After the name of a layer with weights: its sums, before the activation."""


def feature_name(spec: ModelSpec, name: str | None = None) -> str:
    """The one name of features that may be given by several; None: the last hidden layer, "fc7" of AlexNet.

    "fc7" are the activations of fc7, after ReLU, as in the paper and in Caffe, whose ReLU works in place; "relu7" and
    "drop7" are the same. "fc7:pre" are its sums before ReLU. Where the architecture is unknown, a name is that of a
    tensor. Raises UsageError for an unknown name, and for None where the architecture is unknown.
    """
    refuse_ensemble(spec)
    if spec.architecture is None:
        if name is None:
            raise UsageError(
                f"{spec.name} was imported without its architecture, so no layer is the usual one",
                hint="Name a tensor: --layer NAME. Netron shows them; a wrong name lists the last ones.",
            )
        return name
    plan = plan_layers(spec.architecture, spec.num_classes)
    # Dropout and the activation before the last layer are other names of the last hidden one.
    layer = _find(plan, plan[-2].name if name is None else name)
    if layer.kind == "activation":
        return plan[plan.index(layer) - 1].name
    return layer.name + BEFORE * (layer.weight_shape is not None and layer is not plan[-1])


def refuse_ensemble(spec: ModelSpec) -> None:
    """Raise UsageError for an ensemble, whose networks have their own layers."""
    if spec.members:
        members = ", ".join(each.name for each in spec.members)
        raise UsageError(
            f"{spec.name} is an ensemble of networks, each with layers of its own", hint=f"Name a member: {members}"
        )


def feature_layer(spec: ModelSpec, name: str) -> Layer:
    """The layer in the plan whose output the features `name` are: relu7 for "fc7". Raises UsageError.

    For a model whose architecture is known.
    """
    assert spec.architecture is not None
    return _find(plan_layers(spec.architecture, spec.num_classes), name)


def _find(plan: tuple[Layer, ...], name: str) -> Layer:
    by_name = {layer.name: index for index, layer in enumerate(plan)}
    plain = name.removesuffix(BEFORE)
    index = by_name.get(plain)
    if index is None or (plain != name and plan[index].weight_shape is None):
        raise UsageError(
            f"no layer is called {name!r}",
            hint=f"Layers: {', '.join(by_name)}. Before the activation: conv1{BEFORE} and so on.",
        )
    if plain == name and plan[index].weight_shape is not None and plan[index] is not plan[-1]:
        # Every layer with weights but the last has an activation after it.
        return plan[index + 1]
    while plan[index].kind == "dropout":
        index -= 1
    return plan[index]
