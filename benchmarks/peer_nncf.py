"""The INT8 network as NNCF's post-training quantization makes it of `model.onnx`, for OpenVINO.

    python -m benchmarks.peer_nncf models/alexnet/model.onnx images.npy performance int8.xml

`images.npy` is float32 [N, 3, 227, 227], preprocessed. All of them are used, one at a time, as in NNCF's documentation;
the preset is "performance", NNCF's default, or "mixed"; everything else is as it is by default.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import openvino


def quantize(model: str, images: np.ndarray, preset: str) -> openvino.Model:
    graph = openvino.Core().read_model(model)
    data = nncf.Dataset([image[None] for image in images])
    return nncf.quantize(graph, data, preset=nncf.QuantizationPreset(preset), subset_size=len(images))


if __name__ == "__main__":
    model_file, images_file, preset, output = sys.argv[1:]
    # Weights that stay float32, such as biases, would else be written as float16.
    openvino.save_model(quantize(model_file, np.load(images_file), preset), output, compress_to_fp16=False)
