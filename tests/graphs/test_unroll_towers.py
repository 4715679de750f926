from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images
from onnx import helper, numpy_helper
from patience import slow_but_for

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.unroll_towers import tower_folds, unroll_towers


def _run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def _deployed(folder: ModelFolder, precision: str = "fp32") -> onnx.ModelProto:
    spec = folder.spec()
    return deployment_graph(onnx.load(folder.onnx_path(precision)), spec, 5, folder.mean_image(spec))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_branches_give_the_answers_of_the_folded_towers(tiny_model: ModelFolder, precision: str) -> None:
    images = smooth_images(4)
    expected = _run(_deployed(tiny_model, precision), images)
    unrolled = unroll_towers(_deployed(tiny_model, precision))
    onnx.checker.check_model(unrolled, full_check=True)
    found = _run(unrolled, images)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6 if precision == "fp32" else 2e-3)
    np.testing.assert_array_equal(found[1], expected[1])


VARIANTS = (
    ("architecture.order=pool-lrn",),
    ("architecture.activation=silu",),
    ("architecture.activation=gelu",),
    ("architecture.activation=softplus",),
    ("architecture.pooling.kind=average",),
    ("architecture.remove=['conv3', 'conv4']",),
    ("architecture.remove=['conv3']",),
)


@pytest.mark.parametrize("overrides", slow_but_for((*VARIANTS[:3], VARIANTS[4], VARIANTS[6]), VARIANTS))
def test_every_variant_with_towers_can_be_unrolled(
    exported: Callable[..., ModelFolder], overrides: tuple[str, ...]
) -> None:
    folder, images = exported("alexnet", *overrides), smooth_images(2)
    expected, found = _run(_deployed(folder), images), _run(unroll_towers(_deployed(folder)), images)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_the_branches_have_no_reshape_and_no_groups_up_to_where_they_join(tiny_model: ModelFolder) -> None:
    graph = unroll_towers(_deployed(tiny_model)).graph
    names = [node.name for node in graph.node]
    assert not [name for name in names if name.endswith(("_split", "_merge"))]
    assert {"conv1/tower0", "norm1/tower1", "conv2/tower1", "pool2/tower0", "pool2/joined", "conv3"} <= set(names)
    weights = {tensor.name for tensor in graph.initializer}
    assert "conv1.weight/tower0" in weights
    assert "conv1.weight" not in weights


def test_a_graph_without_towers_stays_as_it_is(exported: Callable[..., ModelFolder]) -> None:
    model = onnx.load(exported("caffenet").onnx_path())
    before = model.SerializeToString(deterministic=True)
    assert unroll_towers(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("operator", "groups", "is_fold"), [("LRN", 2, True), ("LRN", 4, False), ("Softmax", 2, False)]
)
def test_a_fold_of_two_towers_is_told_by_what_it_does_and_not_by_its_name(
    operator: str, groups: int, is_fold: bool
) -> None:
    attributes = {"size": 5} if operator == "LRN" else {"axis": 1}
    nodes = [
        helper.make_node("Reshape", ["maps", "half"], ["folded"], name="heads_split"),
        helper.make_node(operator, ["folded"], ["inner"], **attributes),
        helper.make_node("Reshape", ["inner", "whole"], ["out"], name="other"),
    ]
    shapes = {"half": [-1, 8 // groups, 14, 14], "whole": [-1, 8, 14, 14]}
    weights = {name: numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items()}
    assert tower_folds(nodes, weights) == ({"folded", "inner", "out"} if is_fold else set())


def test_an_lrn_over_all_maps_behind_one_per_tower_sees_both_towers(tiny_model: ModelFolder) -> None:
    def with_a_second_lrn() -> onnx.ModelProto:
        model = _deployed(tiny_model)
        merge = next(node for node in model.graph.node if node.name == "norm1_merge")
        after = helper.make_node("LRN", ["once"], list(merge.output), name="again", size=5, alpha=1.0, beta=0.75)
        merge.output[:] = ["once"]
        model.graph.node.insert(list(model.graph.node).index(merge) + 1, after)
        return model

    expected, found = (
        _run(model, smooth_images(2)) for model in (with_a_second_lrn(), unroll_towers(with_a_second_lrn()))
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
