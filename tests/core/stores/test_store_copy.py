"""Model folders and packed sets in a bucket: copied once, renewed when they change, and nothing else with them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import write_pictures
from safetensors.numpy import load_file

from alexdeploy.core.errors import DataError, ModelError, OutputError, UsageError
from alexdeploy.core.model_folder import ModelFolder, find_model, own_model
from alexdeploy.core.stores import copies
from alexdeploy.core.stores.copies import copy_model, copy_packed
from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
from alexdeploy.inference.predict import predict
from alexdeploy.placement.options import PredictOptions
from alexdeploy.training.prepare import PrepareOptions, prepare
from alexdeploy.training.train import TrainOptions, train

if TYPE_CHECKING:
    from bucket import Bucket

URL = "fault://b/models/tiny"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _upload(bucket: type[Bucket], folder: Path, name: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.objects[f"b/{name}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


@pytest.fixture
def uploaded(bucket: type[Bucket], tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    monkeypatch.setattr(copies, "_PART_BYTES", 100_000)
    (tiny_model.path / "checkpoints").mkdir()
    tiny_model.checkpoint_path.write_bytes(b"large")
    _upload(bucket, tiny_model.path, "models/tiny")
    return tiny_model


def test_a_model_is_copied_once_without_its_checkpoints(uploaded: ModelFolder, bucket: type[Bucket]) -> None:
    first = copy_model(URL)
    assert first.name == "tiny"
    names = {path.name for path in uploaded.path.iterdir() if path.is_file()}
    assert {path.name for path in first.rglob("*")} == names
    assert all((first / name).read_bytes() == (uploaded.path / name).read_bytes() for name in names)
    bucket.calls.clear()
    assert copy_model(f"{URL}/") == first
    assert [kind for kind, _ in bucket.calls] == ["list"]


def test_a_model_that_changed_is_copied_again(uploaded: ModelFolder, bucket: type[Bucket]) -> None:
    first = copy_model(URL)
    spec = bucket.objects["b/models/tiny/spec.json"]
    bucket.objects["b/models/tiny/spec.json"] = spec[::-1]
    second = copy_model(URL)
    assert second != first
    assert ((first / "spec.json").read_bytes(), (second / "spec.json").read_bytes()) == (spec, spec[::-1])
    copies.os.utime(first.parent, (time.time() - 8 * 24 * 3600,) * 2)
    bucket.objects["b/models/tiny/spec.json"] = spec + b" "
    copy_model(URL)
    assert not first.exists()
    assert second.exists()


def test_rows_of_a_model_in_a_bucket_are_those_of_the_folder(uploaded: ModelFolder) -> None:
    write_pictures(Path("d"), 3)
    options = PredictOptions(backend="onnxruntime")
    assert list(predict("d", URL, options)) == list(predict("d", uploaded, options))


def test_nothing_is_written_into_a_copy() -> None:
    with pytest.raises(UsageError, match="is a URL; files are written to local models"):
        own_model(URL)


def test_names_do_not_lead_out_of_the_copy(uploaded: ModelFolder, bucket: type[Bucket], tmp_path: Path) -> None:
    for name in ("../spec.json", "..\\spec.json", "x/spec.json", "model.onnx.sh", "spec.json\n"):
        bucket.objects[f"b/models/tiny/{name}"] = b"evil"
    copy_model(URL)
    assert all(path.read_bytes() != b"evil" for path in tmp_path.rglob("*") if path.is_file())


def test_what_cannot_be_copied_is_an_error(
    uploaded: ModelFolder, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bucket import fails

    with pytest.raises(UsageError, match="no model at fault://b/none"):
        find_model("fault://b/none")
    with pytest.raises(UsageError, match="web servers cannot list"):
        find_model("https://host/models/tiny")
    bucket.steps["b/models/tiny/spec.json"] = [fails(OSError("503"))] * 3
    with pytest.raises(ModelError, match="cannot be copied: the store failed: OSError: 503"):
        find_model(URL)
    bucket.steps["b/models/tiny"] = [fails(PermissionError("secret"))]
    with pytest.raises(ModelError, match="cannot be listed: permission denied"):
        find_model(URL)
    assert not [path for path in Path("cache").rglob("*") if path.is_file()]
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="are free"):
        find_model(URL)


def test_a_packed_set_is_used_as_a_copy(bucket: type[Bucket], tiny_model: ModelFolder) -> None:
    for number, name in enumerate(("class-0", "class-1")):
        write_pictures(Path("data") / name, 6, seed=number)
    prepare("data", "packed", PrepareOptions(num_threads=1, val_fraction=0.5))
    _upload(bucket, Path("packed"), "packed")
    url = "fault://b/packed"
    assert copy_packed("fault://b/data") is None
    options = EvaluateOptions(backends=("onnxruntime",), num_views=(1,), thumbnails=True)
    local, stored = (evaluate(tiny_model, data, options, on_event=lambda event: None) for data in ("packed", url))
    assert (stored.data, stored.num_images) == (f"{url}/val", 6)
    assert [score.top1 for score in stored.scores] == [score.top1 for score in local.scores]
    assert stored.thumbnails == local.thumbnails
    assert set(stored.thumbnails) == stored.examples.indices != frozenset()
    overrides = ("architecture.width=0.0625", "architecture.hidden=[512, 512]", "training.epochs=1")
    weights = []
    for name, data in (("local", "packed"), ("stored", url)):
        given = TrainOptions(recipe="alexnet-quarter", name=name, overrides=overrides, num_threads=1, device="cpu")
        trained = train(data, given, on_event=lambda event: None)
        assert trained.spec.provenance["data"] == data
        weights.append(load_file(trained.folder.weights_path))
    assert all((value == weights[1][name]).all() for name, value in weights[0].items())


def test_a_packed_set_that_cannot_be_read_is_an_error(bucket: type[Bucket]) -> None:
    from bucket import fails

    bucket.objects["b/packed/plan.json"] = b"{}"
    bucket.steps["b/packed"] = [fails(PermissionError("secret"))]
    with pytest.raises(DataError, match="cannot be listed"):
        copy_packed("fault://b/packed")
