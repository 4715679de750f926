"""What comes with the package; imports nothing, for shell completion and for the defaults of options."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

SAMPLE_NUM_TRAIN, SAMPLE_NUM_VAL = 200, 40
"""Rendered images of each class by default: enough to learn from, few enough to wait for."""


def shipped_folder(folder: Literal["models", "calibration"]) -> Path:
    """In the wheel under recipes/, in a checkout at its root."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "recipes" / folder
    return in_wheel if in_wheel.is_dir() else package.parent / folder


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in shipped_folder("models").glob("*.toml")))
