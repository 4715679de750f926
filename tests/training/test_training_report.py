"""The page and the plot that a run leaves."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from markup import Page
from PIL import Image
from training_helpers import tiny_recipe

from alexdeploy.core.events import Notice
from alexdeploy.core.metrics import wilson_interval
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.training import report
from alexdeploy.training.augment import Normalization, random_views
from alexdeploy.training.checkpoint import describe_run, read_checkpoint
from alexdeploy.training.data import open_data
from alexdeploy.training.events import Event, StepRecord
from alexdeploy.training.statistics import color_axes
from alexdeploy.training.steps import Steps
from alexdeploy.training.trainer import RunOptions, train

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("drawn_curves")

ONE_THREAD = RunOptions(device="cpu", threads=1)
RECIPE = tiny_recipe("training.epochs=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, drawn_curves: None) -> ModelFolder:
    folder = ModelFolder(tmp_path_factory.mktemp("reported") / "model")
    data = dataclasses.replace(read_image_folder(tiny_folder), classes=('<script>"a"', "b\nc"))
    train(data, RECIPE, folder, ONE_THREAD, lambda event: None)
    return folder


def test_the_page_has_errors_with_intervals_and_says_what_the_epoch_was_chosen_on(trained: ModelFolder) -> None:
    found = Page((trained.checkpoints / "report.html").read_text())
    facts = trained.spec().provenance
    error, num_val = facts["val_top1_error_10_views"], facts["num_val"]
    assert isinstance(error, float)
    assert isinstance(num_val, int)
    low, high = wilson_interval(round(error * num_val), num_val)
    assert f"{error:.2%} [{low:.2%}, {high:.2%}]" in found.text
    assert "chosen by its error on these same validation images" in found.text
    assert '<script>"a"' in found.text
    assert not re.search(r"\d\.\d{7}", found.text), "digits of rounding"
    assert "script" not in [tag for tag, attributes in found.elements if "src" in attributes]
    with Image.open(trained.checkpoints / "curves.png") as curves:
        assert curves.format == "PNG"


def test_the_errors_of_classes_sum_to_that_of_all(
    trained: ModelFolder, tiny_data: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summaries: list[report.RunSummary] = []
    monkeypatch.setattr("alexdeploy.training.run.write_report", lambda folder, found: summaries.append(found))
    folder = ModelFolder(tmp_path / "model")
    spec = train(tiny_data, RECIPE, folder, ONE_THREAD, lambda event: None)
    (found,) = summaries
    assert found.num_images.tolist() == np.bincount([example.label for example in tiny_data.val]).tolist()
    error = spec.provenance["val_top1_error_10_views"]
    assert found.num_errors.sum() / found.num_images.sum() == pytest.approx(error, abs=1e-12)
    # Of the pixels of the first step, without normalization.
    data = open_data(tiny_data, "crop", num_threads=1)
    checkpoint = read_checkpoint(folder.checkpoint_path)
    assert checkpoint.identity == describe_run(RECIPE, data)
    axes = color_axes(checkpoint.statistics.covariance)
    indices = np.arange(data.num_train)
    steps = Steps(data.train, indices, RECIPE.training, crop=67, axes=axes)
    batch = steps.batches(1)[0]
    (pixels,) = data.train.batches([batch])
    nothing = Normalization(scale=1.0, mean=torch.zeros(3), std=None, bgr=False)
    views = random_views(torch.from_numpy(pixels), steps.draws(1, 1, len(batch)), nothing, 67)
    expected = np.clip(np.rint(views.numpy().transpose(0, 2, 3, 1)), 0, 255)
    np.testing.assert_array_equal(found.samples, expected)


def test_without_matplotlib_training_says_so_and_goes_on(
    tiny_data: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexdeploy.training.trainer.can_write_report", lambda: False)
    events: list[Event] = []
    folder = ModelFolder(tmp_path / "model")
    train(tiny_data, tiny_recipe("training.epochs=1"), folder, ONE_THREAD, events.append)
    assert any(isinstance(event, Notice) and "alexdeploy[report]" in event.message for event in events)
    assert not (folder.checkpoints / "report.html").exists()


def test_of_many_steps_neighbours_are_averaged() -> None:
    steps = [
        StepRecord(epoch=1 + i // 5000, step=1 + i % 5000, loss=float(i), learning_rate=1.0) for i in range(10_000)
    ]
    places, means = report._step_curve(steps)
    assert len(places) == 2000
    np.testing.assert_allclose(means, np.arange(10_000).reshape(2000, 5).mean(axis=1))
    assert places[0] == pytest.approx(3 / 5000)
    assert places[-1] == pytest.approx(2, abs=1e-3)
