"""Files shipped with the package. Imports only the standard library, for shell completion and option defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

SAMPLE_NUM_TRAIN, SAMPLE_NUM_VAL = 200, 40
"""Default number of rendered images per class: enough to learn from, and fast to render."""


def shipped_folder(folder: Literal["models", "calibration"]) -> Path:
    """The folder: under recipes/ in the wheel, at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "recipes" / folder
    return in_wheel if in_wheel.is_dir() else package.parent / folder


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in shipped_folder("models").glob("*.toml")))
