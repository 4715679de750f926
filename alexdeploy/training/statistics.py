"""Statistics of the training set: the mean, per pixel or per channel, and the principal axes of its colours."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.recipe import PreprocessingRecipe
from alexdeploy.core.spec import IMAGE_SIZE


@dataclass(frozen=True, kw_only=True)
class ColorAxes:
    """Principal axes of RGB over the training pixels: `vectors`, float64 [3, 3], has one axis per column.

    `std`, float64 [3], is the standard deviation along each axis in levels (0 to 255), the square root of the
    covariance's eigenvalue; largest first.
    """

    vectors: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`mean_image` is float64 [256, 256, 3], `mean` and `covariance` are over all pixels; RGB, 0 to 255."""

    num_images: int
    mean_image: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.mean_image.mean(axis=(0, 1))
        return mean


@dataclass(frozen=True, kw_only=True)
class PixelSums:
    """Integer sums, so that parts may be added in any order.

    `pixels`, int64 [256, 256, 3], is the sum of all images; `products`, int64 [3, 3], is the sum over all pixels of the
    products of each two channels.
    """

    num_images: int
    pixels: NDArray[np.int64]
    products: NDArray[np.int64]

    def statistics(self) -> Statistics:
        """At least one image must have been added."""
        mean_image = self.pixels / self.num_images
        mean = mean_image.mean(axis=(0, 1))
        covariance = self.products / (self.num_images * IMAGE_SIZE**2) - np.outer(mean, mean)
        return Statistics(num_images=self.num_images, mean_image=mean_image, covariance=covariance)


class StatisticsSum:
    """Adds up images from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num = 0
        self._pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.int64)
        self._products = np.zeros((3, 3), np.int64)

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count one image, uint8 [256, 256, 3]."""
        # A float32 sum is exact to 2^24 and float64 to 2^53; 65,536 products of 255 * 255 are 2^32.
        flat = image.reshape(-1, 3).astype(np.float64)
        products = (flat.T @ flat).astype(np.int64)
        with self._lock:
            self._num += 1
            self._pixels += image
            self._products += products

    def add_sums(self, sums: PixelSums) -> None:
        """Add sums that were computed elsewhere."""
        with self._lock:
            self._num += sums.num_images
            self._pixels += sums.pixels
            self._products += sums.products

    def result(self) -> PixelSums:
        return PixelSums(num_images=self._num, pixels=self._pixels.copy(), products=self._products.copy())


def color_axes(covariance: NDArray[np.float64]) -> ColorAxes:
    """The axes of a 3x3 covariance, with the largest component positive; the sign does not affect the colour noise."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(3)])
    # A grey data set has axes with zero variance, whose eigenvalues may round to just below zero.
    return ColorAxes(vectors=vectors * signs, std=np.sqrt(np.maximum(values, 0.0)))


def measured_mean(
    statistics: Statistics, recipe: PreprocessingRecipe
) -> tuple[tuple[float, float, float], NDArray[np.float32] | None]:
    """The mean of the kind set in `recipe`, after scaling, in the network's channel order.

    Returns the mean of each channel, and the mean image, float32 [3, 256, 256], if the recipe uses one.
    """
    if not isinstance(recipe.mean, str):
        return recipe.mean, None
    image = statistics.mean_image * recipe.scale
    if recipe.channels == "bgr":
        image = image[..., ::-1]
    red, green, blue = (float(value) for value in image.mean(axis=(0, 1)))
    if recipe.mean == "channel":
        return (red, green, blue), None
    return (red, green, blue), np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
