"""A model folder from elsewhere is copied byte by byte if every file is what its record says, and refused otherwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_images

import alexdeploy
from alexdeploy import ImportOptions, ModelFolder, import_model
from alexdeploy.core.errors import AlexDeployError, ModelError, StaleArtifactError, UsageError
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.importing import whole_folder
from alexdeploy.importing.whole_folder import BILL_NAME, WholeModel, check_whole


@pytest.fixture
def given(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder elsewhere; the working folder has no models."""
    elsewhere = tmp_path / "downloads" / "tiny"
    elsewhere.parent.mkdir()
    tiny_model.path.rename(elsewhere)
    tiny_model.path.parent.rmdir()
    monkeypatch.chdir(tmp_path)
    return elsewhere


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def probabilities(folder: Path) -> np.ndarray:
    with open_engine(ModelFolder(folder), "onnxruntime", EngineOptions(batch_size=2)) as engine:
        return np.array(engine.run(smooth_images(2)).probabilities)


def test_every_file_of_a_model_is_the_same_and_others_are_left_out(given: Path) -> None:
    expected, answers = contents(given), probabilities(given)
    for name in (".git/config", "README.md", ".gitattributes", "engines/x.engine", "checkpoints/last.pt"):
        (given / name).parent.mkdir(exist_ok=True)
        (given / name).write_text("x")
    told: list[str] = []
    folder = import_model(given, on_warning=told.append)
    assert folder.path == Path("models/tiny")
    assert contents(folder.path) == expected
    assert np.array_equal(probabilities(folder.path), answers)
    assert told == [f"not copied: engines, checkpoints, README.md of {given}"]
    assert sorted(os.listdir("models")) == ["tiny"]


def test_a_snapshot_of_links_has_the_name_of_the_model_and_not_that_of_the_revision(given: Path) -> None:
    blobs, snapshot = given.parent / "blobs", given.parent / "snapshots" / "5f9d4c"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(given.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    folder = import_model(snapshot)
    assert folder.path == Path("models/tiny")
    assert contents(folder.path) == contents(snapshot)
    assert not any(path.is_symlink() for path in folder.path.iterdir())


def _flip(name: str, offset: int = -9) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[offset] ^= 1
        (folder / name).write_bytes(content)

    return change


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _bill(folder: Path) -> None:
    files = [{"name": "spec.json", "hashes": [{"alg": "SHA-256", "content": "0" * 64}]}]
    (folder / BILL_NAME).write_text(json.dumps({"metadata": {"component": {"components": files}}}))


DAMAGES: dict[str, tuple[Callable[[Path], object], type[AlexDeployError], str]] = {
    "weights": (_flip("weights.safetensors"), StaleArtifactError, "was made from weights.safetensors"),
    "graph": (_flip("model.onnx"), StaleArtifactError, "SHA-256 mismatch: .*model.onnx "),
    "another graph": (_flip("model.fp16.onnx"), StaleArtifactError, "SHA-256 mismatch: .*model.fp16.onnx "),
    "mean": (_flip("mean.npy"), StaleArtifactError, "SHA-256 mismatch: .*mean.npy "),
    "no mean": (lambda folder: (folder / "mean.npy").unlink(), ModelError, "has no mean.npy"),
    "classes": (
        lambda folder: _write("spec.json", (folder / "spec.json").read_bytes().replace(b"class-3", b"class-9"))(folder),
        StaleArtifactError,
        "another architecture, preprocessing or classes",
    ),
    "spec": (_write("spec.json", b"{"), ModelError, "spec.json is damaged"),
    "no spec": (lambda folder: (folder / "spec.json").unlink(), ModelError, "is not a model folder"),
    "backends": (_write("backends.json", b"[1]"), ModelError, "backends.json is damaged"),
    "bill": (_write(BILL_NAME, b"[]"), ModelError, f"{BILL_NAME} is damaged"),
    "a file of the bill": (_bill, StaleArtifactError, f"recorded 000000000000 in {BILL_NAME}"),
    "deployment graph": (
        lambda folder: shutil.copy(folder / "model.onnx", folder / "deployment.onnx"),
        StaleArtifactError,
        "deployment.onnx has the graph of another file: no views",
    ),
    "pointer": (
        _write("model.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ModelError,
        "is a Git LFS pointer.*\n.*git lfs pull",
    ),
    "page": (_write("weights.safetensors", b"<!doctype html><title>404</title>"), ModelError, "is a web page"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_with_a_damaged_file_is_refused_and_nothing_is_written(given: Path, damage: str) -> None:
    change, kind, told = DAMAGES[damage]
    change(given)
    with pytest.raises(kind, match=f"(?s){told}"):
        import_model(given)
    assert not Path("models").exists()


def test_a_folder_without_weights_or_graphs_is_no_model(given: Path) -> None:
    for path in [*given.glob("*.onnx*"), given / "weights.safetensors"]:
        path.unlink()
    with pytest.raises(ModelError, match=r"has neither weights\.safetensors nor a graph"):
        import_model(given)


def test_a_model_that_is_there_is_replaced_only_if_asked_and_as_a_whole(given: Path) -> None:
    folder = import_model(given)
    (folder.path / "notes.txt").write_text("mine")
    for name in ("model.fp16.onnx", "model.fp16.onnx.sha256"):
        (given / name).unlink()
    with pytest.raises(UsageError, match="already holds a model"):
        import_model(given)
    assert (folder.path / "model.fp16.onnx").is_file()
    assert import_model(given, ImportOptions(overwrite=True)) == folder
    assert contents(folder.path) == {**contents(given), "notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ImportOptions(recipe="torchvision"), "recipe is for files"),
        (ImportOptions(mean=(1, 2, 3)), "mean is for files"),
        (ImportOptions(name="../x"), "is not a name of a folder"),
    ],
)
def test_options_of_files_are_refused(given: Path, options: ImportOptions, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        import_model(given, options)


def test_a_spec_cannot_name_a_folder_outside_of_models(given: Path) -> None:
    spec = json.loads((given / "spec.json").read_text())
    (given / "spec.json").write_text(json.dumps({**spec, "name": "../../outside"}))
    with pytest.raises(UsageError, match="is not a name of a folder"):
        import_model(given)
    assert import_model(given, ImportOptions(name="inside")).path == Path("models/inside")


def test_a_model_is_not_imported_over_itself(given: Path) -> None:
    folder = import_model(given)
    with pytest.raises(UsageError, match="is in its place already"):
        import_model(folder.path)
    assert alexdeploy.find_model("tiny") == folder


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_import_leaves_no_model(given: Path) -> None:
    # Killed when the first file has been copied.
    code = (
        "import os, signal, sys; from alexdeploy.importing import whole_folder as w\n"
        "real = w.copy_file\n"
        "def copy(*args): real(*args); os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.copy_file = copy\n"
        "w.import_folder(w.Path(sys.argv[1]), None)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(given)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Path("models/tiny").exists()
    assert import_model(given).path == Path("models/tiny")


def test_a_graph_of_which_only_the_hash_is_there_is_named(given: Path) -> None:
    (given / "model.fp16.onnx").unlink()
    told: list[str] = []
    folder = import_model(given, on_warning=told.append)
    assert told == [f"{given} has not all files of the model; not there: model.fp16.onnx"]
    assert not list(folder.path.glob("*fp16*"))


@pytest.mark.parametrize("name", ["model.fp16.onnx", "weights.safetensors", "backends.json"])
def test_a_link_to_nothing_and_a_folder_in_place_of_a_file_are_refused(given: Path, name: str) -> None:
    for make in (lambda path: path.symlink_to("gone"), lambda path: path.symlink_to(name), Path.mkdir):
        (given / name).unlink(missing_ok=True)
        make(given / name)
        with pytest.raises(ModelError, match=rf"{name} cannot be read"):
            import_model(given)
    assert not Path("models").exists()


def test_of_two_imports_at_once_the_second_is_refused(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_and_wait(folder: ModelFolder) -> WholeModel:
        found = check_whole(folder)
        monkeypatch.setattr(whole_folder, "check_whole", check_whole)
        import_model(given, ImportOptions(name="both"))
        return found

    monkeypatch.setattr(whole_folder, "check_whole", check_and_wait)
    with pytest.raises(UsageError, match="models/both already holds a model"):
        import_model(given, ImportOptions(name="both"))
    assert contents(Path("models/both")) == contents(given)
    assert sorted(os.listdir("models")) == ["both"]


def test_files_that_the_bill_does_not_list_are_named(given: Path) -> None:
    (given / BILL_NAME).write_text("{}")
    told: list[str] = []
    import_model(given, on_warning=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"{BILL_NAME} has no hash of spec.json, ")
