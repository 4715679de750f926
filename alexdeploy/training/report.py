"""What a run looked like, at its end: curves.png, and report.html with its samples, kernels and worst classes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.metrics import has_top5, wilson_interval
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import picture
from alexdeploy.reports.tiles import kernel_pixels, png, scale_of, tile
from alexdeploy.training.events import EpochRecord, StepRecord
from alexdeploy.training.log import log_path, read_log, read_steps, steps_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_POINTS = 2000
"""Of the curve of single steps; more are averaged."""

_MAX_CLASSES = 25

_CHOSEN = (
    "The best epoch was chosen by its error on these same validation images, so on new photographs the error is likely "
    "to be higher. Measure it on images that had no part in training: alexdeploy evaluate."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What only the process that trained knows at the end of a run.

    `samples` are the first views that the network learned from, uint8 [N, S, S, 3], RGB; `kernels` those of conv1 in
    the best epoch, float32 [C, 3, K, K]. `num_images` and `num_errors`, int64 [classes], are validation images and
    those whose best answer of ten views is wrong.
    """

    spec: ModelSpec
    samples: NDArray[np.uint8]
    kernels: NDArray[np.float32]
    num_images: NDArray[np.int64]
    num_errors: NDArray[np.int64]


def can_write_report() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_report(folder: ModelFolder, found: RunSummary) -> None:
    """Write `checkpoints/curves.png` and `checkpoints/report.html`. Needs matplotlib. Raises OutputError."""
    records = read_log(log_path(folder))
    facts: dict[str, Any] = dict(found.spec.provenance)
    curves = _Curves(records, list(read_steps(steps_path(folder))), facts)
    with page.drawing():
        drawn = page.new_figure(10.5, 6.4)
        for axes, name in zip(drawn.subplots(2, 2).flat, curves.panels, strict=True):
            curves.draw(axes, name)
        page.save_figure(drawn, folder.checkpoints / "curves.png", title="Curves")
        panels = []
        for name, caption in curves.panels.items():
            drawn = page.new_figure(5.4, 3.3)
            curves.draw(drawn.subplots(), name)
            panels.append(page.figure(drawn, title=name, caption=caption))
    towers = 1 if found.spec.architecture is None else found.spec.architecture.towers
    kernels = draw_kernels(found.kernels, towers)
    parts = [
        page.paragraph(_summary(facts)),
        page.paragraph(_CHOSEN),
        page.heading("Errors"),
        _errors(found, facts),
        page.heading("Curves"),
        page.columns(*panels),
        page.heading("Worst classes"),
        _worst_classes(found),
        page.heading("What the network saw"),
        picture(png(tile(found.samples)), name="views of training photographs", kind="png"),
        page.paragraph(
            "The first views of the first batch: cut at random, mirrored, with noise along the axes of the colours, "
            "before the mean is subtracted."
        ),
        page.heading("Kernels of conv1"),
        picture(png(kernels), name="kernels of conv1 in the best epoch", kind="png"),
        page.paragraph("In the best epoch; each kernel on its own scale, each tower in a block of its own."),
        page.heading("What was trained, and on what"),
        page.table([], [[key.replace("_", " "), _shown(value)] for key, value in facts.items() if value is not None]),
    ]
    page.write_page(folder.checkpoints / "report.html", f"{found.spec.name}: training", parts)


def draw_kernels(kernels: NDArray[np.float32], towers: int) -> NDArray[np.uint8]:
    """Kernels [C, 3, K, K] as tiles, uint8 [H, W, 3], each tower in a block of its own."""
    return tile(kernel_pixels(kernels), towers=towers, scale=scale_of(kernels.shape[-1]))


def _shown(value: object) -> object:
    """A fact as the page has it; an error computed as 1 - accuracy has digits that mean nothing."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _summary(facts: dict[str, Any]) -> str:
    return (
        f"{facts['num_epochs']:,} epochs of {facts['num_train']:,} training images; the weights are those of epoch "
        f"{facts['best_epoch']:,}. Brackets and bands are 95 % intervals, from {facts['num_val']:,} validation images."
    )


def _errors(found: RunSummary, facts: dict[str, Any]) -> str:
    num_val = facts["num_val"]

    def cell(error: float) -> str:
        low, high = wilson_interval(round(error * num_val), num_val)
        return f"{error:.2%} [{low:.2%}, {high:.2%}]"

    names = ["top1", "top5"] if has_top5(found.spec.num_classes) else ["top1"]
    rows = [
        [views, *(cell(facts[f"val_{name}_error{key}"]) for name in names)]
        for views, key in (("one view", ""), ("ten views", "_10_views"))
    ]
    header = ["views", *(f"{name[:3]}-{name[3:]} error" for name in names)]
    return page.table(header, rows, numbers=range(1, len(header)))


def _worst_classes(found: RunSummary) -> str:
    rows: list[list[object]] = []
    for index in np.argsort(-found.num_errors / np.maximum(found.num_images, 1), kind="stable")[:_MAX_CLASSES]:
        errors, images = int(found.num_errors[index]), int(found.num_images[index])
        if images:
            low, high = wilson_interval(errors, images)
            interval = f"[{low:.1%}, {high:.1%}]"
            rows.append([found.spec.classes[index], images, errors, f"{errors / images:.1%}", interval])
    header = ["class", "images", "errors", "error", "95 % interval"]
    shown = page.table(header, rows, numbers=(1, 2, 3, 4), is_sortable=True)
    return shown + page.paragraph(f"With ten views; the {len(rows):,} classes with the largest error.")


class _Curves:
    """What the log says of each epoch, as plots against the epoch."""

    def __init__(self, records: tuple[EpochRecord, ...], steps: list[StepRecord], facts: dict[str, Any]) -> None:
        self._records = records
        self._steps = steps
        self._best_epoch: int = facts["best_epoch"]
        self._num_val: int = facts["num_val"]
        self.panels = {
            "loss": f"The dotted line is the best epoch, {self._best_epoch:,}.",
            "top-1 error": "The training error is that of the augmented views, with dropout and before each step, and "
            "may therefore be above the validation error.",
            "learning rate": "Of the weights.",
            "images/s": "Of the whole epoch, with validation and checkpoints left out.",
        }
        """Names of the plots, and what to know to read them."""

    def draw(self, axes: Axes, name: str) -> None:
        """Draw one of `panels`."""
        if name == "loss":
            if self._steps:
                axes.plot(*_step_curve(self._steps), color=page.GREY, linewidth=0.6, alpha=0.6, label="training, steps")
            self._line(axes, "loss", page.ORANGE, "training")
            self._line(axes, "val_loss", page.BLUE, "validation")
        elif name == "top-1 error":
            self._line(axes, "train_top1_error", page.ORANGE, "training")
            self._line(axes, "val_top1_error", page.BLUE, "validation")
            counts = [round(record.val_top1_error * self._num_val) for record in self._records]
            lows, highs = zip(*(wilson_interval(count, self._num_val) for count in counts), strict=True)
            epochs = [record.epoch for record in self._records]
            axes.fill_between(epochs, lows, highs, color=page.BLUE, alpha=0.15, linewidth=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        elif name == "learning rate":
            self._line(axes, "learning_rate", page.GREEN)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda _value, _: "")
        else:
            self._line(axes, "images_per_second", page.AMBER)
            axes.set_ylim(bottom=0)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.axvline(self._best_epoch, color=page.GREY, linestyle=":", linewidth=1)
        axes.locator_params(axis="x", integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()

    def _line(self, axes: Axes, field: str, color: str, label: str | None = None) -> None:
        """One field of the records; those of earlier versions may lack it."""
        known = [(record.epoch, value) for record in self._records if (value := getattr(record, field)) is not None]
        if known:
            marks: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(known) <= 60 else {}
            axes.plot(*zip(*known, strict=True), color=color, label=label, **marks)


def _step_curve(steps: list[StepRecord]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of steps in epochs, and their losses; of more than `_MAX_POINTS` steps, means of neighbours."""
    epochs = np.array([step.epoch for step in steps])
    numbers = np.array([step.step for step in steps])
    places = epochs - 1 + numbers / max(numbers)
    losses = np.array([step.loss for step in steps])
    groups = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_POINTS))
    return np.array([places[group].mean() for group in groups]), np.array([losses[group].mean() for group in groups])
