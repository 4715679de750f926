"""nvImageCodec as a second decoder of JPEGs: on a GPU with nvJPEG, or with its own libjpeg-turbo on the CPU.

Predictions use `images.decode` alone. `verify --decoders` compares the two.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.images.decode import MAX_PIXELS, ResizePolicy, orientation_of, square_of_pixels
from alexdeploy.images.headers import read_jpeg_frame


class NvImageCodec:
    """Decodes on `device` ("cuda:0"), or on the CPU ("cpu"). `name` tells where, and the version.

    `library` is its module, `decoder` and `params` its objects: `decoder.decode(streams, params=params)` leaves the
    pixels of a list of `library.CodeStream(data)` on the device. Raises UsageError without the package, DeviceError if
    it does not load or finds no GPU.
    """

    def __init__(self, device: str) -> None:
        is_cpu = device == "cpu"
        # Its warnings about each image that it leaves to the other decoder; read when it is imported.
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        try:
            with _quiet_stderr():
                from nvidia import nvimgcodec

                self.library = nvimgcodec
                self.decoder = nvimgcodec.Decoder(
                    device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if is_cpu else int(device.partition(":")[2] or 0),
                    backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)] if is_cpu else None,
                    # As libjpeg does, and Pillow with it: without it, colours of neighbouring pixels are repeated.
                    options=":fancy_upsampling=1",
                )
        except ModuleNotFoundError as exc:
            raise UsageError(
                "nvImageCodec is not installed",
                hint="On Linux or Windows: pip install 'nvidia-nvimgcodec-cu13[nvjpeg]' (cu12 for CUDA 12); without a "
                "GPU, without [nvjpeg].",
            ) from exc
        except (ImportError, OSError, RuntimeError) as exc:
            raise DeviceError(f"nvImageCodec cannot be used on {device}: {first_line(exc)}") from exc
        # Turned pictures are left to the other decoder, which turns after resizing.
        self.params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        self.name = f"nvImageCodec {nvimgcodec.__version__} on {device}"

    def decode(self, data: bytes, resize: ResizePolicy) -> NDArray[np.uint8] | None:
        """`images.decode.decode` of a plain JPEG, decoded at full size: uint8 [256, 256, 3].

        None for every other file, and for one that it cannot decode.
        """
        if not is_plain_jpeg(data):
            return None
        try:
            image = self.decoder.decode(self.library.CodeStream(data), params=self.params)
        # Headers that it does not understand.
        except RuntimeError:
            return None
        return None if image is None else square_of_pixels(np.asarray(image.cpu()), resize)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether it is one 8-bit JPEG in grey or colour, upright, of allowed size. Its pixels may still be damaged."""
    frame = read_jpeg_frame(data)
    if frame is None or frame.bits_per_sample != 8 or frame.is_lossless:
        return False
    with suppress(Exception), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        is_common = image.format == "JPEG" and image.mode in ("L", "RGB") and image.width * image.height <= MAX_PIXELS
        return is_common and orientation_of(image) == 1
    return False


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what the library writes to stderr of decoders for other formats that are not installed."""
    if "ALEXDEPLOY_DEBUG" in os.environ:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
