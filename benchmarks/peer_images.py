"""What every peer does to a photograph, as a user would write it: Pillow, and ten crops stacked in NumPy."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = 227


def load(path: str) -> np.ndarray:
    """RGB, shorter side to 256, centre 256x256."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    width, height = (max(256, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 256) // 2, (height - 256) // 2
    return np.asarray(image.crop((left, top, left + 256, top + 256)), dtype=np.float32)


def ten_crops(image: np.ndarray) -> np.ndarray:
    """[256, 256, 3] -> [10, 3, 227, 227]: corners, centre, and their mirror images."""
    end = 256 - SIZE
    centre = end // 2
    corners = [(0, 0), (0, end), (end, 0), (end, end), (centre, centre)]
    crops = [image[top : top + SIZE, left : left + SIZE] for top, left in corners]
    crops += [crop[:, ::-1] for crop in crops]
    return np.stack(crops).transpose(0, 3, 1, 2)


def softmax(logits: np.ndarray) -> np.ndarray:
    """[N, C] -> [N, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
