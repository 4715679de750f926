"""The deployment graph of several networks: the mean of what each gives, in every form that an engine derives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from helpers import smooth_images
from onnx import numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.metrics import softmax
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Member, ModelSpec, Precision, Preprocessing
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.quantize.int8 import to_int8
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.ensemble import join_networks, parts
from alexdeploy.graphs.openvino import openvino_graph
from alexdeploy.graphs.runner import GraphRunner, run_graph
from alexdeploy.graphs.tensorrt import engine_graph
from alexdeploy.images.preprocess import network_input

Exported = Callable[..., ModelFolder]

ROUNDING = 1e-6
"""Probabilities of a float32 sum in another order; each is at most 1."""


@pytest.fixture(scope="module")
def folders(exported: Exported) -> tuple[ModelFolder, ...]:
    """Two towers with a mean image; another order of channels and mean image; another crop and no LRN."""
    return exported("alexnet"), exported("alexnet", "preprocessing.channels=bgr"), exported("torchvision")


def in_precision(folder: ModelFolder, precision: Precision) -> onnx.ModelProto:
    network = onnx.load(folder.onnx_path())
    if precision == "fp32":
        return network
    if precision == "fp16":
        return to_fp16(network)
    spec = folder.spec()
    images = np.concatenate([network_input(image, spec.preprocessing, 1, folder.mean_image(spec)) for image in IMAGES])
    read = [node.input[0] for node in network.graph.node if node.op_type in ("Conv", "Gemm")]
    inside = list(dict.fromkeys(name for name in read if name != "images"))
    values = {**dict(zip(inside, run_graph(network, images, inside), strict=True)), "images": images}
    return to_int8(network, {name: float(np.abs(each).max()) for name, each in values.items()}, spec.preprocessing)


IMAGES = smooth_images(4)


def spec_of(folders: Sequence[ModelFolder]) -> ModelSpec:
    specs = [folder.spec() for folder in folders]
    return ModelSpec(
        name="several",
        classes=specs[0].classes,
        preprocessing=Preprocessing(resize=specs[0].preprocessing.resize, mean_image="0" * 64),
        members=tuple(
            Member(name=each.name, preprocessing=each.preprocessing, architecture=each.architecture) for each in specs
        ),
    )


def means_of(folders: Sequence[ModelFolder]) -> np.ndarray:
    means = [folder.mean_image(folder.spec()) for folder in folders]
    return np.stack([mean for mean in means if mean is not None])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("num_views", [1, 10])
def test_answers_are_the_mean_of_the_members(
    folders: tuple[ModelFolder, ...], precision: Precision, num_views: int
) -> None:
    networks = [in_precision(folder, precision) for folder in folders]
    # From the plain networks and the reference preprocessing in NumPy, in float64.
    by_view = []
    for folder, network in zip(folders, networks, strict=True):
        spec = folder.spec()
        mean = folder.mean_image(spec)
        views = [network_input(image, spec.preprocessing, num_views, mean) for image in IMAGES]
        (output,) = GraphRunner(network).outputs
        by_view.append(np.stack([softmax(GraphRunner(network).run(each)[output]) for each in views]))
    expected = np.mean(by_view, axis=0)

    graph = deployment_graph(join_networks(networks), spec_of(folders), num_views, means_of(folders))
    onnx.checker.check_model(graph, full_check=True)
    found = GraphRunner(graph).run(IMAGES)
    # INT8 engines, and FP16 here, round the same numbers; only a tie that falls to the other side moves a value.
    tolerance = {"fp32": ROUNDING, "fp16": 1e-4, "int8": 1e-3}[precision]
    np.testing.assert_allclose(found["probabilities"], expected.mean(axis=1), rtol=0, atol=tolerance)
    chosen = np.take_along_axis(expected, found["view_classes"][..., None].astype(int), axis=2)[..., 0]
    assert (expected.max(axis=2) - chosen).max() <= 2 * tolerance


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_form_for_an_engine_has_the_same_answers(folders: tuple[ModelFolder, ...], precision: Precision) -> None:
    joined, spec, means = (
        join_networks([in_precision(folder, precision) for folder in folders]),
        spec_of(folders),
        means_of(folders),
    )
    expected = GraphRunner(deployment_graph(joined, spec, 5, means)).run(IMAGES)
    for graph in (
        openvino_graph(joined, spec, precision, 5, means),
        openvino_graph(joined, spec, precision, 5, means, unsigned=precision == "int8"),
        engine_graph(joined, spec, 5, means, 17),
        engine_graph(joined, spec, 5, means, 19),
    ):
        found = GraphRunner(graph).run(IMAGES)
        tolerance = ROUNDING if precision == "fp32" else 1e-3
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], rtol=0, atol=tolerance)


def test_a_member_comes_out_as_it_went_in(folders: tuple[ModelFolder, ...]) -> None:
    networks = [in_precision(folder, "int8") for folder in folders]
    spec, means = spec_of(folders), means_of(folders)
    for folder, network, part in zip(folders, networks, parts(join_networks(networks), spec, means), strict=True):
        assert list(part.network.graph.node) == list(network.graph.node)
        assert list(part.network.graph.initializer) == list(network.graph.initializer)
        assert part.spec.preprocessing == folder.spec().preprocessing
        mean = folder.mean_image(folder.spec())
        assert part.mean_image is None if mean is None else np.array_equal(part.mean_image, mean)


def test_equal_preprocessing_is_computed_once(folders: tuple[ModelFolder, ...]) -> None:
    first, second, third = folders
    for members, num_cut, num_constants in (
        # The same model twice has one mean image, and cuts views once.
        ((first, first), 1, 1),
        # Another order of channels is another image, here minus the same mean.
        ((first, second), 2, 1),
        # torchvision has a mean per channel, and views of another size.
        ((first, third, third), 2, 1),
    ):
        networks = [in_precision(folder, "fp32") for folder in members]
        graph = deployment_graph(join_networks(networks), spec_of(members), 1, means_of(members)).graph
        assert sum(node.op_type == "Slice" for node in graph.node) == num_cut
        assert [node.op_type for node in graph.node].count("Cast") == 2
        images = [numpy_helper.to_array(each) for each in graph.initializer if each.dims == [1, 3, 256, 256]]
        assert len(images) == num_constants


def test_a_graph_with_other_members_than_its_spec_is_refused(folders: tuple[ModelFolder, ...]) -> None:
    joined = join_networks([in_precision(folder, "fp32") for folder in folders])
    with pytest.raises(ModelError, match="the graph has 3 inputs, expected one for each member"):
        deployment_graph(joined, spec_of(folders[:2]), 1, means_of(folders[:2]))
    with pytest.raises(ModelError, match="the graph has 1 inputs"):
        deployment_graph(in_precision(folders[0], "fp32"), spec_of(folders), 1, means_of(folders))
