"""The archives are written here by tarfile, meta.mat by an encoder of its own."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy import PrepareOptions, prepare
from alexdeploy.core.errors import DataError, ImageError, UsageError
from alexdeploy.core.matfile import MatError, read_struct
from alexdeploy.images import originals
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.ilsvrc import DEVKIT_NAME, TRAIN_NAME, VAL_NAME, is_ilsvrc, read_ilsvrc
from alexdeploy.images.packed import open_packed
from alexdeploy.training.events import Listed

SYNSETS = {"n01440764": (2, "tench, Tinca tinca"), "n02124075": (1, "Egyptian cat"), "n07753592": (3, "bañana")}
TRUTH = (3, 1, 2, 3, 3)
"""The classes of the validation images by the numbers of the devkit, which are not in the order of the ids."""


def element(kind: int, data: bytes) -> bytes:
    if len(data) <= 4 and data:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(matrix_class: int, sides: tuple[int, ...], name: bytes, body: bytes) -> bytes:
    content = element(6, struct.pack("<II", matrix_class, 0)) + element(5, struct.pack(f"<{len(sides)}i", *sides))
    return element(14, content + element(1, name) + body)


def text(value: str) -> bytes:
    return matrix(4, (1, len(value)), b"", element(4, value.encode("utf-16-le")))


def number(value: float) -> bytes:
    return matrix(6, (1, 1), b"", element(9, struct.pack("<d", value)))


def mat_file(*, compressed: bool = True, count: int | None = None) -> bytes:
    """A struct array with the fields of the real one that matter, beside others of each kind."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "children", "num_train_images")
    names = b"".join(name.encode().ljust(32, b"\0") for name in fields)
    body = element(5, struct.pack("<i", 32)) + element(1, names)
    for wnid, (identity, words) in SYNSETS.items():
        children = matrix(6, (1, 3), b"", element(2, bytes((1, 2, 3))))
        body += number(identity) + text(wnid) + text(words) + children + matrix(6, (0, 0), b"", element(9, b""))
    variable = matrix(2, (len(SYNSETS) if count is None else count, 1), b"synsets", body)
    other = matrix(6, (1, 1), b"version", element(9, struct.pack("<d", 2.0)))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    if not compressed:
        return header + other + variable
    return header + b"".join(struct.pack("<II", 15, len(z)) + z for z in map(zlib.compress, (other, variable)))


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse.repeat(70, axis=0).repeat(70, axis=1)).save(file, "JPEG", quality=80)
    return file.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def val_name(index: int) -> str:
    return f"ILSVRC2012_val_{index + 1:08d}.JPEG"


TRAIN = {
    wnid: {f"{wnid}_{index}.JPEG": picture(100 * place + index) for index in (3, 10, 7)}
    for place, wnid in enumerate(SYNSETS)
}
VAL = {val_name(index): picture(1000 + index) for index in range(len(TRUTH))}


def devkit(truth: tuple[int, ...] = TRUTH, meta: bytes | None = None) -> bytes:
    root = "ILSVRC2012_devkit_t12"
    return tar(
        {
            f"{root}/readme.txt": b"hello",
            f"{root}/data/meta.mat": mat_file() if meta is None else meta,
            f"{root}/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{label}\n" for label in truth).encode(),
        },
        "w:gz",
    )


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """The three files as they are downloaded."""
    folder = tmp_path / "ilsvrc"
    folder.mkdir()
    (folder / TRAIN_NAME).write_bytes(tar({f"{wnid}.tar": tar(images) for wnid, images in TRAIN.items()}))
    # As it is packed there: not in the order of the names.
    (folder / VAL_NAME).write_bytes(tar(dict(sorted(VAL.items(), reverse=True))))
    (folder / DEVKIT_NAME).write_bytes(devkit())
    return folder


@pytest.fixture
def extracted(tmp_path: Path) -> LabelledImages:
    """The same images as everybody extracts and sorts them."""
    folder = tmp_path / "extracted"
    by_number = {number: wnid for wnid, (number, _) in SYNSETS.items()}
    for wnid, images in TRAIN.items():
        (folder / "train" / wnid).mkdir(parents=True)
        for name, data in images.items():
            (folder / "train" / wnid / name).write_bytes(data)
    for index, number_of_class in enumerate(TRUTH):
        place = folder / "val" / by_number[number_of_class]
        place.mkdir(parents=True, exist_ok=True)
        (place / val_name(index)).write_bytes(VAL[val_name(index)])
    return read_image_folder(folder)


def test_images_and_labels_are_those_of_the_folders_that_people_make_of_it(downloads, extracted):
    assert is_ilsvrc(downloads)
    found = read_ilsvrc(downloads)
    assert found.classes == ("n01440764 tench, Tinca tinca", "n02124075 Egyptian cat", "n07753592 bañana")
    expected = [(Path(path).name, label, Path(path).read_bytes()) for path, label, _ in extracted.train]
    assert [(Path(image.name).name, image.label, image.read()) for image in found.train] == expected
    by_name = {Path(path).name: (label, Path(path).read_bytes()) for path, label, _ in extracted.val}
    assert [image.name.split("/")[-1] for image in found.val] == [val_name(index) for index in range(len(TRUTH))]
    assert {image.name.split("/")[-1]: (image.label, image.read()) for image in found.val} == by_name
    assert found.train[0].name == "train/n01440764/n01440764_10.JPEG"
    assert found.val[0].name == "val/n07753592/ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize(
    "form", ["{name} {wnid}", "val/{wnid}/{name} {index}", "{name}, {index}", '"{stem}","{wnid} 85 1 499 272"']
)
def test_a_list_takes_the_place_of_the_devkit(downloads, tmp_path, form: str):
    with_devkit = read_ilsvrc(downloads)
    (downloads / DEVKIT_NAME).unlink()
    ids = list(SYNSETS)
    lines = [
        form.format(name=Path(image.name).name, stem=Path(image.name).stem, wnid=ids[image.label], index=image.label)
        for image in with_devkit.val
    ]
    random.Random(1).shuffle(lines)
    (tmp_path / "val.txt").write_text("\n".join(lines))
    found = read_ilsvrc(downloads, tmp_path / "val.txt")
    assert found.classes == tuple(ids)
    assert found.val == with_devkit.val
    (tmp_path / "val.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"labels 4 images of 5 in .*; ILSVRC2012_val_\d+\.JPEG has none"):
        read_ilsvrc(downloads, tmp_path / "val.txt")
    (tmp_path / "val.txt").write_text("other.JPEG 0")
    with pytest.raises(UsageError, match=r"the list has 'other', the archive 'ILSVRC2012_val_00000001\.JPEG'"):
        read_ilsvrc(downloads, tmp_path / "val.txt")


def test_without_the_devkit_the_list_is_asked_for(downloads):
    (downloads / DEVKIT_NAME).unlink()
    with pytest.raises(DataError, match="no ILSVRC2012_devkit") as caught:
        read_ilsvrc(downloads)
    assert "--val-list FILE" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [TRAIN_NAME, VAL_NAME])
def test_an_archive_that_is_cut_off_anywhere_is_refused(downloads, name):
    path = downloads / name
    whole = path.read_bytes()
    # What follows the end-of-archive mark is padding.
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in {*range(0, end, 512), *random.Random(2).sample(range(end), 40)}:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_ilsvrc(downloads)


def test_a_file_that_shrinks_later_is_an_image_that_cannot_be_read(downloads, monkeypatch):
    image = read_ilsvrc(downloads).train[-1]
    path = downloads / TRAIN_NAME
    with monkeypatch.context() as patch:
        patch.setattr(originals, "MAX_FILE_BYTES", 10)
        with pytest.raises(ImageError, match=r"has [0-9,]+ bytes; the limit is 10"):
            image.read()
    path.write_bytes(path.read_bytes()[: (image.offset or 0) + 10])
    with pytest.raises(ImageError, match="truncated by"):
        image.read()
    path.unlink()
    with pytest.raises(ImageError, match=r"ILSVRC2012_img_train\.tar cannot be read"):
        image.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / DEVKIT_NAME).write_bytes(devkit(TRUTH[1:])), "5 images, the devkit has 4 labels"),
        (lambda folder: (folder / DEVKIT_NAME).write_bytes(devkit((9, *TRUTH[1:]))), "not the devkit .* damaged: 9"),
        (lambda folder: (folder / DEVKIT_NAME).write_bytes(devkit(meta=b"no")), "not a MATLAB 5 file"),
        (lambda folder: (folder / DEVKIT_NAME).write_bytes(b"no"), "cannot be read: not a gzip file"),
        (lambda folder: (folder / DEVKIT_NAME).write_bytes(tar({"a": b""}, "w:gz")), "contains no data/ILSVRC2012_val"),
        (lambda folder: (folder / VAL_NAME).unlink(), "no ILSVRC2012_img_val.tar"),
        (
            lambda folder: (folder / TRAIN_NAME).write_bytes(tar({"cat.jpg": b"x"})),
            "contains 'cat.jpg'; expected one arch",
        ),
        (lambda folder: (folder / TRAIN_NAME).write_bytes(tar({"n01440764.tar": tar({})})), "contains no images"),
        (
            lambda folder: (folder / TRAIN_NAME).write_bytes(tar({"n01440764.tar": tar({"a.JPEG": b"x"})})),
            "has 1 classes; a classifier needs at least two",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_told(downloads, change: Callable[[Path], None], message: str):
    change(downloads)
    with pytest.raises(DataError, match=message):
        read_ilsvrc(downloads)


def test_a_class_that_only_the_validation_images_have_is_told(downloads):
    two = {f"{wnid}.tar": tar(images) for wnid, images in list(TRAIN.items())[:2]}
    (downloads / TRAIN_NAME).write_bytes(tar(two))
    with pytest.raises(DataError, match="has no class n07753592"):
        read_ilsvrc(downloads)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_struct_of_a_mat_file_is_read(compressed):
    entries = read_struct(mat_file(compressed=compressed), "synsets")
    assert [(e["ILSVRC2012_ID"], e["WNID"], e["words"]) for e in entries] == [
        (number, wnid, words) for wnid, (number, words) in SYNSETS.items()
    ]
    assert {e["children"] for e in entries} == {None}


def test_a_mat_file_that_lies_or_ends_early_is_refused():
    whole = mat_file(compressed=False)
    for length in range(0, len(whole), len(whole) // 2):
        with pytest.raises(MatError):
            read_struct(whole[:length], "synsets")
    for count in (100_000, 2**31 - 1):
        with pytest.raises(MatError):
            read_struct(mat_file(compressed=False, count=count), "synsets")
    with pytest.raises(MatError, match="no variable cats"):
        read_struct(whole, "cats")


def bombs() -> dict[str, bytes]:
    """Files that are short, or hold short values, and take much memory where no one counts."""
    header = mat_file()[:128]
    inflated = zlib.compress(struct.pack("<II", 14, 1 << 28) + bytes(100 << 20))
    one_field = element(5, struct.pack("<i", 8)) + element(1, b"nothing\0")
    fields = element(5, struct.pack("<i", 1)) + element(1, b"x" * 4_000_000)
    return {
        "inflated": header + struct.pack("<II", 15, len(inflated)) + inflated,
        "values": header + matrix(2, (2_000_000, 1), b"synsets", one_field + struct.pack("<II", 14, 0) * 2_000_000),
        "fields": header + matrix(2, (0, 0), b"synsets", fields),
        "flags": header + element(14, element(6, bytes(8_000_000))),
    }


@pytest.mark.parametrize("name", ["inflated", "values", "fields", "flags"])
def test_a_mat_file_that_asks_for_much_is_refused_and_takes_no_memory(name):
    data = bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(MatError):
            read_struct(data, "synsets")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_damaged_bytes_of_a_mat_file_raise_nothing_else():
    whole = mat_file(compressed=False)
    rng = random.Random(3)
    for _ in range(4):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(128, len(whole))] = rng.randrange(256)
        with contextlib.suppress(MatError):
            read_struct(bytes(changed), "synsets")


def test_without_scipy_the_list_of_labels_serves(downloads, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r"alexdeploy\[matlab\](?s:.)*val_list"):
        read_ilsvrc(downloads)
    wnids = {number: wnid for wnid, (number, _) in SYNSETS.items()}
    labels = tmp_path / "val.txt"
    labels.write_text("".join(f"{val_name(index)} {wnids[number]}\n" for index, number in enumerate(TRUTH)))
    assert len(read_ilsvrc(downloads, labels).val) == len(TRUTH)


def test_a_devkit_whose_compressed_bytes_are_damaged_is_told(downloads):
    path = downloads / DEVKIT_NAME
    rng = random.Random(4)
    whole = devkit(tuple(rng.randint(1, 1000) for _ in range(100_000)))
    for place in range(1000, len(whole) - 1000, 60_000):
        path.write_bytes(whole[:place] + b"\xff" * 500 + whole[place + 500 :])
        with pytest.raises(DataError, match=r"cannot be read|or damaged"):
            read_ilsvrc(downloads)


def test_an_archive_with_a_member_of_a_negative_size_is_refused_and_not_read_for_ever(downloads):
    path = downloads / TRAIN_NAME
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("n01440764.tar")
        info.pax_headers = {"size": "-1024"}
        archive.addfile(info)
    path.write_bytes(file.getvalue())
    with pytest.raises(DataError, match=r"n01440764\.tar has -1,024 bytes"):
        read_ilsvrc(downloads)
    header = bytearray(tarfile.TarInfo("n01440764.tar").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    path.write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(DataError, match="a member of -512 bytes"):
        read_ilsvrc(downloads)


def test_it_is_packed_as_the_folders_that_people_make_of_it(downloads, extracted, tmp_path):
    told: list[object] = []
    prepare(downloads, tmp_path / "set", on_event=told.append)
    listed = [event.num_found for event in told if isinstance(event, Listed)]
    assert listed == sorted(listed)
    assert listed[-1] == len(extracted.train) + len(TRUTH)
    prepare(tmp_path / "extracted", tmp_path / "other")
    found, expected = (open_packed(tmp_path / name) for name in ("set", "other"))
    assert list(found.train.labels) == list(expected.train.labels)
    assert sorted(found.val.labels) == sorted(expected.val.labels)
    np.testing.assert_array_equal(found.pixel_sums(), expected.pixel_sums())
    with pytest.raises(UsageError, match="val and classes have no meaning for the files of ILSVRC"):
        prepare(downloads, tmp_path / "third", PrepareOptions(val=str(tmp_path / "extracted" / "val")))
