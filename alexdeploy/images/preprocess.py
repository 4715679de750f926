"""The reference preprocessing in NumPy: the same as in the deployment graph, for checks and benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.spec import Preprocessing
from alexdeploy.images.crops import cut_views


def network_input(
    image: NDArray[np.uint8],
    steps: Preprocessing,
    num_views: int,
    mean_image: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """uint8 [256, 256, 3] -> float32 [V, 3, crop, crop]: (pixel * scale - mean) / std, then the views.

    `mean_image` is float32 [3, 256, 256], subtracted before the crop. The operations and their order are those of the
    deployment graph, so that the results are bit-identical.
    """
    pixels: NDArray[np.float32] = image.astype(np.float32)
    if steps.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    if steps.scale != 1.0:
        pixels = pixels * np.float32(steps.scale)
    mean: NDArray[np.float32] = (
        np.array(steps.mean, np.float32) if mean_image is None else mean_image.transpose(1, 2, 0)
    )
    pixels = np.subtract(pixels, mean, dtype=np.float32)
    if steps.std != (1.0, 1.0, 1.0):
        pixels = np.divide(pixels, np.array(steps.std, np.float32), dtype=np.float32)
    return np.ascontiguousarray(cut_views(pixels, steps.crop, num_views).transpose(0, 3, 1, 2))
