"""The inputs of the checks of an export; which photographs are picked is tested in tests/images/test_pick.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy.core.errors import ImageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export.check_images import check_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures; the red of each is ten times its number."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        Image.new("RGB", (256, 256), (10 * index, 0, 0)).save(folder / f"{index:02}.png")
    return folder


def test_photographs_come_from_all_over_what_is_named(tiny_model: ModelFolder, pictures: Path) -> None:
    spec = tiny_model.spec()
    mean = tiny_model.mean_image(spec)
    assert mean is not None
    images = check_images(spec, tiny_model.mean_image(spec), str(pictures)).inputs
    assert (images.shape, images.dtype) == ((6, 3, 227, 227), np.float32)
    reds = [float((image[0] + mean[0, 14:241, 14:241]).mean()) for image in images[2:]]
    assert reds == pytest.approx([0, 40, 60, 100], abs=1e-3)


def test_a_named_photograph_that_cannot_be_read_is_an_error(tiny_model: ModelFolder, pictures: Path) -> None:
    (pictures / "04.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"04\.png: the file is empty"):
        check_images(tiny_model.spec(), tiny_model.mean_image(tiny_model.spec()), str(pictures))


def test_training_data_of_which_nothing_can_be_read_is_an_error(tiny_model: ModelFolder, pictures: Path) -> None:
    for path in pictures.iterdir():
        path.write_bytes(b"no picture")
    spec = tiny_model.spec().replace_provenance(data=str(pictures))
    with pytest.raises(ImageError, match="none of 12 images of the training data") as caught:
        check_images(spec, tiny_model.mean_image(spec), None)
    assert "--images" in str(caught.value.hint)
