"""The rendered data set: the same every time, whole or refused, and with a shape in every picture."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.images import sample, shapes
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.sample import write_photographs, write_sample
from alexdeploy.images.shapes import CLASSES, render_image


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "data", num_train=3, num_val=2)


def test_a_sample_is_a_data_set_of_ten_classes(small):
    data = read_image_folder(small)
    assert data.classes == CLASSES
    assert len(set(CLASSES)) == 10
    assert (len(data.train), len(data.val)) == (30, 20)


def test_files_are_called_after_their_class(small):
    assert (small / "train" / "disc" / "disc-0001.jpg").is_file()
    assert (small / "val" / "star" / "star-0002.jpg").is_file()


def test_every_file_is_a_jpeg_that_decodes(small):
    for path in small.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
        assert decode(path.read_bytes()).std() > 1


def test_no_two_images_are_alike(small):
    found = digests(small)
    assert len(set(found.values())) == len(found) == 51


def test_the_same_seed_gives_the_same_bytes(small, tmp_path):
    assert digests(write_sample(tmp_path / "again", num_train=3, num_val=2)) == digests(small)


def test_another_seed_gives_other_images(small, tmp_path):
    other = digests(write_sample(tmp_path / "other", num_train=1, num_val=1, seed=1))
    assert not set(other.values()) & set(digests(small).values())


def test_an_image_does_not_depend_on_how_many_there_are(small, tmp_path):
    fewer = digests(write_sample(tmp_path / "fewer", num_train=1, num_val=1))
    whole = digests(small)
    assert all(whole[name] == digest for name, digest in fewer.items() if name.endswith(".jpg"))


def test_photographs_are_in_no_split(small, tmp_path):
    photographs = digests(write_photographs(tmp_path / "images", num=12))
    assert len(photographs) == 12
    assert {"arrow-01.jpg", "arrow-02.jpg", "bolt-02.jpg", "triangle-01.jpg"} <= set(photographs)
    assert not set(photographs.values()) & set(digests(small).values())


def test_photographs_that_are_there_stay(tmp_path):
    (tmp_path / "arrow-01.jpg").write_bytes(b"mine")
    write_photographs(tmp_path, num=2)
    assert (tmp_path / "arrow-01.jpg").read_bytes() == b"mine"
    assert (tmp_path / "bolt-01.jpg").is_file()


def test_the_manifest_says_what_was_made(small):
    manifest = json.loads((small / "sample.json").read_text())
    assert manifest == {"version": 1, "seed": 0, "num_train": 3, "num_val": 2, "classes": list(CLASSES)}


def test_a_finished_sample_is_returned_at_once(small, monkeypatch):
    monkeypatch.setattr(sample, "_render_jpeg", lambda key: pytest.fail("rendered again"))
    assert write_sample(small, num_train=3, num_val=2) == small


def test_a_run_that_was_killed_is_completed_by_the_next(small, tmp_path, monkeypatch):
    real, keys = sample._render_jpeg, []

    def render(key):
        keys.append(key)
        if len(keys) == 20:
            raise KeyboardInterrupt
        return real(key)

    monkeypatch.setattr(sample, "_render_jpeg", render)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "data", num_train=3, num_val=2)
    assert not (tmp_path / "data" / "sample.json").exists()
    write_sample(tmp_path / "data", num_train=3, num_val=2)
    assert len(keys) == 51
    assert digests(tmp_path / "data") == digests(small)


def test_a_run_that_was_killed_is_not_completed_with_another_seed(tmp_path, monkeypatch):
    def kill(key):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_render_jpeg", kill)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, num_train=1, num_val=1)
    with pytest.raises(UsageError, match="other settings"):
        write_sample(tmp_path, num_train=1, num_val=1, seed=1)


def test_a_sample_with_other_settings_is_refused(small):
    with pytest.raises(UsageError, match="other settings") as caught:
        write_sample(small, num_train=4, num_val=2)
    assert '"num_train": 3' in caught.value.message
    assert '"num_train": 4' in caught.value.message


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="nothing was written"):
        write_sample(tmp_path, num_train=1, num_val=1)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a rendered sample"):
        write_sample(tmp_path / "file", num_train=1, num_val=1)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a directory"):
        write_sample(tmp_path / "file" / "data", num_train=1, num_val=1)
    with pytest.raises(OutputError, match="not a directory"):
        write_photographs(tmp_path / "file" / "data", num=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full to fill a disk with")
def test_a_full_disk_is_an_output_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    write_bytes = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if path.name.startswith(".disc"):
            path.touch()
            return write_bytes(Path("/dev/full"), data)
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OutputError, match="no space left on device") as caught:
        write_sample(tmp_path, num_train=1, num_val=1)
    assert "The same command resumes" in caught.value.hint
    assert os.listdir(tmp_path / "train" / "disc") == []


def test_progress_counts_from_nothing_to_all(tmp_path):
    calls = []
    write_sample(tmp_path, num_train=1, num_val=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 20) for done in range(21)]


@pytest.mark.parametrize("options", [{"num_train": 0}, {"num_val": 0}, {"seed": -1}])
def test_a_sample_of_nothing_is_refused(tmp_path, options):
    with pytest.raises(UsageError):
        write_sample(tmp_path, **({"num_train": 1, "num_val": 1} | options))


def test_sizes_and_storage_vary():
    files = [sample._render_jpeg((0, 0, n % 10, n)) for n in range(80)]
    images = [Image.open(io.BytesIO(data)) for data in files]
    assert len({image.size for image in images}) > 70
    assert all(180 <= min(image.size) <= max(image.size) <= 640 for image in images)
    assert {image.mode for image in images} == {"RGB", "L"}
    assert {image.getexif().get(0x0112, 1) for image in images} == {1, 3, 6, 8}


def test_a_stored_orientation_is_undone_by_the_decoder():
    upright = render_image(0, np.random.default_rng(5))
    for orientation, stored in sample._STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        upright.transpose(stored).save(file, "PNG", exif=exif)
        plain = io.BytesIO()
        upright.save(plain, "PNG")
        difference = decode(file.getvalue()).astype(int) - decode(plain.getvalue())
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("class_index", range(10))
def test_the_shape_lies_whole_within_the_centre_square(class_index, monkeypatch):
    """With everything else left out, what is painted keeps clear of the square's border."""
    monkeypatch.setattr(shapes, "_scatter", lambda *args: None)
    monkeypatch.setattr(shapes, "_streak", lambda *args: None)
    monkeypatch.setattr(shapes, "_light", lambda image, rng: image)
    monkeypatch.setattr(shapes, "_PATTERNS", (shapes._plain,))
    black_on_white = (np.zeros((2, 3)), np.full((2, 3), 255.0))
    monkeypatch.setattr(shapes, "_draw_colours", lambda rng: black_on_white)
    for seed in range(8):
        pixels = np.asarray(render_image(class_index, np.random.default_rng(seed)))[..., 0]
        rows, columns = np.nonzero(pixels < 128)
        height, width = pixels.shape
        side = min(height, width)
        assert abs(rows - height / 2).max() <= side / 2 + 2
        assert abs(columns - width / 2).max() <= side / 2 + 2
        assert 0.01 < rows.size / side**2 < 0.7
