"""Images as programs have them: paths, encoded files in memory, file objects, Pillow's images, NumPy's arrays."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexdeploy.core.errors import ImageError, UsageError, first_line
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.archives import is_archive_name
from alexdeploy.images.decode import ResizePolicy, decode, square_of_image, square_of_pixels
from alexdeploy.images.listing import MAX_FILE_BYTES, describe
from alexdeploy.images.sources import printable_path, read_file

Input: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]  # type: ignore[operator,unused-ignore]
)
"""One image: a path, the bytes of an encoded file or a binary file object of one, a Pillow image, or an array uint8
[H, W, 3], RGB."""

_EXPECTED = (
    "a path, the bytes of an image file, a binary file object, a PIL image, or a NumPy array uint8 [H, W, 3] in RGB"
)
_SQUARE = (IMAGE_SIZE, IMAGE_SIZE, 3)


def list_inputs(images: Input | Iterable[Input]) -> list[Input]:
    """One image or several as a list; an array uint8 [N, 256, 256, 3] is N images, also inside of a list.

    A one-dimensional array of objects or strings, such as a column of a data frame, is a list. Raises UsageError as
    `check_input`; it names the argument "images".
    """
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        images = images.tolist()
    if _is_one(images):
        return _unpacked(images, "images")
    # Those of which the iterator gives names.
    if not isinstance(images, Iterable) or isinstance(images, Mapping) or hasattr(images, "columns"):
        raise _refused(images, "images")
    return [one for number, given in enumerate(images) for one in _unpacked(given, f"images[{number}]")]


def check_input(image: Input, name: str) -> None:
    """Raise UsageError, with what was found and expected, unless `image` is an Input; does not read it.

    `name` is the name of the image in the message.
    """
    if isinstance(image, (str, bytes, bytearray, memoryview, Image.Image)):
        return
    if isinstance(image, np.ndarray):
        _check_array(image, name)
    elif isinstance(image, io.TextIOBase):
        raise UsageError(f"{name} is a file in text mode; expected a binary one", hint='Open it so: open(path, "rb")')
    elif inspect.iscoroutinefunction(getattr(image, "read", None)):
        raise UsageError(
            f"{name} is of type {type(image).__name__}, which is read with await; expected {_EXPECTED}",
            hint="Pass its bytes: await file.read()",
        )
    elif not isinstance(image, os.PathLike) and not callable(getattr(image, "read", None)):
        raise _refused(image, name)


def name_of(image: Input, number: int) -> str:
    """The path, the name of the file object or of the file that Pillow opened, else "images[`number`]"."""
    if isinstance(image, (str, os.PathLike)):
        return printable_path(os.fsdecode(image))
    name = getattr(image, "filename" if isinstance(image, Image.Image) else "name", None)
    if isinstance(name, (str, bytes, os.PathLike)) and name:
        return printable_path(os.fsdecode(name))
    return f"images[{number}]"


def is_square(image: Input) -> bool:
    """Whether the image needs no decoding: an array uint8 [256, 256, 3]."""
    return isinstance(image, np.ndarray) and image.shape == _SQUARE


def read_square(image: Input, resize: ResizePolicy) -> NDArray[np.uint8]:
    """The image as uint8 [256, 256, 3], as `decode` makes it; an array of that shape is returned as it is.

    Blocks while it reads and decodes. File objects are read from where they are, to their end. Raises ImageError.
    Thread-safe, except for file objects.
    """
    if isinstance(image, np.ndarray):
        return square_of_pixels(image, resize)
    if isinstance(image, Image.Image):
        return square_of_image(image, resize)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(_bytes_of(image), resize)
    if isinstance(image, (str, os.PathLike)):
        return decode(_read_path(os.fsdecode(image)), resize)
    return decode(_read_object(image), resize)


def _is_one(images: Any) -> bool:
    # Tensors of other libraries can be iterated, but are no lists of images.
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        return True
    return hasattr(images, "read") or hasattr(images, "__dlpack__")


def _unpacked(image: Any, name: str) -> list[Input]:
    if _is_batch(image):
        return list(image)
    check_input(image, name)
    return [image]


def _is_batch(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 4 and image.shape[1:] == _SQUARE


def _check_array(image: NDArray[Any], name: str) -> None:
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    raise UsageError(
        f"{name} is an array {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] in RGB"
        + (f", or [N, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]" if image.ndim == 4 else ""),
        hint=_cure(image.dtype.name, image.shape),
    )


def _cure(dtype: str, shape: tuple[int, ...]) -> str | None:
    """How to convert an array of the wrong kind; `dtype` is a NumPy name."""
    is_plane = len(shape) == 3 and shape[0] == 1 and shape[2] != 3
    is_grey = len(shape) == 2 or is_plane or (len(shape) == 3 and shape[2] in (1, 2, 4))
    if 0 in shape or len(shape) not in (2, 3, 4) or not re.match("u?int|float|bfloat|bool", dtype):
        return None
    found = "array[0]" if is_plane else "array"
    if dtype == "uint8" and is_grey:
        return f"Pass PIL.Image.fromarray({found}), which may be grey or have transparency."
    if not is_grey and shape[-1] != 3 and shape[-3] == 3:
        found += ".transpose(1, 2, 0)" if len(shape) == 3 else ".transpose(0, 2, 3, 1)"
    pixels, otherwise = "", ""
    if dtype == "bool":
        found += ".astype(numpy.uint8) * 255"
    elif dtype == "uint16":
        found, pixels = f"({found} // 257).astype(numpy.uint8)", "pixels from 0 to 65535"
    elif "float" in dtype:
        found, pixels = f"({found} * 255).round().astype(numpy.uint8)", "pixels from 0 to 1"
        otherwise = ", without * 255 if they are from 0 to 255"
    elif dtype != "uint8":
        found, pixels = f"{found}.astype(numpy.uint8)", "pixels from 0 to 255"
    if is_grey:
        found = f"PIL.Image.fromarray({found})"
    elif len(shape) == 4 and sorted(shape[1:]) != sorted(_SQUARE):
        # Only images of one size are a batch.
        found = f"list({found})"
    elif found == "array":
        return None
    return f"Convert {pixels} so: {found}{otherwise}" if pixels else f"Pass {found}"


def _refused(image: Any, name: str) -> UsageError:
    kind = type(image)
    if hasattr(image, "__dlpack__") and not isinstance(image, Mapping):
        shape, dtype = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", ""))
        module = kind.__module__.partition(".")[0]
        to_array = "tensor.detach().cpu().numpy()" if module == "torch" else "numpy.asarray(tensor)"
        plain = re.search(r"bool|(u?int|b?float)\d+", dtype)
        cure = _cure(plain[0], shape) if plain else None
        return UsageError(
            f"{name} is a {module} {kind.__name__} {dtype} {list(shape)}; expected {_EXPECTED}",
            hint=f"Make it an array first: array = {to_array}" + (f"\n{cure}" if cure else ""),
        )
    hint = None
    if isinstance(image, Mapping):
        hint = "Pass its values: list(images.values())"
    elif hasattr(image, "columns"):
        hint = 'Pass the column with paths or bytes: images["path"]'
    return UsageError(f"{name} is of type {kind.__name__}; expected {_EXPECTED}", hint=hint)


def _read_path(path: str) -> bytes:
    if re.match(r"data:|[a-z][a-z0-9+.-]+://", path, re.IGNORECASE) and not os.path.exists(path):
        if path[:5].lower() == "data:":
            raise ImageError("is a data URL; pass its bytes: base64.b64decode(url.partition(',')[2])")
        raise ImageError(
            "is a URL; predict() takes URLs, classify() takes images: "
            "pass its bytes, urllib.request.urlopen(url).read()"
        )
    if os.path.isdir(path):
        raise ImageError("is a folder; predict() takes folders, classify() takes images")
    if is_archive_name(path) and os.path.isfile(path):
        raise ImageError("is an archive; predict() takes archives, classify() takes images")
    return read_file(path)


def _bytes_of(data: bytes | bytearray | memoryview) -> bytes:
    try:
        return bytes(data)
    # Memory that was released.
    except ValueError as exc:
        raise ImageError(f"cannot be read: {exc}") from exc


def _read_object(file: BinaryIO) -> bytes:
    try:
        data: Any = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ImageError(f"cannot be read: {describe(exc)}") from exc
    # A closed file raises ValueError; those of archives and of networks have errors of their own.
    except Exception as exc:
        raise ImageError(f"cannot be read: {first_line(exc)}") from exc
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(f"the file object gives {type(data).__name__}, not bytes; open it in binary mode")
    if not data:
        raise ImageError("the file object has no more bytes: it is empty, or was read to its end (rewind: seek(0))")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"has more than {MAX_FILE_BYTES:,} bytes")
    return bytes(data)
