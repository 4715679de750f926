"""A data set and a network small enough to train in a second."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexdeploy.images.folder import LabelledImages, read_image_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark above and dark below, 20 training and 8 validation images each."""
    folder = tmp_path_factory.mktemp("halves")
    rng = np.random.default_rng(5)
    for split, num in (("train", 20), ("val", 8)):
        for name in ("above", "below"):
            (folder / split / name).mkdir(parents=True)
            for index in range(num):
                small = rng.integers(90, 250, (8, 8, 3))
                small[: 4 if name == "above" else 8][4 if name == "below" else 0 :] //= 4
                image = Image.fromarray(small.astype(np.uint8)).resize((256, 256))
                image.save(folder / split / name / f"{index:02d}.png", compress_level=1)
    return folder


@pytest.fixture
def tiny_data(tiny_folder: Path) -> LabelledImages:
    return read_image_folder(tiny_folder)


@pytest.fixture
def data_with_broken(tmp_path: Path, tiny_folder: Path) -> LabelledImages:
    """The same with three images that cannot be decoded."""
    copy = tmp_path / "data"
    shutil.copytree(tiny_folder, copy)
    (copy / "train" / "above" / "03.png").write_bytes(b"not an image")
    (copy / "train" / "below" / "04.png").write_bytes(b"")
    (copy / "val" / "below" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return read_image_folder(copy)


@pytest.fixture(autouse=True)
def _keep_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
