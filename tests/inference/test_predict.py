"""`alexdeploy.predict`: rows in one call, as a Predictor gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy import ModelFolder, PredictOptions, Predictor, UsageError, predict


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def test_rows_are_those_of_a_predictor(tiny_model: ModelFolder, pictures: Path) -> None:
    with Predictor(tiny_model, num_views=10, backend="onnxruntime") as predictor:
        expected = list(predictor.predict([pictures]))
    options = PredictOptions(num_views=10, backend="onnxruntime")
    assert len(expected) > 1
    assert list(predict([pictures], tiny_model, options)) == expected
    assert list(predict(pictures, tiny_model.path, options)) == expected
    rows = predict(str(pictures), str(tiny_model.path), options)
    assert next(rows) == expected[0]


def test_a_model_that_is_not_there_is_an_error_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        predict(["a.jpg"], tmp_path / "nowhere")
