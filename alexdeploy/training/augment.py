"""From decoded photographs to network input: the random views of training and the one view of validation.

Drawing and applying are separate: `draw` is a pure function of a NumPy generator, and `random_views` applies its draws
to a batch on the device of the images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexdeploy.core.recipe import Augmentation
from alexdeploy.core.spec import IMAGE_SIZE, Preprocessing
from alexdeploy.images.crops import View, view_boxes
from alexdeploy.training.statistics import ColorAxes

# ITU-R BT.601, as in Pillow's "L".
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)

_Cut = Callable[[Tensor], Tensor]
"""Cuts and mirrors images [N, 256, 256, 3] of any dtype: float32 [N, crop, crop, 3], contiguous."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random augmentation parameters of N images. Arrays are [N] unless noted.

    The view is the window of `side` pixels whose first row and column are `top` and `left`; `mirror` and `flip` turn it
    left-right and upside down. `shift`, [N, 3], is added to the RGB of every pixel, in levels. `jitter`, [N, 3], has
    the factors of exposure, contrast and saturation; None if all are 1. `angle` turns the window about its centre, in
    radians; None if none is turned. `erased`, [N, 4], has first row, first column, rows and columns of a rectangle of
    the view that is set to the mean; None if there is none.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    side: NDArray[np.int64]
    mirror: NDArray[np.bool_]
    flip: NDArray[np.bool_]
    shift: NDArray[np.float32]
    jitter: NDArray[np.float32] | None = None
    angle: NDArray[np.float64] | None = None
    erased: NDArray[np.int64] | None = None

    def part(self, rows: slice) -> Draws:
        """The draws of some of the images."""
        return Draws(
            top=self.top[rows],
            left=self.left[rows],
            side=self.side[rows],
            mirror=self.mirror[rows],
            flip=self.flip[rows],
            shift=self.shift[rows],
            jitter=None if self.jitter is None else self.jitter[rows],
            angle=None if self.angle is None else self.angle[rows],
            erased=None if self.erased is None else self.erased[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """A model's Preprocessing on a device: `mean` is float32 [3] or [256, 256, 3], in RGB order.

    `std` is float32 [3], None where it is 1: reading it on a GPU would wait for all queued work.
    """

    scale: float
    mean: Tensor
    std: Tensor | None
    bgr: bool


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy the array to the device. On a GPU the copy is asynchronous and does not wait for queued work."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def in_epoch(settings: Augmentation, epoch: int) -> Augmentation:
    """The settings for `epoch`, from 1: without colour noise after `color_noise_epochs`."""
    last = settings.color_noise_epochs
    return settings if last is None or epoch <= last else dataclasses.replace(settings, color_noise=0.0)


def make_normalization(
    preprocessing: Preprocessing, mean_image: NDArray[np.float32] | None, device: torch.device
) -> Normalization:
    """Copy `preprocessing` to the device; `mean_image` is float32 [3, 256, 256] in the network's channel order."""
    bgr = preprocessing.channels == "bgr"
    mean = np.array(preprocessing.mean, np.float32) if mean_image is None else mean_image
    std = np.array(preprocessing.std, np.float32)
    if bgr:
        mean, std = mean[::-1], std[::-1]
    if mean_image is not None:
        mean = mean.transpose(1, 2, 0)
    return Normalization(
        scale=preprocessing.scale,
        mean=torch.from_numpy(np.ascontiguousarray(mean)).to(device),
        std=None if (std == 1).all() else torch.from_numpy(std.copy()).to(device),
        bgr=bgr,
    )


def draw(rng: np.random.Generator, num: int, crop: int, settings: Augmentation, axes: ColorAxes) -> Draws:
    """Draw the augmentation of `num` images. Every kind is always drawn, so that disabling one does not change others.

    The colour noise is the paper's [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, `color_noise`), p the
    principal axes of the training set's RGB pixels and l the *standard deviation* along each. The paper calls
    l the eigenvalues; those of 0-255 pixels are thousands of levels squared, and a tenth of one would wipe
    out the image. The commonly used constants, and the original code, are their square roots.
    """
    stretch = rng.uniform(-settings.rescale, settings.rescale, num)
    side = np.minimum(np.rint(crop * (1.0 + stretch)), IMAGE_SIZE).astype(np.int64)
    place = rng.random((2, num))
    if not settings.crop:
        place[:] = 0.5
    # A position of 0.5 is the deployed graph's centre crop: the offset is rounded down.
    top, left = np.minimum(np.floor(place * (IMAGE_SIZE - side + settings.crop)), IMAGE_SIZE - side).astype(np.int64)
    coins = rng.random((2, num)) < 0.5
    alphas = rng.normal(0.0, 1.0, (num, 3)) * settings.color_noise
    factors = 1.0 + rng.uniform(-settings.jitter, settings.jitter, (num, 3))
    angle = np.deg2rad(rng.uniform(-settings.rotate, settings.rotate, num))
    erased = _draw_rectangles(rng, num, crop, settings.erase)
    return Draws(
        top=top,
        left=left,
        side=side,
        mirror=coins[0] & settings.mirror,
        flip=coins[1] & settings.vertical_mirror,
        shift=((alphas * axes.std) @ axes.vectors.T).astype(np.float32),
        jitter=factors.astype(np.float32) if settings.jitter else None,
        angle=angle if settings.rotate else None,
        erased=erased if settings.erase else None,
    )


def _draw_rectangles(rng: np.random.Generator, num: int, crop: int, share: float) -> NDArray[np.int64]:
    """Rectangles in `share` of the views, others are empty: 2 to 33 % of the area, sides 0.3 to 1/0.3 to each other.

    The ranges of Zhong et al. 2020, "Random Erasing Data Augmentation"; a side is at most the view's.
    """
    is_erased = rng.random(num) < share
    area = rng.uniform(0.02, 0.33, num) * crop**2
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), num))
    sides = np.sqrt(np.stack((area * ratio, area / ratio)))
    height, width = np.minimum(np.rint(sides), crop).astype(np.int64)
    top, left = np.floor(rng.random((2, num)) * (crop + 1 - np.stack((height, width)))).astype(np.int64)
    return np.stack((top, left, height, width), axis=1) * is_erased[:, None]


def random_views(images: Tensor, draws: Draws, normalization: Normalization, crop: int) -> Tensor:
    """Cut and augment one view of each image: uint8 [N, 256, 256, 3] -> float32 [N, 3, crop, crop], channels last.

    The window is cut, mirrored, colour-augmented and normalized to (pixel * scale - mean) / std. A mean image is cut
    and mirrored with the pixels.
    """
    cut = _cutter(draws, crop, images.device)
    views = cut(images)
    if draws.jitter is not None:
        views = _jitter(views, to_device(draws.jitter, views.device))
    if draws.shift.any():
        views += to_device(draws.shift, views.device)[:, None, None, :]
    mean = normalization.mean
    if mean.ndim == 3:
        mean = cut(mean.expand(len(images), -1, -1, -1))
    views = _normalize(views, mean, normalization)
    if draws.erased is not None:
        for view, (top, left, height, width) in zip(views, draws.erased.tolist(), strict=True):
            view[:, top : top + height, left : left + width] = 0.0
    return views


def centre_views(images: Tensor, normalization: Normalization, crop: int) -> Tensor:
    """Cut the centre of each image: uint8 [N, 256, 256, 3] -> float32 [N, 3, crop, crop], channels last."""
    (centre,) = view_boxes(1, crop)
    return fixed_views(images, normalization, crop, centre)


def fixed_views(images: Tensor, normalization: Normalization, crop: int, box: View) -> Tensor:
    """Cut the same view of each image: uint8 [N, 256, 256, 3] -> float32 [N, 3, crop, crop], channels last."""
    rows, columns = slice(box.top, box.top + crop), slice(box.left, box.left + crop)
    mean = normalization.mean
    views = _normalize(images[:, rows, columns].float(), mean[rows, columns] if mean.ndim == 3 else mean, normalization)
    return views.flip(3) if box.mirror else views


def _normalize(views: Tensor, mean: Tensor, normalization: Normalization) -> Tensor:
    """Normalize views [N, crop, crop, 3], RGB, in place; returns [N, 3, crop, crop] in the network's channel order."""
    if normalization.scale != 1.0:
        views *= normalization.scale
    views -= mean
    if normalization.std is not None:
        views /= normalization.std
    if normalization.bgr:
        views = views.flip(-1)
    return views.permute(0, 3, 1, 2)


def _cutter(draws: Draws, crop: int, device: torch.device) -> _Cut:
    """A function that cuts the drawn windows. It computes positions once and may be called on several batches."""
    if draws.angle is not None or (draws.side != crop).any():
        return _cut_rescaled(draws, crop, device)
    if device.type == "cpu":
        return _cut_one_by_one(draws, crop)
    return _cut_by_index(draws, crop, device)


def _cut_one_by_one(draws: Draws, crop: int) -> _Cut:
    # A CPU copies rows faster than it gathers pixels: 64 views of 227 take 10 ms this way, 60 ms by index.
    def cut(images: Tensor) -> Tensor:
        views = torch.empty(len(images), crop, crop, 3)
        for image, view, top, left, mirror, flip in zip(
            images, views, draws.top.tolist(), draws.left.tolist(), draws.mirror, draws.flip, strict=True
        ):
            window = image[top : top + crop, left : left + crop]
            turned = [axis for axis, turn in ((0, flip), (1, mirror)) if turn]
            view.copy_(window.flip(turned) if turned else window)
        return views

    return cut


def _cut_by_index(draws: Draws, crop: int, device: torch.device) -> _Cut:
    steps = np.arange(crop)
    rows = draws.top[:, None] + np.where(draws.flip[:, None], steps[::-1], steps)
    columns = draws.left[:, None] + np.where(draws.mirror[:, None], steps[::-1], steps)
    first = torch.arange(len(rows), device=device)[:, None, None]
    row = to_device(rows, device)[:, :, None]
    column = to_device(columns, device)[:, None, :]
    return lambda images: images[first, row, column].float()


def _cut_rescaled(draws: Draws, crop: int, device: torch.device) -> _Cut:
    """Windows of other sizes than the view or turned, by bilinear interpolation; outside, the image's edge goes on."""
    steps = (np.arange(crop) + 0.5) / crop

    def positions(offset: NDArray[np.int64], turn: NDArray[np.bool_]) -> Tensor:
        # Pixel centres lie at half pixels; grid_sample expects -1 and 1 at the outer edges.
        inside = np.where(turn[:, None], 1.0 - steps, steps)
        places = (offset[:, None] + inside * draws.side[:, None]) * (2.0 / IMAGE_SIZE) - 1.0
        return to_device(places.astype(np.float32), device)

    y, x = positions(draws.top, draws.flip), positions(draws.left, draws.mirror)
    grid = torch.stack((x[:, None, :].expand(-1, crop, -1), y[:, :, None].expand(-1, -1, crop)), dim=-1)
    if draws.angle is not None:
        centre = grid.mean(dim=(1, 2), keepdim=True)
        cos, sin = np.cos(draws.angle), np.sin(draws.angle)
        # On the right of a row (x, y).
        turn = np.stack((cos, sin, -sin, cos), axis=1).reshape(-1, 2, 2).astype(np.float32)
        grid = ((grid - centre).flatten(1, 2) @ to_device(turn, device)).view(grid.shape) + centre

    def cut(images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2).float()
        views = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return views.permute(0, 2, 3, 1).contiguous()

    return cut


def _jitter(views: Tensor, factors: Tensor) -> Tensor:
    """Scale exposure, contrast about the image's mean grey, and saturation of views [N, crop, crop, 3], RGB."""
    exposure, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    luma = to_device(_LUMA, views.device)
    views = views * exposure
    grey = (views.mean(dim=(1, 2)) @ luma)[:, None, None, None]
    views = (views - grey).mul_(contrast).add_(grey)
    greys = (views @ luma)[..., None]
    return (views - greys).mul_(saturation).add_(greys)
