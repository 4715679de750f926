"""The figures of a network: its layers and towers, its first kernels, and the maps of a photograph layer by layer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument, check_fields
from alexdeploy.core.errors import ImageError, ModelError, UsageError, warn
from alexdeploy.core.files import remove_file, write_together
from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder, find_model, is_model
from alexdeploy.core.recipe import list_recipes, load_recipe
from alexdeploy.core.spec import Architecture, ModelSpec, Precision
from alexdeploy.core.stores.urls import is_url
from alexdeploy.diagnosis.activation_maps import Answers, LayerPicture, run_photograph
from alexdeploy.diagnosis.diagram import network_svg
from alexdeploy.diagnosis.kernels import first_kernels, in_rgb
from alexdeploy.images.from_memory import read_square
from alexdeploy.images.named import check_named
from alexdeploy.images.sources import printable_path
from alexdeploy.network.feature_names import refuse_ensemble
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import picture
from alexdeploy.reports.tiles import Pixels, animated_png, kernel_pixels, png, scale_of, tile
from alexdeploy.training.kernels import kernel_epochs, read_kernels

PAGE = "index.html"
_PHOTOGRAPH, _NETWORK, _KERNELS, _EPOCHS, _MAPS = (
    *("photograph.png", "network.svg", "kernels.png", "kernels-by-epoch.png"),
    "maps-{}.png",
)
_MAX_FRAMES = 100
_FRAME_MS, _LAST_MS = 200, 2000
_NUM_ANSWERS = 5
_STYLE = """
.scroll svg { min-width: 60rem; }
.pixels img { background: #fff; padding: 4px; border-radius: 6px; box-sizing: border-box; }
@media (min-width: 60rem) { .pixels img { image-rendering: pixelated; } }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureOptions:
    """`image` is the photograph of the activation maps, a path; None leaves them out.

    `precision` is that of the graph which computes them. `overwrite` replaces the figures of an earlier call.
    """

    image: str | os.PathLike[str] | None = None
    precision: Precision = "fp32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision == "bf16":
            raise UsageError("there are no BF16 graphs", hint="Use --precision fp32, fp16 or int8.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The folder that was written, and its files, the page first."""

    path: Path
    files: tuple[str, ...]


def figures(
    model: ModelFolder | str | os.PathLike[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    options: FigureOptions | None = None,
    on_warning: Callable[[str], None] = warn,
) -> Figures:
    """Draw a model, or a recipe, into a folder: PNG and SVG files, and a page with all of them, index.html.

    The network as an SVG, if its architecture is known; conv1's kernels, and an animation of them if its training kept
    them; with `options.image`, the maps of each layer. A recipe has only the first. `directory` is figures/NAME by
    default. Nothing is written before everything is drawn. Raises UsageError for an image that does not exist, for an
    ensemble, and for a folder with other figures; ImageError, ModelError, StaleArtifactError, OutputError.
    """
    options = check_argument("options", options or FigureOptions(), FigureOptions)
    given: str | None = None if isinstance(model, ModelFolder) else check_argument("model", model, str | None)
    to: str | None = check_argument("directory", directory, str | None)
    folder, name, architecture, num_classes = _find(model, given)
    target = Path("figures", name) if to is None else Path(to)
    _check_target(target, to, options)
    spec = None if folder is None else folder.spec()
    if spec is not None:
        refuse_ensemble(spec)
    if folder is None and options.image is not None:
        raise UsageError(f"{name} is a recipe, which has no weights to run an image with", hint="Name a trained model.")
    photograph = None if options.image is None or spec is None else _read(options.image, spec)
    files: dict[str, bytes] = {}
    parts: list[str] = []
    if architecture is None:
        on_warning(f"the architecture of {name} is unknown, so the network is not drawn")
    else:
        parts += _network(architecture, num_classes, files)
    if folder is not None and spec is not None:
        parts += _kernels(folder, spec, files, on_warning)
        if photograph is not None:
            answers = run_photograph(folder, spec, photograph, options.precision)
            parts += _maps(answers, spec, str(options.image), options.precision, files)
    _write(target, f"{name}: figures", parts, files)
    return Figures(path=target, files=(PAGE, *files))


def _find(
    model: ModelFolder | str | os.PathLike[str] | None, given: str | None
) -> tuple[ModelFolder | None, str, Architecture | None, int]:
    """The model folder, or None for a recipe; its name, architecture and number of classes."""
    is_recipe = given is not None and (given.endswith(".toml") or given in list_recipes() or _is_own_recipe(given))
    if given is not None and is_recipe and not is_model(given):
        recipe = load_recipe(given, ())
        return None, recipe.name, recipe.architecture, 1000
    folder = find_model(model)
    spec = folder.spec()
    return folder, folder.path.resolve().name, spec.architecture, spec.num_classes


def _is_own_recipe(name: str) -> bool:
    return os.path.isfile(MODELS_FOLDER / f"{name}.toml")


def _check_target(target: Path, given: str | None, options: FigureOptions) -> None:
    if given is not None and is_url(given):
        raise UsageError(f"--output {given}: figures are written to a local folder", hint="Copy the folder afterwards.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"--output {target} is a file; expected a folder")
    if (target / PAGE).exists() and not options.overwrite:
        raise UsageError(f"{target} already holds figures", hint="Replace them: --overwrite\nOr name another folder.")
    if options.image is not None:
        check_named([options.image])


def _read(image: str | os.PathLike[str], spec: ModelSpec) -> Pixels:
    if os.path.isdir(image):
        raise UsageError(f"--image {printable_path(os.fspath(image))} is a folder; expected a photograph")
    try:
        return read_square(os.fspath(image), spec.preprocessing.resize)
    except ImageError as exc:
        raise ImageError(f"{printable_path(os.fspath(image))}: {exc.message}", hint=exc.hint) from exc


def _network(architecture: Architecture, num_classes: int, files: dict[str, bytes]) -> list[str]:
    svg = network_svg(architecture, num_classes)
    files[_NETWORK] = b'<?xml version="1.0" encoding="utf-8"?>\n' + svg.encode()
    towers = (
        " A layer that reads only the maps of its own tower has grey lines alone; orange lines are what the two towers "
        "exchange."
        if architecture.towers == 2
        else ""
    )
    caption = (
        f"Each box is what a layer gives: maps × height×width, or units. Below: what follows it.{towers} After figure "
        "2 of Krizhevsky et al. 2012."
    )
    return [page.heading("The network"), page.framed(f'<div class="scroll">{svg}</div>', caption=caption)]


def _kernels(
    folder: ModelFolder, spec: ModelSpec, files: dict[str, bytes], on_warning: Callable[[str], None]
) -> list[str]:
    found = first_kernels(folder, spec)
    files[_KERNELS] = png(_tiles(found.kernels, found.towers))
    number, _, side, _ = found.kernels.shape
    per_tower = f", {number // found.towers} of each tower" if found.towers > 1 else ""
    caption = (
        f"The {number} kernels of the first layer, {side}×{side}×3{per_tower}, from {found.source}. Of each kernel the "
        "least weight is 0 and the largest 255, of red, green and blue alike. After figure 3 of Krizhevsky et al. 2012."
    )
    parts = [page.heading("The first kernels"), _pixels(files[_KERNELS], "The kernels of the first layer", caption)]
    epochs = _chosen_epochs(kernel_epochs(folder))
    if len(epochs) < 2:
        return parts
    try:
        frames = [
            (f"epoch {epoch}", _tiles(in_rgb(read_kernels(folder, epoch), spec), found.towers)) for epoch in epochs
        ]
    except ModelError as exc:
        on_warning(f"no animation of the kernels: {exc.text}")
        return parts
    files[_EPOCHS] = animated_png(frames, frame_ms=_FRAME_MS, last_ms=_LAST_MS)
    caption = (
        f"The same kernels after each of {len(epochs)} epochs, {epochs[0]} to {epochs[-1]}; epoch 0 is before the "
        "first step. Each kernel has a scale of its own in each epoch."
    )
    return [*parts, _pixels(files[_EPOCHS], "The kernels by epoch", caption)]


def _tiles(kernels: NDArray[np.float32], towers: int) -> Pixels:
    return tile(kernel_pixels(kernels), towers=towers, scale=scale_of(kernels.shape[-1]))


def _chosen_epochs(epochs: tuple[int, ...]) -> tuple[int, ...]:
    """All epochs, or a hundred of them at equal distances, with the first and the last."""
    if len(epochs) <= _MAX_FRAMES:
        return epochs
    return tuple(epochs[round(index * (len(epochs) - 1) / (_MAX_FRAMES - 1))] for index in range(_MAX_FRAMES))


def _maps(answers: Answers, spec: ModelSpec, image: str, precision: str, files: dict[str, bytes]) -> list[str]:
    files[_PHOTOGRAPH] = png(answers.view)
    size = len(answers.view)
    caption = f"{printable_path(image)}: the centre {size}×{size} of 256×256 pixels, which the network reads."
    shown = page.framed(picture(files[_PHOTOGRAPH], name="The photograph", kind="png"), caption=caption)
    odds = np.exp(answers.logits - answers.logits.max())
    best = np.argsort(-odds, kind="stable")[:_NUM_ANSWERS]
    rows = [(spec.classes[index], f"{odds[index] / odds.sum():.4f}") for index in best]
    parts = [
        page.heading("A photograph, layer by layer"),
        shown,
        page.table(["class", "probability"], rows, numbers=[1]),
        page.paragraph(
            f"The {precision.upper()} network on the centre view, in ONNX Runtime. Every value of a map is one or more "
            "equal pixels, as bright as the square root of its share of the layer's largest value. Where a layer has "
            "negative values, 0 is grey and they are darker."
        ),
    ]
    for layer in answers.layers:
        name = _MAPS.format(_file_name(layer.name))
        files[name] = png(layer.pixels)
        parts.append(_pixels(files[name], f"The answers of {layer.name}", _describe(layer)))
    return parts


def _describe(layer: LayerPicture) -> str:
    shape = "×".join(map(str, layer.shape))
    words = f"{layer.name}: {shape}, largest value {layer.largest:.4g}"
    if layer.num_shown < layer.shape[0]:
        words += f"; the first {layer.num_shown} maps"
    if layer.num_averaged > 1:
        words += f"; each pixel is the mean of {layer.num_averaged}×{layer.num_averaged} values"
    return f"{words}."


def _file_name(layer: str) -> str:
    """The layer's name as part of a file name; names of an imported graph may be paths."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in layer)[:80].strip("-")


def _pixels(data: bytes, title: str, caption: str) -> str:
    content = f'<div class="pixels">{picture(data, name=title, kind="png")}</div>'
    return page.framed(content, caption=caption)


def _write(target: Path, title: str, parts: list[str], files: dict[str, bytes]) -> None:
    """Write the files, and the page last; then remove those of an earlier call that are no part of this one."""
    write_together({target / name: content for name, content in files.items()})
    page.write_page(target / PAGE, title, parts, style=_STYLE)
    earlier = (_PHOTOGRAPH, _NETWORK, _KERNELS, _EPOCHS, _MAPS.format("*"))
    for path in sorted(path for pattern in earlier for path in target.glob(pattern)):
        if path.name not in files:
            remove_file(path)
