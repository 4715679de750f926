from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from helpers import TINY, make_model
from onnx import numpy_helper
from patience import slow_but_for
from safetensors.numpy import load_file

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import list_recipes, load_recipe
from alexdeploy.export.export import export_model


@pytest.fixture(scope="module")
def alexnet(exported: Callable[..., ModelFolder]) -> onnx.ModelProto:
    return onnx.load(exported("alexnet").onnx_path())


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_lrn_is_one_native_node_a_layer_with_the_recipes_constants(alexnet: onnx.ModelProto) -> None:
    nodes = [node for node in alexnet.graph.node if node.op_type == "LRN"]
    assert [node.name for node in nodes] == ["norm1", "norm2"]
    for node in nodes:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert values == {"size": 5, "alpha": pytest.approx(1e-4), "beta": 0.75, "bias": 2.0}
    assert not {"Pow", "AveragePool", "Div", "Pad"} & set(_operators(alexnet))


def test_nodes_carry_the_names_of_the_layers(alexnet: onnx.ModelProto) -> None:
    names = [node.name for node in alexnet.graph.node if node.op_type != "Reshape" or node.name == "flatten"]
    expected = "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 flatten"
    assert names == [*expected.split(), "fc6", "relu6", "fc7", "relu7", "fc8"]


def test_input_and_output_are_named_and_the_batch_is_dynamic(alexnet: onnx.ModelProto) -> None:
    (images,), (logits,) = alexnet.graph.input, alexnet.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    dims = images.type.tensor_type.shape.dim
    assert (dims[0].dim_param, [dim.dim_value for dim in dims[1:]]) == ("N", [3, 227, 227])
    assert alexnet.opset_import[0].version == 17


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_exports_with_as_many_lrn_nodes_as_it_has_layers(
    exported: Callable[..., ModelFolder], recipe: str
) -> None:
    architecture = load_recipe(recipe, TINY).architecture
    operators = _operators(onnx.load(exported(recipe).onnx_path()))
    expected = 0 if architecture.lrn is None else sum(conv.lrn for conv in architecture.convs)
    assert operators.count("LRN") == expected
    assert operators.count("Conv") == 5


_ACTIVATIONS = ("leaky_relu", "elu", "gelu", "silu", "softplus", "tanh")


# Each is several nodes, and other tests export it as well.
@pytest.mark.parametrize("activation", slow_but_for(("gelu", "silu"), _ACTIVATIONS))
def test_every_activation_keeps_the_layers_names(exported: Callable[..., ModelFolder], activation: str) -> None:
    model = onnx.load(exported("alexnet", f"architecture.activation={activation}").onnx_path())
    assert {"relu1", "norm1", "pool1", "relu7"} <= {node.name for node in model.graph.node}


def test_average_pooling_is_one_node_that_no_runtime_can_pad(exported: Callable[..., ModelFolder]) -> None:
    model = onnx.load(exported("alexnet", "architecture.pooling.kind=average").onnx_path())
    pools = [node for node in model.graph.node if node.op_type == "AveragePool"]
    assert [node.name for node in pools] == ["pool1", "pool2", "pool5"]
    for node in pools:
        found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert (found["kernel_shape"], found["strides"]) == ([3, 3], [2, 2])
        # Without padding and rounded down, count_include_pad has nothing to count.
        assert found.get("pads", [0] * 4) == [0] * 4
        assert (found.get("ceil_mode", 0), found.get("auto_pad", b"NOTSET")) == (0, b"NOTSET")


def test_the_file_holds_the_weights_bit_for_bit_and_says_what_it_was_made_from(tiny_model: ModelFolder) -> None:
    model = onnx.load(tiny_model.onnx_path())
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, value in load_file(tiny_model.weights_path).items():
        assert (tensors[name] == value).all(), name
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["alexdeploy.source"] == "weights.safetensors"
    assert '"name":"tiny"' in metadata["alexdeploy.spec"]
    assert sorted(path.name for path in tiny_model.path.glob("model*.onnx*")) == [
        "model.fp16.onnx",
        "model.fp16.onnx.sha256",
        "model.onnx",
        "model.onnx.sha256",
    ]


def test_exporting_twice_gives_the_same_bytes(tiny_model: ModelFolder) -> None:
    before = tiny_model.onnx_path().read_bytes()
    export_model(tiny_model)
    assert tiny_model.onnx_path().read_bytes() == before


def test_zero_biases_stay_in_the_graph(tmp_path) -> None:  # the exporter's optimizer drops them
    folder = make_model(tmp_path / "zero")
    weights = load_file(folder.weights_path)
    for name, value in weights.items():
        if name.endswith("bias"):
            value[:] = 0
    from safetensors.numpy import save_file

    save_file(weights, folder.weights_path)
    export_model(folder)
    names = {tensor.name for tensor in onnx.load(folder.onnx_path()).graph.initializer}
    assert set(weights) <= names
