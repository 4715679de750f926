"""The model `<name>_graph` in Triton's Python backend: the deployment graph in ONNX Runtime, on the CPU.

A repository has this file as `model.py`, with the modules of alexdeploy that it imports copied beside it. It is for
installations of Triton without the backend for ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
OUTPUTS = ("probabilities", "view_classes")


class TritonPythonModel:
    """`images` uint8 [N, 256, 256, 3] -> `probabilities` float32 [N, C], `view_classes` int32 [N, V]."""

    def initialize(self, args: dict[str, str]) -> None:
        # Files that appear here would look like a new version of the model to Triton.
        sys.dont_write_bytecode = True
        # Before a package of this name that is installed, which may be of another version.
        sys.path.insert(0, str(HERE))
        from alexdeploy.core.processors import available_processors
        from alexdeploy.graphs.onnxruntime_library import new_session

        num_instances = sum(group["count"] for group in json.loads(args["model_config"])["instance_group"])

        def set_options(options: Any) -> None:
            options.intra_op_num_threads = max(1, available_processors() // num_instances)
            # Spinning threads would take cores from the decoder.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        self._session = new_session((HERE / "model.onnx").read_bytes(), ["CPUExecutionProvider"], set_options)

    def execute(self, requests: list[Any]) -> list[Any]:
        # Triton gives the requests of a batch as they came; they are computed together.
        batches = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        found = self._session.run(OUTPUTS, {"images": np.concatenate(batches)})
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        parts = zip(*(np.split(output, ends) for output in found), strict=True)
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, part) for name, part in zip(OUTPUTS, each, strict=True)]
            )
            for each in parts
        ]
