"""Ten-crop classification as a user would write it: Pillow, ten crops stacked in NumPy, OpenVINO with a cache.

    python -m benchmarks.peer_openvino models/alexnet/model.onnx models/alexnet/mean.npy cache/ photographs/*.jpg

Runs the plain network in FP32. CACHE_DIR is what OpenVINO's guide advises for a quick start: from the second process on
neither is the graph parsed nor the network compiled. Nothing is checked: not the files, nor that they belong together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import openvino

from benchmarks.peer_images import load, softmax, ten_crops


def compile_network(model: str, cache: str) -> openvino.CompiledModel:
    core = openvino.Core()
    core.set_property({"CACHE_DIR": cache})
    # Left to itself it takes bfloat16 for FP32 where the CPU has it.
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def classify(
    network: openvino.CompiledModel, mean: np.ndarray, paths: Sequence[str]
) -> Iterator[tuple[str, int, float]]:
    for path in paths:
        logits = network(np.ascontiguousarray(ten_crops(load(path) - mean)))[0]
        probabilities = softmax(logits).mean(axis=0)
        yield path, int(probabilities.argmax()), float(probabilities.max())


if __name__ == "__main__":
    model, mean_file, cache, *files = sys.argv[1:]
    for path, label, probability in classify(
        compile_network(model, cache), np.load(mean_file).transpose(1, 2, 0), files
    ):
        print(path, label, f"{probability:.4f}")
