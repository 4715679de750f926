"""Views: which pixels, in which order, mirrored after the cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.images.crops import View, cut_views, view_boxes


def numbered(height: int, width: int) -> np.ndarray:
    """An image in which no two pixels are alike, int32 [height, width, 3]."""
    return np.arange(height * width * 3, dtype=np.int32).reshape(height, width, 3)


def test_ten_crop_is_the_slices_written_by_hand():
    image = numbered(256, 256)
    five = [
        image[0:227, 0:227],
        image[0:227, 29:256],
        image[29:256, 0:227],
        image[29:256, 29:256],
        image[14:241, 14:241],
    ]
    expected = np.stack(five + [np.fliplr(view) for view in five])
    assert np.array_equal(cut_views(image, 227, 10), expected)


def test_the_mirrored_centre_is_cut_before_it_is_mirrored():
    image = numbered(256, 256)
    mirrored_first = image[:, ::-1][14:241, 14:241]
    assert not np.array_equal(cut_views(image, 227, 10)[9], mirrored_first)


def test_one_view_is_the_centre():
    assert view_boxes(1, 227) == (View(14, 14, False),)


def test_five_views_are_the_first_five_of_ten():
    assert view_boxes(5, 227) == view_boxes(10, 227)[:5]
    assert not any(view.mirror for view in view_boxes(5, 227))


def test_a_view_as_large_as_the_image_starts_at_zero():
    assert {(view.top, view.left) for view in view_boxes(10, 256)} == {(0, 0)}


@pytest.mark.parametrize("num_views", [-1, 0, 2, 9, 11])
def test_another_number_of_views_is_refused(num_views):
    with pytest.raises(UsageError, match="expected 1, 5 or 10"):
        view_boxes(num_views, 227)


def test_an_image_with_one_short_side_is_refused():
    with pytest.raises(ImageError, match="226x300, too small for views of 227x227"):
        cut_views(numbered(300, 226), 227, 10)


def test_a_view_of_no_pixels_is_refused():
    with pytest.raises(UsageError, match="expected at least 1"):
        view_boxes(1, 0)


def test_a_flat_array_is_refused():
    with pytest.raises(UsageError, match=r"\[H, W, C\]"):
        cut_views(np.zeros((256, 256)), 227, 1)


def test_views_do_not_share_memory_with_the_image():
    image = numbered(8, 8)
    views = cut_views(image, 8, 10)
    views[:] = 0
    assert image.any()


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    num_views=st.sampled_from([1, 5, 10]),
    dtype=st.sampled_from([np.uint8, np.float32, np.int64]),
    data=st.data(),
)
def test_every_view_is_the_slice_its_box_names(height, width, channels, num_views, dtype, data):
    size = data.draw(st.integers(1, min(height, width)))
    image = np.random.default_rng(0).integers(0, 200, (height, width, channels)).astype(dtype)
    views = cut_views(image, size, num_views)
    assert views.shape == (num_views, size, size, channels)
    assert views.dtype == dtype
    if height == width:
        for view, (top, left, mirror) in zip(views, view_boxes(num_views, size, height), strict=True):
            cut = image[top : top + size, left : left + size]
            assert np.array_equal(view, np.fliplr(cut) if mirror else cut)


@given(height=st.integers(1, 30), width=st.integers(1, 30), data=st.data())
def test_the_last_five_views_mirror_the_first_five(height, width, data):
    size = data.draw(st.integers(1, min(height, width)))
    views = cut_views(numbered(height, width), size, 10)
    assert np.array_equal(views[5:], views[:5, :, ::-1])
