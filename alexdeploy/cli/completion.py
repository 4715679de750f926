"""Words for the shell's completion. It runs on a key press, so it reads file names only."""

from __future__ import annotations

from pathlib import Path

from alexdeploy.core.shipped import shipped_recipes

_MODELS = Path("models")


def model_names(incomplete: str) -> list[str]:
    """The models under models/ that start with `incomplete`."""
    return sorted(name for each in _MODELS.glob("*/spec.json") if (name := each.parent.name).startswith(incomplete))


def recipe_names(incomplete: str) -> list[str]:
    """The recipes, shipped and under models/, that start with `incomplete`."""
    names = {*shipped_recipes(), *(path.stem for path in _MODELS.glob("*.toml"))}
    return sorted(name for name in names if name.startswith(incomplete))


def model_and_recipe_names(incomplete: str) -> list[str]:
    return sorted({*model_names(incomplete), *recipe_names(incomplete)})
