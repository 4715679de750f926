"""What a packed set is to commands that read images, and when it is none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_pictures

from alexdeploy.core.errors import DataError, ImageError, UsageError
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.labelled import read_labelled
from alexdeploy.images.originals import from_labelled, from_lists
from alexdeploy.images.packed import check_resize, is_packed, open_packed
from alexdeploy.images.packed_files import BYTES_PER_IMAGE
from alexdeploy.images.sources import iter_sources
from alexdeploy.training.pack import PackOptions, pack_images


@pytest.fixture
def data(tmp_path: Path) -> LabelledImages:
    for place, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "data" / "train" / name, 4, seed=place)
        write_pictures(tmp_path / "data" / "val" / name, 2, seed=10 + place)
    return read_image_folder(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path, data: LabelledImages) -> Path:
    """Six shards of the eight and the four images."""
    options = PackOptions(images_per_shard=2, arguments=("photos of us", "--seed", "3"))
    pack_images(from_labelled(data), tmp_path / "set", options, lambda done, total: None)
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
    for source, (path, *_) in zip(sources, (*data.train, *data.val), strict=True):
        np.testing.assert_array_equal(decode(source.read("crop")), decode(Path(path).read_bytes()))
    with pytest.raises(ImageError, match='packed with resize="crop", and the model expects resize="warp"'):
        sources[0].read("warp")


def test_its_validation_images_are_labelled_in_the_order_of_the_model(folder):
    found = read_labelled(folder, ["dog", "bird", "cat"])
    assert [example.label for example in found.examples] == [2, 2, 0, 0]
    assert [source.name for source in found.sources()] == [
        f"{folder}!val/{name}/{index:03}.png" for name in ("cat", "dog") for index in range(2)
    ]
    assert "using the 4 for validation" in found.notes[0]
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
    with pytest.raises(DataError, match='packed with resize="crop"; expected warp') as caught:
        check_resize(folder, "warp")
    assert caught.value.hint == "Pack the images again: alexdeploy prepare 'photos of us' OUT --resize warp"


def test_an_unfinished_set_is_told_with_the_command_that_finishes_it(folder):
    (folder / "index.json").unlink()
    assert is_packed(folder)
    with pytest.raises(DataError, match="not finished: 6 of 6 shards are written") as caught:
        open_packed(folder)
    command = f"alexdeploy prepare 'photos of us' {folder} --seed 3"
    assert caught.value.hint == f"Resume it: {command}"
    (source,) = iter_sources([folder])
    assert source.problem is not None
    assert command in source.problem


@pytest.mark.parametrize("content", ["{", '{"format": "other"}', "[1, 2]"])
def test_a_folder_with_a_plan_of_somebody_else_is_no_set(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    assert not is_packed(tmp_path)
    with pytest.raises(DataError, match="is not a packed set"):
        open_packed(tmp_path)


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("index.json", b'"train-00001.bin"', b'"../../../secret"', "names a shard '../../../secret'"),
        ("index.json", b'"num_train": 8', b'"num_train": 9', "belongs to another set"),
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
    lines = [f"{Path(path).relative_to(root)} {9 + label}" for path, label, _ in data.train]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="labels go up to 10 and no image has the label 0") as caught:
        from_lists(root, tmp_path / "train.txt")
    assert "--classes FILE" in (caught.value.hint or "")
    (tmp_path / "names.txt").write_text("\n".join(f"class {index}" for index in range(11)))
    found = from_lists(root, tmp_path / "train.txt", classes_file=tmp_path / "names.txt", val_fraction=0.25)
    assert found.classes[10] == "class 10"
    assert sorted(example.label for example in found.train) == [9] * 3 + [10] * 3
    assert sorted(example.label for example in found.val) == [9, 10]
    assert {example.path for example in (*found.train, *found.val)} == {example.path for example in data.train}


def test_labels_that_are_identifiers_take_no_memory_for_those_between_them(tmp_path, data):
    def classes_of(*labels: str) -> tuple[str, ...]:
        lines = [f"{Path(path).relative_to(tmp_path / 'data')} {labels[label]}" for path, label, _ in data.train]
        (tmp_path / "train.txt").write_text("\n".join(lines))
        return from_lists(tmp_path / "data", tmp_path / "train.txt").classes

    tracemalloc.start()
    with pytest.raises(DataError, match="labels go up to 20000000 and no image has the label 1;"):
        classes_of("0", "20000000")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    # With ten digits they are names.
    assert classes_of("1678900001", "1678900000") == ("1678900000", "1678900001")


def write_lists(folder: Path, **lists: list[str]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.txt" for name in lists}
    for name, lines in lists.items():
        paths[name].write_bytes(b"".join(os.fsencode(f"{line}\n") for line in lines))
    return paths


def test_csv_lists_are_read_as_the_folders_are(tmp_path, data):
    root = tmp_path / "data"
    for split, examples in (("train", data.train), ("val", data.val)):
        rows = [
            f'"{Path(path).relative_to(root).with_suffix("")}","{data.classes[label]}"' for path, label, _ in examples
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(["ImageId,Class", *rows]), encoding="utf-16")
    assert from_lists(root, tmp_path / "train.csv", tmp_path / "val.csv") == data


def test_a_list_of_which_no_image_is_there_is_a_usage_error(tmp_path, data):
    lists = write_lists(tmp_path, train=["x/a.jpg cat", "x/b.jpg dog"])
    with pytest.raises(
        UsageError, match=r"data holds none of the 2 images .* the list has 'x/a.jpg', the folder 'train/cat/"
    ):
        from_lists(tmp_path / "data", lists["train"])


def test_an_image_that_is_in_both_lists_is_refused(tmp_path):
    lists = write_lists(
        tmp_path,
        train=["a.jpg cat", "b.jpg dog", "c.jpg cat"],
        val=["./b.jpg dog", "d.jpg cat", "c.jpg cat"],
    )
    (tmp_path / "b.jpg").touch()
    with pytest.raises(DataError, match=r"b\.jpg and 1 more images are in both .*train\.txt and .*val\.txt") as caught:
        from_lists(tmp_path, lists["train"], lists["val"])
    assert caught.value.hint == "Put each image into only one of the lists."


def test_classes_that_are_not_utf8_are_refused_wherever_they_are_read(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    lists = write_lists(tmp_path, train=[f"a.jpg {name}", "b.jpg dog"], classes=[name, "dog"])
    for classes in (None, lists["classes"]):
        with pytest.raises(DataError, match=r"the class 'caf\\\\xe9' has a name that is not UTF-8"):
            from_lists(tmp_path, lists["train"], classes_file=classes)


def test_a_listed_image_that_never_was_there_is_not_found_and_one_that_was_has_vanished(tmp_path):
    for name in ("b.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"x")
    lists = write_lists(tmp_path, train=["a.jpg cat", "b.jpg dog"], val=["c.jpg cat", "d.jpg dog"])
    originals = from_labelled(from_lists(tmp_path, lists["train"], lists["val"]))
    (tmp_path / "b.jpg").unlink()
    for original, message in zip(originals.train, ("not found: no such file", "vanished after"), strict=True):
        with pytest.raises(ImageError, match=message):
            original.read()


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / "index.json").read_bytes())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def store_labels(folder: Path, content: bytes) -> None:
    """Another file of labels, with its hash in the index."""
    (folder / "train-labels.npy").write_bytes(content)
    change_index(folder, lambda index: index["train"].update(labels_sha256=hashlib.sha256(content).hexdigest()))


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array, np.int32))
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["train"]["shards"][1].update(num_images=1), "for 1 images; expected 196,608"),
        (lambda index: index["train"]["shards"][1].update(num_images=-2), "for -2 images"),
        (lambda index: index["train"]["shards"].pop(), r"counts the images of train as \[6, 8\]"),
        (lambda index: index["val"].update(num_images=3), r"counts the images of val as \[3, 4\]"),
        (lambda index: index["statistics"].update(num_images=0), r"counts the images of train as \[0, 8\]"),
        (lambda index: index["classes"].pop(), "contains labels from 0 to 1; expected 0 to 0"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(folder, change: Callable[[dict[str, Any]], None], message: str):
    change_index(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        open_packed(folder)
    assert "--check" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy([0, 0, 0, 0, 1, 1, 1]), r"counts the images of train as \[7, 8\]"),
        (npy([[0], [0], [0], [0], [1], [1], [1], [1]]), "counts the images of train"),
        (npy([0, 0, 0, 0, 1, 1, 1, -1]), "contains labels from -1 to 1; expected 0 to 1"),
        (b"no array", "train-labels.npy is damaged"),
        (b"", "train-labels.npy is damaged"),
    ],
)
def test_labels_that_do_not_fit_the_set_are_refused(folder, content: bytes, message: str):
    store_labels(folder, content)
    with pytest.raises(DataError, match=message):
        open_packed(folder)


@pytest.fixture
def few_files(folder) -> Iterator[None]:
    """The set is made; three more files may be opened by this process, until it asks for more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.dup(0)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + 3, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_files")
def test_a_set_of_more_shards_than_files_may_be_open_raises_the_limit(folder, data):
    images = open_packed(folder).train
    np.testing.assert_array_equal(images.read(np.array([7]))[0], decode(Path(data.train[7].path).read_bytes()))


@pytest.mark.usefixtures("few_files")
def test_where_the_limit_of_open_files_cannot_be_raised_the_cure_is_named(folder, monkeypatch):
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    with monkeypatch.context() as patch:
        patch.setattr("resource.setrlimit", refuse)
        with pytest.raises(DataError, match=r"-0000\d\.bin cannot be opened: too many open files") as caught:
            open_packed(folder)
    assert caught.value.hint == "Allow more open files: ulimit -n 10240"
