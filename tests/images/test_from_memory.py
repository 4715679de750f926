"""Images from memory against the decoder of files, and what is refused."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from PIL import Image

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.images import decode as decode_module
from alexdeploy.images import from_memory
from alexdeploy.images.decode import decode
from alexdeploy.images.from_memory import check_input, is_square, list_inputs, name_of, read_square


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


RGB = Image.fromarray(pixels(90, 131, 3))


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data, folder: data,
        lambda data, folder: bytearray(data),
        lambda data, folder: memoryview(data),
        lambda data, folder: io.BytesIO(data),
        lambda data, folder: io.BufferedReader(io.BytesIO(data)),
        lambda data, folder: folder / "picture",
        lambda data, folder: str(folder / "picture"),
    ],
    ids=["bytes", "bytearray", "memoryview", "BytesIO", "BufferedReader", "Path", "str"],
)
def test_a_file_is_decoded_wherever_it_is(tmp_path: Path, wrap: Callable[..., Any], resize: str) -> None:
    data = encode(RGB)
    (tmp_path / "picture").write_bytes(data)
    np.testing.assert_array_equal(read_square(wrap(data, tmp_path), resize), decode(data, resize))


MODES: dict[str, Image.Image] = {
    "RGB": RGB,
    "L": RGB.convert("L"),
    "1": RGB.convert("1"),
    "P": RGB.convert("P", palette=Image.Palette.ADAPTIVE),
    "RGBA": Image.fromarray(pixels(90, 131, 4)),
    "LA": Image.fromarray(pixels(90, 131, 2)),
    "I;16": Image.fromarray(pixels(90, 131).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize("mode", MODES)
def test_the_image_of_pillow_has_the_pixels_of_its_file(mode: str, resize: str) -> None:
    image = MODES[mode]
    assert image.mode == mode
    expected = decode(encode(image), resize)
    before = image.tobytes()
    np.testing.assert_array_equal(read_square(image, resize), expected)
    # Opened and not yet loaded.
    np.testing.assert_array_equal(read_square(Image.open(io.BytesIO(encode(image))), resize), expected)
    assert image.tobytes() == before


@pytest.mark.parametrize("image_format", ["TIFF", "WEBP", "BMP", "GIF", "PPM"])
def test_opened_files_of_other_formats_have_the_pixels_of_the_decoder(image_format: str) -> None:
    data = encode(RGB, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    np.testing.assert_array_equal(read_square(Image.open(io.BytesIO(data)), "crop"), decode(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_orientation_is_applied_to_an_opened_image_and_to_its_copies(image_format: str, orientation: int) -> None:
    data = encode(RGB, image_format, exif=exif(orientation))
    expected = decode(data)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(read_square(opened, "crop"), expected)
    np.testing.assert_array_equal(read_square(opened.copy(), "crop"), expected)
    if orientation > 1:
        assert not np.array_equal(expected, decode(encode(RGB, image_format)))


def test_transparency_of_a_palette_is_over_white() -> None:
    image = MODES["P"].copy()
    image.info["transparency"] = 3
    np.testing.assert_array_equal(read_square(image, "crop"), decode(encode(image)))
    assert not np.array_equal(read_square(image, "crop"), read_square(MODES["P"], "crop"))


def test_an_opened_jpeg_is_read_at_full_size_and_stays_open() -> None:
    smooth = np.linspace(0, 255, 1200 * 1600 * 3).reshape(1200, 1600, 3).astype(np.uint8)
    data = encode(Image.fromarray(smooth), "JPEG", quality=95)
    opened = Image.open(io.BytesIO(data))
    found = read_square(opened, "crop")
    assert opened.size == (1600, 1200)
    np.testing.assert_array_equal(found, decode(encode(Image.open(io.BytesIO(data)))))
    # The file is decoded at a fraction: near, but not the same.
    assert np.abs(found.astype(int) - decode(data)).max() <= 6
    assert opened.getpixel((0, 0)) is not None


def test_the_current_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (300, 300), colour) for colour in ("red", "blue")]
    opened = Image.open(io.BytesIO(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)))
    opened.seek(1)
    np.testing.assert_array_equal(read_square(opened, "crop")[0, 0], [0, 0, 255])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_threads_may_share_one_image_that_is_not_loaded(image_format: str) -> None:
    data = encode(Image.fromarray(pixels(700, 900, 3)), image_format, exif=exif(6))
    expected = read_square(Image.open(io.BytesIO(data)), "crop")
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            opened = Image.open(io.BytesIO(data))
            for found in threads.map(lambda image: read_square(image, "crop"), [opened] * 8):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize(("height", "width"), [(90, 131), (256, 300), (1000, 256), (1, 1), (3, 700)])
def test_arrays_are_resized_as_files_are(height: int, width: int, resize: str) -> None:
    array = pixels(height, width, 3)
    before = array.copy()
    np.testing.assert_array_equal(read_square(array, resize), decode(encode(Image.fromarray(array)), resize))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a[:, ::2], lambda a: np.asfortranarray(a)])
def test_arrays_may_lie_in_memory_in_any_way(view: Callable[[np.ndarray], np.ndarray]) -> None:
    array = view(pixels(300, 400, 3))
    np.testing.assert_array_equal(read_square(array, "crop"), read_square(np.ascontiguousarray(array), "crop"))


def test_a_square_array_is_taken_as_it_is() -> None:
    array = pixels(256, 256, 3)
    assert is_square(array)
    assert read_square(array, "crop") is array
    assert not any(map(is_square, (pixels(256, 255, 3), b"", "path", Image.fromarray(array))))


@pytest.mark.parametrize("image", [pixels(20, 11, 3), Image.new("1", (20, 11))], ids=["array", "image"])
def test_too_many_pixels_are_an_error_of_the_image(monkeypatch: pytest.MonkeyPatch, image: Any) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 219)
    with pytest.raises(ImageError, match="the limit is 219 pixels"):
        read_square(image, "crop")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "the file is empty"),
        (b"no picture", "unsupported file type"),
        (encode(RGB)[:200], "damaged PNG image"),
        (Image.open(io.BytesIO(encode(RGB)[:200])), "damaged PNG image"),
        (Image.new("RGB", (0, 5)), "it has no pixels"),
        (io.BytesIO(b""), "has no more bytes"),
        ("/no/such/file.jpg", "not found"),
        (".", r"is a folder; predict\(\) takes folders"),
        ("https://photos.example/a.jpg", r"is a URL; predict\(\) takes URLs.* urllib\.request"),
        ("data:image/png;base64,iVBO", r"is a data URL; pass its bytes: base64\.b64decode"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_image(image: Any, problem: str) -> None:
    check_input(image, "images")
    with pytest.raises(ImageError, match=problem):
        read_square(image, "crop")


def test_memory_that_was_released_is_an_error_of_the_image() -> None:
    view = memoryview(encode(RGB))
    view.release()
    with pytest.raises(ImageError, match="cannot be read: operation forbidden on released memoryview"):
        read_square(view, "crop")


def test_archives_are_for_predict(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(ImageError, match=r"is an archive; predict\(\) takes archives"):
        read_square(tmp_path / "pictures.zip", "crop")


def test_file_objects_are_read_from_where_they_are_and_their_faults_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(RGB)
    file = io.BytesIO(b"header" + data)
    file.seek(6)
    np.testing.assert_array_equal(read_square(file, "crop"), decode(data))
    with pytest.raises(ImageError, match=r"read to its end \(rewind: seek\(0\)\)"):
        read_square(file, "crop")
    file.close()
    with pytest.raises(ImageError, match="cannot be read: I/O operation on closed file"):
        read_square(file, "crop")

    class Failing:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def read(self, size: int) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    with pytest.raises(ImageError, match="cannot be read: is a directory"):
        read_square(Failing(OSError(21, "Is a directory")), "crop")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="cannot be read: Bad CRC-32"):
        read_square(Failing(zipfile.BadZipFile("Bad CRC-32 for file 'a.jpg'")), "crop")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="gives str, not bytes"):
        read_square(Failing("text"), "crop")  # type: ignore[arg-type]
    monkeypatch.setattr(from_memory, "MAX_FILE_BYTES", 100)
    with pytest.raises(ImageError, match="more than 100 bytes"):
        read_square(io.BytesIO(data), "crop")


class AsyncFile:
    async def read(self) -> bytes:
        return b""


FLOATS = "expected uint8 [H, W, 3] in RGB"
REFUSED: tuple[tuple[Any, str, str | None], ...] = (
    (pixels(9, 9, 3).astype(np.float32), f"is an array float32 [9, 9, 3]; {FLOATS}", "(array * 255).round()"),
    (pixels(9, 9, 3).astype(np.int64), f"is an array int64 [9, 9, 3]; {FLOATS}", "array.astype(numpy.uint8)"),
    (pixels(9, 9, 3).astype(np.uint16) * 257, "is an array uint16 [9, 9, 3]", "(array // 257).astype(numpy.uint8)"),
    (pixels(9, 9, 3) > 127, "is an array bool [9, 9, 3]", "Pass array.astype(numpy.uint8) * 255"),
    (pixels(2, 3, 9, 9), "is an array uint8 [2, 3, 9, 9]", "Pass list(array.transpose(0, 2, 3, 1))"),
    (pixels(2, 3, 256, 256), "is an array uint8 [2, 3, 256, 256]", "Pass array.transpose(0, 2, 3, 1)"),
    (pixels(3, 9, 9) / 255, "is an array float64 [3, 9, 9]", "(array.transpose(1, 2, 0) * 255).round()"),
    (pixels(1, 9, 9), "is an array uint8 [1, 9, 9]", "PIL.Image.fromarray(array[0])"),
    (pixels(9, 9), "is an array uint8 [9, 9]", "PIL.Image.fromarray(array)"),
    (pixels(9, 9, 1), "is an array uint8 [9, 9, 1]", "PIL.Image.fromarray(array)"),
    (pixels(9, 9, 4), "is an array uint8 [9, 9, 4]", "PIL.Image.fromarray(array)"),
    (pixels(3, 9, 9), "is an array uint8 [3, 9, 9]", "array.transpose(1, 2, 0)"),
    (pixels(2, 9, 9, 3), "is an array uint8 [2, 9, 9, 3]; expected uint8 [H, W, 3] in RGB, or [N, 256", "list(array)"),
    (pixels(0, 9, 3), "is an array uint8 [0, 9, 3]", None),
    (np.array("a"), "is an array <U1 []", None),
    (
        torch.zeros(3, 9, 9),
        "is a torch Tensor torch.float32 [3, 9, 9]; expected a path",
        "tensor.detach().cpu().numpy()",
    ),
    (torch.zeros(3, 9, 9), "is a torch Tensor torch.float32", "(array.transpose(1, 2, 0) * 255).round()"),
    (pd.DataFrame({"path": ["a.jpg"]}), "is of type DataFrame", 'images["path"]'),
    (io.StringIO("text"), "is a file in text mode", 'open(path, "rb")'),
    (AsyncFile(), "is of type AsyncFile, which is read with await", "await file.read()"),
    (None, "is of type NoneType; expected a path, the bytes of an image file", None),
    (7, "is of type int; expected a path", None),
    ({"image": 1}, "is of type dict; expected a path", "list(images.values())"),
    (np.array([["a.jpg", None]], np.object_), "is an array object [1, 2]", None),
)


@pytest.mark.parametrize(
    ("image", "message", "cure"), REFUSED, ids=[f"{message[:28]}: {cure}" for _, message, cure in REFUSED]
)
def test_what_is_no_image_is_refused_with_its_place_and_a_cure(image: Any, message: str, cure: str | None) -> None:
    for place, call in (
        ("images", lambda: check_input(image, "images")),
        ("images[1]", lambda: list_inputs([b"", image])),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.message.startswith(f"{place} {message}")
        assert (caught.value.hint is None) if cure is None else (cure in (caught.value.hint or ""))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.astype(np.uint16) * 257,
        lambda a: a.astype(np.int32),
        lambda a: a.astype(np.float32) / 255,
        lambda a: (a / 255).transpose(0, 3, 1, 2),
        lambda a: a.transpose(0, 3, 1, 2),
        lambda a: a.transpose(0, 3, 1, 2)[0],
        lambda a: a[0] / 255,
    ],
    ids=["uint16", "int32", "float32", "float64 NCHW", "NCHW", "CHW", "float64 HWC"],
)
def test_the_cure_of_an_array_gives_its_image(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    images = pixels(2, 20, 30, 3)
    array = wrong(images)
    with pytest.raises(UsageError) as caught:
        list_inputs(array)
    (cure,) = re.findall(r"(?:so: |Pass )(.*?)(?:, without.*)?$", caught.value.hint or "")
    found = list_inputs(eval(cure, {"array": array, "numpy": np, "PIL": PIL}))
    np.testing.assert_array_equal(found, images[: len(found)])


@pytest.mark.parametrize(
    "image",
    [None, 7, torch.zeros(2, 3), pixels(9, 9), {"a.jpg": 1}, pd.DataFrame({"path": ["a.jpg"]})],
    ids=["None", "int", "tensor", "array", "dict", "DataFrame"],
)
def test_one_of_the_wrong_kind_is_not_taken_for_a_list(image: Any) -> None:
    with pytest.raises(UsageError, match=r"^images is (a|an|of type) "):
        list_inputs(image)


def test_one_or_several_or_an_array_of_many_are_lists() -> None:
    square, many = pixels(256, 256, 3), pixels(3, 256, 256, 3)
    file = io.BytesIO(b"x")
    assert list_inputs("a.jpg") == ["a.jpg"]
    assert list_inputs(b"data") == [b"data"]
    assert list_inputs(file) == [file]
    assert list_inputs(path for path in ("a", "b")) == ["a", "b"]
    # Of data frames: a column, and its values.
    for column in (pd.Series(["a", b"data"]), np.array(["a", b"data"], np.object_)):
        assert list_inputs(column) == ["a", b"data"]
    assert list_inputs(np.array(["a", "b"])) == ["a", "b"]
    assert list_inputs([]) == list_inputs(many[:0]) == []
    assert [each is square for each in list_inputs(square)] == [True]
    found = list_inputs([square, many, RGB])
    assert len(found) == 5
    for number in range(3):
        np.testing.assert_array_equal(found[1 + number], many[number])


def test_names_are_those_of_files_else_of_places(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file, Image.open(tmp_path / "a.png") as image:
        named = str(tmp_path / "a.png")
        assert [name_of(each, 0) for each in (named, Path(named), file, image)] == [named] * 4
    assert name_of(os.fsdecode(b"a\xff.png"), 0) == r"a\xff.png"
    with os.fdopen(os.open(tmp_path / "a.png", os.O_RDONLY), "rb") as numbered:
        unnamed = (b"data", io.BytesIO(), RGB, pixels(9, 9, 3), numbered)
        assert [name_of(each, 4) for each in unnamed] == ["images[4]"] * 5
