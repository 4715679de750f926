"""The only image decoder: used by training, calibration and prediction.

The input is untrusted. Pillow raises many kinds of exceptions for it, which all become ImageError; its warnings are
suppressed.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.image_size import IMAGE_SIZE
from alexdeploy.core.processors import available_processors
from alexdeploy.images.eight_bit import is_negative, to_eight_bit
from alexdeploy.images.headers import looks_like_tga, read_jpeg_frame
from alexdeploy.images.libtiff import errors_raised
from alexdeploy.images.listing import CONVERT_IT
from alexdeploy.images.pixel_budget import PixelBudget

ResizePolicy = Literal["crop", "warp"]
Box = tuple[float, float, float, float]
_Frame = Callable[[float, float], tuple[Box, tuple[int, int]]]
"""Width and height of an image to the box that is kept, in its pixels, and the size it gets."""


MAX_PIXELS = 89_478_485
"""The largest image accepted: Pillow's MAX_IMAGE_PIXELS, where it warns of a decompression bomb; 256 MiB of RGB."""

_FREE_PIXELS = 4 << 20
"""Images up to this size are not counted: camera JPEGs, decoded at a fraction of their size, have fewer pixels."""

# Decoding a pixel takes up to 17 bytes, with transparency. The budget allows one photograph of a common size, decoded
# at full size, per processor.
_BUDGET = PixelBudget(max(MAX_PIXELS, 12_000_000 * available_processors()), _FREE_PIXELS)

_LOADING = tuple(threading.Lock() for _ in range(16))
"""Pillow's images are not thread-safe while they load; one of these locks, by the image, is held then."""

# Pillow's own blocks of 16 MB stay in the C library's arena of the thread that freed them: with four threads, the
# memory of four images, however few are decoded at a time. The C library keeps blocks of up to 32 MB.
cast("Any", Image).core.set_block_size(64 << 20)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names; JPEG includes MPO, with several pictures in one file, and PPM the whole netpbm family."""

# For an unknown format, Image.open imports all of Pillow's plugins; these are enough.
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Unsupported formats by their signatures: only some builds of Pillow have their decoders, or none has. The dots match
# the length of the first box of an ISO media file.
_OTHER_KINDS = (
    (rb"....ftyp(avif|avis)", "an AVIF image"),
    (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "a HEIC image"),
    (rb"....ftypcrx ", "a camera raw file (CR3)"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"II\xbc", "a JPEG XR image"),
    (rb"8BPS", "a Photoshop document"),
    (rb"qoif", "a QOI image"),
)

# EXIF 2.3, tag 0x0112: the transposition that turns an image stored with that orientation upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, resize: ResizePolicy = "crop") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one image file to uint8 [256, 256, 3], RGB, upright, C-contiguous and owned by the caller.

    "crop" resizes the shorter side to 256 and keeps the centre square (Krizhevsky et al. 2012, section 2);
    "warp" resizes both sides to 256, as Caffe's networks were trained. Animations are decoded to their first
    frame; transparency is composited over white. The format is detected from the bytes, not from the file name.
    Raises ImageError for anything that is not a complete image of one of FORMATS. Thread-safe.
    """
    return _decode(data, _square(resize))


def decode_whole(data: bytes, max_side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one image file to uint8 [H, W, 3], RGB, upright and uncut, the longer side at most `max_side` pixels.

    Smaller images keep their size. Apart from that as `decode`.
    """

    def frame(width: float, height: float) -> tuple[Box, tuple[int, int]]:
        scale = min(1.0, max_side / max(width, height))
        return (0.0, 0.0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))

    return _decode(data, frame)


def square_of_image(image: Image.Image, resize: ResizePolicy = "crop") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`decode` for an image in Pillow's memory: its current frame, upright, transparency over white.

    An image that Pillow has not loaded yet is loaded at full size and stays the caller's. The file of a JPEG photograph
    is decoded at a fraction of its size instead, which gives slightly different pixels. Raises ImageError. Thread-safe,
    also for one image in several threads.
    """
    frame = _square(resize)
    with _translated(b""), _of_kind(image):
        width, height = image.size
        _check_size(width, height)
        with _BUDGET.take(width * height):
            with _LOADING[id(image) // 16 % len(_LOADING)]:
                image.load()
                # Pillow marks EXIF as parsed before it parses it.
                orientation_of(image)
            return _loaded(image, b"", frame, None)


def square_of_pixels(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], resize: ResizePolicy = "crop"
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`decode` for pixels in memory, uint8 [H, W, 3]; [256, 256, 3] is returned as it is. Raises ImageError."""
    height, width, _ = pixels.shape
    if height == width == IMAGE_SIZE:
        _check_policy(resize)
        return pixels
    _check_size(width, height)
    return square_of_image(Image.fromarray(pixels), resize)


def _decode(data: bytes, frame: _Frame) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if not data:
        raise ImageError("the file is empty")
    with _translated(data), Image.open(io.BytesIO(data), formats=FORMATS) as image, _of_kind(image):
        return _load(image, data, frame)


def _check_policy(resize: str) -> None:
    if resize not in get_args(ResizePolicy):
        raise UsageError(f"resize is {resize!r}; expected one of {', '.join(get_args(ResizePolicy))}")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width}x{height}; the limit is {MAX_PIXELS:,} pixels")
    if not width * height:
        raise ImageError(f"is {width}x{height}: it has no pixels")


@contextmanager
def _of_kind(image: Image.Image) -> Iterator[None]:
    """Name the format in the errors of Pillow."""
    try:
        with errors_raised() if image.format == "TIFF" else nullcontext():
            yield
    except (ImageError, UnidentifiedImageError):
        raise
    except Exception as exc:
        raise _error_of(exc, f"{image.format} image" if image.format else "image") from exc


@contextmanager
def _translated(data: bytes) -> Iterator[None]:
    """Turn every exception of Pillow into an ImageError, and suppress its warnings."""
    try:
        with _without_warnings():
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        if (other := _other_kind(data)) is not None:
            raise ImageError(f"is {other}, {CONVERT_IT}") from exc
        raise ImageError(
            f"unsupported file type (supported: {', '.join(FORMATS)}), or a damaged header; "
            f"it begins with {data[:12]!r}"
        ) from exc
    except Exception as exc:
        raise _error_of(exc, "image") from exc


def _error_of(exc: Exception, kind: str) -> ImageError:
    if isinstance(exc, Image.DecompressionBombError):
        return ImageError(f"has more than {MAX_PIXELS:,} pixels, the limit")
    if isinstance(exc, MemoryError):
        return ImageError(f"not enough memory to decode the {kind}")
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ZeroDivisionError,
    # KeyError, ... on damaged files; no list of them would be complete.
    return ImageError(f"damaged {kind}: {exc or type(exc).__name__}")


def _other_kind(data: bytes) -> str | None:
    """The format of an image that Pillow does not support, or is not allowed to read; None if unknown."""
    for beginning, kind in _OTHER_KINDS:
        if re.match(beginning, data, re.DOTALL):
            return kind
    frame = read_jpeg_frame(data)
    if frame is not None and frame.bits_per_sample != 8:
        return f"a JPEG image with {frame.bits_per_sample} bits per sample"
    return "a TGA image" if looks_like_tga(data) else None


def _load(image: Image.Image, data: bytes, frame: _Frame) -> np.ndarray[Any, np.dtype[np.uint8]]:
    width, height = image.size
    _check_size(width, height)
    # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the work; both sides stay at least as large as asked for. The
    # returned size is rounded up to whole pixels; the box is exact.
    jpeg = read_jpeg_frame(data)
    # libjpeg cannot scale lossless JPEG: it fails if a fraction is requested.
    is_lossless = jpeg is not None and jpeg.is_lossless
    drafted = None if is_lossless else image.draft(None, frame(width, height)[1])
    # libjpeg keeps a progressive JPEG in memory at full size, at any fraction.
    is_whole = drafted is None or "progressive" in image.info
    with _BUDGET.take(width * height if is_whole else image.width * image.height):
        try:
            image.load()
            return _loaded(image, data, frame, None if drafted is None else drafted[1])
        finally:
            # Free the pixels before the next image is admitted.
            image.close()


def _loaded(image: Image.Image, data: bytes, frame: _Frame, drafted: Box | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`drafted` is the exact box of the picture in a JPEG decoded at a fraction of its size."""
    # PNG and TIFF report their orientation only after loading, and for TIFF Pillow has already applied it.
    box, size = frame(*((image.width, image.height) if drafted is None else drafted[2:]))
    orientation = orientation_of(image)
    pixels = to_eight_bit(image, data)
    if is_negative(image):
        pixels = ImageChops.invert(pixels)
    resized = pixels.resize(size, Image.Resampling.BILINEAR, box=box)
    # Turning the resized image gives the same result as turning the original: the box is symmetric.
    if orientation in _UPRIGHT:
        resized = resized.transpose(_UPRIGHT[orientation])
    if resized.mode != "RGB":
        resized = resized.convert("RGB")
    return np.array(resized, dtype=np.uint8)


def _square(resize: ResizePolicy) -> _Frame:
    _check_policy(resize)

    def frame(width: float, height: float) -> tuple[Box, tuple[int, int]]:
        box = _centre_square(width, height) if resize == "crop" else (0.0, 0.0, width, height)
        return box, (IMAGE_SIZE, IMAGE_SIZE)

    return frame


def _centre_square(width: float, height: float) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    # Unreadable EXIF is not an error: every viewer shows such a picture as it is stored.
    except Exception:
        return 1


class _Decoding(threading.local):
    """Whether this thread is decoding; used in place of a warnings filter's message pattern."""

    active = False

    def match(self, _message: str) -> bool:
        return self.active


_DECODING = _Decoding()
_FILTER = ("ignore", cast("Any", _DECODING), Warning, None, 0)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings in this thread only.

    warnings.catch_warnings replaces a list shared by all threads, and two threads may leave it replaced. This adds
    one filter, which matches nothing in a thread that is not decoding.
    """
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        cast("list[Any]", warnings.filters).insert(0, _FILTER)
    _DECODING.active = True
    try:
        yield
    finally:
        _DECODING.active = False
