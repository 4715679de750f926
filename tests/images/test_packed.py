"""What a packed set is to commands that read images, and when it is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import write_pictures

from alexdeploy.core.errors import DataError, ImageError
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.labelled import read_labelled
from alexdeploy.images.originals import from_labelled, from_lists
from alexdeploy.images.packed import BYTES_PER_IMAGE, check_resize, is_packed, open_packed
from alexdeploy.images.sources import iter_sources
from alexdeploy.training.prepare import PrepareOptions, prepare


@pytest.fixture
def data(tmp_path: Path) -> LabelledImages:
    for place, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "data" / "train" / name, 4, seed=place)
        write_pictures(tmp_path / "data" / "val" / name, 2, seed=10 + place)
    return read_image_folder(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path, data: LabelledImages) -> Path:
    """Six shards of the eight and the four images."""
    options = PrepareOptions(images_per_shard=2, arguments=("photos of us", "--seed", "3"))
    prepare(from_labelled(data), tmp_path / "set", options, lambda done, total: None)
    return tmp_path / "set"


def test_its_images_are_sources_with_the_same_pixels(folder, data):
    sources = list(iter_sources([folder]))
    names = [
        f"{split}/{name}/{index:03}.png"
        for split, num in (("train", 4), ("val", 2))
        for name in ("cat", "dog")
        for index in range(num)
    ]
    assert [source.name for source in sources] == [f"{folder}!{name}" for name in names]
    for source, (path, _) in zip(sources, (*data.train, *data.val), strict=True):
        np.testing.assert_array_equal(decode(source.read("crop")), decode(Path(path).read_bytes()))
    with pytest.raises(ImageError, match="packed with --resize crop, and the model takes images made square by warp"):
        sources[0].read("warp")


def test_its_validation_images_are_labelled_in_the_order_of_the_model(folder):
    found = read_labelled(folder, ["dog", "bird", "cat"])
    assert [label for _, label in found.examples] == [2, 2, 0, 0]
    assert [source.name for source in found.sources()] == [
        f"{folder}!val/{name}/{index:03}.png" for name in ("cat", "dog") for index in range(2)
    ]
    assert "these are the 4 for validation" in found.notes[0]
    with pytest.raises(DataError, match="'dog'"):
        read_labelled(folder, ["cat", "bird"])


def test_images_are_read_from_any_shard_in_any_order(folder, data):
    images = open_packed(folder).train
    indices = np.array([7, 0, 3, 3, 6, 1])
    expected = [decode(Path(data.train[index].path).read_bytes()) for index in indices]
    np.testing.assert_array_equal(images.read(indices), expected)
    assert (folder / "train-00003.bin").stat().st_size == 2 * BYTES_PER_IMAGE


def test_the_way_of_resizing_is_asked_for(folder, tmp_path):
    check_resize(folder, "crop")
    check_resize(tmp_path, "warp")
    with pytest.raises(DataError, match="packed with --resize crop; found where warp is expected") as caught:
        check_resize(folder, "warp")
    assert caught.value.cure == "Pack the images again: alexdeploy prepare 'photos of us' OUT --resize warp"


def test_an_unfinished_set_is_told_with_the_command_that_finishes_it(folder):
    (folder / "index.json").unlink()
    assert is_packed(folder)
    with pytest.raises(DataError, match="not finished: 6 of 6 shards are there") as caught:
        open_packed(folder)
    command = f"alexdeploy prepare 'photos of us' {folder} --seed 3"
    assert caught.value.cure == f"Go on: {command}"
    (source,) = iter_sources([folder])
    assert source.problem is not None
    assert command in source.problem


@pytest.mark.parametrize("content", ["{", '{"format": "other"}', "[1, 2]"])
def test_a_folder_with_a_plan_of_somebody_else_is_no_set(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    assert not is_packed(tmp_path)
    with pytest.raises(DataError, match="is no packed set"):
        open_packed(tmp_path)


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("index.json", b'"train-00001.bin"', b'"../../../secret"', "names a shard '../../../secret'"),
        ("index.json", b'"num_train": 8', b'"num_train": 9', "is that of another set"),
        ("index.json", b'"classes"', b'"klasses"', "index.json is damaged: .*classes"),
        ("plan.json", b'"resize": "crop"', b'"resize": "blur"', "plan.json is damaged: Invalid enum value 'blur'"),
        ("plan.json", b"packed-1", b"packed-2", "has another format than alexdeploy-packed-1"),
        ("train-names.json", b"000.png", b"999.png", "names.json is not the file that was written"),
    ],
)
def test_a_set_that_was_changed_is_refused(folder, file: str, before: bytes, after: bytes, message: str):
    content = (folder / file).read_bytes()
    assert before in content
    (folder / file).write_bytes(content.replace(before, after, 1))
    with pytest.raises(DataError, match=message):
        _ = open_packed(folder).train.names


def test_lists_give_the_images_of_the_folders(tmp_path, data):
    root = tmp_path / "data"
    for split in ("train", "val"):
        lines = [f"{path.relative_to(root)} {path.parent.name}" for path in sorted((root / split).rglob("*.png"))]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    assert from_lists(root, tmp_path / "train.txt", tmp_path / "val.txt") == data


def test_a_list_of_numbers_has_classes_of_that_many_unless_they_are_named(tmp_path, data):
    root = tmp_path / "data"
    lines = [f"{Path(path).relative_to(root)} {9 + label}" for path, label in data.train]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="labels go up to 10 and no image has the label 0") as caught:
        from_lists(root, tmp_path / "train.txt")
    assert "--classes FILE" in (caught.value.cure or "")
    (tmp_path / "names.txt").write_text("\n".join(f"class {index}" for index in range(11)))
    found = from_lists(root, tmp_path / "train.txt", classes_file=tmp_path / "names.txt", val_fraction=0.25)
    assert found.classes[10] == "class 10"
    assert sorted(label for _, label in found.train) == [9] * 3 + [10] * 3
    assert sorted(label for _, label in found.val) == [9, 10]
    assert {path for path, _ in (*found.train, *found.val)} == {path for path, _ in data.train}
