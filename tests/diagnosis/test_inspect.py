from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import AlexDeployError, ModelError, RecipeError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.diagnosis.inspect import Inspection, inspect
from alexdeploy.diagnosis.layers import LayerRow, engine_layers

TINY = ("architecture.width=0.0625", "architecture.hidden=[512, 512]")
"""The overrides that the fixture `tiny_model` is made with."""


def layer(found: Inspection, name: str) -> LayerRow:
    return next(row for row in found.layers if row.name == name)


@pytest.mark.parametrize(
    ("recipe", "parameters", "macs"),
    [
        # From the shapes in the paper, the course slides and torchvision, in millions of MACs.
        ("alexnet", 60_965_224, 724.4),
        ("caffenet", 60_965_224, 724.4),
        ("one-tower", 62_378_344, 1135.3),
        ("torchvision", 61_100_840, 714.2),
    ],
)
def test_a_recipe_has_the_published_parameters_and_macs(recipe: str, parameters: int, macs: float) -> None:
    found = inspect(recipe)
    assert found.kind == "recipe"
    assert found.parameters == parameters
    assert found.macs / 1e6 == pytest.approx(macs, abs=0.05)


def test_the_layers_have_the_papers_shapes() -> None:
    found = inspect("alexnet")
    shapes = {row.name: row.output_shape for row in found.layers}
    assert shapes["conv1"] == (96, 55, 55)
    assert shapes["pool5"] == (256, 6, 6)
    assert shapes["fc8"] == (1000,)
    assert layer(found, "conv2").detail == "5x5 pad 2 groups 2"
    assert found.lrn == {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "per_tower": True}
    assert found.preprocessing is not None
    assert (found.preprocessing["mean"], found.preprocessing["crop"]) == ("image", 227)


def test_the_number_of_classes_changes_the_last_layer_only() -> None:
    ten = inspect("alexnet", num_classes=10)
    assert ten.parameters == 60_965_224 - 990 * 4097


def test_overrides_change_a_recipe() -> None:
    found = inspect("alexnet", overrides=("architecture.towers=1", "architecture.lrn=none"))
    assert found.parameters == 62_378_344
    assert found.lrn is None


def test_a_recipe_file_is_read_by_its_path(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "models" / "torchvision.toml"
    path = tmp_path / "mine.toml"
    path.write_bytes(source.read_bytes())
    assert inspect(str(path)).parameters == 61_100_840


def test_a_model_folder_shows_what_its_spec_says_and_its_files(tiny_model: ModelFolder) -> None:
    found = inspect(str(tiny_model.path))
    assert found.kind == "model"
    assert found.facts["classes"] == 5
    assert found.parameters == sum(value.size for value in load_file(tiny_model.weights_path).values())
    files = {file["file"]: file["sha256"] for file in found.files}
    assert files["model.onnx"] == sha256_file(tiny_model.onnx_path())
    assert {"spec.json", "weights.safetensors", "mean.npy", "model.fp16.onnx"} <= files.keys()


def test_a_model_is_found_by_its_name(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.path.parents[1])
    assert inspect("tiny") == inspect("models/tiny")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_of_ours_has_the_parameters_and_macs_of_its_recipe(tiny_model: ModelFolder, precision: str) -> None:
    recipe = inspect("alexnet", overrides=TINY, num_classes=5)
    found = inspect(str(tiny_model.onnx_path(precision)))
    assert found.kind == "onnx"
    assert (found.parameters, found.macs) == (recipe.parameters, recipe.macs)
    assert layer(found, "conv2").output_shape == layer(recipe, "conv2").output_shape
    assert found.lrn == {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    assert found.facts["input images"] == "float32 [N, 3, 227, 227]"
    assert found.facts["output logits"] == "float32 [N, 5]"
    assert found.preprocessing is not None
    assert found.preprocessing["crop"] == 227


Graph = Callable[..., str]


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Save nodes that read `x` float32 [N, 2, 4, 4] and the given constants, and give `y`; returns the path."""

    def save(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, listed: bool = False) -> str:
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 4, 4])]
        if listed:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        outputs[0].type.tensor_type.shape.dim.add().dim_param = "N"
        outputs[0].type.tensor_type.shape.dim.add().dim_param = "C"
        model = helper.make_model(
            helper.make_graph(nodes, "theirs", inputs, outputs, tensors),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        path = tmp_path / "theirs.onnx"
        path.write_bytes(model.SerializeToString())
        return str(path)

    return save


def test_a_foreign_graph_counts_weights_and_not_shapes_or_bounds(graph: Graph) -> None:
    nodes = [
        helper.make_node("Clip", ["x", "low"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "shape"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["products"]),
        helper.make_node("ReduceMax", ["products"], ["y"], axes=[1], keepdims=0),
    ]
    w = np.ones((16, 3), np.float32)
    found = inspect(graph(nodes, {"low": np.array(0, np.float32), "shape": np.array([-1, 2, 16]), "w": w}))
    assert found.parameters == 16 * 3
    # Each of two rows of 16 is multiplied with the 16 x 3 weights.
    assert layer(found, "products").macs == found.macs == 2 * 16 * 3


def test_a_weight_that_two_nodes_share_is_counted_once(graph: Graph) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["once"]),
        helper.make_node("Conv", ["once", "w"], ["twice"]),
        helper.make_node("Flatten", ["twice"], ["y"]),
    ]
    found = inspect(graph(nodes, {"w": np.ones((2, 2, 1, 1), np.float32)}))
    assert found.parameters == 4
    assert found.macs == 2 * 4 * 16


def test_quantized_weights_are_counted_where_they_are_used(graph: Graph) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["real"]),
        helper.make_node("Conv", ["x", "real"], ["conv"]),
        helper.make_node("Flatten", ["conv"], ["y"]),
    ]
    found = inspect(graph(nodes, {"w": np.ones((5, 2, 3, 3), np.int8), "scale": np.array(0.1, np.float32)}))
    assert found.parameters == 5 * 2 * 9
    assert layer(found, "conv").macs == 5 * 2 * 9 * 4


def test_weights_that_are_listed_as_inputs_are_not_inputs(graph: Graph) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["conv"]), helper.make_node("Flatten", ["conv"], ["y"])]
    found = inspect(graph(nodes, {"w": np.ones((2, 2, 1, 1), np.float32)}, listed=True))
    assert [name for name in found.facts if name.startswith("input")] == ["input x"]


def test_lrn_constants_of_a_foreign_graph_are_shown_with_onnx_defaults(graph: Graph) -> None:
    nodes = [helper.make_node("LRN", ["x"], ["normed"], size=3), helper.make_node("Flatten", ["normed"], ["y"])]
    assert inspect(graph(nodes, {})).lrn == {"size": 3, "alpha": 1e-4, "beta": 0.75, "k": 1.0}


def test_an_output_that_is_no_tensor_is_named_by_its_type(tmp_path: Path, graph: Graph) -> None:
    path = graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], {})
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["N", 2, 4, 4]))
    Path(path).write_bytes(model.SerializeToString())
    assert inspect(path).facts["output y"] == "sequence_type"


def test_safetensors_are_listed_with_shape_and_type(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.zeros(4, np.float32)}, path, metadata={"by": "me"})
    found = inspect(str(path))
    assert [(row.name, row.output_shape, row.detail) for row in found.layers] == [
        ("a", (4,), "F32"),
        ("b", (2, 3), "F16"),
    ]
    assert found.parameters == 10
    assert found.provenance == {"by": "me"}
    assert found.facts["sha256"] == sha256_file(path)


def test_the_weights_of_a_model_add_up(tiny_model: ModelFolder) -> None:
    weights = load_file(tiny_model.weights_path)
    found = inspect(str(tiny_model.weights_path))
    assert found.parameters == sum(math.prod(value.shape) for value in weights.values())


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "noise"])
def test_a_damaged_file_is_a_model_error_that_names_it(tiny_model: ModelFolder, name: str, damage: str) -> None:
    path = tiny_model.path / name
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "noise": b"\xff" * 999}[damage])
    with pytest.raises(ModelError, match=name):
        inspect(str(path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}'])
def test_a_damaged_spec_is_a_model_error(tiny_model: ModelFolder, content: str) -> None:
    tiny_model.spec_path.write_text(content)
    with pytest.raises(ModelError, match=r"spec\.json is damaged"):
        inspect(str(tiny_model.path))


def test_an_unknown_name_is_answered_with_the_nearest_and_all(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.path.parents[1])
    with pytest.raises(RecipeError) as caught:
        inspect("alexnt")
    assert caught.value.message == "'alexnt' is neither a recipe nor a model here; did you mean 'alexnet'?"
    assert caught.value.hint == (
        "Recipes: alexnet, alexnet-chm, alexnet-quarter, caffe-alexnet, caffenet, one-tower, torchvision\nModels: tiny"
    )
    with pytest.raises(RecipeError, match="did you mean 'tiny'"):
        inspect("tinny")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not something that can be inspected"):
        inspect(str(tmp_path))


@pytest.mark.parametrize("options", [{"overrides": ("architecture.towers=1",)}, {"num_classes": 10}])
def test_what_is_for_recipes_is_refused_for_models(tiny_model: ModelFolder, options: dict[str, object]) -> None:
    for target in (tiny_model.path, tiny_model.onnx_path(), tiny_model.weights_path):
        with pytest.raises(UsageError, match="overrides and num_classes change recipes"):
            inspect(str(target), **options)


def test_a_recipe_can_be_changed_though_a_model_is_named_after_it(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.path.parents[1])
    tiny_model.path.rename(tiny_model.path.with_name("alexnet"))
    assert inspect("alexnet").kind == "model"
    found = inspect("alexnet", overrides=("architecture.towers=1",))
    assert (found.kind, found.facts["towers"]) == ("recipe", 1)
    assert inspect("alexnet", num_classes=10).facts["classes"] == 10
    assert inspect("one-tower").kind == "recipe"


def test_a_wrong_override_is_an_error_of_the_recipe() -> None:
    with pytest.raises(AlexDeployError, match=r"unknown recipe key 'architecture\.tower'; did you mean 'towers'"):
        inspect("alexnet", overrides=("architecture.tower=1",))


def test_layers_of_an_engine_are_those_that_its_inspector_lists() -> None:
    """As NVIDIA's documentation of IEngineInspector shows them: with profiling details, and names only."""
    output = {"Name": "conv1", "Dimensions": [8, 96, 55, 55], "Format/Datatype": "Half"}
    layers = [{"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Outputs": [output]}, {"Name": "end"}, "fc8"]
    assert engine_layers(json.dumps({"Layers": layers, "Bindings": ["images"]})) == (
        LayerRow(name="conv1 + relu1", kind="CaskConvolution", output_shape=(96, 55, 55), detail="Half"),
        LayerRow(name="end", kind="", output_shape=()),
        LayerRow(name="fc8", kind="", output_shape=()),
    )
    assert engine_layers("{}") == ()
