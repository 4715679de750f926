"""The decoder against arithmetic of its own, and against files that mean harm."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.images import decode as decode_module
from alexdeploy.images.decode import decode, decode_whole


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture with something different in every corner, uint8 [height, width, 3]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = (x, y, 0.5 + 0.5 * np.sin(7 * x + 11 * y * y))
    return np.rint(255 * np.stack(planes, axis=-1)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return encode(Image.fromarray(pixels), "PNG")


def weights(num_out: int, start: float, length: float, num_in: int) -> np.ndarray:
    """Antialiased bilinear: a triangle as wide as the output pixels lie apart, float64 [out, in]."""
    step = length / num_out
    support = max(step, 1.0)
    centres = start + (np.arange(num_out) + 0.5) * step
    distance = np.abs(np.arange(num_in) + 0.5 - centres[:, None]) / support
    triangle = np.maximum(0.0, 1.0 - distance)
    return triangle / triangle.sum(axis=1, keepdims=True)


def reference(pixels: np.ndarray, resize: str) -> np.ndarray:
    height, width = pixels.shape[:2]
    rows, columns = (min(height, width),) * 2 if resize == "crop" else (height, width)
    down = weights(256, (height - rows) / 2, rows, height)
    across = weights(256, (width - columns) / 2, columns, width)
    return np.einsum("yh,hwc,xw->yxc", down, pixels.astype(np.float64), across, optimize=True)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == (256, 256, 3)
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (375, 500), (501, 333), (90, 61), (700, 1201)])
def test_resizing_is_antialiased_bilinear(height, width, resize):
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Pillow rounds after each of its two passes: one level and a half at most.
    assert_close(decode(png(noise), resize), reference(noise, resize), 1.51)


def test_the_result_is_contiguous_writable_uint8():
    pixels = decode(png(smooth(300, 400)))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (256, 256, 3))
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_an_image_of_the_right_size_comes_back_as_it_is():
    pixels = smooth(256, 256)
    assert np.array_equal(decode(png(pixels)), pixels)
    assert np.array_equal(decode(png(pixels), "warp"), pixels)


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize(("height", "width"), [(600, 801), (1025, 1500), (2300, 3003)])
def test_jpegs_decoded_at_a_fraction_look_like_the_whole(height, width, resize):
    pixels = smooth(height, width)
    jpeg = encode(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)
    # JPEG's own loss, and the filter of the smaller transform, on a smooth picture.
    assert_close(decode(jpeg, resize), reference(pixels, resize), 5)


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.rot90(np.fliplr(stored)),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.fliplr(stored), -1),
    8: np.rot90,
}


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, image_format, resize):
    stored = smooth(301, 420)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
    data = encode(Image.fromarray(stored), image_format, exif=exif, **options)
    expected = reference(UPRIGHT[orientation](stored), resize)
    found = decode(data, resize)
    assert np.abs(found - expected).mean() < 2.5


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_means_nothing_is_passed_over(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = smooth(256, 256)
    assert np.array_equal(decode(encode(Image.fromarray(pixels), "PNG", exif=exif)), pixels)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03", b"junk"]
)
def test_broken_exif_does_not_cost_the_image(exif):
    jpeg = encode(Image.fromarray(smooth(256, 256)), "JPEG", quality=95, exif=exif)
    assert_close(decode(jpeg), smooth(256, 256), 12)


def test_cmyk_jpeg_has_adobe_inverted_inks():
    rgb = np.empty((256, 256, 3), np.uint8)
    rgb[:] = (200, 90, 30)
    inks = np.concatenate((255 - rgb, np.zeros((256, 256, 1), np.uint8)), axis=2)
    jpeg = encode(Image.frombytes("CMYK", (256, 256), inks.tobytes()), "JPEG", quality=95)
    assert b"Adobe" in jpeg
    assert_close(decode(jpeg), rgb, 3)


def test_black_ink_darkens_a_cmyk_image():
    inks = bytes((0, 60, 120, 100)) * 256 * 256
    tiff = encode(Image.frombytes("CMYK", (256, 256), inks), "TIFF")
    expected = np.array([(255 - ink) * (255 - 100) / 255 for ink in (0, 60, 120)])
    assert_close(decode(tiff), expected, 1.01)


def test_sixteen_bit_gray_keeps_its_high_byte():
    ramp = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    expected = np.repeat((ramp >> 8)[..., None], 3, axis=2)
    for image_format in ("PNG", "TIFF"):
        assert np.array_equal(decode(encode(Image.fromarray(ramp), image_format)), expected)


def test_sixteen_bit_big_endian_tiff_keeps_its_high_byte():
    ramp = np.arange(256 * 256, dtype=">u2").reshape(256, 256)
    tiff = encode(Image.frombytes("I;16B", (256, 256), ramp.tobytes()), "TIFF")
    assert np.array_equal(decode(tiff)[..., 0], ramp >> 8)


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_a_tiff_with_white_as_zero_is_no_negative(dtype):
    # 8 bits is what Pillow turns round by itself, and the others have to agree with it.
    ramp = np.arange(256 * 256).reshape(256, 256)
    samples = (ramp if dtype == "<u2" else ramp / 65535).astype(dtype)
    for pixels in (samples, (ramp >> 8).astype(np.uint8)):
        decoded = decode(tiff_white_is_zero(pixels))
        assert_close(decoded, np.repeat(255 - ramp[..., None] / 257, 3, axis=2), 1.0)


def tiff_white_is_zero(pixels: np.ndarray) -> bytes:
    """After TIFF 6.0: one strip, uncompressed, PhotometricInterpretation 0."""
    height, width = pixels.shape
    is_float = pixels.dtype.kind == "f"
    tags = {
        256: width,
        257: height,
        258: 8 * pixels.itemsize,
        259: 1,
        262: 0,
        273: 8,
        277: 1,
        278: height,
        279: pixels.nbytes,
        339: 3 if is_float else 1,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes)
        + pixels.tobytes()
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize(
    ("bits", "top", "shift"),
    [
        # As programs for cameras write them: the samples are at the low end.
        (12, 0xFFF, 4),
        (10, 0x3FF, 2),
        (8, 0xFF, 0),
        # As PNG wants them: scaled to 16 bits, and the significant ones are the upper ones.
        (12, 0xFFFF, 8),
        # Without the chunk the file says 16 bits.
        (None, 0xFFF, 8),
        (16, 0xFFF, 8),
        (3, 0x7, 8),
    ],
)
def test_significant_bits_of_a_png_say_how_far_its_samples_reach(bits, top, shift):
    ramp = np.linspace(0, top, 256 * 256).astype(np.uint16).reshape(256, 256)
    data = png(ramp)
    if bits is not None:
        # Before the image data, and after the header of 25 bytes.
        data = data[:33] + chunk(b"sBIT", bytes([bits])) + data[33:]
    assert np.array_equal(decode(data)[..., 0], ramp >> shift)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [256, 600])
def test_a_lossless_jpeg_is_read(channels, size):
    pixels = smooth(size, size)[..., :channels]
    decoded = decode(lossless_jpeg(pixels))
    expected = decode(png(pixels if channels == 3 else pixels[..., 0]))
    assert np.array_equal(decoded, expected)


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """After ITU-T T.81, annex H: each sample less its left neighbour, and in the first column less the upper one."""
    height, width, channels = pixels.shape
    values = pixels.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 128
    bits = []
    for difference in (values - predicted).reshape(-1).tolist():
        size = abs(difference).bit_length()
        # Every size has a code of five bits, itself.
        bits.append(f"{size:05b}")
        if size:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    ids = b"RGB"[:channels]
    sizes = bytes(range(10))

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    frame = struct.pack(">BHHB", 8, height, width, channels) + b"".join(bytes([each, 0x11, 0]) for each in ids)
    scan = bytes([channels]) + b"".join(bytes([each, 0]) for each in ids) + bytes([1, 0, 0])
    tables = bytes([0, 0, 0, 0, 0, len(sizes), *[0] * 11]) + sizes
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, tables) + segment(0xDA, scan) + coded + b"\xff\xd9"


def test_sixteen_bit_pgm_keeps_its_high_byte():
    ramp = np.arange(256 * 256, dtype=">u2").reshape(256, 256)
    pgm = b"P5 256 256 65535\n" + ramp.tobytes()
    assert np.array_equal(decode(pgm)[..., 1], ramp >> 8)


def test_thirty_two_bit_integers_keep_their_highest_byte():
    ramp = (np.arange(256 * 256, dtype=np.uint32).reshape(256, 256)) << 16
    tiff = encode(Image.fromarray(ramp.view(np.int32)), "TIFF")
    assert np.array_equal(decode(tiff)[..., 2], ramp >> 24)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_images_run_to_one_or_to_255(top):
    ramp = np.linspace(0, 1, 256 * 256, dtype=np.float32).reshape(256, 256)
    tiff = encode(Image.fromarray(ramp * np.float32(top)), "TIFF")
    assert_close(decode(tiff), np.repeat(255 * ramp[..., None], 3, axis=2), 0.51)


def test_values_that_are_no_number_are_black():
    ramp = np.full((256, 256), np.nan, np.float32)
    ramp[0, 0] = np.inf
    ramp[0, 1] = -np.inf
    pixels = decode(encode(Image.fromarray(ramp), "TIFF"))
    assert pixels[0, 0, 0] == 255
    assert pixels.reshape(-1)[3:].max() == 0


def test_transparency_is_laid_over_white():
    colours = smooth(256, 256)
    alpha = np.linspace(0, 255, 256).astype(np.uint8)[None, :, None].repeat(256, axis=0)
    share = alpha / 255.0
    expected = colours * share + 255 * (1 - share)
    for image_format in ("PNG", "TIFF"):
        data = encode(Image.fromarray(np.concatenate((colours, alpha), axis=2)), image_format)
        assert_close(decode(data), expected, 1.01)


def test_gray_with_alpha_is_laid_over_white():
    pixels = np.zeros((256, 256, 2), np.uint8)
    pixels[..., 1] = 100
    assert_close(decode(encode(Image.fromarray(pixels), "PNG")), np.full((256, 256, 3), 155.0), 1)


def test_a_transparent_colour_is_white():
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:128] = (10, 20, 30)
    data = encode(Image.fromarray(pixels), "PNG", transparency=(10, 20, 30))
    decoded = decode(data)
    assert (decoded[:128] == 255).all()
    assert (decoded[128:] == 0).all()


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
@pytest.mark.parametrize("transparency", [None, 0, b"\x00\xff\x80"])
def test_palettes_with_and_without_transparency(image_format, transparency):
    if image_format == "GIF" and isinstance(transparency, bytes):
        pytest.skip("GIF has one transparent colour")
    image = Image.new("P", (256, 256), 1)
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    image.paste(0, (0, 0, 256, 64))
    image.paste(2, (0, 64, 256, 128))
    options = {} if transparency is None else {"transparency": transparency}
    decoded = decode(encode(image, image_format, **options))
    assert decoded[0, 0].tolist() == ([200, 0, 0] if transparency is None else [255, 255, 255])
    assert decoded[200, 0].tolist() == [0, 100, 0]
    blue = [0, 0, 50] if not isinstance(transparency, bytes) else [127, 127, 152]
    assert np.abs(decoded[100, 0].astype(int) - blue).max() <= 1


def test_one_bit_images_are_black_and_white():
    board = np.indices((256, 256)).sum(axis=0) // 32 % 2 == 1
    for image_format in ("PNG", "TIFF", "PPM", "BMP"):
        decoded = decode(encode(Image.fromarray(board), image_format))
        assert np.array_equal(decoded, 255 * np.repeat(board[..., None], 3, axis=2)), image_format


def test_gray_jpeg_has_three_equal_channels():
    gray = np.asarray(Image.fromarray(smooth(300, 300)).convert("L"))
    decoded = decode(encode(Image.fromarray(gray), "JPEG", quality=95))
    assert np.array_equal(decoded[..., 0], decoded[..., 1])
    assert_close(decoded, reference(np.repeat(gray[..., None], 3, axis=2), "crop"), 4)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_of_several_counts(image_format):
    frames = [Image.new("RGB", (300, 280), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert_close(decode(data), np.array([255.0, 0, 0]), 4)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO"])
def test_every_format_of_the_list_is_read(image_format):
    assert decode(encode(Image.new("RGB", (300, 280), "white"), image_format)).min() >= 250


@pytest.mark.parametrize("image_format", ["ICO", "DIB", "PCX", "EPS", "ICNS", "SGI"])
def test_formats_off_the_list_are_refused(image_format):
    data = encode(Image.new("RGB", (64, 64), "white"), image_format)
    with pytest.raises(ImageError, match="unsupported file type"):
        decode(data)


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf", "an AVIF image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera raw file (CR3)"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51\0\x2f\0\0", "a JPEG 2000 image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "a JPEG XL image"),
        (b"\xff\x0a\xfa\x1f\x4c", "a JPEG XL image"),
        (b"8BPS\0\1\0\0", "a Photoshop document"),
    ],
)
def test_a_known_kind_that_is_not_read_is_named_with_the_cure(beginning, kind):
    with pytest.raises(ImageError) as caught:
        decode(beginning + bytes(100))
    assert caught.value.message == f"is {kind}, not read here; convert it to JPEG"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}])
def test_a_tga_is_called_one_with_its_mark_at_the_end_and_without(mode, options):
    data = encode(Image.fromarray(smooth(64, 64)).convert(mode), "TGA", **options)
    # Older files end where the footer of 26 bytes begins.
    for file in (data, data[:-26]):
        with pytest.raises(ImageError) as caught:
            decode(file)
        assert caught.value.message == "is a TGA image, not read here; convert it to JPEG"


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_of_more_bits_is_called_one(bits):
    data = bytearray(encode(Image.fromarray(smooth(64, 64)), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = bits
    with pytest.raises(ImageError) as caught:
        decode(bytes(data))
    assert caught.value.message == f"is a JPEG image with {bits} bits per sample, not read here; convert it to JPEG"


@pytest.mark.parametrize(("image_format", "kind"), [("AVIF", "an AVIF image"), ("JPEG2000", "a JPEG 2000 image")])
def test_what_only_some_builds_of_pillow_decode_is_not_decoded_anywhere(image_format, kind):
    try:
        data = encode(Image.fromarray(smooth(64, 64)), image_format)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {image_format}")
    with pytest.raises(ImageError, match=kind):
        decode(data)


@pytest.mark.parametrize("resize", ["crop", "warp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (10000, 1), (3, 4000), (257, 255)])
def test_odd_sizes_and_shapes_work(size, resize):
    image = Image.new("RGB", size, (10, 200, 30))
    for image_format in ("PNG", "JPEG"):
        assert np.abs(decode(encode(image, image_format), resize) - np.array([10.0, 200, 30])).max() < 5


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_errors(image_format, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    data = encode(noise, image_format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


def test_an_empty_file_is_called_empty():
    with pytest.raises(ImageError, match="empty"):
        decode(b"")


def test_text_is_shown_for_what_it_is():
    with pytest.raises(ImageError, match="begins with b'<html>"):
        decode(b"<html><body>404</body></html>")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2_000_000_000, 1), (13_378, 13_378)])
def test_a_bomb_is_refused_by_its_header(width, height, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("its pixels were decoded"))
    with pytest.raises(ImageError, match="89,478,485 pixels"):
        decode(png_claiming(width, height))


def test_a_bomb_is_refused_where_pillow_was_told_to_allow_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="is 60000x60000; the limit is 89,478,485 pixels"):
        decode(png_claiming(60_000, 60_000))


def test_an_unknown_policy_is_refused():
    with pytest.raises(UsageError, match="expected one of crop, warp"):
        decode(png(smooth(8, 8)), "stretch")


def test_pillows_warnings_stay_inside():
    image = Image.new("P", (256, 256))
    data = encode(image, "PNG", transparency=b"\x00\xff")
    broken_exif = encode(Image.new("RGB", (9, 9)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(data)
        decode(broken_exif)


def test_a_warning_is_a_warning_to_other_threads_while_one_decodes():
    heard = []

    def listen():
        with pytest.warns(UserWarning, match="hello"):
            warnings.warn("hello", stacklevel=1)
        heard.append(True)

    with decode_module._without_warnings():
        warnings.warn("not heard", stacklevel=1)
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert heard == [True]
    with pytest.warns(UserWarning, match="heard again"):
        warnings.warn("heard again", stacklevel=1)


def test_the_list_of_warning_filters_does_not_grow():
    data = png(smooth(8, 8))
    decode(data)
    before = len(warnings.filters)
    for _ in range(5):
        decode(data)
    assert len(warnings.filters) == before


def test_threads_get_what_one_thread_gets():
    files = [encode(Image.fromarray(smooth(300 + 10 * n, 400)), "JPEG") for n in range(8)]
    expected = [decode(data) for data in files]
    found: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        for n in range(start, 8, 4):
            found[n] = decode(files[n])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], expected[n]) for n in range(8))


SMALL = [
    encode(Image.fromarray(smooth(20, 24)), image_format)
    for image_format in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO")
] + [
    encode(Image.fromarray(smooth(20, 24)), "TIFF", compression="tiff_lzw"),
    encode(Image.fromarray(smooth(20, 24)), "TIFF", compression="jpeg"),
    encode(
        Image.fromarray(smooth(20, 24)),
        "JPEG",
        progressive=True,
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
    ),
    encode(Image.new("P", (20, 24)), "PNG", transparency=b"\x00\xff"),
]


@settings(max_examples=400)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(data):
    file = bytearray(data.draw(st.sampled_from(SMALL)))
    edits = data.draw(st.lists(st.tuples(st.integers(0, min(len(file) - 1, 400)), st.integers(0, 255)), max_size=8))
    for position, value in edits:
        file[position] = value
    file = file[: data.draw(st.integers(0, len(file)))] if data.draw(st.booleans()) else file
    try:
        pixels = decode(bytes(file), data.draw(st.sampled_from(["crop", "warp"])))
    except ImageError:
        return
    assert (pixels.shape, pixels.dtype) == ((256, 256, 3), np.uint8)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_an_image_error(data):
    with contextlib.suppress(ImageError):
        decode(data)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_whole_picture_is_upright_and_no_larger_than_asked_for(orientation):
    pixels = smooth(600, 1600)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    found = decode_whole(data, 400)
    expected = np.asarray(Image.fromarray(pixels).resize((400, 150), Image.Resampling.BOX)).astype(float)
    if orientation == 6:
        expected = np.rot90(expected, -1)
    assert found.shape == expected.shape
    # Two filters, and JPEG at a fraction of its size: a level on a smooth picture, a few at its edges.
    assert np.abs(found - expected).mean() <= 2.0


def test_a_small_picture_is_decoded_at_its_size():
    pixels = smooth(30, 50)
    assert np.array_equal(decode_whole(png(pixels), 400), pixels)
    assert decode_whole(png(smooth(1, 2000)), 400).shape == (1, 400, 3)
