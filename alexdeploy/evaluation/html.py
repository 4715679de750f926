"""The HTML report of an evaluation: tables, plots that show what tables cannot, and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alexdeploy.core.metrics import frequent_confusions, has_top5
from alexdeploy.evaluation import plots
from alexdeploy.evaluation.class_table import class_table, write_classes
from alexdeploy.evaluation.galleries import changed_galleries, galleries
from alexdeploy.evaluation.results import Evaluation, describe_exceptions
from alexdeploy.evaluation.scoring import Averages, ErrorRate, Score
from alexdeploy.reports import page

_MAX_BROKEN = 200
_MAX_HALF_MATRIX = 15
"""Maximum number of classes for a confusion matrix on half the width of a page."""


def write_report(found: Evaluation, path: Path | None, plots_folder: Path | None = None) -> None:
    """Write the page to `path`, if it is given; the same evaluation gives the same bytes. Raises OutputError.

    Into `plots_folder` go its plots as PNG and SVG, and classes.csv: the figures of each class in all configurations.
    """
    with page.drawing(plots_folder):
        parts = [
            page.paragraph(_summary(found)),
            *map(page.paragraph, found.notes),
            _score_table(found),
            page.paragraph(
                "Points: difference of the top-1 error; changed: answers. ECE is the expected calibration error of the "
                "probabilities, 0 to 1, in bins of equal width. F1 and mAP, the mean of average precision, are means "
                "over the classes. images/s is the engine alone, with decoding beside it on the same processors."
            ),
            *(_answers(found) if found.num_images > found.num_broken else [page.paragraph(_NOTHING)]),
        ]
    if found.broken:
        parts += _broken(found)
    parts += [page.heading("What was measured, and on what"), _facts(found)]
    if path is not None:
        page.write_page(path, f"{found.name}: error on labelled images", parts)
    if plots_folder is not None:
        write_classes(found, plots_folder / "classes.csv")


_NOTHING = "No image could be read, so there are no answers to show. The reasons are below."


def _answers(found: Evaluation) -> list[str]:
    first = found.scores[0]
    name = first.configuration
    errors = page.heading("Error of each configuration") + plots.errors(found)
    worst = page.heading(f"Worst classes: {name}") + plots.worst_classes(first) if first.worst_classes else ""
    confusions = page.heading(f"What is taken for what: {name}") + _confusions(found, first)
    trust = page.heading("Are the probabilities to be trusted?") + plots.reliability(found)
    # A large matrix needs the whole width.
    is_wide = _MAX_HALF_MATRIX < len(first.classes) <= plots.MAX_MATRIX
    return [
        page.columns(errors, worst),
        *([trust, confusions] if is_wide else [page.columns(trust, confusions)]),
        page.heading("Precision and recall"),
        page.columns(plots.average_curves(found.scores), plots.class_curves(first)),
        *galleries(found),
        *(_changes(found) if len(found.scores) > 1 else []),
        page.heading(f"All classes: {name}"),
        page.paragraph(
            "Precision: the share of the answers with this class that are right. Recall: the share of its images that "
            "got this answer, those that could not be read included. F1: their harmonic mean. AP: average precision, "
            "the area below the curve of precision against recall. A click on a head sorts."
        ),
        class_table(found, first),
    ]


def _summary(found: Evaluation) -> str:
    images = f"{found.num_images:,} images of {len(found.scores[0].classes)} classes from {found.data}"
    return f"{images}{describe_exceptions(found)}. Brackets and error bars are 95 % intervals."


def _score_table(found: Evaluation) -> str:
    with_top5 = has_top5(len(found.classes))
    errors = ["top-1 error %", "top-5 error %"] if with_top5 else ["top-1 error %"]
    header = ["backend", "precision", "views", *errors, "F1", "mAP", "ECE", "images/s"]
    if len(found.scores) > 1:
        header += ["points", "against", "changed"]
    rows = []
    for score in found.scores:
        named = score.configuration
        row = [named.backend, named.precision, str(named.num_views)]
        row += [_rate(rate) for rate in ((score.top1, score.top5) if with_top5 else (score.top1,))]
        row += ["", ""] if score.averages is None else _averages(score.averages)
        row.append("" if score.calibration_error is None else f"{score.calibration_error:.3f}")
        row.append("" if score.images_per_second is None else f"{score.images_per_second:,.1f}")
        if len(found.scores) > 1:
            versus = score.versus
            row += (
                ["", "", ""]
                if versus is None
                else [
                    f"{versus.difference_points:+.2f} [{versus.low_points:+.2f}, {versus.high_points:+.2f}]",
                    str(versus.base),
                    f"{versus.num_flips:,}",
                ]
            )
        rows.append(row)
    return page.table(header, rows, numbers=range(2, len(header)))


def _averages(averages: Averages) -> list[str]:
    return [f"{averages.f1:.3f}", f"{averages.average_precision:.3f}"]


def _rate(rate: ErrorRate) -> str:
    return f"{rate.percent:.2f} [{rate.low_percent:.2f}, {rate.high_percent:.2f}]"


def _confusions(found: Evaluation, score: Score) -> str:
    counts = {(entry.true, entry.predicted): entry.count for entry in score.confusion}
    involved = sorted({index for pair in counts for index in pair})
    if len(involved) > plots.MAX_MATRIX:
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
    return plots.confusion_matrix([found.classes[index] for index in involved], matrix)


def _changes(found: Evaluation) -> list[str]:
    parts = [page.heading(f"What changes against {found.scores[0].configuration}")]
    others = [
        (f"{score.configuration}\nagainst {score.versus.base}", score.versus)
        for score in found.scores
        if score.versus is not None
    ]
    if not any(versus.num_flips for _, versus in others):
        return [*parts, page.paragraph("No answer changed.")]
    changed = [
        (page.lines(name), row.name, row.right_to_wrong, row.wrong_to_right, row.wrong_to_wrong)
        for name, versus in others
        for row in sorted(versus.classes, key=lambda row: (-row.right_to_wrong, -row.wrong_to_right, row.name))[:5]
    ]
    header = ["configuration", "class", "right to wrong", "wrong to right", "wrong to wrong"]
    listed = page.paragraph("Where they changed: the classes that lost most, up to five a configuration.")
    listed += page.table(header, changed, numbers=(2, 3, 4))
    return [*parts, plots.flips(others), listed, *changed_galleries(found)]


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
