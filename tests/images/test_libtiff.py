"""libtiff's errors are in the row of their file, and not on stderr."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from alexdeploy.core.errors import ImageError
from alexdeploy.images.decode import decode


def damaged(compression: str, *, mode: str = "RGB") -> bytes:
    """A TIFF of noise with 40 bytes of its pixels inverted."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "TIFF", compression=compression)
    data = bytearray(file.getvalue())
    third = len(data) // 3
    data[third : third + 40] = bytes(byte ^ 0xA5 for byte in data[third : third + 40])
    return bytes(data)


LZW, DEFLATE = damaged("tiff_lzw"), damaged("tiff_deflate")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LZW, "damaged TIFF image: Using code not yet in table"),
        (DEFLATE, "damaged TIFF image: Decoding error at scanline 0, incorrect data check"),
    ],
    ids=["lzw", "deflate"],
)
def test_an_error_of_libtiffs_is_the_rows_and_not_on_stderr(
    data: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) == message
    assert capfd.readouterr().err == ""


def test_a_tiff_that_pillow_takes_in_spite_of_an_error_is_damaged(capfd: pytest.CaptureFixture[str]) -> None:
    data = damaged("group4", mode="1")
    with pytest.raises(ImageError, match=r"damaged TIFF image: .*at line"):
        decode(data)
    assert capfd.readouterr().err == ""
    with Image.open(io.BytesIO(data)) as image:
        image.load()


def test_threads_get_their_own_messages(capfd: pytest.CaptureFixture[str]) -> None:
    found: dict[int, list[str]] = {0: [], 1: []}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait(timeout=60)
        for _ in range(50):
            with pytest.raises(ImageError) as caught:
                decode((LZW, DEFLATE)[index])
            found[index].append(str(caught.value))

    threads = [threading.Thread(target=work, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found[0]), len(found[1])) == (50, 50)
    assert set(found[0]) == {"damaged TIFF image: Using code not yet in table"}
    assert set(found[1]) == {"damaged TIFF image: Decoding error at scanline 0, incorrect data check"}
    assert capfd.readouterr().err == ""


def test_others_in_the_process_hear_of_errors_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImageError):
        decode(LZW)
    with Image.open(io.BytesIO(DEFLATE)) as image, pytest.raises(OSError, match="decoder error"):
        image.load()
    assert "ZIPDecode: Decoding error at scanline 0, incorrect data check." in capfd.readouterr().err


def test_a_whole_tiff_after_a_damaged_one_is_read() -> None:
    with pytest.raises(ImageError):
        decode(LZW)
    file = io.BytesIO()
    Image.new("RGB", (300, 300), (10, 20, 30)).save(file, "TIFF", compression="tiff_lzw")
    assert (decode(file.getvalue()) == (10, 20, 30)).all()
