"""Explanations find the cue of a network that looks at one colour, in every backend, and say what they measured."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import change_weights, make_model
from PIL import Image

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Member, ModelSpec, Preprocessing
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, open_engine
from alexdeploy.explaining import files
from alexdeploy.explaining.explain import Explainer, ExplainOptions, Explanation, explain
from alexdeploy.explaining.files import check_folder
from alexdeploy.explaining.occlusion import mean_colour, occlusion, places
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import Source
from alexdeploy.placement.options import PredictOptions

SIDE = 32
_WEIGHT = 6 / (16 * 255)
"""Sixteen pooled units that see nothing but red give a logit of 6."""
_CONVS = "architecture.convs=[{channels=8, kernel=11, stride=4, pool=true}]"


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A network whose first map is redness, averaged over 11 x 11, and whose class-1 is the sum of it; grey is zero."""
    overrides = ("architecture.hidden=[]", "architecture.towers=1", _CONVS, "preprocessing.mean=[128, 128, 128]")
    folder = make_model(tmp_path_factory.mktemp("red") / "models" / "red", "alexnet", overrides, num_classes=2)

    def first_map(weight: np.ndarray) -> np.ndarray:
        weight = np.zeros_like(weight)
        weight[0] = np.array([1, -0.5, -0.5]).reshape(3, 1, 1) / 121
        return weight

    def sums(weight: np.ndarray) -> np.ndarray:
        weight = np.zeros_like(weight)
        weight[1, : 27 * 27] = _WEIGHT
        return weight

    change_weights(
        folder,
        conv1__weight=first_map,
        conv1__bias=np.zeros_like,
        fc2__weight=sums,
        fc2__bias=lambda bias: np.array([3, 0], np.float32),
    )
    export_model(folder, ExportOptions())
    return folder


def planted(left: int, top: int, seed: int = 0) -> np.ndarray:
    """Grey noise with a red square."""
    image = np.random.default_rng(seed).integers(60, 200, (256, 256, 1), dtype=np.uint8).repeat(3, axis=2)
    image[top : top + SIDE, left : left + SIDE] = (255, 0, 0)
    return image


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def explained(folder: ModelFolder, images: list[np.ndarray], backend: str, **options: object) -> list[Explanation]:
    run = PredictOptions(backend=backend, num_threads=1, num_views=options.pop("num_views", 1))
    with Explainer(folder, ExplainOptions(predict=run, **options)) as explainer:
        return list(explainer.explain([Source(name=f"{n}.png", data=png(image)) for n, image in enumerate(images)]))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_largest_evidence_is_on_the_cue(red: ModelFolder, backend: str) -> None:
    corners = [(20, 20), (200, 24), (31, 190), (120, 97), (190, 190)]
    images = [planted(left, top, seed) for seed, (left, top) in enumerate(corners)]
    found = explained(red, images, backend, method="both", size=48, stride=16)
    for explanation, (left, top) in zip(found, corners, strict=True):
        assert (explanation.label, explanation.answer) == ("class-1", "class-1")
        for heatmap in explanation.heatmaps:
            x, y = heatmap.peak
            assert left <= x < left + SIDE, heatmap.method
            assert top <= y < top + SIDE, heatmap.method
            box = heatmap.box
            assert min(box.right, left + SIDE) > max(box.left, left)
            assert min(box.bottom, top + SIDE) > max(box.top, top)
        covered, by_gradient = explanation.heatmaps
        # Without any red the logits are 3 and 0.
        assert covered.covered_probability is not None
        assert covered.covered_probability < explanation.probability
        assert by_gradient.covered_probability is None


def test_a_covered_cue_leaves_the_probability_of_a_picture_without_it(red: ModelFolder) -> None:
    # 0, 104 and 208: the middle square covers the cue whole.
    [found] = explained(red, [planted(112, 112)], "onnxruntime", size=48, stride=104)
    [heatmap] = found.heatmaps
    assert heatmap.box == (104, 104, 152, 152)
    # The noise is grey, so the first map is zero but for rounding.
    assert heatmap.covered_probability == pytest.approx(1 / (1 + np.exp(3)), abs=1e-4)
    odds = np.log(found.probability / (1 - found.probability))
    assert heatmap.largest_drop == pytest.approx(odds + 3, abs=1e-3)
    assert heatmap.values[128, 128] == pytest.approx(odds + 3, abs=1e-3)
    # No square reaches between 48 and 104.
    assert not heatmap.values[60:100, 60:100].any()


def test_a_pixel_has_the_weighted_mean_of_the_squares_that_cover_it(red: ModelFolder) -> None:
    fill = np.full((256, 256, 3), 128, np.uint8)
    image = planted(70, 90)
    with Explainer(red, ExplainOptions(predict=PredictOptions(backend="onnxruntime", batch_size=4))) as explainer:
        engine = explainer._engine
        found = occlusion(engine, image, 1, fill, 128, 64)

        def odds(pixels: np.ndarray) -> float:
            probabilities = engine.run(pixels[None]).probabilities[0].astype(float)
            return float(np.log(probabilities[1] / probabilities[0]))

        squares = [(left, top) for top in (0, 64, 128) for left in (0, 64, 128)]
        drops = {}
        for left, top in squares:
            covered = image.copy()
            covered[top : top + 128, left : left + 128] = 128
            drops[left, top] = odds(image) - odds(covered)
    for x, y in [(0, 0), (100, 100), (255, 0), (63, 64), (130, 200)]:
        # A pixel's distance from the nearest side, outside of the square, in both directions.
        weights = {
            (left, top): max(min(x - left + 1, left + 128 - x), 0) * max(min(y - top + 1, top + 128 - y), 0)
            for left, top in squares
        }
        expected = sum(weights[at] * drops[at] for at in squares) / sum(weights.values())
        assert found.values[y, x] == pytest.approx(expected, abs=1e-4)


def test_grad_cam_is_the_map_weighted_by_its_mean_gradient(red: ModelFolder) -> None:
    [found] = explained(red, [planted(100, 140)], "onnxruntime", method="grad-cam")
    [heatmap] = found.heatmaps
    # Each of 27 x 27 pooled units passes its weight to one of 55 x 55; a unit that sees only red is 255.
    assert heatmap.values.max() == pytest.approx(255 * _WEIGHT * 27 * 27 / (55 * 55), rel=1e-4)
    y, x = np.nonzero(heatmap.values > heatmap.values.max() / 2)
    # Where a unit looks lies on a grid of 4 pixels.
    assert abs(x.mean() - 115.5) <= 2
    assert abs(y.mean() - 155.5) <= 2


def test_ten_views_see_what_the_centre_does_not(red: ModelFolder) -> None:
    image = planted(0, 0)
    [one] = explained(red, [image], "onnxruntime", label="1", size=64, stride=64)
    [ten] = explained(red, [image], "onnxruntime", label="1", size=64, stride=64, num_views=10, method="both")
    assert ten.heatmaps[0].largest_drop > one.heatmaps[0].largest_drop > 0
    for heatmap in ten.heatmaps:
        assert max(heatmap.peak) < 64


def test_squares_reach_the_borders() -> None:
    boxes = places(100, 70)
    assert sorted({box.left for box in boxes}) == [0, 70, 140, 156]
    assert {(box.right - box.left, box.bottom - box.top) for box in boxes} == {(100, 100)}
    assert places(256, 256) == ((0, 0, 256, 256),)


@pytest.mark.parametrize(
    "steps",
    [
        Preprocessing(mean=(123.7, 116.3, 103.5), channels="bgr"),
        Preprocessing(mean=(0.485, 0.456, 0.406), scale=1 / 255, std=(0.229, 0.224, 0.225)),
        Preprocessing(mean_image="hash"),
    ],
    ids=["bgr", "scaled", "image"],
)
def test_the_mean_colour_is_zero_to_the_network(steps: Preprocessing) -> None:
    rng = np.random.default_rng(0)
    mean_image = rng.uniform(90, 130, (3, 256, 256)).astype(np.float32) if steps.mean_image else None
    spec = ModelSpec(name="m", classes=("a", "b"), preprocessing=steps)
    seen = network_input(mean_colour(spec, mean_image), steps, 1, mean_image)
    # A pixel is a whole number: half a level at most, after scaling.
    assert np.abs(seen).max() <= 0.5001 * steps.scale / min(steps.std)


def test_the_mean_colour_of_an_ensemble_is_the_average_of_its_members() -> None:
    steps = (
        Preprocessing(mean=(10, 20, 30), channels="bgr"),
        Preprocessing(mean_image="first"),
        Preprocessing(mean=(0.5, 0.25, 0.75), scale=1 / 200),
        Preprocessing(mean_image="second"),
    )
    members = tuple(Member(name="m", preprocessing=each, architecture=None) for each in steps)
    spec = ModelSpec(name="e", classes=("a", "b"), preprocessing=Preprocessing(mean_image="all"), members=members)
    images = np.stack([np.full((3, 256, 256), 40, np.float32), np.full((3, 256, 256), 80, np.float32)])
    found = mean_colour(spec, images)
    assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
    # Red: 30, 40, 100, 80. Green: 20, 40, 50, 80. Blue: 10, 40, 150, 80.
    np.testing.assert_array_equal(found.reshape(-1, 3), np.tile(np.rint([62.5, 47.5, 70]), (65536, 1)))


def test_a_class_has_a_name_or_an_index(red: ModelFolder) -> None:
    image = planted(100, 100)
    for label in ("class-0", "0"):
        [found] = explained(red, [image], "onnxruntime", label=label, size=128, stride=128)
        assert (found.label, found.answer) == ("class-0", "class-1")
        assert found.probability == pytest.approx(1 - found.answer_probability, abs=1e-6)
    with pytest.raises(UsageError, match='label="clas-0": the model has no such class\nDid you mean class-0'):
        Explainer(red, ExplainOptions(label="clas-0"))
    with pytest.raises(UsageError, match="no such class"):
        Explainer(red, ExplainOptions(label="2"))


def test_an_imported_graph_has_no_gradients(red: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for name in ("spec.json", "model.onnx"):
        os.link(red.path / name, tmp_path / "bare" / name)
    with pytest.raises(Exception, match="has no PyTorch weights") as caught:
        Explainer(tmp_path / "bare", ExplainOptions(method="grad-cam"))
    assert caught.value.hint == "Use --method occlusion."


def test_python_explains_with_a_path(red: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(png(planted(90, 90)))
    options = ExplainOptions(predict=PredictOptions(backend="onnxruntime"), size=128, stride=128)
    [found] = explain(path, red.path, options)
    assert (found.source, found.error) == (str(path), None)
    assert np.array_equal(found.image, planted(90, 90))


class _Refusing:
    """An engine whose first answer is one, and whose others are errors, raised or of a row."""

    def __init__(self, info: EngineInfo, later: Predictions | Exception) -> None:
        self.info, self._later, self._num_calls = info, later, 0

    def run(self, images: np.ndarray, *, low_latency: bool = False) -> Predictions:
        self._num_calls += 1
        if self._num_calls == 1:
            return Predictions(np.array([[0.75, 0.25]], np.float32), np.zeros((1, 1), np.int32))
        if isinstance(self._later, Exception):
            raise self._later
        return self._later


@pytest.mark.parametrize("is_raised", [False, True])
def test_a_square_without_an_answer_is_an_error(red: ModelFolder, is_raised: bool) -> None:
    with open_engine(red, "onnxruntime", EngineOptions(batch_size=2)) as engine:
        info = engine.info
    none = Predictions(np.zeros((2, 2), np.float32), np.zeros((2, 1), np.int32), {0: "all replicas failed"})
    later = DeviceError("no answer: all replicas failed") if is_raised else none
    image = planted(10, 10)
    with pytest.raises(DeviceError, match="no answer: all replicas failed"):
        occlusion(_Refusing(info, later), image, 0, np.zeros_like(image), 128, 128)


def test_a_file_is_no_folder_for_explanations(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="out is a file; expected a folder"):
        check_folder(tmp_path / "out", overwrite=True)


def test_a_page_has_the_first_images_and_errors_and_says_how_many_others_there_are(
    red: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_IMAGES", 2)
    monkeypatch.setattr(files, "_MAX_ERRORS", 1)
    options = ExplainOptions(predict=PredictOptions(backend="onnxruntime"), label="class-0", size=128, stride=128)
    with Explainer(red, options) as explainer:
        [found] = explainer.explain([Source(name="red.png", data=png(planted(100, 100)))])
        info = explainer.info
    page = files.Page()
    for index in range(4):
        page.add(dataclasses.replace(found, index=index))
    for index in range(4, 9):
        page.add(Explanation(index=index, source=f"{index}.png", error="damaged"))
    page.write(tmp_path / "page.html", "red", info, options)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<figcaption>") == 2
    assert "The first 2 images; 2 others are left out." in text
    assert text.count("damaged") == 1
    assert "And 4 others." in text
    assert f"class-0: {found.probability:.3f}; answered class-1: {found.answer_probability:.3f}" in text
    assert "Occlusion: a square of 128 pixels" in text
    assert "Grad-CAM" not in text


def test_newer_weights_are_told(red: ModelFolder, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "red")
    shutil.copytree(red.path, folder.path)
    folder.candidate.path.mkdir(parents=True)
    folder.candidate.write_spec(folder.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    told: list[str] = []
    explain(tmp_path / "none.png", folder, ExplainOptions(), on_warning=told.append).close()
    assert "has newer weights (000000000000, epoch 7)" in told[0]
