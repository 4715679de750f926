"""Decoding every pixel, as a user would write it who gives no thought to sizes: what our decoder is compared with."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from alexdeploy.images.decode import ResizePolicy


def full_decode(data: bytes, resize: ResizePolicy = "crop") -> np.ndarray:
    """An upright JPEG to uint8 [256, 256, 3], from all of the pixels of what our decoder takes: the centre square, or
    ("warp") everything."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if resize == "warp":
        return np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR, box=box))
