"""What a graph loses against FP32, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """What a graph loses against FP32 on `num_images` images.

    `points` is what a budget limits, in percent of the images: answers that changed, or with labels by how much the
    top-1 error grew. `low_points` and `high_points` are its 95 % interval. `logit_error` is the RMS error of the logits
    as a share of their RMS; infinite if one is not finite.
    """

    num_images: int
    num_flips: int
    has_labels: bool
    points: float
    low_points: float
    high_points: float
    logit_error: float


def describe(drop: Drop) -> str:
    """In words: how many answers changed, or by how much the top-1 error grew, with the 95 % interval."""
    flips = f"{drop.num_flips} of {drop.num_images} answers changed"
    if drop.has_labels:
        interval = f"{_short(drop.low_points, '+')} to {_short(drop.high_points, '+')}"
        return f"top-1 error {_short(drop.points, '+')} points (95 % interval: {interval}), {flips}"
    return f"{flips} (95 % interval: {_short(drop.low_points)} to {_short(drop.high_points)} %)"


def _short(points: float, sign: str = "") -> str:
    """Two digits; three of 100."""
    return f"{points:{sign}.2g}" if abs(points) < 99.5 else f"{points:{sign}.0f}"
