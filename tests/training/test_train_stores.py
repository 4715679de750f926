"""Training data in a bucket: packed sets, training and evaluation are those of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers import TINY, write_pictures
from safetensors.numpy import load_file

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
from alexdeploy.export.quantize.calibrate import calibrate
from alexdeploy.training.prepare import PrepareOptions, prepare
from alexdeploy.training.train import TrainOptions, train

if TYPE_CHECKING:
    from bucket import Bucket

DATA = "fault://b/data"


@pytest.fixture
def data(bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of two classes in a folder and in the bucket, one of them broken."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("class-0", "class-1")):
        write_pictures(tmp_path / "data" / name, 10, seed=number)
    (tmp_path / "data" / "class-1" / "003.png").write_bytes(b"no picture")
    for path in (tmp_path / "data").rglob("*.png"):
        bucket.objects[f"b/{path.relative_to(tmp_path)}"] = path.read_bytes()
    return tmp_path / "data"


def test_a_set_packed_from_a_failing_bucket_has_the_bytes_of_one_from_a_folder(
    data: Path, bucket: type[Bucket], tmp_path: Path
) -> None:
    from bucket import cut, fails

    for name in bucket.objects:
        bucket.steps[name] = [cut, fails(OSError("503"))]
    local = prepare(data, tmp_path / "local", PrepareOptions(num_threads=2))
    stored = prepare(DATA, tmp_path / "stored", PrepareOptions(num_threads=2))
    assert [item.name for item in stored.broken] == [item.name for item in local.broken] == ["class-1/003.png"]
    assert stored.index.plan.sources_sha256 == local.index.plan.sources_sha256
    assert stored.index.plan.arguments == (DATA,)
    for path in (tmp_path / "local").glob("*.bin"):
        assert (tmp_path / "stored" / path.name).read_bytes() == path.read_bytes()


def test_training_reads_a_bucket(data: Path, bucket: type[Bucket]) -> None:
    overrides = (*TINY, "training.epochs=1", "training.batch_size=4")
    weights = []
    for name, given in (("local", "data"), ("stored", DATA)):
        options = TrainOptions(
            recipe="alexnet-quarter", name=name, overrides=overrides, skip_broken=True, num_threads=1, device="cpu"
        )
        trained = train(given, options, on_event=lambda event: None)
        weights.append(load_file(trained.folder.weights_path))
        assert trained.spec.provenance["data"] == given
    local, stored = weights
    assert local.keys() == stored.keys()
    assert all(np.array_equal(value, stored[name]) for name, value in local.items())


def test_evaluation_reads_a_bucket(data: Path, bucket: type[Bucket], tiny_model: ModelFolder) -> None:
    options = EvaluateOptions(backends=("onnxruntime",), num_views=(1,), batch_size=4, thumbnails=True)
    local, stored = (evaluate(tiny_model, given, options, on_event=lambda event: None) for given in ("data", DATA))
    assert stored.data == DATA
    assert (stored.num_images, stored.num_broken) == (local.num_images, local.num_broken) == (20, 1)
    assert [score.top1 for score in stored.scores] == [score.top1 for score in local.scores]
    assert stored.thumbnails == local.thumbnails
    assert set(stored.thumbnails) == stored.examples.indices != frozenset()


def test_calibration_reads_a_bucket(data: Path, bucket: type[Bucket], tiny_model: ModelFolder) -> None:
    bucket.calls.clear()
    stored = calibrate(tiny_model, DATA, on_event=lambda event: None)
    reads = [name for kind, name in bucket.calls if kind == "read"]
    assert len(reads) == len(set(reads)) == 20
    local = calibrate(tiny_model, "data", on_event=lambda event: None)
    assert stored.images_from == DATA
    assert [image.sha256 for image in stored.images] == [image.sha256 for image in local.images]
    assert {name: found.threshold for name, found in stored.tensors.items()} == {
        name: found.threshold for name, found in local.tensors.items()
    }
