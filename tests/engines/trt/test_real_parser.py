"""The parser and the builder of TensorRT read every graph that it is given: those of TensorRT-RTX, on a CPU.

TensorRT-RTX has the interface of TensorRT 11 and its ONNX parser. Nothing runs here: that takes an RTX card.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from gpu_here import why_no_tensorrt_rtx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from patience import slow_but_for
from their_graphs import STEPS, classifier, head, save, tail

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Member, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.trt.build import _build, _build_error, _Job, build_engine
from alexdeploy.engines.trt.files import BuildOptions, EngineKey
from alexdeploy.engines.trt.library import Library, load_library
from alexdeploy.engines.trt.network import read_network
from alexdeploy.engines.trt.target import find_target
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.quantize.int8 import to_int8
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.ensemble import join_networks
from alexdeploy.graphs.runner import run_graph
from alexdeploy.graphs.split import split_graph
from alexdeploy.graphs.tensorrt import engine_graph, opset_for
from alexdeploy.importing.onnx import OnnxOptions, import_onnx

WHY_NOT = why_no_tensorrt_rtx()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

Exported = Callable[..., ModelFolder]

RECIPES = ("alexnet", "alexnet-chm", "alexnet-quarter", "caffe-alexnet", "caffenet", "one-tower", "torchvision")
VARIANTS = (
    ("alexnet", "architecture.order=pool-lrn"),
    ("alexnet", "architecture.activation=silu"),
    ("alexnet", "architecture.activation=gelu"),
    ("alexnet", "architecture.activation=softplus"),
    ("alexnet", "architecture.lrn=none"),
    ("alexnet", "architecture.pooling.kind=average"),
    ("alexnet", "architecture.remove=['conv3', 'conv4']"),
)
VIEWS: tuple[NumViews, ...] = (1, 5, 10)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


def _networks(folder: ModelFolder) -> dict[Precision, onnx.ModelProto]:
    """The model's network in each precision."""
    fp32 = onnx.load(folder.onnx_path())
    size = folder.spec().preprocessing.crop
    images = np.random.default_rng(0).normal(0, 60, (2, 3, size, size)).astype(np.float32)
    read = [node.input[0] for node in fp32.graph.node if node.op_type in ("Conv", "Gemm")]
    inside = list(dict.fromkeys(name for name in read if name != "images"))
    values = {**dict(zip(inside, run_graph(fp32, images, inside), strict=True)), "images": images}
    thresholds = {name: float(np.abs(value).max()) for name, value in values.items()}
    return {"fp32": fp32, "fp16": to_fp16(fp32), "int8": to_int8(fp32, thresholds, folder.spec().preprocessing)}


def _content(folder: ModelFolder, network: onnx.ModelProto, num_views: int) -> bytes:
    spec = folder.spec()
    return engine_graph(network, spec, num_views, folder.mean_image(spec), opset_for(11)).SerializeToString()


def _parse(library: Library, content: bytes) -> dict[str, int]:
    """Operators of the network that the parser makes: type -> count."""
    network = read_network(library, library.api.Builder(library.log), content)
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        kind = network.get_layer(index).type.name
        counts[kind] = counts.get(kind, 0) + 1
    assert [network.get_input(0).name, network.num_inputs, network.num_outputs] == ["images", 1, 2]
    return counts


def _plan(
    library: Library,
    content: bytes,
    precision: Precision = "fp32",
    num_views: NumViews = 1,
    max_batch: int = 4,
    stop: threading.Event | None = None,
) -> bytes:
    """What our own build makes of a graph for RTX 30."""
    options = BuildOptions(backend="tensorrt-rtx", targets=("sm86",), max_batch=max_batch)
    target = find_target(library, options)
    key = EngineKey(
        graph_sha256="",
        weights_sha256="",
        contract_sha256="",
        precision=precision,
        num_views=num_views,
        profile=options.profile,
        backend="tensorrt-rtx",
        version=library.version,
        compute_capabilities=target.compute_capabilities,
        cuda="",
        builder={},
    )
    job = _Job(library=library, content=content, target=target, key=key, workspace_bytes=None, tactics=None)
    asked = stop or threading.Event()
    return _build(job, lambda phase, done, total: stop.set() if stop and done else None, asked)


@pytest.mark.parametrize("recipe", slow_but_for(("alexnet-quarter", "one-tower", "torchvision"), RECIPES))
def test_every_recipe_is_read_in_every_precision_and_number_of_views_and_built(
    exported: Exported, library: Library, recipe: str
) -> None:
    folder = exported(recipe)
    for precision, network in _networks(folder).items():
        for num_views in VIEWS:
            content = _content(folder, network, num_views)
            layers = _parse(library, content)
            weighted = sum(node.op_type in ("Conv", "Gemm") for node in network.graph.node)
            assert layers["CONVOLUTION"] + layers["MATRIX_MULTIPLY"] == weighted
            assert layers.get("LRN", 0) == sum(node.op_type == "LRN" for node in network.graph.node)
            # A plan holds the weights: it cannot be much smaller.
            if num_views == 10:
                assert len(_plan(library, content, precision, num_views)) > 100_000


@pytest.mark.parametrize(
    "variant", slow_but_for((*VARIANTS[:2], *VARIANTS[4:6]), VARIANTS), ids=lambda variant: variant[1].partition("=")[2]
)
def test_every_variant_of_the_architecture_is_read_and_built(
    exported: Exported, library: Library, variant: tuple[str, ...]
) -> None:
    folder = exported(*variant)
    networks = _networks(folder)
    for precision in ("fp16", "int8"):
        content = _content(folder, networks[precision], 10)
        _parse(library, content)
        if precision == "fp16":
            assert _plan(library, content, precision, 10)


def test_an_ensemble_is_read_in_every_precision_and_built(exported: Exported, library: Library) -> None:
    folders = [exported("alexnet"), exported("torchvision")]
    networks = [_networks(folder) for folder in folders]
    specs = [folder.spec() for folder in folders]
    members = tuple(
        Member(name=each.name, preprocessing=each.preprocessing, architecture=each.architecture) for each in specs
    )
    spec = dataclasses.replace(specs[0], architecture=None, members=members)
    means = np.load(folders[0].mean_path)[None]
    for precision in PRECISIONS:
        joined = join_networks([each[precision] for each in networks])
        content = engine_graph(joined, spec, 10, means, opset_for(11)).SerializeToString()
        _parse(library, content)
        assert _plan(library, content, precision, 10)


OPSETS = (7, *range(9, min(23, onnx.defs.onnx_opset_version()) + 1))


# Those below 13 are imported as 17.
@pytest.mark.parametrize("opset", slow_but_for((7, 13, 15, 17, 19, 21, 23), OPSETS))
def test_imported_networks_of_every_opset_are_read_and_built(tmp_path: Path, library: Library, opset: int) -> None:
    folder = ModelFolder(tmp_path / "models" / "theirs")
    path = save(classifier(opset=opset), tmp_path / "theirs.onnx")
    import_onnx(path, folder, OnnxOptions(preprocessing=STEPS))
    network = onnx.load(folder.onnx_path())
    for num_views in VIEWS:
        _parse(library, _content(folder, network, num_views))
    assert _plan(library, _content(folder, network, 10), num_views=10)


@pytest.mark.parametrize("placement", ["towers", "pipeline"])
def test_every_stage_of_a_split_network_is_read(exported: Exported, library: Library, placement: str) -> None:
    folder = exported("alexnet")
    spec = folder.spec()
    for precision in ("fp32", "fp16"):
        network = _networks(folder)[precision]
        deployed = deployment_graph(network, spec, 10, folder.mean_image(spec))
        stages = [stage for step in split_graph(deployed, placement).steps for stage in step]
        assert len(stages) > 1
        for stage in stages:
            content = stage.model.SerializeToString()
            network_read = read_network(library, library.api.Builder(library.log), content)
            names = [network_read.get_output(index).name for index in range(network_read.num_outputs)]
            assert set(names) == set(stage.outputs)


UNSUPPORTED: dict[str, tuple[list[NodeProto], str]] = {
    "an operator it lacks": (
        [helper.make_node("Det", ["x"], ["y"], name="volume")],
        r"has a node that it does not support: volume \(Det\): there is no such operator in it",
    ),
    "an operator of another domain": (
        [helper.make_node("FusedMatMul", ["x", "x"], ["y"], name="fused", domain="com.microsoft")],
        r"has a node that it does not support: fused \(FusedMatMul\): there is no such operator in it",
    ),
    "a node without a name": (
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"])],
        r"does not support: node 1 \(Det\): there is no such operator in it",
    ),
    "an attribute": (
        [helper.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[3, 3], dilations=[2, 2])],
        r"does not support: pool \(MaxPool\): This version of TensorRT does not support dilations other than 1\.",
    ),
    "bytes inside": (
        [
            helper.make_node("Cast", ["x"], ["u"], name="to_bytes", to=TensorProto.UINT8),
            helper.make_node("Relu", ["u"], ["y"]),
        ],
        r"does not support: to_bytes \(Cast\): TensorRT does not support UINT8 types for intermediate tensors",
    ),
    "an even window": (
        [helper.make_node("LRN", ["x"], ["y"], name="norm", size=4)],
        r"cannot be read: norm \(LRN\): Parameter check failed, condition: \(windowSize >=",
    ),
    "types that differ": (
        [helper.make_node("Conv", ["x", "half.w"], ["y"], name="conv")],
        r"cannot be read: conv \(Conv\): conv: IConvolutionLayer `input` and `kernel` must be of same type",
    ),
    "an input that nobody makes": (
        [helper.make_node("Add", ["x", "gone"], ["y"], name="sum")],
        r"cannot be read: sum \(Add\): Node input was not registered\.",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_the_parser_refuses_is_named_by_node_and_operator(library: Library, case: str) -> None:
    nodes, words = UNSUPPORTED[case]
    half = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float16), "half.w")
    graph = helper.make_graph(
        nodes,
        "refused",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [half],
    )
    domains = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    content = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    with pytest.raises(ModelError, match=words) as caught:
        _parse(library, content)
    assert caught.value.message.startswith(f"TensorRT-RTX {library.version}: the graph ")
    assert "false" not in caught.value.message
    assert "--backend onnxruntime" in str(caught.value.hint)
    assert library.take_log() == "", "nothing is left for the next error"


def test_a_file_that_is_no_graph_is_a_model_error(library: Library) -> None:
    with pytest.raises(ModelError, match="cannot be read: the file: Failed to parse the ONNX model"):
        _parse(library, b"nonsense")


def test_an_imported_operator_that_it_lacks_is_refused_in_our_words(tmp_path: Path, library: Library) -> None:
    # The determinant of each 1 x 1 matrix flattens what the convolution made of an image.
    det = helper.make_node("Det", ["features"], ["flat"], name="det")
    nodes = [*head(), det, *tail()[1:]]
    folder = ModelFolder(tmp_path / "models" / "theirs")
    import_onnx(save(classifier(nodes), tmp_path / "theirs.onnx"), folder, OnnxOptions(preprocessing=STEPS))
    with pytest.raises(ModelError, match=r"does not support: det \(Det\): there is no such operator in it"):
        _parse(library, _content(folder, onnx.load(folder.onnx_path()), 1))


def test_a_batch_beyond_what_a_tensor_may_hold_is_a_bad_profile(exported: Exported, library: Library) -> None:
    folder = exported("alexnet")
    content = _content(folder, onnx.load(folder.onnx_path()), 1)
    with pytest.raises(
        UsageError, match=r"rejected a profile of 1 to 100000000 images, best 100000000: images: tensor"
    ):
        _plan(library, content, max_batch=100_000_000)


def test_the_builder_ends_at_the_next_step_when_it_is_told_to(exported: Exported, library: Library) -> None:
    folder = exported("alexnet")
    content = _content(folder, onnx.load(folder.onnx_path()), 10)
    with pytest.raises(DeviceError, match="the build was interrupted"):
        _plan(library, content, stop=threading.Event())
    assert _plan(library, content), "the next build is not told"


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("Cuda Runtime (out of memory)", DeviceMemoryError, "--max-batch"),
        ("tactic skipped: Insufficient workspace of 4 bytes", DeviceMemoryError, "--workspace"),
        ("Could not find any implementation for node conv1", ModelError, "--tactic-sources"),
        ("Network must be in FP16 for Turing (SM75)", ModelError, "--fp16"),
        ("something else", ModelError, None),
    ],
)
def test_what_the_builder_says_decides_what_helps(
    library: Library, said: str, kind: type[AlexDeployError], hint: str | None
) -> None:
    library.log.log(library.api.ILogger.ERROR, said)
    error = _build_error(library, (1, 8, 8))
    assert type(error) is kind
    assert said in error.message
    assert error.hint is None if hint is None else hint in str(error.hint)


def test_all_that_the_library_says_is_shown_with_debug(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_DEBUG", "1")
    library.log.log(library.api.ILogger.WARNING, "a warning")
    library.log.log(library.api.ILogger.VERBOSE, "a detail")
    assert capsys.readouterr().err == "tensorrt-rtx: a warning\n"


def test_engines_of_bfloat16_are_not_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not built in bf16"):
        build_engine(ModelFolder(tmp_path), BuildOptions(precision="bf16", backend="tensorrt-rtx"))
