"""MatConvNet's networks as model folders, against its own arithmetic written here in its own order of axes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import caffe_files
import h5py
import matlab_files as files
import numpy as np
import onnx
import pytest
from patience import slow_but_for
from safetensors.numpy import load_file

from alexdeploy.core.errors import AlexDeployError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export.export import export_model
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.weights import WeightsOptions, import_weights

WEIGHTS = caffe_files.weights()
FORMATS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "v5": lambda variables: files.version_5(variables, compressed=False),
    "v7": files.version_5,
    "v7.3": files.version_7_3,
    "v7.3 compressed": lambda variables: files.version_7_3(variables, compression="gzip"),
}


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "theirs")


def imported(tmp_path: Path, folder: ModelFolder, content: bytes, **options: Any) -> list[str]:
    (tmp_path / "theirs.mat").write_bytes(content)
    warnings: list[str] = []
    import_weights(tmp_path / "theirs.mat", folder, WeightsOptions(**options), warnings.append)
    return warnings


def refused(tmp_path: Path, folder: ModelFolder, content: bytes, error: type[AlexDeployError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        imported(tmp_path, folder, content)
    assert not folder.path.exists()
    return caught.value.text


def matconvnet(variables: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """The scores for a 227 x 227 RGB image: vl_simplenn up to the softmax, float64, on [H, W, C]."""
    about = variables.get("meta", variables)
    x = image.astype(np.float64) - about["normalization"]["averageImage"].reshape(-1, image.shape[1], 3)[: len(image)]
    for layer in variables["layers"].ravel():
        if layer["type"] == "conv":
            kernels, biases = layer["weights"].ravel() if "weights" in layer else (layer["filters"], layer["biases"])
            x = conv(x, kernels.astype(np.float64), biases.ravel(), int(layer["stride"][0, 0]), int(layer["pad"][0, 0]))
        elif layer["type"] == "relu":
            x = np.maximum(x, 0)
        elif layer["type"] == "pool":
            reduce = partial(np.mean if layer["method"] == "avg" else np.max, axis=(0, 1))
            x = np.stack(
                [
                    [reduce(x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]) for j in range((x.shape[1] - 3) // 2 + 1)]
                    for i in range((x.shape[0] - 3) // 2 + 1)
                ]
            )
        elif layer["type"] in ("normalize", "lrn"):
            # vl_nnnormalize: kappa + alpha * sum, the sum not divided by the size.
            size, kappa, alpha, beta = layer["param"].ravel()
            sums = [
                (x[..., max(0, c - int(size) // 2) : c + int(size) // 2 + 1] ** 2).sum(axis=-1)
                for c in range(x.shape[-1])
            ]
            x = x / (kappa + alpha * np.stack(sums, axis=-1)) ** beta
    return x.ravel()


def conv(x: np.ndarray, kernels: np.ndarray, biases: np.ndarray, stride: int, padding: int) -> np.ndarray:
    side, _, inputs, outputs = kernels.shape
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    groups = x.shape[2] // inputs
    rows, columns = ((length - side) // stride + 1 for length in x.shape[:2])
    out = np.empty((rows, columns, outputs))
    for g in range(groups):
        part = x[..., g * inputs : (g + 1) * inputs]
        own = slice(g * outputs // groups, (g + 1) * outputs // groups)
        flat = kernels[..., own].reshape(-1, outputs // groups)
        for i in range(rows):
            for j in range(columns):
                window = part[i * stride : i * stride + side, j * stride : j * stride + side]
                out[i, j, own] = window.ravel() @ flat
    return out + biases


@pytest.mark.parametrize(
    ("form", "tidy", "pool_first", "method"),
    [
        ("v5", False, False, "max"),
        ("v7", True, False, "avg"),
        ("v7.3", True, False, "max"),
        ("v7.3 compressed", False, True, "max"),
    ],
)
def test_a_network_gives_its_own_scores_for_the_centre_view(
    tmp_path: Path, folder: ModelFolder, form: str, tidy: bool, pool_first: bool, method: str
) -> None:
    variables = files.network(WEIGHTS, tidy=tidy, pool_first=pool_first)
    for layer in variables["layers"].ravel():
        if layer["type"] == "pool":
            layer["method"] = method
    warnings = imported(tmp_path, folder, FORMATS[form](variables))
    spec = folder.spec()
    steps, architecture = spec.preprocessing, spec.architecture
    assert (steps.channels, steps.resize, steps.scale, steps.crop) == ("rgb", "warp", 1.0, 227)
    assert architecture is not None
    assert (architecture.towers, architecture.order) == (2, "pool-lrn" if pool_first else "lrn-pool")
    assert architecture.pooling.kind == {"max": "max", "avg": "average"}[method]
    assert architecture.lrn is not None
    assert (architecture.lrn.size, architecture.lrn.alpha, architecture.lrn.k) == (5, 1e-4, 1.0)
    assert spec.classes[0] == "n00440764 tench, Tinca tinca"
    assert len(warnings) == 1
    assert "averageImage is 227x227: exact for the centre view" in warnings[0]
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(load_file(folder.weights_path)[name], value)
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    export_model(folder)
    (logits,) = run_graph(onnx.load(folder.onnx_path()), network_input(image, steps, 1, folder.mean_image(spec)))
    expected = matconvnet(variables, image[14:241, 14:241])
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_corner_views_have_the_nearest_edge_of_the_average_image(tmp_path: Path, folder: ModelFolder) -> None:
    imported(tmp_path, folder, files.version_5(files.network(WEIGHTS)))
    mean, average = folder.mean_image(folder.spec()), files.average_image().transpose(2, 0, 1)
    assert mean is not None
    np.testing.assert_array_equal(mean[:, 14:241, 14:241], average)
    np.testing.assert_array_equal(mean[:, :14, 100], average[:, :1, 86].repeat(14, axis=1))
    np.testing.assert_array_equal(mean[:, 255, 255], average[:, 226, 226])


def test_a_mean_per_channel_is_taken_as_it_is(tmp_path: Path, folder: ModelFolder) -> None:
    average = np.array([123.68, 116.779, 103.939]).reshape(1, 1, 3)
    assert imported(tmp_path, folder, files.version_5(files.network(WEIGHTS, average=average))) == []
    assert folder.spec().preprocessing.mean == (123.68, 116.779, 103.939)


def test_what_is_given_goes_before_what_the_file_says(tmp_path: Path, folder: ModelFolder) -> None:
    content = files.version_5(files.network(WEIGHTS))
    given = {"mean": (1.0, 2.0, 3.0), "resize": "crop"}
    imported(tmp_path, folder, content, steps=given, classes=tuple("abcdefg"), recipe=caffe_files.narrow(tmp_path))
    spec = folder.spec()
    assert (spec.preprocessing.mean, spec.preprocessing.resize) == ((1.0, 2.0, 3.0), "crop")
    # Of the recipe, which is Caffe's, and of the file, the file is right.
    assert spec.preprocessing.channels == "rgb"
    assert spec.classes == tuple("abcdefg")
    other = ModelFolder(folder.path.parent / "other")
    mean = np.full((3, 256, 256), 100, np.float32)
    imported(tmp_path, other, content, mean_image=mean)
    np.testing.assert_array_equal(other.mean_image(other.spec()), mean)


def test_a_file_without_a_mean_asks_for_one(tmp_path: Path, folder: ModelFolder) -> None:
    content = files.version_5(files.network(WEIGHTS, average=np.zeros((1, 2))))
    assert "does not say which mean was subtracted" in refused(tmp_path, folder, content, UsageError)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    variables = files.network(WEIGHTS)
    for layer in variables["layers"].ravel():
        if layer["name"] == name:
            layer.update(fields)
    return variables


def sized(*sides: float) -> dict[str, Any]:
    variables = files.network(WEIGHTS)
    variables["meta"]["normalization"]["imageSize"] = files.row(*sides)
    return variables


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"data": np.zeros((3, 3))}, "contains no MatConvNet network: expected a cell array `layers`"),
        ({"layers": files.cell({"type": "dagnn.Conv"}), "params": files.cell({"name": "f"})}, "is a DagNN network"),
        (changed("conv3", type="bnorm"), "conv3 is of type bnorm, which no AlexNet has"),
        (changed("conv3", type=files.row(1)), "layer 9 has no type"),
        (changed("conv2", weights=files.cell(np.zeros((5, 5, 4, 16)))), "conv2 has no filters and biases"),
        (sized(227, 200, 3), "normalization.imageSize is 227 x 200; expected a square of at most 256 pixels"),
        (sized(300, 300, 3), "normalization.imageSize is 300 x 300; expected a square of at most 256 pixels"),
        (changed("pool1", method="sum"), "pool1 pools by sum; expected max or avg"),
        (changed("pool1", pad=files.row(1, 1, 1, 1)), "pool1 pools 3 pixels with padding [1.0, 1.0, 1.0, 1.0]"),
        (changed("conv2", stride=files.row(1, 2)), "conv2 has stride [1.0, 2.0]; expected the same whole number"),
        (changed("conv2", dilate=files.row(2, 2)), "conv2 is dilated"),
        (changed("conv2", weights=files.cell(np.zeros((5, 5, 3, 16)), np.zeros((1, 16)))), "for an input of 8 maps"),
        (changed("conv2", weights=files.cell(np.zeros((5, 4, 4, 16)), np.zeros((1, 16)))), "expected square ones"),
        (changed("norm1", param=files.row(5, 1, 2e-5)), "norm1 has the parameters [5.0, 1.0, 2e-05]"),
        (changed("conv5", pad=files.row(0, 0, 0, 0), stride=files.row(40, 40)), "leaves nothing of its input"),
        (files.network(WEIGHTS, average=np.full((227, 227, 3), np.nan)), "averageImage contains values outside"),
        (files.network(WEIGHTS, average=np.full((100, 100, 3), 9.0)), "averageImage is [100, 100, 3]"),
        (files.network({**WEIGHTS, "conv1.bias": WEIGHTS["conv1.bias"] * np.nan}), "contains NaN or infinity"),
    ],
)
@pytest.mark.parametrize("form", slow_but_for(("v7.3",), ("v7", "v7.3")))
def test_what_is_no_alexnet_is_refused_by_the_name_of_the_layer(
    tmp_path: Path, folder: ModelFolder, variables: dict[str, Any], message: str, form: str
) -> None:
    assert message in refused(tmp_path, folder, FORMATS[form](variables))


def test_pooling_with_padding_at_the_end_is_caffes_rounding_up(tmp_path: Path, folder: ModelFolder) -> None:
    """As import-caffe.py writes it: one row and column more, which at these sizes changes nothing."""
    imported(tmp_path, folder, files.version_5(changed("pool5", pad=files.row(0, 1, 0, 1))))
    assert folder.spec().num_classes == 7


@pytest.mark.parametrize("form", ["v7", "v7.3"])
def test_biases_that_are_empty_are_zeros_and_dropout_is_kept(tmp_path: Path, folder: ModelFolder, form: str) -> None:
    empty = np.zeros((0, 0), np.float32)
    variables = changed("conv3", weights=files.cell(files.filters(WEIGHTS)["conv3"], empty))
    layers = list(variables["layers"].ravel())
    for index, name in ((6, "relu6"), (7, "relu7")):
        place = [layer["name"] for layer in layers].index(name) + 1
        layers.insert(place, {"name": f"drop{index}", "type": "dropout", "rate": files.row(0.4)})
    imported(tmp_path, folder, FORMATS[form]({**variables, "layers": files.cell(*layers)}))
    weights, architecture = load_file(folder.weights_path), folder.spec().architecture
    assert not weights["conv3.bias"].any()
    np.testing.assert_array_equal(weights["conv3.weight"], WEIGHTS["conv3.weight"])
    assert architecture is not None
    assert architecture.dropout == 0.4


@pytest.mark.parametrize(
    "classes",
    [
        files.row(1),
        {"name": files.cell("a", "b"), "description": files.cell("only one")},
        {"name": files.cell(files.row(1))},
    ],
    ids=["no struct", "lists that differ", "no texts"],
)
@pytest.mark.parametrize("form", ["v7", "v7.3"])
def test_classes_in_no_known_form_are_left_to_the_labels(
    tmp_path: Path, folder: ModelFolder, classes: Any, form: str
) -> None:
    variables = files.network(WEIGHTS)
    variables["meta"]["classes"] = classes
    imported(tmp_path, folder, FORMATS[form](variables))
    assert folder.spec().classes == tuple(f"class-{index}" for index in range(7))


@pytest.mark.parametrize("form", ["v5", "v7", "v7.3"])
def test_a_truncated_file_is_refused(tmp_path: Path, folder: ModelFolder, form: str) -> None:
    content = FORMATS[form](files.network(WEIGHTS))
    for length in (600, len(content) // 2, len(content) - 200):
        assert "theirs.mat" in refused(tmp_path, folder, content[:length])


def test_without_h5py_the_package_is_named(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = files.version_7_3(files.network(WEIGHTS))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'alexdeploy[matlab]'" in refused(tmp_path, folder, content, UsageError)
    imported(tmp_path, folder, files.version_5(files.network(WEIGHTS)))


def hdf5(fill: Callable[[h5py.File], None]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as root:
        fill(root)
    return b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + file.getvalue()[128:]


def _bomb(root: h5py.File) -> None:
    root.create_dataset("layers", (1 << 32,), np.float64, chunks=(1 << 20,), compression="gzip", fillvalue=0.5)


def _external_link(root: h5py.File) -> None:
    root["layers"] = h5py.ExternalLink("/dev/zero", "layers")


def _external_values(root: h5py.File) -> None:
    root.create_dataset("layers", (8,), np.float64, external=[("/dev/zero", 0, 64)])


def _itself(root: h5py.File) -> None:
    layers = root.create_group("layers")
    layers["again"] = layers


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_bomb, "much more than its own size"),
        (_external_link, "layers is a link to another place"),
        (_external_values, "/layers has its values in another file"),
        (_itself, "values nested deeper than"),
    ],
)
def test_an_hdf5_file_that_reaches_out_of_itself_is_refused(
    tmp_path: Path, folder: ModelFolder, fill: Callable[[h5py.File], None], message: str
) -> None:
    assert message in refused(tmp_path, folder, hdf5(fill))
