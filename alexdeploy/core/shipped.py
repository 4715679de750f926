"""Where the tracked files are that a wheel ships; imports nothing, for shell completion."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def shipped_folder(folder: Literal["models", "calibration"]) -> Path:
    """In the wheel under recipes/, in a checkout at its root."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "recipes" / folder
    return in_wheel if in_wheel.is_dir() else package.parent / folder


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in shipped_folder("models").glob("*.toml")))
