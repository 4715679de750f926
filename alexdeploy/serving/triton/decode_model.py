"""The model `<name>_decode` in Triton's Python backend: image files in, pixels out.

A repository has this file as `model.py`, with the modules of alexdeploy that it imports copied beside it.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

HERE = Path(__file__).parent


class TritonPythonModel:
    """`files` BYTES [N] -> `images` uint8 [N, 256, 256, 3]. Only the request with a broken file fails."""

    def initialize(self, args: dict[str, str]) -> None:
        # Files that appear here would look like a new version of the model to Triton.
        sys.dont_write_bytecode = True
        # Before a package of this name that is installed, which may be of another version.
        sys.path.insert(0, str(HERE))
        from alexdeploy.core.processors import available_processors
        from alexdeploy.images.decode import decode

        record = json.loads((HERE / "alexdeploy.json").read_text(encoding="utf-8"))
        if record["pillow"] != PIL.__version__:
            pb_utils.Logger.log_warn(
                f"{args['model_name']}: Pillow is {PIL.__version__}, the model was written with {record['pillow']}: "
                "pixels may differ in their last bits"
            )
        self._decode, self._resize = decode, record["resize"]
        self._pool = ThreadPoolExecutor(available_processors(), thread_name_prefix="alexdeploy-decode")

    def execute(self, requests: list[Any]) -> list[Any]:
        # The files of all requests are decoded side by side.
        waiting = [
            [self._pool.submit(self._decode, file, self._resize) for file in _files(request)] for request in requests
        ]
        return [self._response(each) for each in waiting]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _response(self, waiting: list[Future[NDArray[np.uint8]]]) -> Any:
        from alexdeploy.core.errors import ImageError

        images = []
        for index, each in enumerate(waiting):
            try:
                images.append(each.result())
            except ImageError as exc:
                message = f"image {index} of the request: {exc.message}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", np.stack(images))])


def _files(request: Any) -> list[bytes]:
    files: list[bytes] = pb_utils.get_input_tensor_by_name(request, "files").as_numpy().reshape(-1).tolist()
    return files
