"""Ten-crop classification as a user would write it: Pillow, ten crops stacked in NumPy, ONNX Runtime.

    python -m benchmarks.peer_onnxruntime models/alexnet/model.onnx models/alexnet/mean.npy photographs/*.jpg

Runs the plain network (`images` float32 [N, 3, 227, 227] -> `logits`) with ONNX Runtime's defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime

from benchmarks.peer_images import load, softmax, ten_crops


def classify(
    session: onnxruntime.InferenceSession, mean: np.ndarray, paths: Sequence[str], batch_size: int = 1
) -> Iterator[tuple[str, int, float]]:
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        views = np.concatenate([ten_crops(load(path) - mean) for path in batch])
        (logits,) = session.run(["logits"], {"images": np.ascontiguousarray(views)})
        probabilities = softmax(logits).reshape(len(batch), 10, -1).mean(axis=1)
        for path, row in zip(batch, probabilities, strict=True):
            yield path, int(row.argmax()), float(row.max())


if __name__ == "__main__":
    model, mean_file, *files = sys.argv[1:]
    for path, label, probability in classify(
        onnxruntime.InferenceSession(model), np.load(mean_file).transpose(1, 2, 0), files
    ):
        print(path, label, f"{probability:.4f}")
