"""A model whose graphs are in use is trained further: they answer as before until the next export."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import write_pictures
from training_helpers import tiny_recipe

from alexdeploy.core import files
from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.export import publish
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs.freshness import export_command, newer_weights
from alexdeploy.images.folder import read_image_folder
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.training.checkpoint import Progress
from alexdeploy.training.events import AlreadyFinished, EpochFinished, Event
from alexdeploy.training.publish import Contract, publish_best
from alexdeploy.training.trainer import RunOptions, train

ONE_THREAD = RunOptions(device="cpu", threads=1, checkpoint_seconds=1e9)
RESUME = dataclasses.replace(ONE_THREAD, resume=True)


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("served") / "pictures", 3)


def rows(folder: ModelFolder, pictures: Path) -> list[Row]:
    with Predictor(folder, backend="onnxruntime", num_threads=1) as predictor:
        return list(predictor.predict([pictures]))


def contents(folder: ModelFolder) -> dict[str, str]:
    """Hashes of what is served: everything but the run's own files."""
    return {path.name: sha256_file(path) for path in folder.path.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> ModelFolder:
    folder = ModelFolder(tmp_path_factory.mktemp("first") / "served")
    train(read_image_folder(tiny_folder), tiny_recipe("training.epochs=1"), folder, ONE_THREAD, ignore)
    export_model(folder)
    return folder


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, served: ModelFolder, pictures: Path
) -> tuple[ModelFolder, list[list[Row]]]:
    """The same after two more epochs, both better, and the rows that it gave after each of them."""
    folder = ModelFolder(tmp_path_factory.mktemp("second") / "served")
    shutil.copytree(served.path, folder.path)
    while_training: list[list[Row]] = []

    def predict(event: Event) -> None:
        if isinstance(event, EpochFinished):
            while_training.append(rows(folder, pictures))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "is_improved_by", lambda *_: True)
        train(read_image_folder(tiny_folder), tiny_recipe("training.epochs=3"), folder, RESUME, predict)
    return folder, while_training


@pytest.fixture
def improved(tmp_path: Path, resumed: tuple[ModelFolder, list[list[Row]]]) -> ModelFolder:
    folder = ModelFolder(tmp_path / "served")
    shutil.copytree(resumed[0].path, folder.path)
    return folder


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory, resumed: tuple[ModelFolder, list[list[Row]]]) -> ModelFolder:
    """The candidate as a model of its own, exported without anything of the folder that it lies in."""
    folder = ModelFolder(tmp_path_factory.mktemp("alone") / "newer")
    shutil.copytree(resumed[0].candidate.path, folder.path)
    export_model(folder)
    return folder


def test_exported_graphs_answer_as_before_while_their_model_is_trained(served, resumed, pictures):
    folder, while_training = resumed
    before = rows(served, pictures)
    assert while_training == [before, before]
    assert contents(folder) == contents(served)


def test_the_run_ends_with_the_better_weights_beside_the_served_ones(served, resumed):
    folder, _ = resumed
    spec = folder.candidate.spec()
    assert folder.spec() == served.spec()
    assert (spec.provenance["best_epoch"], spec.provenance["num_epochs"]) == (3, 3)
    assert spec.provenance["val_top1_error_10_views"] is not None
    assert spec.recorded_weights == sha256_file(folder.candidate.weights_path) != served.spec().recorded_weights
    assert spec.contract_sha256 == served.spec().contract_sha256


def test_predict_says_which_weights_answer_and_how_to_use_the_newer_ones(improved):
    note = newer_weights(improved)
    assert note is not None
    for spec in (improved.spec(), improved.candidate.spec()):
        assert spec.recorded_weights[:12] in note
    assert f"alexdeploy export {improved.path}" in note
    with Predictor(improved) as predictor:
        assert note in predictor.notes
    improved.remove_candidate()
    with Predictor(improved) as predictor:
        assert predictor.notes == ()


def test_an_export_replaces_weights_and_graphs_together(improved, newer, pictures):
    before = rows(improved, pictures)
    export_model(improved)
    for path in (ModelFolder.spec_path, ModelFolder.weights_path, ModelFolder.mean_path):
        assert path.fget(improved).read_bytes() == path.fget(newer).read_bytes()
    assert improved.onnx_path().read_bytes() == newer.onnx_path().read_bytes()
    after = rows(improved, pictures)
    assert [row.top for row in after] == [row.top for row in rows(newer, pictures)] != [row.top for row in before]
    assert not improved.candidate.path.exists()
    assert newer_weights(improved) is None


def test_a_run_that_is_finished_and_exported_is_finished(improved, tiny_data):
    export_model(improved)
    events: list[Event] = []
    spec = train(tiny_data, tiny_recipe("training.epochs=3"), improved, RESUME, events.append)
    assert events == [AlreadyFinished(num_epochs=3)]
    assert spec == improved.spec()


def test_the_next_epoch_that_training_publishes_during_an_export_stays(improved, newer):
    network = publish.read_network(improved)
    next_spec = improved.candidate.spec().replace_provenance(weights_sha256="0" * 64)
    improved.candidate.write_spec(next_spec)
    publish.publish(improved, network, {improved.onnx_path(): newer.onnx_path().read_bytes()}, lambda: None)
    assert improved.spec() == newer.spec()
    assert improved.candidate.spec() == next_spec


def test_weights_that_training_replaces_during_their_first_export_are_told(served, tmp_path):
    folder = ModelFolder(tmp_path / "served")
    shutil.copytree(served.path, folder.path)
    graph = folder.onnx_path().read_bytes()
    network = publish.read_network(folder)
    folder.onnx_path().unlink()
    folder.weights_path.write_bytes(b"those of the next epoch")
    with pytest.raises(StaleArtifactError, match="is now"):
        publish.publish(folder, network, {folder.onnx_path(): graph}, lambda: None)
    assert not folder.has_graphs


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("num_renames", range(6))
def test_a_kill_during_the_replacement_leaves_what_answers_rightly_or_says_what_to_do(
    improved, newer, pictures, monkeypatch, num_renames
):
    right = [[row.top for row in rows(folder, pictures)] for folder in (improved, newer)]
    network, graphs = publish.read_network(improved), {improved.onnx_path(): newer.onnx_path().read_bytes()}
    renames = []

    def rename_or_die(source: str, target: Path) -> None:
        if len(renames) == num_renames:
            raise Killed
        renames.append(target)
        real_rename(source, target)

    real_rename = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", rename_or_die)
        if num_renames < 5:
            with pytest.raises(Killed):
                publish.publish(improved, network, graphs, lambda: None)
        else:
            publish.publish(improved, network, graphs, lambda: None)
    found, hint = None, None
    try:
        found = [row.top for row in rows(improved, pictures)]
    except ModelError as exc:
        hint = exc.hint
    assert found in right if hint is None else f"alexdeploy export {improved.path}" in hint
    # What that command does.
    publish.publish(improved, publish.read_network(improved), graphs, lambda: None)
    assert [row.top for row in rows(improved, pictures)] == right[1]
    assert not improved.candidate.path.exists()


def test_a_kill_between_the_candidates_files_leaves_no_candidate(improved, tiny_data, pictures, monkeypatch):
    contract = Contract(spec=improved.spec(), mean_image=None, mean_file=None)
    before = rows(improved, pictures)
    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "write_spec", _die)
        with pytest.raises(Killed):
            publish_best(improved, contract, improved.spec(), b"weights")
    assert newer_weights(improved) is None
    assert rows(improved, pictures) == before


def _die(*_: object) -> None:
    raise Killed


def test_newer_weights_are_exported_for_all_graphs_at_once_or_not_at_all(improved):
    improved.onnx_path("fp16").write_bytes(b"a graph")
    before = contents(improved)
    with pytest.raises(UsageError, match=r"model\.fp16\.onnx") as error:
        export_model(improved)
    assert f"alexdeploy export {improved.path} --fp16" in error.value.hint
    assert contents(improved) == before


def test_ranges_of_the_served_weights_do_not_serve_for_the_newer_ones(improved, tmp_path, pictures, monkeypatch):
    from alexdeploy.core.recipe import CalibrationRecipe
    from alexdeploy.export.quantize.calibrate import calibrate

    monkeypatch.chdir(tmp_path)
    calibrate(improved, str(pictures), CalibrationRecipe(num_images=3))
    before = contents(improved)
    with pytest.raises(StaleArtifactError) as error:
        export_model(improved, ExportOptions(int8=True))
    assert "--int8 --calibrate" in error.value.hint
    assert contents(improved) == before


def test_the_command_for_newer_weights_names_the_graphs_that_are_there(improved, int8_model):
    assert export_command(improved) == f"alexdeploy export {improved.path}"
    assert export_command(int8_model) == "alexdeploy export models/tiny --fp16 --int8 --calibrate pictures"


@pytest.mark.parametrize("content", [None, b"{"])
def test_newer_weights_that_cannot_be_read_do_not_stop_the_served_ones(improved, pictures, content):
    before = rows(improved, pictures)
    if content is None:
        improved.candidate.spec_path.unlink()
        assert newer_weights(improved) is None
    else:
        improved.candidate.spec_path.write_bytes(content)
        note = newer_weights(improved)
        assert note is not None
        assert str(improved.candidate.spec_path) in note
    assert rows(improved, pictures) == before


def test_an_export_that_waited_for_another_exports_what_that_one_published(improved, newer, monkeypatch):
    @contextlib.contextmanager
    def wait_for_another(path: Path) -> Iterator[None]:
        monkeypatch.undo()
        export_model(improved)
        yield

    monkeypatch.setattr(publish, "wait_for_lock", wait_for_another)
    network = publish.read_network(improved)
    assert not network.new_files
    assert network.spec.recorded_weights == newer.spec().recorded_weights


def test_newer_weights_without_their_file_are_named_and_removing_them_helps(improved):
    improved.candidate.weights_path.unlink()
    with pytest.raises(ModelError, match=r"best has no weights\.safetensors") as caught:
        export_model(improved)
    assert str(improved.candidate.path) in (caught.value.hint or "")
    shutil.rmtree(improved.candidate.path)
    assert export_model(improved)


def test_the_newest_model_is_the_one_that_was_trained_last(improved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(improved.path, Path("models") / "resumed")
    shutil.copytree(improved.path, Path("models") / "other", ignore=shutil.ignore_patterns("checkpoints"))
    for path, seconds in (("other/spec.json", 2), ("resumed/spec.json", 1), ("resumed/checkpoints/best/spec.json", 3)):
        os.utime(Path("models") / path, (seconds, seconds))
    assert find_model().path.name == "resumed"
    os.utime(Path("models/other/spec.json"), (4, 4))
    assert find_model().path.name == "other"
