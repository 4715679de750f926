"""An import that is compared with the file that it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from their_graphs import STEPS, TOLERANCE, Import, original_scores, probabilities, save, smooth_images, softmax

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.importing.onnx import OnnxOptions, import_onnx


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import a graph, then compare both engines with the original file, for one image and for four."""

    def run(
        model: ModelProto,
        expected_output: str = "scores",
        *,
        meaning: Callable[[np.ndarray], np.ndarray] = softmax,
        gives_probabilities: bool = False,
        warnings: list[str] | None = None,
        tolerance: float = TOLERANCE,
        **options: object,
    ) -> ModelFolder:
        path = save(model, tmp_path / "theirs.onnx")
        folder = ModelFolder(tmp_path / "models" / "theirs")
        told: list[str] = []
        import_onnx(path, folder, OnnxOptions(**{"preprocessing": STEPS, **options}), told.append)
        assert told == (told if warnings is None else warnings)
        images = smooth_images(4, seed=1)
        scores = original_scores(path, images, expected_output, folder.spec().preprocessing)
        expected = scores if gives_probabilities else meaning(scores)
        assert np.ptp(expected, axis=0).max() > 0.05, "the pictures must not all get one answer"
        for backend in ("onnxruntime", "openvino"):
            # One image has a graph of its own in OpenVINO; that of a full batch is in the cache since the import.
            for some, options in ((slice(0, 1), {}), (slice(0, 4), {"batch_size": 8, "num_threads": None})):
                actual = probabilities(folder, images[some], backend, **options)
                np.testing.assert_allclose(actual, expected[some], rtol=0, atol=tolerance)
        return folder

    return run
