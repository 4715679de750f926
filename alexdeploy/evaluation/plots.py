"""The plots of an evaluation's page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from alexdeploy.core.metrics import has_top5
from alexdeploy.evaluation.precision_recall import MIN_PROBABILITY, Curve
from alexdeploy.evaluation.results import Evaluation
from alexdeploy.evaluation.scoring import Comparison, Score, error_rate
from alexdeploy.reports import page

MAX_MATRIX = 40
"""Maximum number of classes for a readable confusion matrix; above, the most frequent confusions are listed."""

_MAX_WITH_COUNTS = 15
_PANELS_A_ROW = 2
_WIDTH = 6.6
"""In inches: half of a wide page."""
_COLOURS = (page.BLUE, page.ORANGE, page.GREEN, page.AMBER, "#CC79A7", "#56B4E9")


def errors(found: Evaluation) -> str:
    """The error of each configuration with its interval."""
    drawn = page.new_figure(_WIDTH, 1.3 + 0.42 * len(found.scores))
    axes = drawn.add_subplot()
    series = [(-0.12, page.BLUE, "o", "top-1", [score.top1 for score in found.scores])]
    if with_top5 := has_top5(len(found.classes)):
        series.append((0.12, page.ORANGE, "s", "top-5", [score.top5 for score in found.scores]))
    for offset, color, marker, name, rates in series:
        percents = [rate.percent for rate in rates]
        axes.errorbar(
            percents,
            [row + offset for row in range(len(rates))],
            xerr=[
                [rate.percent - rate.low_percent for rate in rates],
                [rate.high_percent - rate.percent for rate in rates],
            ],
            fmt=marker,
            color=color,
            capsize=3,
            clip_on=False,
            label=name,
        )
    axes.set_yticks(range(len(found.scores)), [str(score.configuration) for score in found.scores])
    axes.set_ylim(len(found.scores) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("error, % of all images")
    axes.grid(axis="y", visible=False)
    if with_top5:
        drawn.legend(loc="outside upper center", ncols=2)
    return page.figure(
        drawn,
        title=f"Top-1{' and top-5' if with_top5 else ''} error of each configuration",
        caption="Points are the errors, bars their 95 % intervals: how far another sample of as many images might be. "
        "Configurations saw the same images, so overlapping bars do not mean that they are equal; the difference "
        "against the first, in the table, is the sharper comparison.",
    )


def worst_classes(score: Score) -> str:
    """The classes with the largest error."""
    rows = score.worst_classes
    rates = [error_rate(row.num_errors, row.num_images) for row in rows]
    drawn = page.new_figure(_WIDTH, 0.9 + 0.32 * len(rows))
    axes = drawn.add_subplot()
    percents = [rate.percent for rate in rates]
    axes.barh(
        range(len(rows)),
        percents,
        height=0.62,
        color=page.AMBER,
        xerr=[
            [rate.percent - rate.low_percent for rate in rates],
            [rate.high_percent - rate.percent for rate in rates],
        ],
        ecolor="#333333",
        capsize=3,
    )
    names = [f"{page.short_name(row.name)}  ({row.num_errors:,} of {row.num_images:,})" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlim=(0, 100), xlabel="top-1 error, % of the class")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return page.figure(
        drawn,
        title="Classes with the largest error",
        caption="The classes with the largest error, with their 95 % intervals: a class of few images has a wide one, "
        "and its place in this order may be chance.",
    )


def reliability(found: Evaluation) -> str:
    """The share of right answers by their probability."""
    num_rows = math.ceil(len(found.scores) / _PANELS_A_ROW)
    num_columns = min(len(found.scores), _PANELS_A_ROW)
    drawn = page.new_figure(max(2.9 * num_columns + 0.4, 4.6), 2.9 * num_rows + 0.2)
    panels = drawn.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(found.scores) :]:
        panel.set_visible(False)
    for score, panel in zip(found.scores, panels.flat, strict=False):
        bins = [entry for entry in score.reliability if entry.num_images]
        total = sum(entry.num_images for entry in bins)
        panel.bar(
            [(entry.low + entry.high) / 2 for entry in bins],
            [entry.num_images / total for entry in bins],
            width=0.9 / len(score.reliability),
            color="#d0d0d0",
            label="share of images",
        )
        panel.plot([0, 1], [0, 1], color=page.GREY, linestyle="--", linewidth=1, label="perfect")
        panel.plot(
            [entry.confidence for entry in bins],
            [entry.accuracy for entry in bins],
            color=page.BLUE,
            marker="o",
            markersize=4,
            clip_on=False,
            label="share right",
        )
        error = "" if score.calibration_error is None else f"\nECE {score.calibration_error:.3f}"
        panel.set_title(f"{score.configuration}{error}")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        # The panel below, which would have them, may be missing.
        panel.tick_params(labelbottom=True)
    drawn.supxlabel("probability of the answer")
    drawn.supylabel("share of images, 0 to 1")
    handles, names = panels[0, 0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside upper center", ncols=3)
    return page.figure(
        drawn,
        title="Reliability: share of right answers by their probability",
        caption="Answers are put into bins by their probability; a point shows how many of a bin are right. On the "
        "dashed line a probability of 0.8 is right in 8 of 10; below it the model is too sure, above it not sure "
        "enough. Grey bars show how many images a bin has: a point over a small one moves by chance.",
    )


def average_curves(scores: Sequence[Score]) -> str:
    """Precision against recall, averaged over the classes, of the first few configurations."""
    lines = []
    for score, color in zip(scores, _COLOURS, strict=False):
        micro, macro = score.curves[:2]
        lines += [(micro, f"{score.configuration}, micro", color, "-"), (macro, "macro", color, "--")]
    left_out = len(scores) - len(_COLOURS)
    return _precision_recall(
        lines,
        title="Precision against recall, average over the classes",
        caption="From right to left the probability that a class must have to count grows: fewer images of a class are "
        "found (recall), and more of what is found is of it (precision). Micro: every pair of an image and a class "
        "counts the same; macro: every class. AP is the area below a curve. "
        + (f"{left_out} more configurations are in the table. " if left_out > 0 else "")
        + f"Curves end where the probability is {MIN_PROBABILITY:g}.",
    )


def class_curves(score: Score) -> str:
    """Precision against recall of the classes with the lowest and the highest average precision."""
    shown = zip(score.curves[2:], _COLOURS, strict=False)
    lines = [(curve, page.short_name(curve.name), color, "-") for curve, color in shown]
    return _precision_recall(
        lines,
        title="Precision against recall, single classes",
        caption="The classes with the lowest and with the highest average precision (AP), at most three of each; the "
        "table below has all of them. A curve that falls early has images of other classes among its surest.",
    )


def _precision_recall(lines: Iterable[tuple[Curve, str, str, str]], *, title: str, caption: str) -> str:
    drawn = page.new_figure(_WIDTH, 4.0)
    axes = drawn.add_subplot()
    for curve, name, color, style in lines:
        # A class that is never found has no point.
        axes.plot(
            curve.recall,
            curve.precision,
            style,
            color=color,
            label=f"{name}, AP {curve.average_precision:.3f}",
            clip_on=False,
            drawstyle="steps-pre" if curve.index is not None else "default",
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    drawn.legend(loc="outside upper center", ncols=2)
    return page.figure(drawn, title=title, caption=caption)


def confusion_matrix(names: Sequence[str], matrix: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> str:
    """`matrix` int64 [C, C]: how many images of each true class, a row, got each answer."""
    totals = matrix.sum(axis=1, keepdims=True)
    # A class that was predicted but has no images is a row of zeros.
    shares = 100 * matrix / np.maximum(totals, 1)
    size = max(3.2, min(0.62 * len(names), 8.0))
    drawn = page.new_figure(size + 2.2, size + 1.0)
    axes = drawn.add_subplot()
    mesh = axes.pcolormesh(shares, cmap=page.blues(), vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    centres = np.arange(len(names)) + 0.5
    shown = [page.short_name(name) for name in names]
    is_wide = len(names) > 8
    axes.set_xticks(centres, shown, rotation=90 if is_wide else 30, ha="center" if is_wide else "right")
    axes.set_yticks(centres, shown)
    axes.set(xlabel="answer", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if len(names) <= _MAX_WITH_COUNTS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 55 else "black"
            axes.text(
                column + 0.5, row + 0.5, f"{matrix[row, column]:,}", ha="center", va="center", color=color, fontsize=8
            )
    drawn.colorbar(mesh, ax=axes, shrink=0.8, label="% of the true class")
    numbers = " Numbers are images." if len(names) <= _MAX_WITH_COUNTS else ""
    return page.figure(
        drawn,
        title="Confusion matrix",
        caption=f"Each row is one true class, its colours what its images were taken for; right answers are on the "
        f"diagonal, and a strong field off it is a pair that the model confuses.{numbers} Images that could not be "
        "read are not in it.",
    )


def flips(others: Sequence[tuple[str, Comparison]]) -> str:
    """How many answers changed, by their effect, for each named comparison."""
    drawn = page.new_figure(_WIDTH, 1.5 + 0.5 * len(others))
    axes = drawn.add_subplot()
    rows = range(len(others))
    lost = [versus.right_to_wrong for _, versus in others]
    won = [versus.wrong_to_right for _, versus in others]
    other = [versus.wrong_to_wrong for _, versus in others]
    axes.barh(rows, [-count for count in lost], height=0.6, color=page.ORANGE, label="right to wrong")
    axes.barh(rows, won, height=0.6, color=page.BLUE, label="wrong to right")
    axes.barh(rows, other, left=won, height=0.6, color="#d0d0d0", label="wrong to wrong")
    reach = max(1, *lost, *(a + b for a, b in zip(won, other, strict=True)))
    axes.set_xlim(-1.22 * reach, 1.22 * reach)
    for row in rows:
        right = f"{won[row]:,}" + (f" + {other[row]:,}" if other[row] else "")
        for place, words, side in ((-lost[row], f"{lost[row]:,}", "right"), (won[row] + other[row], right, "left")):
            gap = (3 if side == "left" else -3, 0)
            axes.annotate(words, (place, row), gap, textcoords="offset points", ha=side, va="center", fontsize=8)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(rows, [name for name, _ in others])
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.set_xlabel("images: lost to the left; won, and changed without effect, to the right")
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside upper center", ncols=3)
    caption = (
        "Images whose answer differs from that of the configuration named below it. Bars of the same length to both "
        "sides cancel in the error, and are changed answers nevertheless; --output FILE names each image."
    )
    return page.figure(drawn, title="Answers that changed", caption=caption)
