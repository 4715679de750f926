"""Labelled images in a bucket: the same classes, splits, names and order of work as in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.labelled import read_labelled
from alexdeploy.images.originals import from_labelled, from_lists

if TYPE_CHECKING:
    from bucket import Bucket

DATA = "fault://b/data"


def _fill(bucket: type[Bucket], root: Path, *names: str) -> None:
    """The same files in the folder `root` and in the bucket."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        bucket.objects[f"b/data/{name}"] = name.encode()


@pytest.fixture
def flowers(bucket: type[Bucket], tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    names = [f"{name}/{number}.jpg" for name in ("daisy", "rose", ".cache") for number in range(20)]
    _fill(bucket, folder, *names, "daisy/more/20.jpg", "rose/note.txt", "loose.jpg")
    return folder


def _relative(examples, root: str) -> list[tuple[str, int]]:
    return sorted((example.path.removeprefix(f"{root}/"), example.label) for example in examples)


@pytest.mark.parametrize("slash", ["", "/"], ids=["without", "with"])
def test_class_folders_and_their_split_are_those_of_the_folder(flowers: Path, slash: str) -> None:
    local, stored = read_image_folder(flowers, val_fraction=0.2), read_image_folder(DATA + slash, val_fraction=0.2)
    assert stored.classes == local.classes == ("daisy", "rose")
    for split in ("train", "val"):
        assert _relative(getattr(stored, split), DATA) == _relative(getattr(local, split), str(flowers))
    assert [note.replace(DATA + slash, "X") for note in stored.notes] == [
        note.replace(str(flowers), "X") for note in local.notes
    ]
    assert from_labelled(stored).sha256() == from_labelled(local).sha256()


def test_validation_folders_are_found(bucket: type[Bucket], tmp_path: Path) -> None:
    _fill(bucket, tmp_path / "data", *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    found = read_image_folder(DATA)
    assert _relative(found.val, DATA) == [("val/a/1.jpg", 0), ("val/b/1.jpg", 1)]
    assert _relative(read_labelled(DATA, ("a", "b")).examples, DATA) == _relative(found.val, DATA)


def test_sizes_of_the_listing_are_kept(flowers: Path, bucket: type[Bucket]) -> None:
    bucket.calls.clear()
    for original in from_labelled(read_image_folder(DATA)).train:
        assert original.read() == original.path.removeprefix(f"{DATA}/").encode()
    assert {kind for kind, _ in bucket.calls} == {"list", "read"}


def test_lists_of_labels_name_objects(flowers: Path, bucket: type[Bucket], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("daisy/1.jpg daisy\nrose/2 rose\ndaisy/gone.jpg daisy\n")
    labelled = read_labelled(DATA, ("daisy", "rose"), tmp_path / "labels.txt")
    assert [(example.path, example.label) for example in labelled.examples] == [
        (f"{DATA}/daisy/1.jpg", 0),
        (f"{DATA}/rose/2.jpg", 1),
        (f"{DATA}/daisy/gone.jpg", 0),
    ]
    assert labelled.num_unlabelled == 40
    originals = from_labelled(from_lists(DATA, tmp_path / "labels.txt", val_fraction=0.5))
    assert sorted(original.num_bytes for original in (*originals.train, *originals.val)) == [-1, 10, 11]
    (tmp_path / "labels.txt").write_text("../daisy/1.jpg daisy\n")
    with pytest.raises(DataError, match="not below the folder"):
        read_labelled(DATA, ("daisy", "rose"), tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("tulip/1.jpg daisy\n")
    with pytest.raises(UsageError, match="holds none of the 1 images"):
        read_labelled(DATA, ("daisy", "rose"), tmp_path / "labels.txt")


def test_what_cannot_be_listed_is_an_error(bucket: type[Bucket]) -> None:
    from bucket import fails

    with pytest.raises(DataError, match=r"has 0 class folder"):
        read_image_folder("fault://b/none")
    bucket.steps["b/data"] = [fails(PermissionError("secret"))]
    with pytest.raises(DataError, match="cannot be listed: permission denied"):
        read_image_folder(DATA)
    bucket.objects.update({"b/data/a/1.jpg": b"1", "b/data/b/1.jpg": b"1"})
    bucket.steps["b/data/b"] = [fails(OSError("503"))] * 3
    with pytest.raises(DataError, match=r"fault://b/data/b/?: cannot be listed: the store failed: OSError: 503"):
        read_image_folder(DATA)
    with pytest.raises(UsageError, match="web servers cannot list folders"):
        read_image_folder("https://host/data")
