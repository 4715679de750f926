"""Classification as a user would write it: Pillow, views cut in NumPy, ONNX Runtime.

    python -m benchmarks.peer_onnxruntime models/alexnet/model.onnx models/alexnet/mean.npy 1 photographs/*.jpg

Runs the plain network (`images` float32 [N, 3, 227, 227] -> `logits`) with ONNX Runtime's defaults, ten views. The
word before the files is the deviation by which pixels are divided, or three of them with commas between.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import onnxruntime

from benchmarks.peer_images import Preprocessing, answers, preprocessing


def classify(
    session: onnxruntime.InferenceSession, steps: Preprocessing, paths: Sequence[str], batch_size: int = 1
) -> Iterator[tuple[int, float]]:
    """For each file, in order, the best class and its probability."""
    for start in range(0, len(paths), batch_size):
        (logits,) = session.run(["logits"], {"images": steps.batch(paths[start : start + batch_size])})
        yield from answers(logits, steps.num_views)


if __name__ == "__main__":
    model, mean_file, std, *files = sys.argv[1:]
    found = classify(onnxruntime.InferenceSession(model), preprocessing(mean_file, std), files)
    for path, (label, probability) in zip(files, found, strict=True):
        print(path, label, f"{probability:.4f}")
