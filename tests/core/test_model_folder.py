from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from alexdeploy.core.cache import limit_folder
from alexdeploy.core.errors import ModelError, OutputError, StaleArtifactError, UsageError
from alexdeploy.core.files import atomic_write, is_name_too_long, sha256_file
from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder, find_model
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Preprocessing


def _spec(name: str = "tiny", **steps: object) -> ModelSpec:
    return ModelSpec(name=name, classes=("cat", "dog"), preprocessing=Preprocessing(**steps))  # type: ignore[arg-type]


def test_a_spec_survives_the_round_trip(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    spec = _spec(mean=(1.5, 2.0, 3.0), channels="bgr").replace_provenance(seed=3, data="photos/")
    folder.write_spec(spec)
    assert folder.spec() == spec


def test_the_contract_changes_with_preprocessing_and_classes_but_not_with_name_or_provenance() -> None:
    spec = _spec()
    assert spec.contract_sha256 == _spec("other").replace_provenance(seed=1).contract_sha256
    assert spec.contract_sha256 != _spec(mean=(1.0, 0.0, 0.0)).contract_sha256
    assert (
        spec.contract_sha256
        != ModelSpec(name="tiny", classes=("dog", "cat"), preprocessing=Preprocessing()).contract_sha256
    )


def test_a_spec_from_before_pooling_had_a_kind_is_that_of_max_pooling(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    spec = ModelSpec(
        name="t", classes=("a", "b"), preprocessing=Preprocessing(), architecture=load_recipe("alexnet").architecture
    )
    before = spec.to_json().replace(b',\n      "kind": "max"', b"")
    assert b"max" not in before
    folder.spec_path.write_bytes(before)
    assert folder.spec() == spec
    # As version 0.1.0 before it wrote it into the files that are derived from a spec.
    assert spec.contract_sha256 == "41d39dc6c605a02905e2eaba35c7b6121b42dcdcf4ac2a2999912bc48a6ecebb"
    average = load_recipe("alexnet", ["architecture.pooling.kind=average"]).architecture
    assert dataclasses.replace(spec, architecture=average).contract_sha256 != spec.contract_sha256


def fill(folder: ModelFolder, *names: str) -> None:
    for name in names:
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def contents(folder: ModelFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


MODEL = (
    "spec.json",
    "weights.safetensors",
    "mean.npy",
    "model.onnx",
    "model.fp16.onnx",
    "model.int8.onnx",
    "model.onnx.sha256",
    "backends.json",
)
DERIVED = ("checkpoints/last.pt", "checkpoints/log.jsonl", "engines/gpu.engine", "engines/gpu.json")
OTHERS = ("notes.txt", "model.mine.onnx", "pictures/model.onnx")


@pytest.mark.parametrize("name", [*MODEL, "checkpoints/mine.pt", "engines/gpu.engine"])
def test_a_folder_with_any_part_of_a_model_is_in_use(tmp_path: Path, name: str) -> None:
    folder = ModelFolder(tmp_path)
    assert not folder.is_used
    fill(folder, name)
    with pytest.raises(UsageError, match="already holds a model") as caught:
        folder.check_unused()
    assert "--overwrite" in str(caught.value.hint)
    assert "--resume" not in str(caught.value.hint)


def test_a_checkpoint_without_a_model_is_an_unfinished_run(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    fill(folder, "checkpoints/last.pt", "mean.npy", "weights.safetensors")
    with pytest.raises(UsageError, match="already holds an unfinished run") as caught:
        folder.check_unused(can_resume=True)
    assert str(caught.value.hint).startswith("Resume it: --resume\n")
    with pytest.raises(UsageError, match="already holds an unfinished run") as caught:
        folder.check_unused()
    assert "--resume" not in str(caught.value.hint)


def test_files_that_are_none_of_a_models_leave_a_folder_free(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    fill(folder, *OTHERS, "checkpoints/log.jsonl")
    folder.check_unused()


def test_clearing_a_folder_leaves_what_is_none_of_the_model(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "model")
    folder.clear()
    fill(folder, *MODEL, *DERIVED, *OTHERS)
    folder.clear(keep=[folder.onnx_path()])
    assert contents(folder) == {"model.onnx", *OTHERS}
    folder.clear()
    assert contents(folder) == set(OTHERS)


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "x"}', b'{"name": 3}', b"\xff"])
def test_a_damaged_spec_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        ModelFolder(tmp_path).spec()


def test_the_newest_model_is_found_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in ((100, "old"), (50, "new"), (200, "older")):
        folder = ModelFolder(MODELS_FOLDER / name)
        folder.write_spec(_spec(name))
        stamp = folder.spec_path.stat().st_mtime - age
        os.utime(folder.spec_path, (stamp, stamp))
    assert find_model().path.name == "new"
    assert find_model("old").path == MODELS_FOLDER / "old"
    assert find_model(MODELS_FOLDER / "older").path.name == "older"
    with pytest.raises(UsageError, match="no model at oldest") as caught:
        find_model("oldest")
    assert caught.value.hint == "Models here: new, old, older"
    with pytest.raises(UsageError) as caught:
        find_model(tmp_path / "nosuch")
    assert caught.value.message == f"no model at {tmp_path / 'nosuch'}"


def test_without_any_model_the_error_names_train_and_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_model()
    assert "alexdeploy train" in str(caught.value.hint)
    assert "alexdeploy import" in str(caught.value.hint)


def test_a_changed_mean_image_is_stale(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    np.save(folder.mean_path, np.zeros((3, 256, 256), np.float32))
    spec = _spec(mean_image=sha256_file(folder.mean_path))
    mean = folder.mean_image(spec)
    assert mean is not None
    assert mean.shape == (3, 256, 256)
    np.save(folder.mean_path, np.ones((3, 256, 256), np.float32))
    with pytest.raises(StaleArtifactError, match=r"SHA-256 mismatch: .*mean\.npy"):
        folder.mean_image(spec)


@pytest.mark.parametrize("mean", [np.zeros((256, 256, 3), np.float32), np.zeros((3, 256, 256))], ids=["axes", "type"])
def test_a_mean_image_of_another_form_is_refused(tmp_path: Path, mean: np.ndarray) -> None:
    folder = ModelFolder(tmp_path)
    np.save(folder.mean_path, mean)
    with pytest.raises(ModelError, match=r"mean\.npy is .*, expected float32 \(3, 256, 256\)"):
        folder.mean_image(_spec(mean_image=sha256_file(folder.mean_path)))


def test_a_pickled_mean_image_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    np.save(folder.mean_path, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="damaged"):
        folder.mean_image(_spec(mean_image=sha256_file(folder.mean_path)))


def test_a_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "newer", "old", "oldest")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    limit_folder(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "newer"}


def test_a_hash_is_that_of_hashlib(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_001)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "ours") as file:
        file.write(b"x")
    (tmp_path / "theirs").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_file_that_cannot_grow_is_an_output_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"x" * 100_000)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="could not be written"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [None, "begun", "models/begun"])
def test_a_model_whose_first_training_was_interrupted_is_to_be_resumed(working: Path, name: str | None) -> None:
    fill(ModelFolder(MODELS_FOLDER / "begun"), "checkpoints/last.pt")
    with pytest.raises(ModelError, match="models/begun is not fully trained") as caught:
        find_model(name)
    assert "alexdeploy train --name begun --resume" in str(caught.value.hint)


@pytest.mark.parametrize("name", [None, "bad"])
def test_a_folder_without_its_spec_is_an_error_that_names_the_spec(working: Path, name: str | None) -> None:
    fill(ModelFolder(MODELS_FOLDER / "bad"), "weights.safetensors", "model.onnx")
    with pytest.raises(ModelError, match=r"models/bad has no spec\.json") as caught:
        find_model(name)
    assert "Restore spec.json" in str(caught.value.hint)
    assert "--resume" not in str(caught.value.hint)
    fill(ModelFolder(MODELS_FOLDER / "bad"), "checkpoints/last.pt")
    with pytest.raises(ModelError, match=r"models/bad has no spec\.json") as caught:
        find_model(name)
    assert "alexdeploy train --name bad --resume" in str(caught.value.hint)


def test_a_model_that_is_whole_is_found_beside_one_that_was_only_begun(working: Path) -> None:
    fill(ModelFolder(MODELS_FOLDER / "begun"), "checkpoints/last.pt")
    ModelFolder(MODELS_FOLDER / "whole").write_spec(_spec())
    assert find_model().path.name == "whole"


def test_a_mean_image_that_is_missing_is_told_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no mean\.npy") as caught:
        ModelFolder(tmp_path).mean_image(_spec(mean_image="0" * 64))
    assert "Restore mean.npy" in str(caught.value.hint)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_looked_into_is_a_model_error(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "locked")
    folder.path.mkdir(mode=0)
    with pytest.raises(ModelError, match="locked cannot be read: Permission denied"):
        find_model(folder.path)


@pytest.mark.parametrize("name", ["{}", "missing/{}", "missing/{}/file", "missing/below/{}"])
def test_a_name_is_too_long_also_below_a_folder_that_is_missing(tmp_path: Path, name: str) -> None:
    # Most file systems take 255 bytes, none 4,096.
    assert is_name_too_long(tmp_path / name.format("n" * 4096))
    assert not is_name_too_long(tmp_path / name.format("n" * 20))


def test_a_name_with_a_nul_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no model at a\0"):
        find_model("a\0")
