from __future__ import annotations

import io

import numpy as np
from PIL import Image

from alexdeploy.reports.tiles import animated_png, kernel_pixels, map_pixels, png, scale_of, tile


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_the_pixels_of_a_kernel_are_its_weights() -> None:
    kernels = np.zeros((2, 3, 2, 2), np.float32)
    # From -1 to 1: white is 1, black -1, and 0 in the middle of the two.
    kernels[0, :, 0, 0] = (1, -1, 0)
    kernels[0, :, 1, 1] = (0.5, 0.5, 0.5)
    # From 0 to 3e-4: the scale is each kernel's own.
    kernels[1, 2, 1, 0] = 3e-4
    kernels[1, 0, 0, 1] = 1e-4
    found = kernel_pixels(kernels)
    assert found.tolist() == [
        [[[255, 0, 128], [128, 128, 128]], [[128, 128, 128], [191, 191, 191]]],
        [[[0, 0, 0], [85, 0, 0]], [[0, 0, 255], [0, 0, 0]]],
    ]
    assert kernel_pixels(np.full((1, 3, 2, 2), 7, np.float32)).min() == 128


def test_any_weight_is_within_half_a_level_of_its_pixel() -> None:
    kernels = np.random.default_rng(0).normal(0, 0.01, (96, 3, 11, 11)).astype(np.float32)
    levels = kernel_pixels(kernels).transpose(0, 3, 1, 2).reshape(96, -1) / 255
    weights = kernels.astype(np.float64).reshape(96, -1)
    least, most = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    assert np.abs(least + levels * (most - least) - weights).max() <= 0.5 / 255 * (most - least).max()


def test_kernels_are_in_three_rows_of_sixteen_for_each_of_two_towers_as_in_the_paper() -> None:
    pictures = np.arange(96, dtype=np.uint8)[:, None, None, None].repeat(11, 1).repeat(11, 2).repeat(3, 3)
    drawn = opened(png(tile(pictures, towers=2, scale=scale_of(11))))
    # 16 tiles of 44 pixels with 2 between them; two blocks of 3 rows with 10 between them.
    assert drawn.shape == (2 * (3 * 46 - 2) + 10, 16 * 46 - 2, 3)
    seen = np.zeros(drawn.shape[:2], bool)
    for index in range(96):
        tower, place = divmod(index, 48)
        top, left = tower * (3 * 46 - 2 + 10) + place // 16 * 46, place % 16 * 46
        assert (drawn[top : top + 44, left : left + 44] == index).all()
        seen[top : top + 44, left : left + 44] = True
    assert (drawn[~seen] == 255).all()


def test_fewer_tiles_than_a_row_and_rows_that_are_not_full() -> None:
    assert tile(np.zeros((5, 2, 2), np.uint8)).shape == (2, 5 * 4 - 2)
    drawn = tile(np.zeros((17, 2, 2), np.uint8))
    assert drawn.shape == (2 * 4 - 2, 16 * 4 - 2)
    assert (drawn[4:, 2:] == 255).all()
    assert [scale_of(side) for side in (3, 11, 27, 55, 200)] == [15, 4, 2, 1, 1]


def test_maps_have_one_scale_with_zero_black_or_grey() -> None:
    assert map_pixels(np.array([[[0.0, 1.0]], [[4.0, 0.25]]])).tolist() == [[[0, 128]], [[255, 64]]]
    assert map_pixels(np.array([[[0.0, -1.0]], [[4.0, -4.0]]])).tolist() == [[[128, 64]], [[255, 1]]]
    assert map_pixels(np.zeros((2, 2, 2))).max() == 0


def test_an_animation_has_each_frame_with_its_caption_below() -> None:
    frames = [(f"epoch {value}", np.full((4, 80, 3), value, np.uint8)) for value in (10, 20, 30)]
    with Image.open(io.BytesIO(animated_png(frames, frame_ms=100, last_ms=900))) as image:
        assert (image.n_frames, image.info["loop"]) == (3, 0)
        durations = []
        for index, (_, pixels) in enumerate(frames):
            image.seek(index)
            shown = np.asarray(image.convert("RGB"))
            assert (shown[:4] == pixels).all()
            assert shown[4:].min() < 128 <= shown[4:].max() == 255
            durations.append(image.info["duration"])
    assert durations == [100, 100, 900]
