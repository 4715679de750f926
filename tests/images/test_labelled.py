"""Labelled images: class folders by name and by WordNet id, lists of labels, and what is wrong with either."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from alexdeploy.core.errors import DataError, ImageError, UsageError
from alexdeploy.images.label_list import label_texts
from alexdeploy.images.labelled import LabelledSources, read_labelled
from alexdeploy.images.originals import from_lists

FLOWERS = ("daisy", "roses", "tulips")
WORDNET = ("n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus", "n01484850 great white shark")


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(data: LabelledSources) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, data.root), label) for path, label, _ in data.examples]


def write_list(root: Path, *lines: str) -> Path:
    path = root.parent / "labels.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def test_class_folders_are_found_by_their_names_and_may_be_some_of_the_classes(root: Path) -> None:
    fill(root, "tulips/b.jpg", "tulips/deep/a.jpg", "daisy/c.png", "daisy/notes.txt")
    data = read_labelled(root, FLOWERS)
    assert found(data) == [("daisy/c.png", 0), ("tulips/b.jpg", 2), ("tulips/deep/a.jpg", 2)]
    assert (data.num_unlabelled, data.notes) == (0, ())


@pytest.mark.parametrize("name", ["n01443537", "n01443537 goldfish", "n01443537_gold", WORDNET[1]])
def test_a_wordnet_id_is_enough_on_either_side(root: Path, name: str) -> None:
    fill(root, f"{name}/a.jpg")
    assert found(read_labelled(root, WORDNET))[0][1] == 1
    assert found(read_labelled(root, tuple(text.split()[0] for text in WORDNET)))[0][1] == 1


def test_a_longer_word_that_begins_like_a_wordnet_id_is_none(root: Path) -> None:
    fill(root, "n014435370/a.jpg")
    with pytest.raises(DataError, match="not classes of the model"):
        read_labelled(root, WORDNET)


def test_beside_training_images_the_validation_images_count_and_a_note_says_so(root: Path) -> None:
    fill(root, "train/daisy/a.jpg", "train/roses/a.jpg", "val/daisy/b.jpg", "val/roses/b.jpg")
    data = read_labelled(root, FLOWERS)
    assert data.root == str(root / "val")
    assert found(data) == [("daisy/b.jpg", 0), ("roses/b.jpg", 1)]
    assert str(root / "val") in data.notes[0]


def test_training_images_alone_are_not_taken_for_validation_images(root: Path) -> None:
    fill(root, "train/daisy/a.jpg")
    with pytest.raises(DataError) as caught:
        read_labelled(root, FLOWERS)
    assert caught.value.hint is not None
    assert f"alexdeploy evaluate {root / 'train'}" in caught.value.hint


def test_images_beside_the_class_folders_are_counted_in_a_note(root: Path) -> None:
    fill(root, "daisy/a.jpg", "x.jpg", "y.png", "readme.txt", ".hidden.jpg")
    data = read_labelled(root, FLOWERS)
    assert data.num_unlabelled == 2
    assert data.notes[0].endswith("ignored: 2")


def test_unknown_folders_are_named_with_the_nearest_class(root: Path) -> None:
    fill(root, "daisy/a.jpg", "rose/a.jpg", "xyz/a.jpg")
    with pytest.raises(DataError) as caught:
        read_labelled(root, FLOWERS)
    assert "'rose' (nearest: 'roses'), 'xyz'" in caught.value.message
    assert "'daisy', 'roses', 'tulips'" in str(caught.value.hint)


def test_two_classes_of_one_name_are_not_guessed_between(root: Path) -> None:
    fill(root, "crane/a.jpg")
    with pytest.raises(DataError, match="classes of the model: 0 and 2"):
        read_labelled(root, ("crane", "crate", "crane"))


@pytest.mark.parametrize("names", [(), ("a.jpg",), ("daisy/notes.txt",)])
def test_a_folder_without_labelled_images_is_an_error(root: Path, names: tuple[str, ...]) -> None:
    fill(root, *names)
    with pytest.raises(DataError):
        read_labelled(root, FLOWERS)


def test_a_list_gives_indices_or_classes_and_may_have_comments(root: Path) -> None:
    fill(root, "a.jpg", "b.jpg", "deep/c.jpg", "d.jpg")
    labels = write_list(root, "# name label", "", "a.jpg 2", "b.jpg\troses", "deep/c.jpg   0  ", "d.jpg tulips")
    data = read_labelled(root, FLOWERS, labels)
    assert found(data) == [("a.jpg", 2), ("b.jpg", 1), ("deep/c.jpg", 0), ("d.jpg", 2)]


def test_a_list_with_wordnet_ids_as_of_ilsvrc(root: Path) -> None:
    fill(root, "ILSVRC2012_val_00000001.JPEG")
    labels = write_list(root, "ILSVRC2012_val_00000001.JPEG n01484850", "ILSVRC2012_val_00000002.JPEG n01440764")
    assert [label for _, label, _ in read_labelled(root, WORDNET, labels).examples] == [2, 0]


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("my photo.jpg 1", "my photo.jpg", 1),
        ("my hot dog.jpg dog", "my hot dog.jpg", 0),
        ("a.jpg hot dog", "a.jpg", 1),
        ("a b.jpg hot dog", "a b.jpg", 1),
        ("a.jpg type 3", "a.jpg", 2),
        ("no suffix hot dog", "no suffix", 1),
        ("dog dog", "dog", 0),
        ("n01440764 1.jpg n01440764", "n01440764 1.jpg", 3),
    ],
)
def test_names_and_classes_may_hold_blanks(root: Path, line: str, name: str, label: int) -> None:
    classes = ("dog", "hot dog", "type 3", "n01440764 tench")
    fill(root, name)
    assert found(read_labelled(root, classes, write_list(root, line))) == [(name, label)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("a.jpg 0", "b.jpg 3"), ":2: found the index 3; expected 0 to 2"),
        (("a.jpg rosse",), ":1: the label 'rosse' is not a class of the model (nearest: 'roses')"),
        (("a.jpg -1",), ":1: the label '-1'"),
        (("a.jpg " + "9" * 5000,), ":1: the label '999"),
        (("", "a.jpg"), ":2: found only 'a.jpg'; expected a label"),
        (("a.jpg 0", "./a.jpg 1"), ":2: './a.jpg' is already in line 1"),
        (("# nothing",), "has no labelled images"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(root: Path, lines: tuple[str, ...], said: str) -> None:
    labels = write_list(root, *lines)
    with pytest.raises(DataError) as caught:
        read_labelled(root, FLOWERS, labels)
    assert said in caught.value.message


def test_a_number_that_is_also_the_name_of_another_class_is_not_guessed(root: Path) -> None:
    classes = ("0", "1", "10", "2")
    fill(root, "a.jpg")
    with pytest.raises(DataError, match="'2' is the name of class 3"):
        read_labelled(root, classes, write_list(root, "a.jpg 2"))
    assert found(read_labelled(root, classes, write_list(root, "a.jpg 1"))) == [("a.jpg", 1)]


def test_an_image_of_the_list_that_is_missing_stays_and_says_so_when_read(root: Path) -> None:
    fill(root, "a.jpg")
    data = read_labelled(root, FLOWERS, write_list(root, "a.jpg 0", "gone.jpg 0"))
    _, source = data.sources()
    with pytest.raises(ImageError, match="not found"):
        source.read()


def test_images_that_the_list_does_not_name_are_counted_in_a_note(root: Path) -> None:
    fill(root, "a.jpg", "b.jpg", "deep/c.jpg")
    data = read_labelled(root, FLOWERS, write_list(root, "a.jpg 0"))
    assert data.num_unlabelled == 2
    assert "ignored: 2" in data.notes[0]


def test_a_list_that_is_missing_and_a_folder_that_is_none_are_errors(root: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt does not exist"):
        read_labelled(root, FLOWERS, root / "none.txt")
    labels = write_list(root, "a.jpg 0")
    with pytest.raises(UsageError, match="none does not exist"):
        read_labelled(root / "none", FLOWERS, labels)
    with pytest.raises(DataError, match="is not a folder"):
        read_labelled(labels, FLOWERS, labels)


@pytest.mark.skipif(os.name != "posix", reason="file names that are not UTF-8")
def test_names_that_are_not_utf8_are_found_and_can_be_printed(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (root / name).write_bytes(b"x")
    path = root.parent / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xe9.jpg 1\r\n")
    data = read_labelled(root, FLOWERS, path)
    (source,) = data.sources()
    assert source.read() == b"x"
    assert source.name.endswith("caf\\xe9.jpg")
    assert data.num_unlabelled == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_in_any_encoding_with_a_mark_is_read(root: Path, encoding: str) -> None:
    fill(root, "a.jpg", "größe.jpg")
    labels = root.parent / "labels.txt"
    labels.write_bytes("a.jpg daisy\r\ngröße.jpg roses\r\n".encode(encoding))
    assert found(read_labelled(root, FLOWERS, labels)) == [("a.jpg", 0), ("größe.jpg", 1)]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(root: Path) -> None:
    labels = root.parent / "labels.txt"
    labels.write_text("a.jpg daisy\n" + "b " * (4 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"labels\.txt:2: a line of more than 8,192 characters"):
            read_labelled(root, FLOWERS, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="pipes have no names here")
def test_a_list_may_be_a_pipe_that_the_shell_made(root: Path) -> None:
    fill(root, "a.jpg")
    reading, writing = os.pipe()
    os.write(writing, b"a.jpg daisy\n")
    os.close(writing)
    try:
        ((path, label, _),) = read_labelled(root, FLOWERS, f"/dev/fd/{reading}").examples
    finally:
        os.close(reading)
    assert (path, label) == (str(root / "a.jpg"), 0)


def test_a_list_that_is_a_fifo_is_refused_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root.parent / "labels.txt")
    with pytest.raises(DataError, match="cannot be read: is not a regular file"):
        read_labelled(root, FLOWERS, root.parent / "labels.txt")


def test_the_longest_line_that_is_read_takes_little_memory(root: Path) -> None:
    line = "b " * 4090 + "a.jpg daisy"
    fill(root, "a.jpg")
    _, (path, label, _) = read_labelled(root, FLOWERS, write_list(root, "a.jpg 1", line)).examples
    assert (path, label) == (str(root / line.removesuffix(" daisy")), 0)


def test_folders_that_are_no_classes_can_be_excluded(root: Path) -> None:
    fill(root, "daisy/a.jpg", "extra/a.jpg")
    assert found(read_labelled(root, FLOWERS, exclude=["extra"])) == [("daisy/a.jpg", 0)]
    with pytest.raises(UsageError, match="exclude etxra: no such folder in"):
        read_labelled(root, FLOWERS, exclude=["etxra"])
    with pytest.raises(UsageError, match="exclude applies to class folders"):
        read_labelled(root, FLOWERS, write_list(root, "daisy/a.jpg 0"), exclude=["extra"])


def test_what_alexdeploy_writes_and_system_folders_are_no_classes(root: Path) -> None:
    fill(root, "daisy/a.jpg", "models/mine/spec.json", "@eaDir/a.jpg", "calibration/mine.ranges.json")
    data = read_labelled(root, FLOWERS)
    assert found(data) == [("daisy/a.jpg", 0)]
    assert data.notes == (
        f"{root}: hidden and system folders ignored: @eaDir",
        f"{root}: alexdeploy's own folders ignored: calibration, models",
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("a.JPEG, 2", "b.JPEG, 1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("a.JPEG,2", "b.JPEG,roses"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("a.JPEG , 2", "b.JPEG , 1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("a.JPEG;2", "b.JPEG;1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("a.JPEG\ttulips", "b.JPEG\troses"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("ImageId,Class", "a,2", "b,1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("ImageId,Class", "a.JPEG,tulips", "b.JPEG,1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("image_id;class_id;width", "a;2;640", "b;1;480"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("id,file_name,label", "7,a.JPEG,2", "8,b.JPEG,1"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("label,filename", "2,a.JPEG"), [("a.JPEG", 2)]),
        (("2,a.JPEG", "1,b.JPEG"), [("a.JPEG", 2), ("b.JPEG", 1)]),
        (("filename\tlabel", "my photo.JPEG\t1"), [("my photo.JPEG", 1)]),
        (("filename label", "a.JPEG 1"), [("a.JPEG", 1)]),
        (('"a.JPEG","tulips"', '"my, ""own"" photo.JPEG","1"'), [("a.JPEG", 2), ('my, "own" photo.JPEG', 1)]),
        (('"my photo.JPEG" 1',), [("my photo.JPEG", 1)]),
        (('"my photo.JPEG", 1',), [("my photo.JPEG", 1)]),
        (("my photo.JPEG,1",), [("my photo.JPEG", 1)]),
        (("a,b.jpg 1", "a.JPEG 2"), [("a,b.jpg", 1), ("a.JPEG", 2)]),
        (("a 1", "b 2"), [("a.JPEG", 1), ("b.JPEG", 2)]),
        (("a, 1", "b, 2"), [("a.JPEG", 1), ("b.JPEG", 2)]),
    ],
)
def test_csv_with_any_separator_with_a_header_or_without_is_read(
    root: Path, lines: tuple[str, ...], expected: list[tuple[str, int]]
) -> None:
    fill(root, "a.JPEG", "b.JPEG", "my photo.JPEG", 'my, "own" photo.JPEG', "a,b.jpg")
    assert found(read_labelled(root, FLOWERS, write_list(root, *lines))) == expected


@pytest.mark.parametrize("form", ["{} {}", "{},{}", '{},"{}"', "{}\t{}", '"{}";"{}"'])
def test_classes_with_commas_need_no_quotes(root: Path, form: str) -> None:
    fill(root, "a.jpg", "b.jpg")
    labels = write_list(root, form.format("a.jpg", WORDNET[0]), form.format("b.jpg", WORDNET[2]))
    assert found(read_labelled(root, WORDNET, labels)) == [("a.jpg", 0), ("b.jpg", 2)]
    by_name = tuple(text.partition(" ")[2] for text in WORDNET)
    labels = write_list(root, form.format("a.jpg", by_name[0]), form.format("b.jpg", by_name[2]))
    assert found(read_labelled(root, by_name, labels)) == [("a.jpg", 0), ("b.jpg", 2)]


def test_the_list_of_validation_labels_of_the_localization_challenge_is_read(root: Path) -> None:
    fill(root, "ILSVRC2012_val_00048981.JPEG", "ILSVRC2012_val_00037956.JPEG")
    labels = write_list(
        root,
        "ImageId,PredictionString",
        "ILSVRC2012_val_00048981,n01484850 85 1 499 272 ",
        "ILSVRC2012_val_00037956,n01440764 131 0 499 254 n01440764 1 2 3 4 ",
    )
    assert found(read_labelled(root, WORDNET, labels)) == [
        ("ILSVRC2012_val_00048981.JPEG", 2),
        ("ILSVRC2012_val_00037956.JPEG", 0),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("ImageId,Class", "a.jpg,0", "b.jpg,0,7"), ":3: found 3 columns; expected 2"),
        (("ImageId,Class", 'a.jpg,"0'), ":2: a quote is not closed"),
        (("ImageId,Class", ",0"), ":2: no image name"),
        (("ImageId,Class", "a.jpg,3"), ":2: found the index 3; expected 0 to 2"),
        (("a.jpg,3,daisy", "b.jpg,3,daisy"), ":1: the label '3,daisy' is not a class"),
        (("a.jpg,0", "a.jpg,1"), ":2: 'a.jpg' is already in line 1"),
        (("a,0", "a.jpg,1"), "twice: 'a' and 'a.jpg'"),
    ],
)
def test_a_bad_line_of_csv_is_an_error_with_its_number(root: Path, lines: tuple[str, ...], said: str) -> None:
    fill(root, "a.jpg", "b.jpg")
    with pytest.raises(DataError) as caught:
        read_labelled(root, FLOWERS, write_list(root, *lines))
    assert said in caught.value.message


def test_a_name_without_a_suffix_that_two_files_have_is_not_guessed(root: Path) -> None:
    fill(root, "a.jpg", "a.png")
    with pytest.raises(DataError, match=r"'a' is ambiguous: a\.jpg or a\.png"):
        read_labelled(root, FLOWERS, write_list(root, "a 0"))


def test_names_may_be_relative_to_the_list(root: Path) -> None:
    fill(root, "deep/a.jpg", "deep/b.jpg")
    labels = write_list(root, "data/deep/a.jpg 0", "data/deep/b 1", "data/deep/gone.jpg 1")
    data = read_labelled(root / "deep", FLOWERS, labels)
    assert found(data) == [("a.jpg", 0), ("b.jpg", 1), ("gone.jpg", 1)]
    assert data.num_unlabelled == 0


def test_where_one_name_is_in_the_data_the_others_are_not_looked_for_elsewhere(root: Path) -> None:
    fill(root, "a.jpg", "../b.jpg")
    data = read_labelled(root, FLOWERS, write_list(root, "a.jpg 0", "b.jpg 1"))
    assert found(data) == [("a.jpg", 0), ("b.jpg", 1)]
    assert not os.path.exists(data.examples[1].path)


@pytest.mark.parametrize("names", [("x/other.jpg",), ()])
def test_a_list_of_which_no_image_is_there_is_a_usage_error_that_names_both_sides(
    root: Path, names: tuple[str, ...]
) -> None:
    fill(root, *names)
    with pytest.raises(UsageError) as caught:
        read_labelled(root, FLOWERS, write_list(root, "val/a.JPEG 0", "val/b.JPEG 1"))
    folder = "'x/other.jpg'" if names else "no images"
    assert caught.value.message == (
        f"{root} holds none of the 2 images that {root.parent}/labels.txt names: "
        f"the list has 'val/a.JPEG', the folder {folder}."
    )


NUMBERED = ("001.ak47", "002.flag", "003.backpack")


@pytest.mark.parametrize(
    ("classes", "label", "said"),
    [
        (("01", "02", "03"), "1", "'1', which is the index of '02' or the number of '01'"),
        (("01", "02", "03"), "3", "'3', which is the number of '03'"),
        (("1", "2", "3"), "0", "'0', which is the index of '1'"),
        (NUMBERED, "001", "'001', which is the index of '002.flag' or the number of '001.ak47'"),
        (NUMBERED, "2", "'2', which is the index of '003.backpack' or the number of '002.flag'"),
        (("2.flag", "0 ak47", "1-cup"), "1", "'1', which is the index of '0 ak47' or the number of '1-cup'"),
    ],
)
@pytest.mark.parametrize("form", ["a.jpg {}", "a.jpg,{}"])
def test_numbers_are_not_guessed_where_the_classes_are_numbered_otherwise(
    root: Path, classes: tuple[str, ...], label: str, said: str, form: str
) -> None:
    fill(root, "a.jpg")
    with pytest.raises(DataError) as caught:
        read_labelled(root, classes, write_list(root, form.format(label)))
    assert f":1: found the label {said}; the classes are not numbered by index." in caught.value.message
    assert str(caught.value.hint).startswith("Write the names of the classes")


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        (("01", "02", "03"), "02", 1),
        (tuple(f"{number:02d}" for number in range(1, 13)), "10", 9),
        (NUMBERED, "002.flag", 1),
        (("0", "1", "2"), "1", 1),
        (("00", "01", "02"), "1", 1),
        (("0_cat", "1_dog", "2_cow"), "001", 1),
        (("4x4", "bus", "car"), "0", 0),
    ],
)
def test_numbers_that_say_one_thing_are_read(root: Path, classes: tuple[str, ...], label: str, expected: int) -> None:
    fill(root, "a.jpg")
    assert found(read_labelled(root, classes, write_list(root, f"a.jpg {label}"))) == [("a.jpg", expected)]


@pytest.mark.parametrize(
    ("header", "good", "bad"),
    [
        ("image,label,class", "a.jpg,1,roses", "b.jpg,1,daisy"),
        ("image,class_id,class_name", "a.jpg,1,roses", "b.jpg,2,roses"),
        ("image,class_id,class_name", "a.jpg,1,roses", "b.jpg,7,roses"),
        ("image,category_id,name", "a.jpg,1,roses", "b.jpg,1,daisy"),
    ],
)
def test_columns_of_indices_and_of_names_must_say_the_same(root: Path, header: str, good: str, bad: str) -> None:
    fill(root, "a.jpg", "b.jpg")
    assert found(read_labelled(root, FLOWERS, write_list(root, header, good))) == [("a.jpg", 1)]
    with pytest.raises(DataError, match=":3: two columns give different labels") as caught:
        read_labelled(root, FLOWERS, write_list(root, header, good, bad))
    assert str(caught.value.hint).startswith("Remove the wrong column.")


def test_a_further_column_that_is_no_class_does_not_count(root: Path) -> None:
    fill(root, "a.jpg")
    labels = write_list(root, "file,name,label,y", "a.jpg,sunset,1,0")
    assert found(read_labelled(root, FLOWERS, labels)) == [("a.jpg", 1)]


def test_a_name_without_a_suffix_is_the_image_and_not_the_folder_beside_it(root: Path) -> None:
    fill(root, "rose.jpg", "rose/b.jpg")
    assert found(read_labelled(root, FLOWERS, write_list(root, "rose 1"))) == [("rose.jpg", 1)]


def test_labels_of_several_words_become_the_classes(root: Path) -> None:
    fill(root, "cat/x 1.jpg", "cat/y.jpg", "z.jpg")
    labels = write_list(root, "cat/x 1.jpg big cat", "cat/y.jpg\tcat", "z.jpg  type 3")
    assert list(label_texts(labels)) == ["big cat", "cat", "type 3"]
    data = from_lists(root, labels, val_fraction=0.5)
    assert data.classes == ("big cat", "cat", "type 3")
    assert sorted((os.path.relpath(path, root), label) for path, label, _ in data.train + data.val) == [
        ("cat/x 1.jpg", 0),
        ("cat/y.jpg", 1),
        ("z.jpg", 2),
    ]
    assert list(label_texts(write_list(root, "x big cat", "y cat"))) == ["cat", "cat"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train": "a.jpg daisy"}, "train has 1 classes; expected at least two"),
        ({"train": "a.jpg daisy", "classes": "daisy\nroses\ndaisy"}, "classes names the class 'daisy' twice"),
        ({"train": "a.jpg daisy\nb.jpg roses", "val": "# nothing yet"}, "val names no images"),
    ],
)
def test_lists_that_make_no_set_are_refused(root: Path, files: dict[str, str], said: str) -> None:
    fill(root, "a.jpg", "b.jpg")
    paths = {name: root.parent / name for name in files}
    for name, text in files.items():
        paths[name].write_text(f"{text}\n")
    with pytest.raises(DataError, match=said):
        from_lists(root, paths["train"], paths.get("val"), paths.get("classes"))
    with pytest.raises(DataError, match=r"a\.jpg is not a folder; the names in the lists are relative to it"):
        from_lists(root / "a.jpg", paths["train"])
