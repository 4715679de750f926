"""What every method of explanation gives: a value for each pixel, and where the largest is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Method = Literal["occlusion", "grad-cam"]


class Box(NamedTuple):
    """A rectangle in pixels of the 256 x 256 square; `right` and `bottom` are outside of it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Heatmap:
    """The evidence of each pixel for a class, float32 [256, 256], of the square that the network got.

    Of "occlusion" it is the mean drop of the class's log-odds over the squares that cover the pixel, weighted towards
    their centres, and negative where covering raises them; of "grad-cam", in units without a meaning, not negative.
    `peak` is its largest pixel, (x, y). `box` is the place of the square with the largest drop, `largest_drop`, or the
    cell of the feature map around the peak. The probability of the class is `covered_probability` with that square
    covered; both are None for "grad-cam".
    """

    method: Method
    values: NDArray[np.float32]
    peak: tuple[int, int]
    box: Box
    covered_probability: float | None = None
    largest_drop: float | None = None


def peak_of(values: NDArray[np.float32]) -> tuple[int, int]:
    """(x, y) of the largest value; in the middle of several equal ones beside each other."""
    y, x = np.nonzero(values >= values.max())
    near = (abs(y - y[0]) + abs(x - x[0])) < max(values.shape) // 2
    middle = np.abs(y[near] - y[near].mean()) + np.abs(x[near] - x[near].mean())
    best = int(middle.argmin())
    return int(x[near][best]), int(y[near][best])
