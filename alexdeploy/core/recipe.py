"""Recipes: TOML files that say how a variant of AlexNet is built, fed and trained."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from alexdeploy.core.artifacts import CALIBRATION_FOLDER
from alexdeploy.core.errors import RecipeError
from alexdeploy.core.spec import Architecture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]

DEFAULT_RECIPE = "alexnet"
SAMPLE_RECIPE = "alexnet-quarter"
"""What `train` uses on the rendered set, so that it ends in minutes on two cores."""

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingRecipe:
    """How images become network input. `mean` is "image" or "channel" (measured on the training set) or numbers."""

    resize: Literal["crop", "warp"] = "crop"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: _Positive = 1.0
    mean: Literal["image", "channel"] | tuple[float, float, float] = "image"
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """First weights: Gaussian of `std` as in the paper (per layer in `layer_std`), or "he": sqrt(2 / fan_in)."""

    scheme: Literal["gaussian", "he"] = "gaussian"
    std: _Positive = 0.01
    layer_std: dict[str, _Positive] = dataclasses.field(default_factory=dict)
    bias: float = 1.0
    biased_layers: tuple[str, ...] = ("conv2", "conv4", "conv5", "fc6", "fc7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes to training images. `color_noise` is the std of the paper's PCA colour noise."""

    crop: bool = True
    mirror: bool = True
    color_noise: _NotNegative = 0.1
    vertical_mirror: bool = False
    rescale: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    jitter: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """SGD with momentum as the paper writes it: v <- m v - decay lr w - lr g; w <- w + v."""

    batch_size: _Count = 128
    epochs: _Count = 90
    learning_rate: _Positive = 0.01
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    weight_decay: _NotNegative = 5e-4
    schedule: Literal["plateau", "epochs"] = "plateau"
    drop_epochs: tuple[_Count, ...] = ()
    drop_factor: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    patience: _Count = 5
    max_drops: _Natural = 3
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: _Natural = 0
    init: Init = Init()
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole recipe. `name` is the file's stem; `overrides` are the `--set` values that changed it."""

    name: str
    description: str = ""
    architecture: Architecture
    preprocessing: PreprocessingRecipe = PreprocessingRecipe()
    training: Training = Training()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRecipe:
    """How ranges are measured. `exclude` are patterns of image names that are not to be used (`*/masks/*`)."""

    method: CalibrationMethod = "mse"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    num_images: _Count = 512
    num_views: Literal[1, 10] = 1
    seed: _Natural = 0
    exclude: tuple[str, ...] = ()

    def replace(self, **changes: object) -> CalibrationRecipe:
        """The same with other values, which are checked. Raises RecipeError."""
        try:
            return msgspec.convert({**dataclasses.asdict(self), **changes}, CalibrationRecipe)
        except msgspec.ValidationError as exc:
            raise RecipeError(f"calibration: {exc}") from exc


def load_calibration() -> CalibrationRecipe:
    """Read `calibration/default.toml` of the working folder, else the shipped one. Raises RecipeError."""
    local = CALIBRATION_FOLDER / "default.toml"
    path = local if local.is_file() else _shipped("calibration") / "default.toml"
    data = _read_toml(path)
    _check_keys(data, CalibrationRecipe, where="")
    try:
        return msgspec.convert(data, CalibrationRecipe)
    except msgspec.ValidationError as exc:
        raise RecipeError(f"{path}: {exc}") from exc


def list_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _shipped("models").glob("*.toml")))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name (shipped, or `models/NAME.toml` here) or by path, then apply `key=value` overrides.

    Raises RecipeError for an unknown recipe, key or value; it suggests the nearest key.
    """
    path = _recipe_path(str(name))
    data = _read_toml(path)
    overrides = tuple(overrides)
    for override in overrides:
        _apply_override(data, override)
    data = _none_for_word(data)
    _check_keys(data, Recipe, where="")
    try:
        return msgspec.convert(data | {"name": path.stem, "overrides": overrides}, Recipe)
    except msgspec.ValidationError as exc:
        raise RecipeError(
            f"recipe {path.stem}: {exc}", cure="Look at a recipe that works: alexdeploy inspect alexnet"
        ) from exc


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RecipeError(f"{path} cannot be read as a recipe: {exc}") from exc


def _shipped(folder: Literal["models", "calibration"]) -> Path:
    """Where the files of a tracked folder are: in the wheel under recipes/, in a checkout at its root."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "recipes" / folder
    return in_wheel if in_wheel.is_dir() else package.parent / folder


def _recipe_path(name: str) -> Path:
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise RecipeError(f"no recipe file at {name}")
        return Path(name)
    for folder in (Path("models"), _shipped("models")):
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    known = list_recipes()
    raise RecipeError(
        f"no recipe is called {name!r}{_suggest(name, known)}",
        cure=f"Recipes: {', '.join(known)}, or a path to a .toml file.",
    )


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(
            f"--set {override!r} has no '='",
            cure="Write it as --set section.key=value, e.g. --set training.epochs=10",
        )
    parts = key.strip().split(".")
    # Walk the types first: the error for a wrong key must name the key, not its first missing parent.
    _check_path(parts)
    target = data
    for part in parts[:-1]:
        child = target.setdefault(part, {})
        if not isinstance(child, dict):
            child = target[part] = {}
        target = child
    target[parts[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _none_for_word(value: Any) -> Any:
    """TOML has no null: the word "none" stands for it (`lrn = "none"`)."""
    if isinstance(value, dict):
        return {key: _none_for_word(item) for key, item in value.items()}
    return None if value == "none" else value


def _check_path(parts: list[str]) -> None:
    cls: type | None = Recipe
    for depth, part in enumerate(parts):
        if cls is None:
            break
        fields = _fields(cls)
        if part not in fields or part in ("name", "overrides"):
            raise _unknown_key(".".join(parts), part, fields, ".".join(parts[:depth]))
        cls = fields[part]
        if cls is dict:
            return
    else:
        return
    raise RecipeError(f"{'.'.join(parts[:depth])} is a value, it has no key {part!r}")


def _check_keys(data: Mapping[str, Any], cls: type, where: str) -> None:
    fields = _fields(cls)
    for key, value in data.items():
        path = f"{where}{key}"
        if key not in fields:
            raise _unknown_key(path, key, fields, where.rstrip("."))
        child = fields[key]
        if child is not None and child is not dict:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    _check_keys(item, child, f"{path}.")


def _unknown_key(path: str, key: str, fields: Mapping[str, object], section: str) -> RecipeError:
    known = sorted(set(fields) - {"name", "overrides"})
    place = section or "a recipe"
    return RecipeError(
        f"unknown recipe key {path!r}{_suggest(key, known)}", cure=f"Keys of {place}: {', '.join(known)}."
    )


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _fields(cls: type) -> dict[str, type | None]:
    """Field names of a dataclass, each with the dataclass (or dict) inside its type, None for a plain value."""
    hints = typing.get_type_hints(cls)
    return {f.name: _inner_class(hints[f.name]) for f in dataclasses.fields(cls)}


def _inner_class(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    origin = typing.get_origin(hint)
    if origin is dict:
        return dict
    if origin in (typing.Union, types.UnionType, tuple):
        for argument in typing.get_args(hint):
            found = _inner_class(argument)
            if found is not None:
                return found
    return None
