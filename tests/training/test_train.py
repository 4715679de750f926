"""`alexdeploy.train`: a model folder from a path, as the command makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexdeploy import PrepareOptions, RecipeError, TrainOptions, UsageError, prepare, train

TINY = TrainOptions(
    recipe="alexnet-quarter",
    overrides=(
        *("architecture.width=0.03125", "architecture.hidden=[16,16]"),
        *("training.epochs=1", "training.batch_size=4"),
    ),
    name="mine",
    device="cpu",
    num_threads=1,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index in range(12):
        path = tmp_path / "data" / ("dark", "light")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 60 + 120 * (index % 2) + index, np.uint8)).save(path)
    return tmp_path / "data"


def test_a_folder_of_classes_becomes_a_model(data: Path) -> None:
    folder = train(data, TINY).folder
    assert folder.path == Path("models/mine")
    assert (folder.spec().classes, folder.spec().recipe) == (("dark", "light"), "alexnet-quarter")
    assert folder.weights_path.is_file()
    with pytest.raises(UsageError, match="overwrite=True"):
        train(data, TINY)


def test_what_is_wrong_is_refused_before_any_work(data: Path) -> None:
    with pytest.raises(UsageError, match="pretrained=MODEL"):
        train(data, TrainOptions(freeze=("conv1",)))
    with pytest.raises(RecipeError):
        train(data, TrainOptions(recipe="alexnett"))
    with pytest.raises(UsageError, match="val has no meaning"):
        train(None, TrainOptions(val=data))
    assert not Path("models").exists()
    assert not Path("data/sample").exists()


def test_a_packed_set_takes_the_place_of_the_folder(data: Path) -> None:
    done: list[Any] = []
    packed = prepare(data, "packed", PrepareOptions(val_fraction=0.25), on_event=done.append)
    assert (packed.index.train.num_images, packed.index.val.num_images, packed.broken) == (8, 4, ())
    assert (done[-1].num_done, done[-1].num_total) == (12, 12)
    assert train("packed", TINY).spec.classes == ("dark", "light")
    with pytest.raises(UsageError, match="where each folder is a class of images"):
        prepare(data, data / "packed")
    with pytest.raises(UsageError, match="exclude is for class folders"):
        prepare(data, "other", PrepareOptions(train_list="list.txt", exclude=("x",)))
