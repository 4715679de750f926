"""The accuracy that a graph loses against FP32, and its text form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """The accuracy that a graph loses against FP32 on `num_images` images.

    `points` is the loss that a budget limits, in percent of the images: the answers that changed or, with labels, the
    increase in top-1 error. `low_points` and `high_points` are its 95 % interval. `logit_error` is the RMS error of
    the logits divided by their RMS; infinite if a logit is not finite.
    """

    num_images: int
    num_flips: int
    has_labels: bool
    points: float
    low_points: float
    high_points: float
    logit_error: float


def describe(drop: Drop) -> str:
    """Describe the changed answers, or the increase in top-1 error, with the 95 % interval."""
    flips = f"{drop.num_flips} of {drop.num_images} answers changed"
    if drop.has_labels:
        interval = f"{_short(drop.low_points, '+')} to {_short(drop.high_points, '+')}"
        return f"top-1 error {_short(drop.points, '+')} points (95 % interval: {interval}), {flips}"
    return f"{flips} (95 % interval: {_short(drop.low_points)} to {_short(drop.high_points)} %)"


def _short(points: float, sign: str = "") -> str:
    """Two significant digits; three for 100."""
    return f"{points:{sign}.2g}" if abs(points) < 99.5 else f"{points:{sign}.0f}"
