"""Labelled folders: which classes, which images, and the same validation set every time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from alexdeploy.core.errors import AlexDeployError, DataError, UsageError
from alexdeploy.images.folder import Example, LabelledImages, read_image_folder
from alexdeploy.images.sample import write_photographs, write_sample


def fill(root: Path, **num_images: int) -> None:
    for folder, count in num_images.items():
        (root / folder.replace("__", "/")).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            (root / folder.replace("__", "/") / f"{n:03d}.jpg").touch()


def relative(examples: tuple[Example, ...], root: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, root), label) for path, label, _ in examples]


def num_of_each(examples: tuple[Example, ...], data: LabelledImages) -> list[int]:
    return [sum(example.label == label for example in examples) for label in range(len(data.classes))]


def test_classes_are_in_the_order_of_bytes(tmp_path):
    fill(tmp_path, b=2, a10=2, a2=2, B=2, é=2)
    assert read_image_folder(tmp_path).classes == ("B", "a10", "a2", "b", "é")


def test_images_may_lie_deeper_in_their_class(tmp_path):
    fill(tmp_path, cat__young__grey=2, cat=1, dog=2)
    data = read_image_folder(tmp_path)
    assert sorted(relative(data.train + data.val, tmp_path)) == [
        ("cat/000.jpg", 0),
        ("cat/young/grey/000.jpg", 0),
        ("cat/young/grey/001.jpg", 0),
        ("dog/000.jpg", 1),
        ("dog/001.jpg", 1),
    ]


def test_hidden_folders_and_loose_files_are_no_classes(tmp_path):
    fill(tmp_path, cat=2, dog=2)
    write(tmp_path / "__MACOSX" / "000.jpg")
    fill(tmp_path / ".git", objects=1)
    (tmp_path / "README.txt").touch()
    assert read_image_folder(tmp_path).classes == ("cat", "dog")


def test_train_and_val_folders_are_taken_as_they_are(tmp_path):
    fill(tmp_path, train__a=3, train__b=2, val__a=1, val__b=2)
    data = read_image_folder(tmp_path)
    assert relative(data.train, tmp_path / "train") == [
        ("a/000.jpg", 0),
        ("a/001.jpg", 0),
        ("a/002.jpg", 0),
        ("b/000.jpg", 1),
        ("b/001.jpg", 1),
    ]
    assert relative(data.val, tmp_path / "val") == [("a/000.jpg", 0), ("b/000.jpg", 1), ("b/001.jpg", 1)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("valid", "validation", "test"), "valid"),
        (("validation", "test"), "validation"),
        (("test",), "test"),
        (("test", "val"), "val"),
    ],
)
def test_other_names_for_val_are_known_in_order(tmp_path, names, expected):
    for name in ("train", *names):
        fill(tmp_path / name, a=1, b=1)
    val = read_image_folder(tmp_path).val
    assert relative(val, tmp_path / expected) == [("a/000.jpg", 0), ("b/000.jpg", 1)]


def test_train_alone_is_split(tmp_path):
    fill(tmp_path / "train", a=10, b=10)
    data = read_image_folder(tmp_path, val_fraction=0.3)
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 14, 6)


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, bus=2, car=2, train=2)
    assert read_image_folder(tmp_path).classes == ("bus", "car", "train")


def test_a_validation_folder_of_ones_own_is_used(tmp_path):
    fill(tmp_path, here__a=2, here__b=2, there__a=1, there__b=1)
    data = read_image_folder(tmp_path / "here", val_folder=tmp_path / "there")
    assert (len(data.train), relative(data.val, tmp_path)) == (
        4,
        [("there/a/000.jpg", 0), ("there/b/000.jpg", 1)],
    )


def test_the_split_takes_its_share_of_each_class(tmp_path):
    fill(tmp_path, a=40, b=10, c=3, d=2, e=1)
    data = read_image_folder(tmp_path, val_fraction=0.2)
    assert num_of_each(data.val, data) == [8, 2, 1, 1, 0]
    assert num_of_each(data.train, data) == [32, 8, 2, 1, 1]
    assert not set(data.train) & set(data.val)


def test_a_large_share_leaves_one_to_train_on(tmp_path):
    fill(tmp_path, a=4, b=2)
    data = read_image_folder(tmp_path, val_fraction=0.99)
    assert num_of_each(data.train, data) == [1, 1]


def test_the_split_is_that_of_its_seed_wherever_the_folder_lies(tmp_path):
    fill(tmp_path / "one", a=30, b=30)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = relative(read_image_folder(tmp_path / "one").val, tmp_path / "one")
    assert relative(read_image_folder(tmp_path / "two").val, tmp_path / "two") == first
    assert relative(read_image_folder(str(tmp_path / "one"), seed=1).val, tmp_path / "one") != first


def test_the_split_does_not_hang_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, a=30, b=30)
    expected = read_image_folder(tmp_path)
    real = os.scandir

    class Backwards:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *exc):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert read_image_folder(tmp_path) == expected


def test_linked_classes_and_images_count(tmp_path):
    fill(tmp_path, store=3, data__a=2)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "a" / "z.jpg").symlink_to(tmp_path / "store" / "000.jpg")
    data = read_image_folder(tmp_path / "data")
    assert num_of_each(data.train + data.val, data) == [3, 3]


def message(folder: Path, kind: type[AlexDeployError] = DataError, **options) -> str:
    with pytest.raises(kind) as caught:
        read_image_folder(folder, **options)
    assert caught.value.hint
    return caught.value.message


def test_a_missing_folder_is_an_error(tmp_path):
    assert message(tmp_path / "no", UsageError) == f"{tmp_path}/no does not exist"


def test_a_file_is_no_data_set(tmp_path):
    (tmp_path / "file").touch()
    assert "not a directory" in message(tmp_path / "file")


def test_one_class_is_too_few(tmp_path):
    fill(tmp_path, a=4)
    assert message(tmp_path).startswith(f"{tmp_path} has 1 class folder(s) with images")


def test_a_class_without_images_is_named(tmp_path):
    fill(tmp_path, a=4, b=0)
    assert "the class 'b' has no images" in message(tmp_path)


def test_a_validation_class_without_images_is_named(tmp_path):
    fill(tmp_path, train__a=1, train__b=1, val__a=1, val__b=0)
    assert "the class 'b' has no images" in message(tmp_path)


def test_validation_classes_that_differ_are_named(tmp_path):
    fill(tmp_path, train__a=1, train__b=1, train__c=1, val__a=1, val__d=1)
    assert message(tmp_path).endswith("Missing in the second: b, c. Only in the second: d.")


def test_a_missing_validation_folder_is_an_error(tmp_path):
    fill(tmp_path, a=1, b=1)
    assert message(tmp_path, UsageError, val_folder=tmp_path / "no") == f"{tmp_path}/no does not exist"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, fraction):
    with pytest.raises(UsageError, match="val_fraction"):
        read_image_folder(tmp_path, val_fraction=fraction)


@pytest.mark.parametrize("place", ["", "train", "val"])
def test_a_class_whose_name_is_not_utf8_is_refused_before_anything_is_read(tmp_path, place):
    name = os.fsdecode(b"caf\xe9")
    if place:
        for split in ("train", "val"):
            fill(tmp_path / split, a=1, b=1)
    fill(tmp_path / place, a=1, **{name: 1})
    with pytest.raises(DataError, match=r"the class 'caf\\\\xe9' has a name that is not UTF-8") as caught:
        read_image_folder(tmp_path)
    assert caught.value.hint == "Rename it."


def write(path: Path, content: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("Training", "Testing"), ("TRAIN", "Valid"), ("training", "validation")]
)
def test_split_folders_of_the_same_classes_are_splits_whatever_is_beside_them(tmp_path, train, val):
    fill(tmp_path, **{f"{train}__a": 3, f"{train}__b": 3, f"{val}__a": 1, f"{val}__b": 1}, extra=2, runs__one=1)
    data = read_image_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 6, 2)
    assert relative(data.val, tmp_path / val) == [("a/000.jpg", 0), ("b/000.jpg", 1)]
    assert data.notes == (f"{tmp_path}: folders beside {train} and {val} ignored: extra, runs",)


def test_a_flat_test_folder_is_no_split_and_that_is_said(tmp_path):
    fill(tmp_path, train__a=10, train__b=10, test=5)
    data = read_image_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 18, 2)
    assert data.notes == (f"{tmp_path}: not a split, since it has no class folders: test",)


def test_a_flat_test_folder_beside_both_splits_is_said_to_be_none(tmp_path):
    fill(tmp_path, train__a=2, train__b=2, val__a=1, val__b=1, test=5)
    data = read_image_folder(tmp_path)
    assert len(data.val) == 2
    assert data.notes == (f"{tmp_path}: not a split, since it has no class folders: test",)


def test_hidden_and_system_folders_are_ignored_and_named(tmp_path):
    fill(tmp_path, cat=2, dog=2, **{"@eaDir": 2, "lost+found": 0, ".git": 1})
    write(tmp_path / "__MACOSX" / "000.jpg")
    fill(tmp_path, **{"cat__@eaDir": 3})
    write(tmp_path / "cat" / "notes.txt")
    data = read_image_folder(tmp_path)
    assert (data.classes, len(data.train) + len(data.val)) == (("cat", "dog"), 4)
    assert data.notes == (
        f"{tmp_path}: hidden and system folders ignored: .git, @eaDir, __MACOSX, lost+found",
        "skipped 1 file that is not an image (.txt 1) and 1 hidden or system name in the class folders",
    )


@pytest.mark.parametrize("nested", ["data__cat", "data__deep__cat"])
def test_a_class_that_holds_folders_alone_is_refused_and_can_be_excluded(tmp_path, nested):
    fill(tmp_path, cat=2, dog=2, **{nested: 2})
    with pytest.raises(DataError, match=r"the class folder .*/data contains no images, only folders") as caught:
        read_image_folder(tmp_path)
    assert str(caught.value.hint).endswith("or exclude this one: --exclude data")
    assert read_image_folder(tmp_path, exclude=["data"]).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("num_images", "loose", "refused"),
    [
        ({"train__a": 4, "train__b": 4, "test": 4, "extra": 4}, "train", "train has the name of a split, .*: 8 of 9"),
        ({"a": 4, "b": 4, "val__a": 4, "val__b": 4}, "val", "val contains folders with names of other classes: a, b"),
        ({"a": 4, "b": 4, "val__a": 1}, "val", None),
        ({"a": 4, "b": 4, "val__a": 2}, "val", "val contains folders with names of other classes: a"),
        ({"a": 4, "b": 4, "copy__a": 4, "copy__b": 4}, "copy", "copy contains folders with names of other classes"),
        ({"a": 4, "b": 4, "copy__deep__a": 4}, "copy", "copy contains folders with names of other classes"),
        ({"training_set__a": 4, "training_set__b": 4, "test_set__a": 4}, "training_set", "test_set contains no images"),
        (
            {"training_set__a": 4, "training_set__b": 4, "rest": 4},
            "training_set",
            "training_set has the name of a split",
        ),
        ({"bus__front": 4, "bus__side": 4, "car__front": 4, "car": 4, "trainer__old": 4}, "bus trainer", None),
        ({"a": 4, "b__a": 1, "b": 4}, "b", None),
        ({"bus": 2, "train__steam": 2, "train": 2}, "train", None),
    ],
)
def test_an_image_beside_folders_of_classes_makes_no_class_of_them(tmp_path, num_images, loose, refused):
    fill(tmp_path, **num_images)
    for name in loose.split():
        (tmp_path / name / "cover.jpg").touch()
    if refused is None:
        assert read_image_folder(tmp_path).classes == tuple(sorted({name.split("__")[0] for name in num_images}))
        return
    with pytest.raises(DataError, match=f"the class folder .*/{refused}") as caught:
        read_image_folder(tmp_path)
    assert "--exclude" in str(caught.value.hint)


def test_both_splits_called_as_sets_with_an_image_beside_their_classes_are_refused(tmp_path):
    fill(tmp_path, training_set__a=4, training_set__b=4, test_set__a=4, test_set__b=4, training_set=1, test_set=1)
    assert "test_set has the name of a split, and most of its images are in folders: 8 of 9" in message(tmp_path)


def test_splits_that_have_no_class_in_common_are_no_classes_beside_others(tmp_path):
    fill(tmp_path, train__a=2, train__b=2, val__c=2, extra=2)
    assert "train contains no images, only folders" in message(tmp_path)


def test_an_empty_class_folder_can_be_excluded_in_every_split(tmp_path):
    fill(tmp_path, train__a=1, train__b=1, train__new=0, val__a=1, val__b=1)
    assert "the second: new" in message(tmp_path)
    assert read_image_folder(tmp_path, exclude=["new"]).classes == ("a", "b")


def test_a_folder_to_exclude_that_is_nowhere_is_a_usage_error(tmp_path):
    fill(tmp_path, a=1, b=1)
    with pytest.raises(UsageError, match=f"exclude c: no such folder in {tmp_path}"):
        read_image_folder(tmp_path, exclude=["c"])


@pytest.mark.parametrize(
    "files",
    [
        ("models/mine/spec.json", "models/mine/checkpoints/last.pt", "models/alexnet.toml"),
        ("models/mine/checkpoints/log.jsonl",),
        ("calibration/mine.ranges.json", "calibration/default.toml"),
        ("data/sample/sample.json", "data/sample/train/disc/0.jpg", "data/sample/val/disc/0.jpg"),
        ("sample/sample.json.part", "sample/train/disc/0.jpg"),
        ("packed/plan.json", "packed/train-00000.bin", "packed/records/train-00000.json"),
    ],
)
@pytest.mark.parametrize("place", ["", "train", "val"])
def test_folders_that_alexdeploy_writes_are_never_classes(tmp_path, files, place):
    splits = ("train", "val") if place else ("",)
    for split in splits:
        fill(tmp_path / split, a=2, b=2)
    for name in files:
        write(tmp_path / place / name, b'{"format":"alexdeploy-packed-9"' if name.endswith("plan.json") else b"{}")
    data = read_image_folder(tmp_path)
    assert data.classes == ("a", "b")
    top = files[0].split("/")[0]
    assert data.notes == (f"{tmp_path / place}: alexdeploy's own folders ignored: {top}",)


def test_what_alexdeploy_really_writes_is_no_class(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, a=2, b=2)
    write_sample(Path("data/sample"), num_train=1, num_val=1)
    write_photographs(Path("images"), num=24)
    assert tiny_model.spec_path == tmp_path / "models" / "tiny" / "spec.json"
    data = read_image_folder(Path("."))
    assert (data.classes, data.notes) == (("a", "b"), (".: alexdeploy's own folders ignored: data, images, models",))


@pytest.mark.parametrize(
    "files",
    [
        ("models/spec.json", "models/a.jpg"),
        ("disc/disc-01.jpg", "disc/disc-02.jpg"),
        ("calibration/a.jpg",),
    ],
)
def test_a_class_is_one_whatever_it_is_called_and_whatever_lies_beside_its_images(tmp_path, files):
    fill(tmp_path, a=2, b=2)
    for name in files:
        write(tmp_path / name)
    assert files[0].split("/")[0] in read_image_folder(tmp_path).classes
