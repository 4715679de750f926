"""What every peer does to a photograph, as a user who knows NumPy would write it: Pillow, views cut into one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIZE = 227

_END = 256 - SIZE
_CENTRE = (_END // 2, _END // 2)
_CORNERS = ((0, 0), (0, _END), (_END, 0), (_END, _END), _CENTRE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """`mean` is float32 [3, 256, 256], `std` float32 [3, 1, 1], or None where pixels are not divided."""

    mean: np.ndarray
    std: np.ndarray | None = None
    num_views: int = 10

    def __call__(self, path: str) -> np.ndarray:
        """float32 [num_views, 3, 227, 227] of a file."""
        pixels = np.subtract(load(path).transpose(2, 0, 1), self.mean, dtype=np.float32, order="C")
        if self.std is not None:
            pixels /= self.std
        return cut_views(pixels, self.num_views)

    def batch(self, paths: Sequence[str]) -> np.ndarray:
        """float32 [num_views * N, 3, 227, 227] of N files."""
        return np.concatenate([self(path) for path in paths])


def preprocessing(mean_file: str, std: str, num_views: int = 10) -> Preprocessing:
    """From the words of a command line: a .npy file, and "1" or three numbers with commas between."""
    deviations = np.array([float(number) for number in std.split(",")], np.float32).reshape(-1, 1, 1)
    return Preprocessing(
        mean=np.load(mean_file), std=None if (deviations == 1).all() else deviations, num_views=num_views
    )


def std_word(std: Sequence[float]) -> str:
    """What `preprocessing` takes."""
    return ",".join(f"{number:g}" for number in std)


def load(path: str) -> np.ndarray:
    """uint8 [256, 256, 3]: RGB, shorter side to 256, centre 256x256."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    width, height = (max(256, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 256) // 2, (height - 256) // 2
    return np.asarray(image.crop((left, top, left + 256, top + 256)))


def cut_views(image: np.ndarray, num_views: int) -> np.ndarray:
    """[3, 256, 256] -> [1, 3, 227, 227], the centre, or [10, ...]: corners, centre, and their mirror images."""
    corners = _CORNERS if num_views == 10 else (_CENTRE,)
    views = np.empty((num_views, 3, SIZE, SIZE), image.dtype)
    for number, (top, left) in enumerate(corners):
        views[number] = image[:, top : top + SIZE, left : left + SIZE]
    if num_views == 10:
        views[5:] = views[:5, :, :, ::-1]
    return views


def softmax(logits: np.ndarray) -> np.ndarray:
    """[N, C] -> [N, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def answers(logits: np.ndarray, num_views: int) -> list[tuple[int, float]]:
    """[num_views * N, C] -> for each image the best class of the mean over its views, and its probability."""
    probabilities = softmax(logits).reshape(-1, num_views, logits.shape[1]).mean(axis=1)
    return [(int(row.argmax()), float(row.max())) for row in probabilities]
