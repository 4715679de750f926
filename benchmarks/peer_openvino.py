"""Ten-crop classification as a user would write it: Pillow, views cut in NumPy, OpenVINO with a cache.

    python -m benchmarks.peer_openvino models/alexnet/model.onnx models/alexnet/mean.npy 1 cache/ photographs/*.jpg

Runs the plain network in FP32. CACHE_DIR is what OpenVINO's guide advises for a quick start: from the second process on
neither is the graph parsed nor the network compiled. Nothing is checked: not the files, nor that they belong together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import openvino

from benchmarks.peer_images import Preprocessing, answers, preprocessing


def compile_network(model: str, cache: str) -> openvino.CompiledModel:
    core = openvino.Core()
    core.set_property({"CACHE_DIR": cache})
    # Left to itself it takes bfloat16 for FP32 where the CPU has it.
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def classify(
    network: openvino.CompiledModel, steps: Preprocessing, paths: Sequence[str]
) -> Iterator[tuple[int, float]]:
    """For each file, in order, the best class and its probability."""
    for path in paths:
        yield from answers(network(steps(path))[0], steps.num_views)


if __name__ == "__main__":
    model, mean_file, std, cache, *files = sys.argv[1:]
    found = classify(compile_network(model, cache), preprocessing(mean_file, std), files)
    for path, (label, probability) in zip(files, found, strict=True):
        print(path, label, f"{probability:.4f}")
