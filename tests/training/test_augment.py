from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from alexdeploy.core.recipe import Augmentation, PreprocessingRecipe
from alexdeploy.core.spec import Preprocessing
from alexdeploy.images.crops import cut_views
from alexdeploy.training import augment
from alexdeploy.training.augment import centre_views, draw, in_epoch, make_normalization, random_views
from alexdeploy.training.statistics import ColorAxes, StatisticsSum, color_axes, measured_mean

CROP = 227
CPU = torch.device("cpu")
AXES = ColorAxes(vectors=np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.eye(3))[0], std=np.array([60.0, 20.0, 5.0]))
EVERYTHING = Augmentation(color_noise=0.1, vertical_mirror=True)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 256, 256, 3), np.uint8)


def reference(
    image: np.ndarray, index: int, draws: augment.Draws, preprocessing: Preprocessing, mean_image: np.ndarray | None
) -> np.ndarray:
    """One image by itself, in float64, as the words of the paper have it: [3, CROP, CROP]."""
    pixels = image.astype(np.float64)
    mean = np.array(preprocessing.mean)[:, None, None] if mean_image is None else mean_image.astype(np.float64)
    planes = (pixels + draws.shift[index].astype(np.float64)).transpose(2, 0, 1)
    if preprocessing.channels == "bgr":
        planes = planes[::-1]
    planes = (planes * preprocessing.scale - mean) / np.array(preprocessing.std)[:, None, None]
    top, left = draws.top[index], draws.left[index]
    view = planes[:, top : top + CROP, left : left + CROP]
    view = view[:, :, ::-1] if draws.mirror[index] else view
    return view[:, ::-1] if draws.flip[index] else view


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("with_mean_image", [False, True])
def test_views_equal_a_reference_that_takes_one_image_at_a_time(images, channels, with_mean_image):
    rng = np.random.default_rng(2)
    mean_image = rng.uniform(0, 2, (3, 256, 256)).astype(np.float32) if with_mean_image else None
    preprocessing = Preprocessing(channels=channels, scale=1 / 64, mean=(1.0, 2.0, 3.0), std=(0.5, 1.0, 2.0))
    draws = draw(rng, len(images), CROP, EVERYTHING, AXES)
    assert len(set(draws.top)) > 2
    assert 0 < draws.mirror.sum() < 6
    views = random_views(torch.from_numpy(images), draws, make_normalization(preprocessing, mean_image, CPU), CROP)
    assert views.dtype == torch.float32
    assert views.shape == (6, 3, CROP, CROP)
    expected = [reference(image, i, draws, preprocessing, mean_image) for i, image in enumerate(images)]
    np.testing.assert_allclose(views.numpy(), np.stack(expected), rtol=0, atol=4e-6)


def test_crop_mirror_and_mean_are_exact_where_the_arithmetic_is(images):
    """Whole numbers in float32: not a bit may differ."""
    mean_image = np.random.default_rng(3).integers(0, 256, (3, 256, 256)).astype(np.float32)
    draws = draw(np.random.default_rng(4), 6, CROP, Augmentation(color_noise=0.0), AXES)
    views = random_views(torch.from_numpy(images), draws, make_normalization(Preprocessing(), mean_image, CPU), CROP)
    expected = [reference(image, i, draws, Preprocessing(), mean_image) for i, image in enumerate(images)]
    np.testing.assert_array_equal(views.numpy(), np.stack(expected))


def test_the_gpu_way_of_cutting_gives_the_same(images):
    draws = draw(np.random.default_rng(5), 6, CROP, EVERYTHING, AXES)
    tensor = torch.from_numpy(images)
    by_index = augment._cut_by_index(draws, CROP, CPU)(tensor)
    assert torch.equal(by_index, augment._cut_one_by_one(draws, CROP)(tensor))


@pytest.mark.parametrize("rescale", [0.0, 0.2])
def test_windows_found_once_cut_the_image_and_its_mean_alike(images, rescale):
    settings = dataclasses.replace(EVERYTHING, color_noise=0.0, rescale=rescale)
    draws = draw(np.random.default_rng(5), 6, CROP, settings, AXES)
    # An image that is its own mean leaves nothing, wherever it is cut.
    mean_image = images[0].transpose(2, 0, 1).astype(np.float32)
    same = torch.from_numpy(np.stack([images[0]] * 6))
    views = random_views(same, draws, make_normalization(Preprocessing(), mean_image, CPU), CROP)
    assert not views.any()


def test_rescaling_by_nothing_is_cutting(images):
    draws = draw(np.random.default_rng(6), 6, CROP, EVERYTHING, AXES)
    tensor = torch.from_numpy(images)
    cut = augment._cut_one_by_one(draws, CROP)(tensor)
    torch.testing.assert_close(augment._cut_rescaled(draws, CROP, CPU)(tensor), cut, rtol=0, atol=0.02)


def test_rescaling_keeps_a_gradient_straight():
    """A ramp stays a ramp: the window of 200 pixels from column 10 spans its own values."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :, None], (1, 256, 256, 3))
    draws = dataclasses.replace(
        draw(np.random.default_rng(7), 1, CROP, Augmentation(mirror=False), AXES),
        side=np.array([200]),
        left=np.array([10]),
        top=np.array([0]),
    )
    row = augment._cutter(draws, CROP, CPU)(torch.from_numpy(ramp.copy()))[0, 100, :, 0].numpy()
    expected = 10 + (np.arange(CROP) + 0.5) * 200 / CROP - 0.5
    np.testing.assert_allclose(row, expected, atol=0.01)


def test_rescaled_windows_lie_inside_the_image():
    draws = draw(np.random.default_rng(8), 500, CROP, Augmentation(rescale=0.3), AXES)
    assert draws.side.min() < 180
    assert draws.side.max() == 256
    assert draws.top.min() >= 0
    assert (draws.top + draws.side).max() <= 256
    assert (draws.left + draws.side).max() <= 256


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_moves_pixels_and_blends_none(images, quarters):
    draws = draw(np.random.default_rng(13), 6, CROP, Augmentation(rotate=90, color_noise=0, mirror=False), AXES)
    plain = dataclasses.replace(draws, angle=None)
    turned = dataclasses.replace(draws, angle=np.full(6, quarters * np.pi / 2))
    normalization = make_normalization(Preprocessing(), None, CPU)
    found = random_views(torch.from_numpy(images), turned, normalization, CROP).numpy()
    expected = random_views(torch.from_numpy(images), plain, normalization, CROP).numpy()
    # Places of float32 grids are off by some 1e-5 pixels, neighbours by up to 255 levels.
    np.testing.assert_allclose(found, np.rot90(expected, quarters, axes=(2, 3)), rtol=0, atol=0.05)


def test_angles_reach_the_limit_and_nothing_beyond():
    draws = draw(np.random.default_rng(14), 2000, CROP, Augmentation(rotate=20), AXES)
    assert np.rad2deg(np.abs(draws.angle)).max() == pytest.approx(20, abs=0.1)
    assert np.abs(draws.angle.mean()) < np.deg2rad(20) * 4 / np.sqrt(3 * 2000)


def test_erased_rectangles_have_the_mean_and_the_rest_is_as_before(images):
    draws = draw(np.random.default_rng(15), 6, CROP, Augmentation(erase=1.0), AXES)
    normalization = make_normalization(Preprocessing(mean=(1.0, 2.0, 3.0)), None, CPU)
    plain = dataclasses.replace(draws, erased=None)
    found = random_views(torch.from_numpy(images), draws, normalization, CROP).numpy()
    expected = random_views(torch.from_numpy(images), plain, normalization, CROP).numpy()
    for index, (top, left, height, width) in enumerate(draws.erased):
        expected[index, :, top : top + height, left : left + width] = 0
    np.testing.assert_array_equal(found, expected)


def test_erased_rectangles_lie_inside_and_have_the_stated_areas():
    draws = draw(np.random.default_rng(16), 4000, CROP, Augmentation(erase=0.25), AXES)
    top, left, height, width = draws.erased.T
    erased = height > 0
    # Four standard deviations of a share of a quarter.
    assert abs(erased.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert (top + height)[erased].max() <= CROP
    assert (left + width)[erased].max() <= CROP
    share = (height * width)[erased] / CROP**2
    # A side is rounded to a pixel.
    assert 0.015 < share.min() < 0.03
    assert 0.3 < share.max() < 0.34
    assert draw(np.random.default_rng(16), 9, CROP, Augmentation(), AXES).erased is None


def test_jitter_equals_its_three_formulas(images):
    draws = draw(np.random.default_rng(9), 6, CROP, Augmentation(jitter=0.4, color_noise=0), AXES)
    views = random_views(torch.from_numpy(images), draws, make_normalization(Preprocessing(), None, CPU), CROP)
    luma = np.array([0.299, 0.587, 0.114])
    plain = dataclasses.replace(draws, jitter=None)
    for index, (exposure, contrast, saturation) in enumerate(draws.jitter):
        pixels = reference(images[index], index, plain, Preprocessing(), None).transpose(1, 2, 0) * exposure
        pixels = (pixels - (pixels @ luma).mean()) * contrast + (pixels @ luma).mean()
        greys = (pixels @ luma)[..., None]
        expected = ((pixels - greys) * saturation + greys).transpose(2, 0, 1)
        np.testing.assert_allclose(views[index].numpy(), expected, atol=2e-3)


def test_the_centre_view_is_the_one_that_prediction_cuts(images):
    views = centre_views(torch.from_numpy(images), make_normalization(Preprocessing(), None, CPU), CROP)
    for image, view in zip(images, views, strict=True):
        np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), cut_views(image, CROP, 1)[0])
    draws = draw(np.random.default_rng(0), 6, CROP, Augmentation(crop=False), AXES)
    assert set(draws.top) == set(draws.left) == {14}


def test_offsets_reach_both_ends_and_nothing_beyond():
    draws = draw(np.random.default_rng(10), 3000, CROP, Augmentation(), AXES)
    assert (draws.top.min(), draws.top.max()) == (0, 29)
    assert (draws.left.min(), draws.left.max()) == (0, 29)


def test_the_color_noise_has_the_stated_spread_along_each_axis():
    draws = draw(np.random.default_rng(11), 40_000, CROP, Augmentation(color_noise=0.1), AXES)
    along = draws.shift @ AXES.vectors
    np.testing.assert_allclose(along.std(axis=0), 0.1 * AXES.std, rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(along.T), np.eye(3), atol=0.02)


def test_switching_one_change_off_moves_no_other():
    on = draw(
        np.random.default_rng(12), 50, CROP, Augmentation(jitter=0.3, vertical_mirror=True, erase=1, rotate=9), AXES
    )
    off = draw(np.random.default_rng(12), 50, CROP, Augmentation(color_noise=0.0), AXES)
    np.testing.assert_array_equal(on.top, off.top)
    np.testing.assert_array_equal(on.mirror, off.mirror)


def test_color_axes_equal_the_eigenvectors_of_np_cov(images):
    skewed = (images * np.array([1.0, 0.6, 0.3])).astype(np.uint8)
    skewed[..., 1] = skewed[..., 0] // 2 + skewed[..., 1] // 3
    sums = StatisticsSum()
    for image in skewed:
        sums.add(image)
    statistics = sums.result().statistics()
    pixels = skewed.reshape(-1, 3).astype(np.float64)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-9)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.mean_image, skewed.mean(axis=0), rtol=1e-12)
    axes = color_axes(statistics.covariance)
    rebuilt = axes.vectors @ np.diag(axes.std**2) @ axes.vectors.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=1e-8)
    assert list(axes.std) == sorted(axes.std, reverse=True)


def test_the_measured_mean_is_scaled_and_in_network_order(images):
    sums = StatisticsSum()
    for image in images:
        sums.add(image)
    recipe = PreprocessingRecipe(channels="bgr", scale=0.5, mean="image")
    mean, mean_image = measured_mean(sums.result().statistics(), recipe)
    expected = images.mean(axis=0).transpose(2, 0, 1)[::-1] / 2
    np.testing.assert_allclose(mean_image, expected, rtol=1e-6)
    assert mean == pytest.approx(expected.mean(axis=(1, 2)))
    assert measured_mean(sums.result().statistics(), PreprocessingRecipe(mean=(1.0, 2.0, 3.0))) == (
        (1.0, 2.0, 3.0),
        None,
    )
    assert measured_mean(sums.result().statistics(), PreprocessingRecipe(mean="channel"))[1] is None


def test_colour_noise_ends_after_its_last_epoch_and_nothing_else_changes():
    settings = dataclasses.replace(EVERYTHING, color_noise_epochs=2)
    noisy, plain = (draw(np.random.default_rng(3), 6, CROP, in_epoch(settings, epoch), AXES) for epoch in (2, 3))
    assert noisy.shift.any()
    assert not plain.shift.any()
    for name in ("top", "left", "side", "mirror", "flip"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(plain, name))
