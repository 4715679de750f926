"""The second decoder against the one: counted images, pixels and answers, and `verify --decoders`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from gpu_here import why_no_nvimgcodec
from helpers import smooth_images
from numpy.typing import NDArray
from PIL import Image

from alexdeploy.core.errors import ParityError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.decoders import compare_decoders
from alexdeploy.evaluation.verify import VerifyOptions, verify

Images = Sequence[NDArray[np.uint8]]

WHITE, GREY = np.full((256, 256, 3), 255, np.uint8), np.full((256, 256, 3), 100, np.uint8)


def _by_brightness(images: Images) -> NDArray[np.float64]:
    """Probabilities of "bright" and "dark"."""
    bright = np.array([image.mean() / 255 for image in images])
    return np.stack([bright, 1 - bright], axis=1)


def test_images_pixels_and_answers_are_counted() -> None:
    photographs = [WHITE, GREY, GREY, WHITE]
    darker = WHITE.copy()
    darker[0, 0] = (250, 255, 255)
    brighter = np.full_like(GREY, 140)
    asked: list[int] = []

    def answer(images: Images) -> NDArray[np.float64]:
        asked.append(len(images))
        return _by_brightness(images)

    answers = _by_brightness(photographs)
    found = compare_decoders("another", photographs, [darker, GREY.copy(), brighter, None], answers, answer)
    assert (found.num_images, found.num_left, found.num_identical) == (3, 1, 1)
    assert found.max_difference == 40
    assert found.mean_difference == pytest.approx((5 / WHITE.size + 40) / 3)
    assert asked == [2], "only what differs is computed again"
    assert (found.agreement.num_rows, found.agreement.num_flips) == (3, 1)
    # 140 of 255 against 100 of 255.
    assert found.agreement.max_error == pytest.approx(40 / 255)
    assert found.failure is None, "one image is always allowed"
    np.testing.assert_array_equal(answers, _by_brightness(photographs))


def test_the_decoders_are_one_of_the_comparisons(tiny_model: ModelFolder) -> None:
    options = VerifyOptions(precisions=("fp32",), backends=("onnxruntime",), devices="cpu", num_images=1)
    found = verify(tiny_model, None, options)
    assert (len(found.reports), found.num_comparisons) == (2, 2)
    decoders = compare_decoders("another", [GREY], [WHITE], _by_brightness([GREY]), _by_brightness)
    assert dataclasses.replace(found, decoders=decoders).num_comparisons == 3


def test_more_than_a_fifth_of_a_percent_of_other_answers_is_a_failure() -> None:
    photographs = [GREY] * 1000
    answers = _by_brightness(photographs)
    for num_flips, fails in ((2, False), (3, True)):
        others = [WHITE] * num_flips + [GREY] * (1000 - num_flips)
        found = compare_decoders("another", photographs, others, answers, _by_brightness)
        assert (found.failure is not None) == fails
    assert "3 of 1000 answers differ (0.30 %)" in str(found.failure)


def test_a_decoder_that_takes_no_image_compares_nothing() -> None:
    with pytest.raises(UsageError, match="another takes none of the 2 images"):
        compare_decoders("another", [GREY] * 2, [None] * 2, _by_brightness([GREY] * 2), _by_brightness)


@pytest.mark.skipif(why_no_nvimgcodec() is not None, reason=str(why_no_nvimgcodec()))
def test_verify_compares_the_decoders_on_the_images_it_is_given(
    tiny_model: ModelFolder, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(smooth_images(4)):
        Image.fromarray(image).save(folder / f"{number}.{'png' if number == 3 else 'jpg'}")
    options = VerifyOptions(decoders=True, precisions=("fp32",), backends=("onnxruntime",), devices="cpu")
    found = verify(tiny_model, [str(folder)], options)
    assert found.decoders is not None
    assert (found.decoders.num_images, found.decoders.num_left, found.decoders.num_identical) == (3, 1, 3)
    assert (found.decoders.agreement.num_flips, found.decoders.agreement.max_error) == (0, 0)
    found.check()

    # A decoder that gives another picture: its answers are others, and `check` says so.
    monkeypatch.setattr("alexdeploy.images.nvimgcodec.NvImageCodec.decode", lambda self, data, resize: WHITE)
    monkeypatch.setattr("alexdeploy.evaluation.decoders.MAX_DECODER_FLIPS", 0)
    monkeypatch.setattr(
        "alexdeploy.evaluation.decoders.failure", lambda agreement, limit: f"{agreement.num_flips} differ"
    )
    broken = verify(tiny_model, [str(folder)], options)
    with pytest.raises(ParityError, match=r"nvImageCodec .* on cpu: [0-9] differ"):
        broken.check()
