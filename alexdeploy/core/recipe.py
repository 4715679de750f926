"""Recipes: TOML files that define the architecture, preprocessing and training of a variant of AlexNet."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from alexdeploy.core.arguments import Count, Natural, NotNegative, Positive, check_fields
from alexdeploy.core.errors import RecipeError
from alexdeploy.core.model_folder import CALIBRATION_FOLDER
from alexdeploy.core.overrides import allowed_values, apply_override, check_keys, suggest
from alexdeploy.core.reading import read_text
from alexdeploy.core.shipped import shipped_folder, shipped_recipes
from alexdeploy.core.spec import Architecture, ModelSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CalibrationMethod = Literal["minmax", "percentile", "entropy", "mse"]

DEFAULT_RECIPE = "alexnet"
SAMPLE_RECIPE = "alexnet-quarter"
"""The default of `train` on the rendered set, which takes minutes on two cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingRecipe:
    """How images become network input. `mean` is "image" or "channel" (measured on the training set) or numbers."""

    resize: Literal["crop", "warp"] = "crop"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Positive = 1.0
    mean: Literal["image", "channel"] | tuple[float, float, float] = "image"
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """Initial weights: Gaussian with `std` as in the paper (per layer in `layer_std`), or "he": sqrt(2 / fan_in)."""

    scheme: Literal["gaussian", "he"] = "gaussian"
    std: Positive = 0.01
    layer_std: dict[str, Positive] = dataclasses.field(default_factory=dict)
    bias: float = 1.0
    biased_layers: tuple[str, ...] = ("conv2", "conv4", "conv5", "fc6", "fc7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes to training images.

    `color_noise` is the std of the paper's PCA colour noise, used in the first `color_noise_epochs`; None: in all.
    `rescale` and `jitter` are the largest relative changes of the window's side, and of exposure, contrast and
    saturation; `rotate` is the largest angle in degrees; `erase` the share of views with a rectangle of the mean.
    """

    crop: bool = True
    mirror: bool = True
    color_noise: NotNegative = 0.1
    color_noise_epochs: Count | None = None
    vertical_mirror: bool = False
    rescale: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    jitter: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    rotate: Annotated[float, msgspec.Meta(ge=0, le=180)] = 0.0
    erase: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


TrainingPrecision = Literal["fp32", "tf32", "bf16", "fp16"]
"""How convolutions and products are computed in training; tf32 is FP32 with a mantissa of 10 bits, on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """SGD with momentum as in the paper: v <- m v - decay lr w - lr g; w <- w + v.

    The learning rate of biases is multiplied by `bias_rate_factor`, and the rates of the last layer's weights and
    biases by `last_layer_factor` unless they come from a parent. If `bias_rate_drops` is false, biases keep the rate of
    the first epoch. Layers in `freeze` are frozen from epoch `freeze_epoch` on, 1 being the first. `clip_norm` limits
    the norm of all gradients.

    With `average`, the weights that are evaluated and published are an exponential moving average over the steps:
    a <- average a + (1 - average) w (Polyak and Juditsky 1992). With `stop_after`, training ends when that many epochs
    in a row were not better than the best.
    """

    batch_size: Count = 128
    epochs: Count = 90
    learning_rate: Positive = 0.01
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    bias_rate_factor: Positive = 1.0
    bias_rate_drops: bool = True
    decay_biases: bool = True
    last_layer_factor: Positive = 1.0
    freeze: tuple[str, ...] = ()
    freeze_epoch: Count = 1
    clip_norm: Positive | None = None
    average: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    stop_after: Count | None = None
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    schedule: Literal["plateau", "epochs", "cosine"] = "plateau"
    drop_epochs: tuple[Count, ...] = ()
    drop_factor: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.1
    patience: Count = 5
    max_drops: Natural = 3
    precision: TrainingPrecision = "fp32"
    seed: Natural = 0
    init: Init = Init()
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A complete recipe. `name` is the file's stem; `overrides` are the applied `--set` values.

    `parent_sha256` is the hash of the weights that training starts from, None for random weights.
    """

    name: str
    description: str = ""
    architecture: Architecture
    preprocessing: PreprocessingRecipe = PreprocessingRecipe()
    training: Training = Training()
    overrides: tuple[str, ...] = ()
    parent_sha256: str | None = None

    def __post_init__(self) -> None:
        layers = self.architecture.trained_layers
        for name in self.training.freeze:
            if name not in layers:
                raise ValueError(f"training.freeze names {name!r}; expected one of {', '.join(layers)}")
        if layers and set(layers) == set(self.training.freeze):
            raise ValueError("training.freeze names every layer; nothing would be trained")


FINE_TUNING = Training(
    batch_size=16,
    epochs=40,
    learning_rate=0.005,
    last_layer_factor=2.0,
    schedule="cosine",
    init=Init(std=0.01, biased_layers=()),
)
"""Half of the paper's rate for existing layers, the full rate for the new last layer: measured in docs/training.md.

A few hundred images give few steps per epoch: use small batches, and more epochs than for a large set.
"""

_HIDDEN = frozenset({"name", "overrides", "parent_sha256"})


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRecipe:
    """How ranges are measured. `exclude` are patterns of image names to skip (`*/masks/*`)."""

    method: CalibrationMethod = "mse"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    num_images: Count = 512
    num_views: Literal[1, 10] = 1
    seed: Natural = 0
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def replace(self, **changes: object) -> CalibrationRecipe:
        """A copy with other values, which are checked. Raises RecipeError."""
        try:
            return msgspec.convert({**dataclasses.asdict(self), **changes}, CalibrationRecipe)
        except msgspec.ValidationError as exc:
            raise RecipeError(f"calibration: {exc}") from exc


def load_calibration() -> CalibrationRecipe:
    """Read `calibration/default.toml` of the working folder, else the shipped one. Raises RecipeError."""
    local = CALIBRATION_FOLDER / "default.toml"
    path = local if local.is_file() else shipped_folder("calibration") / "default.toml"
    data = _read_toml(path)
    check_keys(data, CalibrationRecipe, frozenset())
    try:
        return msgspec.convert(data, CalibrationRecipe)
    except msgspec.ValidationError as exc:
        raise RecipeError(f"{path}: {exc}") from exc


def list_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return shipped_recipes()


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name (shipped, or `models/NAME.toml` here) or by path, then apply `key=value` overrides.

    Raises RecipeError for an unknown recipe, key or value, and suggests the nearest key.
    """
    path = _recipe_path(str(name))
    return _convert(_read_toml(path), path.stem, tuple(overrides))


def fine_tuning_recipe(
    parent: ModelSpec, parent_sha256: str, name: str | Path | None = None, overrides: Iterable[str] = ()
) -> Recipe:
    """The recipe that continues from the weights of `parent`, with its architecture and preprocessing.

    The rest is from the recipe `name`, or FINE_TUNING. Raises RecipeError as `load_recipe` does, and for an override
    of the preprocessing, because the weights were trained with the parent's.
    """
    overrides = tuple(overrides)
    for override in overrides:
        if override.strip().startswith("preprocessing"):
            raise RecipeError(
                f"--set {override}: the weights of {parent.name} were trained with its own preprocessing",
                hint="Remove this option, or --pretrained.",
            )
    steps = parent.preprocessing
    data: dict[str, Any]
    if name is None:
        stem, data = "fine-tuning", {"training": msgspec.to_builtins(FINE_TUNING)}
    else:
        path = _recipe_path(str(name))
        stem, data = path.stem, _read_toml(path)
    data["architecture"] = msgspec.to_builtins(parent.architecture)
    data["preprocessing"] = {
        "resize": steps.resize,
        "channels": steps.channels,
        "scale": steps.scale,
        "mean": list(steps.mean) if steps.mean_image is None else "image",
        "std": list(steps.std),
    }
    return _convert(data, stem, overrides, parent_sha256)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key, such as training.init.std."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _convert(data: dict[str, Any], name: str, overrides: tuple[str, ...], parent_sha256: str | None = None) -> Recipe:
    for override in overrides:
        apply_override(data, override, Recipe, _HIDDEN)
    data = _none_for_word(data)
    check_keys(data, Recipe, _HIDDEN)
    try:
        return msgspec.convert(data | {"name": name, "overrides": overrides, "parent_sha256": parent_sha256}, Recipe)
    except msgspec.ValidationError as exc:
        message, _, path = str(exc).rpartition(" - at ")
        allowed = allowed_values(Recipe, path.strip("`")) if message.startswith("Invalid enum value") else ()
        hint = (
            f"Allowed: {', '.join(map(str, allowed))}."
            if allowed
            else "Show a valid recipe: alexdeploy inspect alexnet"
        )
        raise RecipeError(f"recipe {name}: {exc}", hint=hint) from exc


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as exc:
        raise RecipeError(f"{path} cannot be read as a recipe: {exc.strerror}") from exc
    # A deeply nested file raises RecursionError.
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise RecipeError(f"{path} cannot be read as a recipe: {exc}") from exc


def _recipe_path(name: str) -> Path:
    if name.endswith(".toml"):
        if not os.path.isfile(name):
            raise RecipeError(f"no recipe file at {name}")
        return Path(name)
    for folder in (Path("models"), shipped_folder("models")):
        path = folder / f"{name}.toml"
        if os.path.isfile(path):
            return path
    known = list_recipes()
    raise RecipeError(
        f"unknown recipe {name!r}{suggest(name, known)}",
        hint=f"Recipes: {', '.join(known)}, or a path to a .toml file.",
    )


def _none_for_word(value: Any) -> Any:
    """Replace the word "none" by None, because TOML has no null (`lrn = "none"`)."""
    if isinstance(value, dict):
        return {key: _none_for_word(item) for key, item in value.items()}
    return None if value == "none" else value
