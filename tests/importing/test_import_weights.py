"""Other people's weights as model folders: bit for bit, with the preprocessing they were trained with."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caffe_files as files
import numpy as np
import onnx
import pytest
import torch
from caffe_files import Entry, narrow
from safetensors.numpy import load_file, save_file
from torch import nn

from alexdeploy.core.errors import AlexDeployError, ModelError, ParityError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import CONTRACT_KEY, Preprocessing
from alexdeploy.export.export import export_model
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing import check, published_files
from alexdeploy.importing.caffe import convert
from alexdeploy.importing.model_folder import read_mean_image
from alexdeploy.importing.published_files import KnownFile
from alexdeploy.importing.weights import WeightsOptions, import_weights
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights

MEAN = (104.0, 117.0, 123.0)
WEIGHTS = files.weights()


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "theirs")


def written(tmp_path: Path, content: bytes, name: str = "theirs.caffemodel") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refused(path: Path, folder: ModelFolder, error: type[AlexDeployError], **options: Any) -> str:
    with pytest.raises(error) as caught:
        import_weights(path, folder, WeightsOptions(**options))
    assert not folder.path.exists()
    return caught.value.text


def mean_image(tmp_path: Path, seed: int = 0) -> tuple[np.ndarray, Path]:
    mean = np.random.default_rng(seed).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    return mean, written(tmp_path, files.blob(mean[None], "legacy"), "mean.binaryproto")


@pytest.mark.parametrize("old", [False, True])
def test_a_caffemodel_becomes_a_model_as_train_writes_it(tmp_path: Path, folder: ModelFolder, old: bool) -> None:
    mean, path = mean_image(tmp_path)
    classes = tuple(f"n0{index}440764 tench, Tinca tinca" for index in range(files.CLASSES))
    options = WeightsOptions(mean_image=read_mean_image(path), classes=classes)
    spec = import_weights(written(tmp_path, files.net(files.alexnet(WEIGHTS), old=old)), folder, options)
    assert spec == folder.spec()
    assert spec.architecture is not None
    weights = load_weights(folder.weights_path, plan_layers(spec.architecture, spec.num_classes))
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(weights[name], value)
    np.testing.assert_array_equal(folder.mean_image(spec), mean)
    steps = spec.preprocessing
    assert (steps.resize, steps.channels, steps.scale, steps.crop) == ("warp", "bgr", 1.0, 227)
    assert spec.classes == classes
    with open(folder.weights_path, "rb") as file:
        assert f'"{CONTRACT_KEY}":"{spec.contract_sha256}"'.encode() in file.read(4096)


def test_its_exported_graph_gives_what_caffe_computes_from_the_pixels_on(tmp_path: Path, folder: ModelFolder) -> None:
    mean, path = mean_image(tmp_path)
    options = WeightsOptions(mean_image=read_mean_image(path))
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, pool_first=True)))
    spec = import_weights(source, folder, options)
    export_model(folder)
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    inputs = network_input(image, spec.preprocessing, 1, folder.mean_image(spec))
    (logits,) = run_graph(onnx.load(folder.onnx_path()), inputs)
    by_hand = (image[14:241, 14:241, ::-1].transpose(2, 0, 1).astype(np.float64) - mean[:, 14:241, 14:241])[None]
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in WEIGHTS.items()}
    expected = caffenet(w, torch.from_numpy(by_hand)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def caffenet(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    f = nn.functional
    for index, (stride, padding, groups) in enumerate([(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)], start=1):
        x = f.conv2d(x, w[f"conv{index}.weight"], w[f"conv{index}.bias"], stride, padding, groups=groups).relu()
        x = f.max_pool2d(x, 3, 2, ceil_mode=True) if index in (1, 2, 5) else x
        x = f.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if index < 3 else x
    x = f.linear(x.flatten(1), w["fc6.weight"], w["fc6.bias"]).relu()
    return f.linear(f.linear(x, w["fc7.weight"], w["fc7.bias"]).relu(), w["fc8.weight"], w["fc8.bias"])


def data_layer(**parameters: object) -> Entry:
    return Entry(name="data", type="Data", top=("data",), parameters={"crop_size": 227, **parameters})


def steps_of(tmp_path: Path, folder: ModelFolder, data: Entry, **options: Any) -> Preprocessing:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, data=data)))
    return import_weights(source, folder, WeightsOptions(**options)).preprocessing


def test_caffes_mean_before_scaling_becomes_one_after_it(tmp_path: Path, folder: ModelFolder) -> None:
    steps = steps_of(tmp_path, folder, data_layer(scale=0.5, mean_value=[104.0, 117.0, 123.0]))
    assert (steps.scale, steps.mean) == (0.5, (52.0, 58.5, 61.5))


def test_a_mean_image_is_scaled_with_the_pixels(tmp_path: Path, folder: ModelFolder) -> None:
    mean, path = mean_image(tmp_path)
    steps_of(tmp_path, folder, data_layer(scale=0.25), mean_image=read_mean_image(path))
    np.testing.assert_array_equal(folder.mean_image(folder.spec()), mean * np.float32(0.25))


def test_the_mean_that_a_cure_names_is_that_of_scaled_pixels(tmp_path: Path, folder: ModelFolder) -> None:
    data = data_layer(scale=0.0078125, mean_file="mean")
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, data=data)))
    # 104.007, 116.669 and 122.679 over 128.
    message = refused(source, folder, UsageError)
    assert (
        "--mean 0.812555,0.911477,0.95843 (that of Caffe's ImageNet models, BGR, times the scale 0.0078125)" in message
    )
    message = refused(source, folder, UsageError, steps={"scale": 1.0, "channels": "rgb"})
    assert "--mean 122.679,116.669,104.007 (that of Caffe's ImageNet models, RGB)" in message


@pytest.mark.parametrize(("given", "expected"), [({}, 1.0), ({"scale": 0.5}, 0.5)])
def test_the_files_own_scale_goes_before_the_recipes_even_where_it_is_the_default(
    tmp_path: Path, folder: ModelFolder, given: dict[str, object], expected: float
) -> None:
    recipe = narrow(tmp_path, change=("scale = 1.0", "scale = 0.00390625"))
    steps = steps_of(tmp_path, folder, data_layer(**given), recipe=recipe, steps={"mean": MEAN})
    assert steps.scale == expected


def test_a_file_without_a_data_layer_has_the_scale_of_the_recipe(tmp_path: Path, folder: ModelFolder) -> None:
    recipe = narrow(tmp_path, change=("scale = 1.0", "scale = 0.00390625"))
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)[1:]))
    spec = import_weights(source, folder, WeightsOptions(recipe=recipe, steps={"mean": MEAN}))
    assert spec.preprocessing.scale == 0.00390625


def test_a_mean_image_that_is_scaled_already_is_not_scaled_again(tmp_path: Path, folder: ModelFolder) -> None:
    """As the mean.npy of a model folder is."""
    mean, path = mean_image(tmp_path)
    data = data_layer(scale=0.0078125)
    steps_of(tmp_path, folder, data, mean_image=read_mean_image(path))
    again = read_mean_image(folder.mean_path)
    np.testing.assert_array_equal(again, mean / 128)
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, data=data)))
    other = ModelFolder(tmp_path / "models" / "other")
    assert "mean image is already scaled" in refused(source, other, UsageError, mean_image=again)


def test_one_mean_value_is_that_of_all_channels(tmp_path: Path, folder: ModelFolder) -> None:
    assert steps_of(tmp_path, folder, data_layer(mean_value=[110.0])).mean == (110.0, 110.0, 110.0)


def test_what_is_said_goes_before_what_the_file_says(tmp_path: Path, folder: ModelFolder) -> None:
    given = {"channels": "rgb", "mean": MEAN, "scale": 0.125, "resize": "crop"}
    steps = steps_of(tmp_path, folder, data_layer(scale=0.5, mean_value=[1.0, 2.0, 3.0]), steps=given)
    assert (steps.channels, steps.mean, steps.scale, steps.resize) == ("rgb", MEAN, 0.125, "crop")


def test_a_mean_that_the_file_only_names_is_asked_for(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, data=data_layer(mean_file="data/mean.binaryproto"))))
    message = refused(source, folder, UsageError)
    assert "was trained with the mean image data/mean.binaryproto" in message
    assert "--mean-image" in message
    source.write_bytes(files.net(files.alexnet(WEIGHTS, data=data_layer())))
    assert "does not say which mean was subtracted" in refused(source, folder, UsageError)
    assert "does not say which mean" in refused(source, folder, UsageError, recipe=narrow(tmp_path))


def test_a_recipe_of_another_network_than_the_files_is_refused(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    options = {"steps": {"mean": MEAN}}
    assert "its layer norm1: lrn 8x55x55" in refused(
        source, folder, ModelError, recipe=narrow(tmp_path, "caffenet"), **options
    )
    assert "is conv1: conv 96x55x55" in refused(source, folder, ModelError, recipe="caffe-alexnet", **options)
    spec = import_weights(source, folder, WeightsOptions(recipe=narrow(tmp_path), **options))
    assert spec.recipe == "narrow-caffe-alexnet"


@pytest.mark.parametrize("old", [False, True])
def test_a_file_stripped_to_its_weights_needs_a_recipe(tmp_path: Path, folder: ModelFolder, old: bool) -> None:
    entries = [Entry(name=e.name, type=e.type, parameters=None, blobs=e.blobs) for e in files.alexnet(WEIGHTS)[1:]]
    source = written(tmp_path, files.net([entry for entry in entries if entry.blobs], old=old))
    assert "--recipe caffe-alexnet" in refused(source, folder, ModelError)
    warnings: list[str] = []
    options = WeightsOptions(recipe=narrow(tmp_path), steps={"mean": MEAN})
    spec = import_weights(source, folder, options, warnings.append)
    assert spec.num_classes == files.CLASSES
    assert "could not be checked" in warnings[0]
    np.testing.assert_array_equal(load_file(folder.weights_path)["fc6.weight"], WEIGHTS["fc6.weight"])


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_lost_the_types_of_its_layers_too_needs_a_recipe(
    tmp_path: Path, folder: ModelFolder, old: bool
) -> None:
    layers = [entry for entry in files.alexnet(WEIGHTS) if entry.blobs]
    if old:
        number, name, blob, form = 2, 4, 6, "legacy"
    else:
        number, name, blob, form = 100, 1, 7, "shape"
    content = b"".join(
        files.chunk(
            number,
            files.text(name, e.name) + b"".join(files.chunk(blob, files.blob(array, form)) for array in e.blobs),
        )
        for e in layers
    )
    source = written(tmp_path, content)
    assert "--recipe caffe-alexnet" in refused(source, folder, ModelError)
    import_weights(source, folder, WeightsOptions(recipe=narrow(tmp_path), steps={"mean": MEAN}))
    np.testing.assert_array_equal(load_file(folder.weights_path)["fc6.weight"], WEIGHTS["fc6.weight"])


def test_a_conversion_that_is_wrong_is_not_written(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check reads the file's own blobs: swap the halves of a grouped layer in what was converted."""
    real = convert.take_weights

    def swapped(*args: Any) -> dict[str, np.ndarray]:
        weights = dict(real(*args))
        weights["conv2.weight"] = np.roll(weights["conv2.weight"], 8, axis=0)
        return weights

    monkeypatch.setattr(convert, "take_weights", swapped)
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    assert "differs from Caffe's result" in refused(source, folder, ParityError, steps={"mean": MEAN})


def test_how_far_it_is_from_caffe_is_written_down(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    provenance = import_weights(source, folder, WeightsOptions(steps={"mean": MEAN})).provenance
    assert isinstance(provenance["caffe_error"], float)
    assert provenance["caffe_error"] <= check._CAFFE_TOLERANCE
    assert provenance["imported_from"] == "theirs.caffemodel"


def torchvision(classes: int = 5) -> nn.Module:
    """torchvision's alexnet as its source has it, at an eighth of the width."""
    network = nn.Module()
    network.features = nn.Sequential(
        nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    network.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(32 * 36, 16), nn.ReLU(),
        nn.Dropout(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, classes),
    )  # fmt: skip
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.08)
    return network.eval()


@pytest.fixture
def torchvision_recipe(tmp_path: Path) -> str:
    text = (Path(__file__).parents[2] / "models" / "torchvision.toml").read_text(encoding="utf-8")
    for wide, thin in ((64, 8), (192, 24), (384, 48), (256, 32)):
        text = text.replace(f"channels = {wide},", f"channels = {thin},")
    path = tmp_path / "narrow.toml"
    path.write_text(text.replace("hidden = [4096, 4096]", "hidden = [16, 16]"), encoding="utf-8")
    return str(path)


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


FORMS: dict[str, Callable[[OrderedDict[str, torch.Tensor]], object]] = {
    "plain": lambda state: state,
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state, "best_acc1": 0.5},
    "parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    # As PyTorch's ImageNet example saves an AlexNet: its features alone are wrapped.
    "example": lambda state: {
        "state_dict": {name.replace("features.", "features.module."): value for name, value in state.items()}
    },
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "parameters": lambda state: {name: nn.Parameter(value) for name, value in state.items()},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("zipped", [True, False])
def test_torchvisions_weights_come_back_bit_for_bit(
    tmp_path: Path, folder: ModelFolder, torchvision_recipe: str, form: str, zipped: bool
) -> None:
    state = torchvision().state_dict()
    content = saved(FORMS[form](state), _use_new_zipfile_serialization=zipped)
    spec = import_weights(written(tmp_path, content, "theirs.pth"), folder, WeightsOptions(recipe=torchvision_recipe))
    found = load_file(folder.weights_path)
    for value, ours in zip(state.values(), found_in_order(spec, found), strict=True):
        np.testing.assert_array_equal(ours, value.numpy())
    assert spec.num_classes == 5
    assert (spec.preprocessing.crop, spec.preprocessing.channels) == (224, "rgb")


def found_in_order(spec: Any, found: dict[str, np.ndarray]) -> list[np.ndarray]:
    names = [layer.name for layer in plan_layers(spec.architecture, spec.num_classes) if layer.weight_shape is not None]
    return [found[f"{name}.{kind}"] for name in names for kind in ("weight", "bias")]


def test_torchvisions_network_gives_its_own_answers_when_exported(
    tmp_path: Path, folder: ModelFolder, torchvision_recipe: str
) -> None:
    network = torchvision()
    source = written(tmp_path, saved(network.state_dict()), "theirs.pth")
    spec = import_weights(source, folder, WeightsOptions(recipe=torchvision_recipe))
    export_model(folder)
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    # torchvision.transforms: CenterCrop(224), ToTensor, Normalize.
    x = torch.from_numpy(image[16:240, 16:240].transpose(2, 0, 1).copy()).float()[None] / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).reshape(
        3, 1, 1
    )
    with torch.inference_mode():
        expected = network.classifier(network.features(x).flatten(1)).numpy()
    (logits,) = run_graph(onnx.load(folder.onnx_path()), network_input(image, spec.preprocessing, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_torchvisions_names_need_no_recipe_and_other_widths_are_refused(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, saved(torchvision().state_dict()), "theirs.pth")
    assert (
        "features.0.weight (conv1.weight) has shape [8, 3, 11, 11], the architecture expects [64, 3, 11, 11]"
        in refused(source, folder, ModelError)
    )


def test_an_archive_that_unpacks_to_more_than_itself_is_refused_before_it_is_unpacked(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = saved({"features.0.weight": torch.zeros(1_000_000)})
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert len(packed.getvalue()) < len(state) / 100
    # PyTorch itself would read it.
    assert torch.load(io.BytesIO(packed.getvalue()), weights_only=True)["features.0.weight"].shape == (1_000_000,)
    source = written(tmp_path, packed.getvalue(), "theirs.pth")
    monkeypatch.setattr(torch, "load", None)
    assert "is a compressed archive" in refused(source, folder, ModelError, recipe="torchvision")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_and_the_weights_that_its_cure_saves_are_imported(
    tmp_path: Path, folder: ModelFolder
) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 11)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv1(images)

    script = tmp_path / "theirs.pt"
    torch.jit.trace(Network(), torch.zeros(1, 3, 32, 32)).save(str(script))
    message = refused(script, folder, ModelError, recipe="torchvision")
    assert "theirs.pt is a TorchScript archive, which is not supported; convert it to ONNX, or save its" in message
    assert "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')" in message
    torch.save(torch.jit.load(script).state_dict(), tmp_path / "weights.pth")
    saved = refused(tmp_path / "weights.pth", folder, ModelError, recipe="torchvision")
    assert "weights.pth holds conv1.weight, conv1.bias;" in saved, "read, and no AlexNet"


def test_members_of_an_archive_that_share_their_bytes_are_refused(tmp_path: Path, folder: ModelFolder) -> None:
    content = saved({"features.0.weight": torch.zeros(1_000)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = [member.file_size for member in archive.infolist()]
    # In the central directory the size stands twice, the packed one and the other.
    place = content.rindex(struct.pack("<2I", max(sizes), max(sizes)))
    damaged = content[:place] + struct.pack("<2I", max(sizes), len(content)) + content[place + 8 :]
    source = written(tmp_path, damaged, "theirs.pth")
    assert "is a compressed archive" in refused(source, folder, ModelError, recipe="torchvision")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.float8_e4m3fn), "a.weight is a tensor of torch.float8_e4m3fn, torch.strided"),
        (torch.eye(2).to_sparse(), "a.weight is a tensor of torch.float32, torch.sparse_coo, on cpu; expected dense"),
        (torch.zeros(2, 2, device="meta"), "a.weight is a tensor of torch.float32, torch.strided, on meta"),
        (torch.zeros(1).expand(1 << 20, 1 << 20), "a.weight is a tensor of [1048576, 1048576], more than the file"),
    ],
    ids=["float8", "sparse", "meta", "expanded"],
)
def test_tensors_that_torch_has_and_numpy_has_not_are_refused_by_name(
    tmp_path: Path, folder: ModelFolder, value: torch.Tensor, message: str
) -> None:
    source = written(tmp_path, saved({"a.weight": value}), "theirs.pth")
    assert message in refused(source, folder, ModelError, recipe="torchvision")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({"state_dict": {"features.0.weight": _Bomb()}}), "loading it would call posix.system"),
        (saved(_Bomb(), _use_new_zipfile_serialization=False), "loading it would call posix.system"),
        (pickle.dumps(_Bomb()), "theirs.pth"),
        (saved(nn.Linear(2, 2)), "loading it would call torch.nn.modules.linear.Linear"),
        (saved(torch.zeros(3)), "holds Tensor, expected a state dict"),
        (saved({"weights": [1, 2]}), "holds dict, expected a state dict"),
        (saved({}), "holds nothing; expected conv1.weight"),
        (saved({"layer1.0.conv1.weight": torch.zeros(2, 2)}), "holds layer1.0.conv1.weight; expected conv1.weight"),
        (saved(torchvision().state_dict())[:5000], "theirs.pth cannot be read as PyTorch weights"),
        (b"", "theirs.pth cannot be read as PyTorch weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not a model"),
    ],
    ids=[
        *("call", "old call", "pickled call", "module", "tensor", "other names", "empty dict", "other layers"),
        *("cut off", "empty", "Git LFS", "web page"),
    ],
)
def test_what_is_no_state_dict_is_refused_and_nothing_of_it_is_run(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(written(tmp_path, content, "theirs.pth"), folder, ModelError, recipe="torchvision")
    assert not Path("exploded").exists()


def test_without_torch_a_pth_says_so_and_the_others_are_imported(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(torchvision().state_dict())
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(written(tmp_path, content, "theirs.pth"), folder, UsageError)
    assert "pip install 'alexdeploy[train]'" in message
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    import_weights(source, folder, WeightsOptions(steps={"mean": MEAN}))
    save_file(WEIGHTS, tmp_path / "ours.safetensors")
    options = WeightsOptions(recipe=narrow(tmp_path), steps={"mean": MEAN})
    import_weights(tmp_path / "ours.safetensors", ModelFolder(tmp_path / "models" / "ours"), options)


@pytest.mark.parametrize("names", ["ours", "torchvision"])
def test_safetensors_come_back_bit_for_bit_by_either_names(
    tmp_path: Path, folder: ModelFolder, torchvision_recipe: str, names: str
) -> None:
    if names == "ours":
        values, recipe = WEIGHTS, narrow(tmp_path)
    else:
        values = {name: value.numpy() for name, value in torchvision().state_dict().items()}
        recipe = torchvision_recipe
    save_file(values, tmp_path / "theirs.safetensors")
    options = WeightsOptions(recipe=recipe, steps={"mean": MEAN})
    spec = import_weights(tmp_path / "theirs.safetensors", folder, options)
    for theirs, ours in zip(values.values(), found_in_order(spec, load_file(folder.weights_path)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv3.bias"), "has no conv3.bias; the architecture expects it with shape [16]"),
        (lambda w: w.update(extra=np.zeros(2, np.float32)), "contains extra, which the architecture does not have"),
        (lambda w: w.update({"fc7.weight": w["fc7.weight"][:5]}), "fc7.weight has shape [5, 12]"),
        (lambda w: w.update({"fc7.bias": w["fc7.bias"].astype(np.int32)}), "fc7.bias is int32, expected float32"),
        (lambda w: w.update({"conv1.bias": w["conv1.bias"] * np.nan}), "conv1.bias contains NaN or infinity"),
        (lambda w: w.pop("conv3.weight"), "has the weights of conv1, conv2, conv4"),
        (lambda w: w.update({"conv9.weight": w.pop("conv5.weight")}), "expects those of conv1, conv2, conv3, conv4, c"),
    ],
)
def test_the_first_mismatch_is_named_as_the_file_has_it(
    tmp_path: Path, folder: ModelFolder, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    values = dict(WEIGHTS)
    change(values)
    save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, tmp_path / "w.safetensors")
    found = refused(tmp_path / "w.safetensors", folder, ModelError, recipe=narrow(tmp_path), steps={"mean": MEAN})
    assert message in found


def test_half_precision_becomes_float32_with_the_same_values(tmp_path: Path, folder: ModelFolder) -> None:
    halves = {name: value.astype(np.float16) for name, value in WEIGHTS.items()}
    save_file(halves, tmp_path / "w.safetensors")
    import_weights(tmp_path / "w.safetensors", folder, WeightsOptions(recipe=narrow(tmp_path), steps={"mean": MEAN}))
    for name, value in load_file(folder.weights_path).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, halves[name].astype(np.float32))


def test_weights_of_nobody_knows_what_need_a_recipe(tmp_path: Path, folder: ModelFolder) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert "contains weights but no network definition" in refused(tmp_path / "w.safetensors", folder, UsageError)
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 40)
    assert "cannot be read as safetensors" in refused(
        tmp_path / "w.safetensors", folder, ModelError, recipe="caffe-alexnet"
    )


def test_labels_that_do_not_fit_are_refused(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    message = refused(source, folder, ModelError, steps={"mean": MEAN}, classes=("a", "b"))
    assert "has 7 classes; found 2 labels" in message


def test_a_known_name_with_another_hash_is_warned_of(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)), "bvlc_alexnet.caffemodel")
    warnings: list[str] = []
    spec = import_weights(source, folder, WeightsOptions(steps={"mean": MEAN}), warnings.append)
    assert "is not the published file of that name: its sha1 is" in warnings[0]
    assert "expected 9116a64c0fbe" in warnings[0]
    assert spec.provenance["known_file"] is None


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_published_file_is_known_by_its_hash_under_any_name(
    tmp_path: Path, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    content = files.net(files.alexnet(WEIGHTS))
    digest = hashlib.new(algorithm, content).hexdigest()
    known = KnownFile(name="published.caffemodel", title="published by somebody", digest=digest, algorithm=algorithm)
    monkeypatch.setattr(published_files, "KNOWN", (known,))
    warnings: list[str] = []
    options = WeightsOptions(steps={"mean": MEAN})
    spec = import_weights(written(tmp_path, content, "renamed.caffemodel"), folder, options, warnings.append)
    assert spec.provenance["known_file"] == "published by somebody"
    assert not warnings


def test_a_mean_image_is_read_from_npy_as_caffe_ships_it(tmp_path: Path) -> None:
    """ilsvrc_2012_mean.npy is float64 [3, 256, 256]."""
    mean = np.random.default_rng(0).uniform(90, 130, (3, 256, 256))
    np.save(tmp_path / "mean.npy", mean)
    np.testing.assert_array_equal(read_mean_image(tmp_path / "mean.npy"), mean.astype(np.float32))


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (np.full((3, 227, 227), 2.0), "holds float64 [3, 227, 227]; a mean image is [3, 256, 256]"),
        (np.zeros((256, 256, 3)), "holds float64 [256, 256, 3]"),
        (np.full((3, 256, 256), np.nan), "contains NaN or infinity"),
        (np.full((3, 256, 256), "a"), "holds <U1 [3, 256, 256]"),
        (np.full((3, 256, 256), -0.5), "holds values from -0.5 to -0.5; a mean image is in pixels of 0 to 255"),
        (np.full((3, 256, 256), 256), "holds values from 256 to 256; a mean image is in pixels"),
    ],
)
def test_another_array_is_no_mean_image(tmp_path: Path, mean: np.ndarray, message: str) -> None:
    np.save(tmp_path / "mean.npy", mean)
    with pytest.raises(ModelError) as caught:
        read_mean_image(tmp_path / "mean.npy")
    assert message in caught.value.text
    if mean.shape == (3, 227, 227):
        assert "--mean 2.000,2.000,2.000 (times --scale, if there is one)" in caught.value.text


def npy(shape: str) -> bytes:
    """The header of a .npy, and no data."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, mean=np.zeros((3, 256, 256)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mean.npy", npz(), "is an archive of arrays"),
        ("mean.npy", npz()[:-30], "cannot be read as a NumPy array"),
        ("mean.npy", npy(f"({1 << 64},)"), "cannot be read as a NumPy array"),
        ("mean.npy", npy(f"({1 << 50},)"), "cannot be read as a NumPy array"),
        ("mean.npy", npy("(3, 256, 256)"), "cannot be read as a NumPy array"),
        ("mean.npy", npy("(3, 256, 256]"), "cannot be read as a NumPy array"),
        ("mean.npy", b"", "cannot be read as a NumPy array"),
        ("mean.npy", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("mean.binaryproto", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("mean.binaryproto", b"<!DOCTYPE html>", "is a web page"),
        ("mean.binaryproto", None, "cannot be read: No such file"),
        ("mean.npy", None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_mean_image_at_all_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        written(tmp_path, content, name)
    with pytest.raises(ModelError) as caught:
        read_mean_image(tmp_path / name)
    assert message in caught.value.text


def test_a_pickled_mean_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "mean.npy", np.array([_Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="cannot be read as a NumPy array"):
        read_mean_image(tmp_path / "mean.npy")
    assert not Path("exploded").exists()


def test_a_model_in_the_way_is_replaced_only_when_asked_and_wholly(tmp_path: Path, tiny_model: ModelFolder) -> None:
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS)))
    before = tiny_model.spec_path.read_bytes()
    options = {"steps": {"mean": MEAN}}
    with pytest.raises(UsageError, match="already holds a model"):
        import_weights(source, tiny_model, WeightsOptions(**options))
    assert tiny_model.spec_path.read_bytes() == before
    import_weights(source, tiny_model, WeightsOptions(overwrite=True, **options))
    assert sorted(path.name for path in tiny_model.path.iterdir()) == ["spec.json", "weights.safetensors"]


def test_the_recipe_that_torchvisions_names_stand_for_is_the_shipped_one() -> None:
    plan = plan_layers(load_recipe("torchvision").architecture, 1000)
    assert sum(layer.num_parameters for layer in plan) == 61_100_840


def test_a_stripped_file_of_other_layers_than_the_recipe_names_both(tmp_path: Path, folder: ModelFolder) -> None:
    entries = [
        Entry(name=e.name, type=e.type, parameters=None, blobs=e.blobs) for e in files.alexnet(WEIGHTS) if e.blobs
    ]
    source = written(tmp_path, files.net([entry for entry in entries if entry.name != "conv4"]))
    message = refused(source, folder, ModelError, recipe=narrow(tmp_path), steps={"mean": MEAN})
    assert (
        "has 7 layers with weights (conv1, conv2, conv3, conv5, fc6, fc7, fc8); the architecture expects 8" in message
    )
    empty = written(tmp_path, files.net([Entry(name="conv1", type="Convolution", parameters=None)]))
    message = refused(empty, folder, ModelError, recipe=narrow(tmp_path), steps={"mean": MEAN})
    assert "contains no weights" in message


def test_an_hdf5_snapshot_of_caffe_is_told_how_to_be_saved(tmp_path: Path, folder: ModelFolder) -> None:
    source = written(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "snapshot_format: BINARYPROTO" in refused(source, folder, ModelError)


def test_what_cannot_be_preprocessed_here_is_refused(tmp_path: Path, folder: ModelFolder) -> None:
    data = Entry(name="data", type="Data", top=("data", "label"), parameters={"scale": -1.0, "crop_size": 227})
    source = written(tmp_path, files.net(files.alexnet(WEIGHTS, data=data)))
    assert "its preprocessing cannot be described here" in refused(source, folder, ModelError, steps={"mean": MEAN})
