from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_helpers import tiny_recipe

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import LabelledImages
from alexdeploy.images.preprocess import network_input
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights
from alexdeploy.training.trainer import RunOptions, train


@pytest.mark.parametrize("mean", ["image", "channel"])
def test_both_errors_are_those_of_float64_on_the_same_images(
    tmp_path: Path, tiny_data: LabelledImages, mean: str
) -> None:
    # So few steps that the network is still wrong about some of them.
    recipe = tiny_recipe("training.epochs=1", "training.learning_rate=0.0003", f"preprocessing.mean={mean}")
    folder = ModelFolder(tmp_path / "model")
    spec = train(tiny_data, recipe, folder, RunOptions(device="cpu", threads=1), lambda event: None)
    assert spec.architecture is not None
    plan = plan_layers(spec.architecture, spec.num_classes)
    weights = load_weights(folder.weights_path, plan)
    for num_views, key in ((1, "val_top1_error"), (10, "val_top1_error_10_views")):
        wrong = 0
        for path, label, _ in tiny_data.val:
            image = decode(Path(path).read_bytes())
            views = network_input(image, spec.preprocessing, num_views, folder.mean_image(spec))
            *_, (_, logits) = reference.forward(plan, weights, views)
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            softmax = powers / powers.sum(axis=1, keepdims=True)
            wrong += int(softmax.mean(axis=0).argmax() != label)
        assert spec.provenance[key] == pytest.approx(wrong / len(tiny_data.val))
