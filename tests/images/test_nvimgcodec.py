"""nvImageCodec as a second decoder: which files it takes, and how its pixels differ from the one decoder's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_here import has_gpu, why_no_nvimgcodec
from helpers import smooth_images
from PIL import Image

from alexdeploy.core.errors import DeviceError, ImageError, UsageError
from alexdeploy.images import nvimgcodec
from alexdeploy.images.decode import ResizePolicy, decode, square_of_pixels
from alexdeploy.images.nvimgcodec import NvImageCodec, is_plain_jpeg

WHY_NOT = why_no_nvimgcodec()
needs_package = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def _encoded(kind: str = "JPEG", size: tuple[int, int] = (401, 299), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth_images(1)[0]).resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(exif=exif)


PLAIN = {
    "4:2:0": lambda: _encoded(),
    "4:4:4": lambda: _encoded(subsampling=0),
    "progressive": lambda: _encoded(progressive=True),
    "grey": lambda: _encoded(mode="L"),
    "upright in EXIF": lambda: _turned(1),
    "something after its end": lambda: _encoded() + b"more",
    "portrait": lambda: _encoded(size=(300, 480)),
    "smaller than the square": lambda: _encoded(size=(40, 30)),
}

OTHER = {
    "turned in EXIF": lambda: _turned(6),
    "CMYK": lambda: _encoded(mode="CMYK"),
    "PNG": lambda: _encoded("PNG"),
    "MPO": lambda: _encoded("MPO", save_all=True, append_images=[Image.new("RGB", (401, 299))]),
    "only a header": lambda: _encoded()[:200],
    "empty": lambda: b"",
    "12 bits": lambda: _encoded().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "lossless": lambda: _encoded().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc3\x00\x11\x08"),
}


@pytest.fixture(scope="module")
def codec() -> NvImageCodec:
    return NvImageCodec("cpu")


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_plain_jpeg_is_known_by_its_header(make: Callable[[], bytes]) -> None:
    assert is_plain_jpeg(make())


@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER)
def test_every_other_file_is_left_to_the_one_decoder(make: Callable[[], bytes]) -> None:
    assert not is_plain_jpeg(make())


def test_an_image_that_is_too_large_is_left_to_the_one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvimgcodec, "MAX_PIXELS", 401 * 299 - 1)
    assert not is_plain_jpeg(_encoded())


@needs_package
@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_on_the_cpu_its_pixels_are_the_one_decoders(
    codec: NvImageCodec, make: Callable[[], bytes], resize: ResizePolicy
) -> None:
    # Below twice the square the one decoder reads the whole image too, and both use libjpeg-turbo.
    found = codec.decode(make(), resize)
    assert found is not None
    np.testing.assert_array_equal(found, decode(make(), resize))


@needs_package
def test_a_photograph_is_decoded_at_full_size_and_then_resized(codec: NvImageCodec) -> None:
    data = _encoded(size=(1600, 1200))
    found = codec.decode(data, "crop")
    assert found is not None
    whole = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(found, square_of_pixels(whole, "crop"))
    # The one decoder has libjpeg decode a half of it: the same picture, of other roundings.
    difference = np.abs(np.subtract(found, decode(data, "crop"), dtype=np.int16))
    assert 0 < difference.mean() < 2


@needs_package
def test_what_it_cannot_decode_is_left_to_the_one_decoder_without_a_word(
    codec: NvImageCodec, capfd: pytest.CaptureFixture[str]
) -> None:
    for data in (_encoded()[:4000], *(make() for make in OTHER.values())):
        assert codec.decode(data, "crop") is None
    with pytest.raises(ImageError, match="truncated"):
        decode(_encoded()[:4000])
    NvImageCodec("cpu")
    assert "Failed to load" not in capfd.readouterr().err


@needs_package
def test_it_tells_its_version_and_where_it_decodes(codec: NvImageCodec) -> None:
    words = codec.name.split()
    assert [words[0], *words[2:]] == ["nvImageCodec", "on", "cpu"]
    assert words[1][0].isdigit()


@needs_package
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_does_not_decode_on_one() -> None:
    with pytest.raises(DeviceError, match="nvImageCodec cannot be used on cuda:0"):
        NvImageCodec("cuda:0")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvidia", None)
    with pytest.raises(UsageError, match="nvImageCodec is not installed") as caught:
        NvImageCodec("cpu")
    assert "pip install 'nvidia-nvimgcodec" in str(caught.value.hint)


@pytest.mark.gpu
@needs_package
@pytest.mark.skipif(not has_gpu(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_on_a_gpu_its_pixels_are_nearly_the_one_decoders(make: Callable[[], bytes]) -> None:
    found = NvImageCodec("cuda:0").decode(make(), "crop")
    assert found is not None
    # nvJPEG has an inverse transform of its own: a value may be rounded the other way.
    assert np.abs(np.subtract(found, decode(make()), dtype=np.int16)).mean() < 1
