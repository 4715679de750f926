"""The only decoder: training, calibration and prediction all get their pixels here.

The input is untrusted bytes, for which Pillow raises nearly every exception; all of them become
ImageError, and what it warns of stays inside.
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
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.headers import looks_like_tga, read_jpeg_frame, read_png_bits
from alexdeploy.images.libtiff import errors_raised
from alexdeploy.images.listing import CONVERT_IT
from alexdeploy.images.pixel_budget import PixelBudget

ResizePolicy = Literal["crop", "warp"]
Box = tuple[float, float, float, float]

MAX_PIXELS = 89_478_485
"""The largest image accepted: Pillow's MAX_IMAGE_PIXELS, where it warns of a decompression bomb; 256 MiB of RGB."""

_FREE_PIXELS = 4 << 20
"""Photographs as cameras store them, JPEGs, are decoded at a fraction of their size and have fewer."""

# A decoded pixel takes up to 17 bytes on its way, with transparency. Of common photographs that are decoded whole each
# processor may have one.
_BUDGET = PixelBudget(max(MAX_PIXELS, 12_000_000 * available_processors()), _FREE_PIXELS)

# Blocks of Pillow's own 16 MB stay with the C library's arena of the thread that freed them: with four threads the
# memory of four images, however few are decoded at a time. The largest that it keeps have 32 MB.
cast("Any", Image).core.set_block_size(64 << 20)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names; JPEG has the several pictures of MPO in it, PPM the whole netpbm family."""

# Image.open looks for a format it has no plugin for by importing every plugin there is; these are enough.
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

# Kinds that are not read, by how their files begin: their decoders are in some builds of Pillow and not in others, or
# in none. The dots match the length of the first box of an ISO media file.
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

# EXIF 2.3, tag 0x0112: what puts an image stored with that orientation upright.
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

    "crop" brings the shorter side to 256 and keeps the centre square (Krizhevsky et al. 2012, section 2);
    "warp" brings both sides to 256, as Caffe's networks were trained. The first frame of an animation
    counts; transparency is laid over white. The format is detected from the bytes, not from the file name.
    Raises ImageError for anything that is not a whole image of one of FORMATS. Safe in threads.
    """
    if resize not in get_args(ResizePolicy):
        raise UsageError(f"resize is {resize!r}; expected one of {', '.join(get_args(ResizePolicy))}")
    if not data:
        raise ImageError("the file is empty")
    kind = "image"
    try:
        with _without_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = f"{image.format} image"
            with errors_raised() if image.format == "TIFF" else nullcontext():
                return _to_square(image, data, resize)
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageError(f"has more than {MAX_PIXELS:,} pixels, the limit") from exc
    except UnidentifiedImageError as exc:
        if (other := _other_kind(data)) is not None:
            raise ImageError(f"is {other}, {CONVERT_IT}") from exc
        raise ImageError(
            f"unsupported file type (supported: {', '.join(FORMATS)}), or a damaged header; "
            f"it begins with {data[:12]!r}"
        ) from exc
    except MemoryError as exc:
        raise ImageError(f"not enough memory to decode the {kind}") from exc
    # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError, ZeroDivisionError,
    # KeyError, ... on damaged files: no list of them was ever complete.
    except Exception as exc:
        raise ImageError(f"damaged {kind}: {exc or type(exc).__name__}") from exc


def _other_kind(data: bytes) -> str | None:
    """The kind of an image that Pillow does not know, or is not asked for; None if it is not known here either."""
    for beginning, kind in _OTHER_KINDS:
        if re.match(beginning, data, re.DOTALL):
            return kind
    frame = read_jpeg_frame(data)
    if frame is not None and frame.bits_per_sample != 8:
        return f"a JPEG image with {frame.bits_per_sample} bits per sample"
    return "a TGA image" if looks_like_tga(data) else None


def _to_square(image: Image.Image, data: bytes, resize: ResizePolicy) -> np.ndarray[Any, np.dtype[np.uint8]]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width}x{height}; the limit is {MAX_PIXELS:,} pixels")
    # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the work; the sides stay at 256 and more. The size
    # that comes back is rounded up to whole pixels, the box is the exact one.
    frame = read_jpeg_frame(data)
    # Lossless JPEG has no fractions: asked for one, libjpeg fails.
    is_lossless = frame is not None and frame.is_lossless
    drafted = None if is_lossless else image.draft(None, (IMAGE_SIZE, IMAGE_SIZE))
    # Of a progressive JPEG libjpeg holds the whole, at any fraction.
    is_whole = drafted is None or "progressive" in image.info
    with _BUDGET.take(width * height if is_whole else image.width * image.height):
        try:
            image.load()
            return _loaded_to_square(image, data, resize, None if drafted is None else drafted[1])
        finally:
            # Its pixels go before the next image comes.
            image.close()


def _loaded_to_square(
    image: Image.Image, data: bytes, resize: ResizePolicy, drafted: Box | None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`drafted` is the box of the picture in what libjpeg decoded at a fraction."""
    # PNG and TIFF report their orientation only now, and TIFF has applied it, sides and all.
    size = (float(image.width), float(image.height)) if drafted is None else drafted[2:]
    orientation = _orientation(image)
    pixels = _to_eight_bit(image, data)
    if _is_negative(image):
        pixels = ImageChops.invert(pixels)
    square = pixels.resize(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Resampling.BILINEAR,
        box=_centre_square(*size) if resize == "crop" else (0.0, 0.0, *size),
    )
    # Turning the small image is the same as turning the large one: the box is its own mirror image.
    if orientation in _UPRIGHT:
        square = square.transpose(_UPRIGHT[orientation])
    if square.mode != "RGB":
        square = square.convert("RGB")
    return np.array(square, dtype=np.uint8)


def _centre_square(width: float, height: float) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    # EXIF that cannot be read is no reason to refuse the picture: every viewer shows it as it is stored.
    except Exception:
        return 1


def _is_negative(image: Image.Image) -> bool:
    """Whether white is 0 in the pixels of a TIFF, as Pillow gives them: it turns them round up to 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode in ("1", "L"):
        return False
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _to_eight_bit(image: Image.Image, data: bytes) -> Image.Image:
    """Bring any of Pillow's modes to RGB or L, opaque, with 8 bits a channel. `data` is the whole file."""
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
    # PNG wants samples of 12 bits brought to the range of 16 first. Programs for microscopes and cameras leave that
    # out; where the file says how many bits there are, and no sample has more, the others do not count.
    bits = significant_bits or 16
    if not 8 <= bits < 16 or pixels.max(initial=0) >> bits:
        bits = 16
    return np.asarray(pixels >> (bits - 8), dtype=np.uint8)


def _integers_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # Pillow holds 16-bit samples in mode I too (PGM), and unsigned 32-bit ones wrapped round.
    unsigned = pixels.view(np.uint32)
    shift = 8 if unsigned.max(initial=0) <= 0xFFFF else 24
    return np.asarray(unsigned >> shift, dtype=np.uint8)


def _floats_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # Floating-point files mean 0 to 1 or 0 to 255, and nothing in them says which.
    finite = np.nan_to_num(pixels, nan=0.0, posinf=math.inf, neginf=0.0)
    scale = 255.0 if finite.max(initial=0.0) <= 1.0 else 1.0
    return np.asarray(np.clip(np.rint(finite * scale), 0, 255), dtype=np.uint8)


class _Decoding(threading.local):
    """Whether this thread is decoding; stands where a warnings filter has its message pattern."""

    active = False

    def match(self, _message: str) -> bool:
        return self.active


_DECODING = _Decoding()
_FILTER = ("ignore", cast("Any", _DECODING), Warning, None, 0)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow in this thread alone.

    warnings.catch_warnings swaps a list that all threads share, and two threads leave it swapped. This adds
    one filter, which matches nothing in a thread that is not decoding.
    """
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        cast("list[Any]", warnings.filters).insert(0, _FILTER)
    _DECODING.active = True
    try:
        yield
    finally:
        _DECODING.active = False
