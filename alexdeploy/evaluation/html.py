"""The HTML report of an evaluation: tables, and plots that show what tables cannot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from alexdeploy.core.metrics import frequent_confusions, has_top5
from alexdeploy.evaluation.evaluate import Evaluation, describe_exceptions
from alexdeploy.evaluation.scoring import ErrorRate, Score, error_rate
from alexdeploy.reports import page

_MAX_MATRIX = 40
"""Maximum number of classes for a readable confusion matrix; above, the most frequent confusions are listed."""

_MAX_WITH_COUNTS = 15
_MAX_BROKEN = 200
_PANELS_A_ROW = 3


def write_report(found: Evaluation, path: Path) -> None:
    """Write the report to `path`. The same evaluation gives the same bytes. Raises OutputError."""
    first = found.scores[0]
    with page.drawing():
        parts = [
            page.paragraph(_summary(found)),
            *map(page.paragraph, found.notes),
            _score_table(found),
            page.paragraph(
                "ECE is the expected calibration error of the probabilities, 0 to 1, in bins of equal width. images/s "
                "is the engine alone, with decoding beside it on the same processors."
            ),
            page.heading("Error of each configuration"),
            _error_figure(found),
            page.heading("Are the probabilities to be trusted?"),
            _reliability_figure(found),
            page.heading(f"What is taken for what: {first.configuration}"),
            _confusions(found, first),
        ]
        if first.worst_classes:
            parts += [page.heading(f"Worst classes: {first.configuration}"), _worst_figure(first)]
        if len(found.scores) > 1:
            parts += [page.heading(f"What changes against {first.configuration}"), *_flips(found)]
    if found.broken:
        parts += _broken(found)
    parts += [page.heading("What was measured, and on what"), _facts(found)]
    page.write_page(path, f"{found.name}: error on labelled images", parts)


def _summary(found: Evaluation) -> str:
    images = f"{found.num_images:,} images of {len(found.scores[0].classes)} classes from {found.data}"
    return f"{images}{describe_exceptions(found)}. Brackets and error bars are 95 % intervals."


def _score_table(found: Evaluation) -> str:
    with_top5 = has_top5(len(found.classes))
    errors = ["top-1 error", "top-5 error"] if with_top5 else ["top-1 error"]
    header = ["backend", "precision", "views", *errors, "ECE", "images/s"]
    if len(found.scores) > 1:
        header += ["difference", "against", "answers changed"]
    rows = []
    for score in found.scores:
        named = score.configuration
        row = [named.backend, named.precision, str(named.num_views)]
        row += [_rate(rate) for rate in ((score.top1, score.top5) if with_top5 else (score.top1,))]
        row.append("" if score.calibration_error is None else f"{score.calibration_error:.3f}")
        row.append("" if score.images_per_second is None else f"{score.images_per_second:,.1f}")
        if len(found.scores) > 1:
            versus = score.versus
            row += (
                ["", "", ""]
                if versus is None
                else [
                    f"{versus.difference_points:+.2f} points [{versus.low_points:+.2f}, {versus.high_points:+.2f}]",
                    str(versus.base),
                    f"{versus.num_flips:,}",
                ]
            )
        rows.append(row)
    return page.table(header, rows, numbers=range(2, len(header)))


def _rate(rate: ErrorRate) -> str:
    return f"{rate.percent:.2f} % [{rate.low_percent:.2f}, {rate.high_percent:.2f}]"


def _error_figure(found: Evaluation) -> str:
    drawn = page.new_figure(8.5, 1.3 + 0.42 * len(found.scores))
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
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return page.figure(
        drawn,
        title=f"Top-1{' and top-5' if with_top5 else ''} error of each configuration",
        caption="Points are the errors, bars their 95 % intervals: how far another sample of as many images might be. "
        "Configurations saw the same images, so overlapping bars do not mean that they are equal; the difference "
        "against the first, in the table, is the sharper comparison.",
    )


def _reliability_figure(found: Evaluation) -> str:
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


def _confusions(found: Evaluation, score: Score) -> str:
    counts = {(entry.true, entry.predicted): entry.count for entry in score.confusion}
    involved = sorted({index for pair in counts for index in pair})
    if not involved:
        return page.paragraph("No image could be read.")
    if len(involved) > _MAX_MATRIX:
        rows = [
            (found.classes[true], found.classes[predicted], count)
            for true, predicted, count in frequent_confusions(counts, 20)
        ]
        listed = page.table(["class", "taken for", "images"], rows, numbers=(2,))
        return listed + page.paragraph("The most frequent confusions, of the images that could be read.")
    places = {index: place for place, index in enumerate(involved)}
    matrix = np.zeros((len(involved), len(involved)), np.int64)
    for (true, predicted), count in counts.items():
        matrix[places[true], places[predicted]] = count
    totals = matrix.sum(axis=1, keepdims=True)
    # A class that was predicted but has no images is a row of zeros.
    shares = 100 * matrix / np.maximum(totals, 1)
    size = max(3.2, min(0.62 * len(involved), 8.0))
    drawn = page.new_figure(size + 2.2, size + 1.0)
    axes = drawn.add_subplot()
    mesh = axes.pcolormesh(shares, cmap=page.blues(), vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    names = [page.short_name(found.classes[index]) for index in involved]
    centres = np.arange(len(involved)) + 0.5
    axes.set_xticks(
        centres, names, rotation=90 if len(involved) > 8 else 30, ha="center" if len(names) > 8 else "right"
    )
    axes.set_yticks(centres, names)
    axes.set(xlabel="answer", ylabel="true class", aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if len(involved) <= _MAX_WITH_COUNTS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 55 else "black"
            axes.text(
                column + 0.5, row + 0.5, f"{matrix[row, column]:,}", ha="center", va="center", color=color, fontsize=8
            )
    drawn.colorbar(mesh, ax=axes, shrink=0.8, label="% of the true class")
    numbers = " Numbers are images." if len(involved) <= _MAX_WITH_COUNTS else ""
    return page.figure(
        drawn,
        title="Confusion matrix",
        caption=f"Each row is one true class, its colours what its images were taken for; right answers are on the "
        f"diagonal, and a dark field off it is a pair that the model confuses.{numbers} Images that could not be read "
        "are not in it.",
    )


def _worst_figure(score: Score) -> str:
    rows = score.worst_classes
    rates = [error_rate(row.num_errors, row.num_images) for row in rows]
    drawn = page.new_figure(8.0, 0.9 + 0.32 * len(rows))
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


def _flips(found: Evaluation) -> list[str]:
    others = [
        (f"{score.configuration}\nagainst {score.versus.base}", score.versus)
        for score in found.scores
        if score.versus is not None
    ]
    drawn = page.new_figure(8.5, 1.3 + 0.5 * len(others))
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
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    caption = (
        "Images whose answer differs from that of the configuration named below it. Bars of the same length to both "
        "sides cancel in the error, and are changed answers nevertheless; --output FILE names each image."
    )
    parts = [page.figure(drawn, title="Answers that changed", caption=caption)]
    changed = [
        (name, row.name, row.right_to_wrong, row.wrong_to_right, row.wrong_to_wrong)
        for name, versus in others
        for row in sorted(versus.classes, key=lambda row: (-row.right_to_wrong, -row.wrong_to_right, row.name))[:5]
    ]
    if changed:
        header = ["configuration", "class", "right to wrong", "wrong to right", "wrong to wrong"]
        parts += [
            page.paragraph("Where they changed: the classes that lost most, up to five a configuration."),
            page.table(header, changed, numbers=(2, 3, 4)),
        ]
    return parts


def _broken(found: Evaluation) -> list[str]:
    rows = [(image.source, found.classes[image.label], image.error) for image in found.broken[:_MAX_BROKEN]]
    parts = [page.heading("Could not be read"), page.table(["image", "class", "error"], rows)]
    if len(found.broken) > _MAX_BROKEN:
        parts.append(page.paragraph(f"and {len(found.broken) - _MAX_BROKEN:,} more"))
    return parts


def _facts(found: Evaluation) -> str:
    rows: list[tuple[str, object]] = [
        ("model", found.model),
        ("contract", found.contract_sha256),
        *((f"artifact of {score.configuration}", score.artifact) for score in found.scores),
        ("images", found.data),
        *([("labels", found.labels)] if found.labels else []),
        *found.versions.items(),
        *found.machine.items(),
    ]
    return page.table([], rows)
