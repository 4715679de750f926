"""The thumbnails of a page of neighbours: where each of its images is found."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy.inference.similar_sheet import _thumbnails


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 300), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("folder", ["pictures", "New! pictures", "a!b!"])
def test_an_image_is_found_in_a_folder_and_in_an_archive_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    Path(folder, "red.png").write_bytes(png((250, 0, 0)))
    # What is before the first "!" may be there too.
    Path("a").mkdir()
    with zipfile.ZipFile(Path(folder, "x.zip"), "w") as archive:
        archive.writestr("so! green.png", png((0, 250, 0)))
        archive.writestr("blue.png", png((0, 0, 250)))
    names = [f"{folder}/red.png", f"{folder}/x.zip!so! green.png", f"{folder}/x.zip!blue.png"]
    found = _thumbnails([*names, f"{folder}/x.zip!gone.png", "nowhere!x.png"], "crop")
    assert set(found) == set(names)
    for channel, name in enumerate(names):
        pixels = np.asarray(Image.open(io.BytesIO(found[name])).convert("RGB")).reshape(-1, 3)
        assert pixels.mean(axis=0).argmax() == channel
