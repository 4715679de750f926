from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.export.deployment import deployment_graph
from alexdeploy.export.towers import unroll_towers


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


@pytest.mark.parametrize(
    "overrides",
    [
        ("architecture.order=pool-lrn",),
        ("architecture.activation=silu",),
        ("architecture.activation=gelu",),
        ("architecture.activation=softplus",),
        ("architecture.remove=['conv3', 'conv4']",),
        ("architecture.remove=['conv3']",),
    ],
)
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
