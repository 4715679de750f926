"""What is drawn for each step of a run: its images, their views, its dropout. All of it follows from the seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from alexdeploy.core.recipe import Training
from alexdeploy.training.augment import Draws, Normalization, draw, in_epoch, random_views
from alexdeploy.training.pixels import Pixels
from alexdeploy.training.statistics import ColorAxes

# The purpose of a random draw. Its seed is made of this, the recipe's seed, the epoch and the step.
_SHUFFLE, _AUGMENT, _DROPOUT = 0, 1, 2


class Steps:
    """The steps of all epochs; epochs and steps count from 1."""

    def __init__(
        self, images: Pixels, indices: NDArray[np.int64], training: Training, *, crop: int, axes: ColorAxes
    ) -> None:
        """`indices` are those of the images to train on, `axes` the colour axes of their pixels."""
        self._images = images
        self._indices = indices
        self._training = training
        self._crop = crop
        self._axes = axes

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self._indices) / self._training.batch_size)

    def num_images(self, num_steps: int) -> int:
        """Images of the first steps of an epoch. As in np.array_split, the first batches take the remainder."""
        size, rest = divmod(len(self._indices), self.num_steps)
        return num_steps * size + min(num_steps, rest)

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The images of each step. Sizes differ by at most one, so that no image is left out and no batch is tiny."""
        order = self._rng(_SHUFFLE, epoch).permutation(self._indices)
        return np.array_split(order, self.num_steps)

    def draws(self, epoch: int, step: int, num: int) -> Draws:
        """The augmentation of the `num` images of a step."""
        augmentation = in_epoch(self._training.augmentation, epoch)
        return draw(self._rng(_AUGMENT, epoch, step), num, self._crop, augmentation, self._axes)

    def dropout_seed(self, epoch: int, step: int) -> int:
        return int(self._rng(_DROPOUT, epoch, step).integers(2**63))

    def first_views(self, num: int) -> NDArray[np.uint8]:
        """At most `num` views of the first step, before normalization: uint8 [N, crop, crop, 3], RGB."""
        batch = self.batches(1)[0]
        draws = self.draws(1, 1, len(batch)).part(slice(num))
        (pixels,) = self._images.batches([batch[:num]])
        nothing = Normalization(scale=1.0, mean=torch.zeros(3), std=None, bgr=False)
        views = random_views(torch.from_numpy(pixels), draws, nothing, self._crop)
        return views.permute(0, 2, 3, 1).round().clamp(0, 255).byte().numpy()

    def _rng(self, purpose: int, epoch: int, step: int = 0) -> np.random.Generator:
        return np.random.default_rng((self._training.seed, purpose, epoch, step))
