"""caffe-tensorflow's .npy of weights by layer, and pickles that mean harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caffe_files as files
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from alexdeploy.core.errors import AlexDeployError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export.export import export_model
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.weights import WeightsOptions, import_weights

WEIGHTS = files.weights()
MEAN = (104.0, 117.0, 124.0)


def by_layer(weights: dict[str, np.ndarray] = WEIGHTS) -> dict[str, list[np.ndarray]]:
    """Convolutions [H, W, I, O], fully connected layers [I, O], fc6's inputs in the order H, W, C."""
    layers = {}
    for name in (name.removesuffix(".weight") for name in weights if name.endswith(".weight")):
        value = weights[f"{name}.weight"]
        if name == "fc6":
            value = value.reshape(len(value), -1, 6, 6).transpose(0, 2, 3, 1).reshape(len(value), -1)
        layers[name] = [value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T, weights[f"{name}.bias"]]
    return layers


LAYERS = by_layer()


def npy(pickled: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def saved(value: object) -> bytes:
    """As NumPy saves it today."""
    file = io.BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


def python_2(value: Any) -> bytes:
    """The opcodes of protocol 2 as NumPy under Python 2 wrote them: every str is of bytes."""
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, list):
        return b"](" + b"".join(map(python_2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python_2(key) + python_2(each) for key, each in value.items()) + b"u"
    sides = b"(" + b"".join(b"M" + struct.pack("<H", side) for side in value.shape) + b"t"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + sides
    kind = b"O8" if value.dtype == object else b"f4"
    order = b"|" if value.dtype == object else b"<"
    end = b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01" + order + b"NNN" + end
    if value.dtype == object:
        return start + dtype + b"\x89](" + python_2(value.item()) + b"etb"
    # Fortran's order, as NumPy keeps what Caffe's blobs become by transposing.
    is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    data = value.tobytes(order="F" if is_fortran else "C")
    return start + dtype + (b"\x88" if is_fortran else b"\x89") + b"T" + struct.pack("<i", len(data)) + data + b"tb"


def saved_by_python_2(value: object) -> bytes:
    return npy(b"\x80\x02" + python_2(np.array(value, dtype=object)) + b".")


FORMS: dict[str, Callable[[], bytes]] = {
    "today's": lambda: saved(LAYERS),
    "Python 2's": lambda: saved_by_python_2(dict(reversed(LAYERS.items()))),
    "named": lambda: saved({name: {"weights": pair[0], "biases": pair[1]} for name, pair in LAYERS.items()}),
    "named by Python 2": lambda: saved_by_python_2(
        {name: {"biases": pair[1], "weights": pair[0]} for name, pair in LAYERS.items()}
    ),
    "protocol 2": lambda: npy(pickle.dumps(np.array(LAYERS, dtype=object), protocol=2)),
}


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "theirs")


def refused(tmp_path: Path, folder: ModelFolder, content: bytes, error: type[AlexDeployError] = ModelError) -> str:
    (tmp_path / "theirs.npy").write_bytes(content)
    with pytest.raises(error) as caught:
        import_weights(
            tmp_path / "theirs.npy", folder, WeightsOptions(recipe=files.narrow(tmp_path), steps={"mean": MEAN})
        )
    assert not folder.path.exists()
    return caught.value.text


@pytest.mark.parametrize("form", list(FORMS))
def test_weights_by_layer_come_back_bit_for_bit(tmp_path: Path, folder: ModelFolder, form: str) -> None:
    (tmp_path / "theirs.npy").write_bytes(FORMS[form]())
    options = WeightsOptions(recipe=files.narrow(tmp_path), steps={"mean": MEAN})
    spec = import_weights(tmp_path / "theirs.npy", folder, options)
    assert (spec.preprocessing.channels, spec.preprocessing.resize) == ("bgr", "warp")
    found = load_file(folder.weights_path)
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)


def test_its_graph_gives_what_tensorflow_computes_of_the_layers(tmp_path: Path, folder: ModelFolder) -> None:
    (tmp_path / "theirs.npy").write_bytes(saved(LAYERS))
    options = WeightsOptions(recipe=files.narrow(tmp_path), steps={"mean": MEAN})
    spec = import_weights(tmp_path / "theirs.npy", folder, options)
    export_model(folder)
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    (logits,) = run_graph(onnx.load(folder.onnx_path()), network_input(image, spec.preprocessing, 1))
    expected = tensorflow(image[14:241, 14:241, ::-1].astype(np.float64) - MEAN)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def tensorflow(image: np.ndarray) -> np.ndarray:
    """The scores for [H, W, C], BGR, float64: layers as they are in the file, images flattened channels last."""
    f = torch.nn.functional
    x = torch.from_numpy(image)
    w = {name: [torch.from_numpy(np.array(each, np.float64)) for each in pair] for name, pair in LAYERS.items()}
    for index, (stride, padding, groups) in enumerate([(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)], start=1):
        kernels, biases = w[f"conv{index}"]
        planes = f.conv2d(x.permute(2, 0, 1)[None], kernels.permute(3, 2, 0, 1), biases, stride, padding, 1, groups)
        x = planes[0].permute(1, 2, 0).relu()
        if index < 3:
            # tf.nn.lrn(depth_radius=2, alpha=2e-05, beta=0.75, bias=1.0): the sum is not divided.
            sums = [(x[..., max(0, c - 2) : c + 3] ** 2).sum(-1) for c in range(x.shape[-1])]
            x = x / (1 + 2e-5 * torch.stack(sums, -1)) ** 0.75
        if index in (1, 2, 5):
            x = f.max_pool2d(x.permute(2, 0, 1)[None], 3, 2)[0].permute(1, 2, 0)
    x = (x.reshape(-1) @ w["fc6"][0] + w["fc6"][1]).relu()
    x = (x @ w["fc7"][0] + w["fc7"][1]).relu()
    return (x @ w["fc8"][0] + w["fc8"][1]).numpy()


def test_the_recipe_is_that_of_the_published_name_or_is_asked_for(tmp_path: Path, folder: ModelFolder) -> None:
    warnings: list[str] = []
    options = WeightsOptions(steps={"mean": MEAN})
    (tmp_path / "bvlc_alexnet.npy").write_bytes(saved(LAYERS))
    # Of full width, which these are not.
    with pytest.raises(ModelError, match=r"conv1\.weight has shape \[8, 3, 11, 11\], the architecture expects \[96"):
        import_weights(tmp_path / "bvlc_alexnet.npy", folder, options, warnings.append)
    assert "by its name, using recipe caffe-alexnet" in warnings[0]
    (tmp_path / "other.npy").write_bytes(saved(LAYERS))
    with pytest.raises(UsageError, match='recipe="caffe-alexnet"'):
        import_weights(tmp_path / "other.npy", folder, options)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def array_of(pickled: bytes) -> bytes:
    """An array of one object, whose pickle is given."""
    whole = python_2(np.array("?", dtype=object))
    return npy(b"\x80\x02" + whole.replace(b"U\x01?", pickled) + b".")


DTYPE = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
"""A type and an array, before their states."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({**LAYERS, "conv1": _Bomb()}), "is refused: loading it would call posix.system"),
        (saved(_Bomb()), "is refused: loading it would call posix.system"),
        (npy(pickle.dumps(_Bomb(), protocol=0)), "loading it would call posix.system"),
        (array_of(b"cbuiltins\neval\nU\x0eopen('x', 'w')\x85R"), "loading it would call builtins.eval"),
        (array_of(b"c__builtin__\neval\nU\x01x\x85R"), "loading it would call __builtin__.eval"),
        (array_of(b"cnumpy\nload\nU\x01x\x85R"), "loading it would call numpy.load"),
        (array_of(b"cnumpy.core.multiarray\nscalar\n"), "loading it would call numpy.core.multiarray.scalar"),
        (array_of(b"(U\x01xios\nsystem\n"), "loading it would call os.system"),
        (array_of(b"]r\xff\xff\xff\x7f"), "its pickle has more than 100,000 operations or objects"),
        (array_of(b"(" + b"}" * 200_000 + b"l"), "its pickle has more than 100,000 operations or objects"),
        (array_of(b"]" * 20_000 + b"a" * 19_999), "contains no weights by layer"),
        (array_of(b"T\xff\xff\xff\x7f"), "cannot be read as weights by layer"),
        (array_of(b"\x8e" + b"\xff" * 7 + b"\x7f"), "cannot be read as weights by layer"),
        (array_of(b"\x82\x01"), "cannot be read as weights by layer"),
        (array_of(b"U\x01xQ"), "cannot be read as weights by layer"),
        (array_of(python_2({"conv1": "weights"})), "contains no weights by layer"),
        (array_of(python_2(["conv1"])), "contains no weights by layer"),
        (saved({**LAYERS, "conv1": [np.zeros(3, np.int64)] * 2}), "numbers of type <i8; expected f2, f4 or f8"),
        (saved({**LAYERS, "conv1": [np.zeros(3, np.float32)] * 2}), "conv1 has weights of [3]; expected four"),
        (saved({**LAYERS, "fc6": [np.zeros((30, 12), np.float32)] * 2}), "fc6 has 30 inputs; expected 8 maps of as"),
        (saved_by_python_2(LAYERS)[:-1000], "cannot be read as weights by layer"),
        (saved_by_python_2(LAYERS)[:200], "cannot be read as weights by layer"),
        (array_of(DTYPE + b"U\x01xb"), "a type without a byte order"),
        (array_of(ARRAY + b"(K\x01tb"), "an array of unknown form"),
        (array_of(ARRAY + b"(K\x01)N\x89U\x01xtb"), "an array of unknown type or shape"),
        (
            array_of(ARRAY + b"(K\x01(K\x02t" + DTYPE + b"\x89U\x04fourtb"),
            "an array of [2] with another number of bytes",
        ),
        (array_of(b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00utf-8\x86R"), "a text encoded as 'utf-8'"),
        (npy(b"\x80\x02N."), "it contains no array of one object"),
        (saved({**LAYERS, "conv1": [np.array("weights", dtype=object)] * 2}), "contains no weights by layer"),
        (saved({**LAYERS, 1: LAYERS["conv1"]}), "contains no weights by layer"),
        (b"\x93NUMPY\x01\x00", "cannot be read as weights by layer"),
        (b"", "cannot be read as weights by layer"),
    ],
)
def test_what_holds_anything_else_is_refused_and_nothing_of_it_is_run(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(tmp_path)) | {"theirs.npy", "narrow-caffe-alexnet.toml"}
    assert message in refused(tmp_path, folder, content)
    assert set(os.listdir(tmp_path)) == before


def test_a_plain_array_is_told_from_weights(tmp_path: Path, folder: ModelFolder) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 256, 256)))
    message = refused(tmp_path, folder, file.getvalue())
    assert "holds float64 [3, 256, 256]; expected a dictionary of layers" in message
    assert "--mean-image FILE" in message


def test_one_file_cannot_change_what_the_next_one_calls(tmp_path: Path, folder: ModelFolder) -> None:
    """BUILD with a pair sets attributes, of a function too."""
    attribute = b"cnumpy\ndtype\nN}U\x0c__defaults__N\x85s\x86b"
    refused(tmp_path, folder, array_of(attribute))
    (tmp_path / "theirs.npy").write_bytes(saved_by_python_2(LAYERS))
    options = WeightsOptions(recipe=files.narrow(tmp_path), steps={"mean": MEAN})
    import_weights(tmp_path / "theirs.npy", folder, options)
    np.testing.assert_array_equal(load_file(folder.weights_path)["conv1.weight"], WEIGHTS["conv1.weight"])
