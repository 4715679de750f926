"""The only image decoder: used by training, calibration and prediction.

The input is untrusted. Pillow raises many kinds of exceptions for it, which all become ImageError; its warnings are
suppressed.
"""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Iterator
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
from alexdeploy.images.headers import looks_like_tga, read_jpeg_frame, read_png_bits
from alexdeploy.images.libtiff import errors_raised
from alexdeploy.images.listing import CONVERT_IT
from alexdeploy.images.pixel_budget import PixelBudget

ResizePolicy = Literal["crop", "warp"]
Box = tuple[float, float, float, float]

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
    _check_policy(resize)
    if not data:
        raise ImageError("the file is empty")
    with _translated(data), Image.open(io.BytesIO(data), formats=FORMATS) as image, _of_kind(image):
        return _to_square(image, data, resize)


def square_of_image(image: Image.Image, resize: ResizePolicy = "crop") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`decode` for an image in Pillow's memory: its current frame, upright, transparency over white.

    An image that Pillow has not loaded yet is loaded at full size and stays the caller's. The file of a JPEG photograph
    is decoded at a fraction of its size instead, which gives slightly different pixels. Raises ImageError. Thread-safe,
    also for one image in several threads.
    """
    _check_policy(resize)
    with _translated(b""), _of_kind(image):
        width, height = image.size
        _check_size(width, height)
        with _BUDGET.take(width * height):
            with _LOADING[id(image) // 16 % len(_LOADING)]:
                image.load()
                # Pillow marks EXIF as parsed before it parses it.
                orientation_of(image)
            return _loaded_to_square(image, b"", resize, None)


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


def _to_square(image: Image.Image, data: bytes, resize: ResizePolicy) -> np.ndarray[Any, np.dtype[np.uint8]]:
    width, height = image.size
    _check_size(width, height)
    # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the work; both sides stay at least 256. The returned
    # size is rounded up to whole pixels; the box is exact.
    frame = read_jpeg_frame(data)
    # libjpeg cannot scale lossless JPEG: it fails if a fraction is requested.
    is_lossless = frame is not None and frame.is_lossless
    drafted = None if is_lossless else image.draft(None, (IMAGE_SIZE, IMAGE_SIZE))
    # libjpeg keeps a progressive JPEG in memory at full size, at any fraction.
    is_whole = drafted is None or "progressive" in image.info
    with _BUDGET.take(width * height if is_whole else image.width * image.height):
        try:
            image.load()
            return _loaded_to_square(image, data, resize, None if drafted is None else drafted[1])
        finally:
            # Free the pixels before the next image is admitted.
            image.close()


def _loaded_to_square(
    image: Image.Image, data: bytes, resize: ResizePolicy, drafted: Box | None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`drafted` is the exact box of the picture in a JPEG decoded at a fraction of its size."""
    # PNG and TIFF report their orientation only after loading, and for TIFF Pillow has already applied it.
    size = (float(image.width), float(image.height)) if drafted is None else drafted[2:]
    orientation = orientation_of(image)
    pixels = _to_eight_bit(image, data)
    if _is_negative(image):
        pixels = ImageChops.invert(pixels)
    square = pixels.resize(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Resampling.BILINEAR,
        box=_centre_square(*size) if resize == "crop" else (0.0, 0.0, *size),
    )
    # Turning the resized image gives the same result as turning the original: the box is symmetric.
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
    if square.mode != "RGB":
        square = square.convert("RGB")
    return np.array(square, dtype=np.uint8)


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


def _is_negative(image: Image.Image) -> bool:
    """Whether white is 0 in the pixels of a TIFF as returned by Pillow, which inverts them only up to 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode in ("1", "L"):
        return False
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _to_eight_bit(image: Image.Image, data: bytes) -> Image.Image:
    """Convert any of Pillow's modes to opaque RGB or L with 8 bits per channel. `data` is the whole file."""
    if image.mode in ("RGB", "L", "1", "P") and "transparency" not in image.info:
        return image if image.mode in ("RGB", "L") else image.convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray(_words_to_bytes(np.asarray(image), read_png_bits(data)))
    if image.mode == "I":
        return Image.fromarray(_integers_to_bytes(np.asarray(image)))
    if image.mode == "F":
        return Image.fromarray(_floats_to_bytes(np.asarray(image)))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(colours, mask=colours.getchannel("A"))
        return opaque
    return image.convert("RGB")


def _words_to_bytes(pixels: np.ndarray[Any, Any], significant_bits: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # PNG requires 12-bit samples to be scaled to 16 bits. Programs for microscopes and cameras do not do that; if the
    # file states the number of bits and no sample exceeds it, the samples are taken as unscaled.
    bits = significant_bits or 16
    if not 8 <= bits < 16 or pixels.max(initial=0) >> bits:
        bits = 16
    return np.asarray(pixels >> (bits - 8), dtype=np.uint8)


def _integers_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # Pillow also stores 16-bit samples in mode I (PGM), and unsigned 32-bit ones with wraparound.
    unsigned = pixels.view(np.uint32)
    shift = 8 if unsigned.max(initial=0) <= 0xFFFF else 24
    return np.asarray(unsigned >> shift, dtype=np.uint8)


def _floats_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # The range of floating-point files is 0 to 1 or 0 to 255; the files do not say which.
    finite = np.nan_to_num(pixels, nan=0.0, posinf=math.inf, neginf=0.0)
    scale = 255.0 if finite.max(initial=0.0) <= 1.0 else 1.0
    return np.asarray(np.clip(np.rint(finite * scale), 0, 255), dtype=np.uint8)


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
