"""Ten-crop classification as a user would write it: Pillow, ten crops stacked in NumPy, ONNX Runtime.

    python -m benchmarks.peer_onnxruntime models/alexnet/model.onnx models/alexnet/mean.npy photographs/*.jpg

Runs the plain network (`images` float32 [N, 3, 227, 227] -> `logits`) with ONNX Runtime's defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime
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


def classify(
    session: onnxruntime.InferenceSession, mean: np.ndarray, paths: Sequence[str], batch_size: int = 1
) -> Iterator[tuple[str, int, float]]:
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        views = np.concatenate([ten_crops(load(path) - mean) for path in batch])
        (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(views)})
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax = powers / powers.sum(axis=1, keepdims=True)
        probabilities = softmax.reshape(len(batch), 10, -1).mean(axis=1)
        for path, row in zip(batch, probabilities, strict=True):
            yield path, int(row.argmax()), float(row.max())


if __name__ == "__main__":
    model, mean_file, *files = sys.argv[1:]
    for path, label, probability in classify(
        onnxruntime.InferenceSession(model), np.load(mean_file).transpose(1, 2, 0), files
    ):
        print(path, label, f"{probability:.4f}")
