"""The HTML report of a verification: what differs from the reference, in figures, plots and photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexdeploy.core.csv_text import csv_line
from alexdeploy.core.files import atomic_write
from alexdeploy.evaluation.agreement import FLOORS, REFERENCE_NAMES, Agreement, Verification
from alexdeploy.evaluation.answers import ImageRow, shown_rows
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import card, gallery

_COLOURS = (page.BLUE, page.ORANGE, page.GREEN, page.AMBER, "#CC79A7", "#56B4E9")
_WORDS = ("backend", "precision", "graph", "decoder", "jumps at", "verdict")
_LEAST = 1e-9


def write_report(found: Verification, path: Path | None, plots_folder: Path | None = None) -> None:
    """Write the page to `path`, if it is given; the same verification gives the same bytes. Raises OutputError.

    Into `plots_folder` go its plots as PNG and SVG, and answers.csv: each image with all answers.
    """
    with page.drawing(plots_folder):
        parts = [page.paragraph(_summary(found)), *map(page.paragraph, found.failures), *_tables(found), *_plots(found)]
    parts += _photographs(found)
    if found.broken:
        rows = [(image.source, image.error) for image in found.broken[:200]]
        parts += [page.heading("Could not be read"), page.table(["image", "error"], rows)]
        if len(found.broken) > len(rows):
            parts.append(page.paragraph(f"and {len(found.broken) - len(rows):,} more"))
    facts = [
        ("model", found.model),
        ("reference", f"{REFERENCE_NAMES[found.reference]}, FP32"),
        ("images", found.images),
    ]
    files = {(each.artifact, each.sha256) for each in found.reports}
    parts += [page.heading("What was compared"), page.table([], [*facts, *sorted(files)])]
    if path is not None:
        page.write_page(path, f"{Path(found.model).name}: agreement with FP32", parts)
    if plots_folder is not None:
        write_answers(found, plots_folder / "answers.csv")


def write_answers(found: Verification, path: Path) -> None:
    """A line of CSV for each image: the reference's answer and every engine's. Raises OutputError."""
    fields = ("label", "index", "probability", "differs_most", "difference")
    columns = [f"{field}_{each.backend}_{each.precision}" for each in found.engines for field in fields]
    with atomic_write(path) as file:
        file.write(csv_line(["source", "label", "index", "probability", *columns]).encode())
        for row in found.rows:
            cells: list[object] = [row.source, row.expected.label, row.expected.index, row.expected.probability]
            for each in row.answers:
                given = None if each is None else each.answer
                cells += [None] * 3 if given is None else [given.label, given.index, given.probability]
                cells += [None] * 2 if each is None else [each.label, each.difference]
            file.write(csv_line(cells).encode())


def _summary(found: Verification) -> str:
    views = f"{found.num_views} view{'' if found.num_views == 1 else 's'}"
    words = f"{found.num_images:,} of {found.num_found:,} images of {found.images}, {views} each, against "
    words += f"{REFERENCE_NAMES[found.reference]} in FP32. {found.max_flips:.3g} % of the answers may differ: "
    verdict = f"{len(found.failures)} of {found.num_comparisons} comparisons failed."
    return words + (verdict if found.failures else f"none of {found.num_comparisons} comparisons failed.")


def _tables(found: Verification) -> list[str]:
    parts = []
    if found.engines:
        rows = [
            {
                "backend": each.backend,
                "precision": each.precision,
                **_figures(each.agreement),
                "verdict": _verdict(each.failure),
            }
            for each in found.engines
        ]
        parts += [page.heading("Engines, from pixels to probabilities"), _table(rows)]
    if found.networks:
        rows = [
            {
                "graph": each.artifact,
                **_figures(each.agreement),
                "jumps at": each.jump or "",
                "verdict": _verdict(each.failure),
            }
            for each in found.networks
        ]
        parts += [page.heading("Graphs, each alone in ONNX Runtime: logits of a view"), _table(rows)]
    if (decoders := found.decoders) is not None:
        row = {
            "decoder": decoders.decoder,
            "same pixels": f"{decoders.num_identical:,}",
            **_figures(decoders.agreement),
            "verdict": _verdict(decoders.failure),
        }
        parts += [page.heading("Decoders"), _table([row])]
    words = "Changed: answers that are not the reference's. Margin: how much more probable the reference held its own "
    words += "answer, near 0 a coin toss. Errors are absolute."
    return [*parts, page.paragraph(words)]


def _table(rows: Sequence[dict[str, str]]) -> str:
    """A column for each key but those that are empty in all rows."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    numbers = [column for column, name in enumerate(names) if name not in _WORDS]
    return page.table(names, [[row[name] for name in names] for row in rows], numbers=numbers)


def _verdict(failure: str | None) -> str:
    return "FAILS" if failure else "ok"


def _figures(agreement: Agreement) -> dict[str, str]:
    changed = f"{agreement.num_flips:,} of {agreement.num_rows:,}"
    if agreement.num_non_finite:
        changed = f"{agreement.num_non_finite:,} of {agreement.num_rows:,} not finite"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    return {
        "changed": changed,
        "margin, median": number(agreement.median_margin, ".2g"),
        "margin, most": number(agreement.max_margin, ".2g"),
        "top 5 kept": number(agreement.top5_overlap, ".1%"),
        "mean error": number(agreement.mean_error, ".1e"),
        "max error": number(agreement.max_error, ".1e"),
    }


def _plots(found: Verification) -> list[str]:
    figures = []
    if found.engines:
        figures += [_agreement(found), _differences(found)]
    if any(each.layers for each in found.networks):
        figures.append(_layers(found))
    return [page.heading("Where they agree, and where not"), page.columns(*figures)] if figures else []


def _agreement(found: Verification) -> str:
    names = [f"{found.reference} fp32", *(f"{each.backend} {each.precision}" for each in found.engines)]
    given = np.array(
        [
            [row.expected.index, *(-1 if each is None else each.answer.index for each in row.answers)]
            for row in found.rows
        ]
    )
    shares = 100 * (given[:, :, None] == given[:, None, :]).mean(axis=0)
    size = max(2.4, min(0.55 * len(names), 4.4))
    drawn = page.new_figure(size + 2.2, size + 1.2)
    axes = drawn.add_subplot()
    axes.pcolormesh(shares, cmap=page.blues(), vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    centres = np.arange(len(names)) + 0.5
    axes.set_xticks(centres, names, rotation=90)
    axes.set_yticks(centres, names)
    axes.set(aspect="equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if len(names) <= 12:
        for row, column in np.ndindex(shares.shape):
            color = "white" if shares[row, column] > 55 else "black"
            words = "100" if shares[row, column] == 100 else f"{shares[row, column]:.1f}"
            axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", color=color, fontsize=8)
    return page.figure(
        drawn,
        title="Same answers, pair by pair",
        caption="For how many of the images, in percent, both give the same answer. The first row is the reference.",
    )


def _differences(found: Verification) -> str:
    drawn = page.new_figure(6.6, 4.0)
    axes = drawn.add_subplot()
    for number, (engine, color) in enumerate(zip(found.engines, _COLOURS, strict=False)):
        answers = (row.answers[number] for row in found.rows)
        sizes = sorted(max(abs(each.difference), _LEAST) for each in answers if each is not None)
        shares = 100 * (np.arange(len(sizes)) + 1) / max(len(sizes), 1)
        axes.plot(sizes, shares, color=color, drawstyle="steps-post", label=f"{engine.backend} {engine.precision}")
    axes.set(xscale="log", ylim=(0, 100), xlabel="largest difference of a probability", ylabel="% of the images")
    axes.xaxis.set_major_formatter(_power)
    axes.xaxis.set_minor_formatter("")
    drawn.legend(loc="outside upper center", ncols=3)
    return page.figure(
        drawn,
        title="Differences of probabilities",
        caption="How many images have no probability that differs by more from the reference's. A curve to the left "
        "is closer to it; its upper end is the largest difference of all.",
    )


def _layers(found: Verification) -> str:
    names = list(dict.fromkeys(layer.name for each in found.networks for layer in each.layers))
    drawn = page.new_figure(6.6, 4.0)
    axes = drawn.add_subplot()
    for each, color in zip(found.networks, _COLOURS, strict=False):
        errors = [(names.index(layer.name), layer.rms_error) for layer in each.layers if np.isfinite(layer.rms_error)]
        values = [max(error, _LEAST) for _, error in errors]
        axes.plot([place for place, _ in errors], values, "o-", markersize=4, color=color, label=each.precision)
        axes.axhline(FLOORS[each.precision], color=color, linestyle=":", linewidth=1)
    axes.set(yscale="log", ylabel="RMS of the error over RMS of the output")
    axes.yaxis.set_major_formatter(_power)
    axes.yaxis.set_minor_formatter("")
    step = max(1, len(names) // 40)
    axes.set_xticks(range(0, len(names), step), [page.short_name(name) for name in names[::step]], rotation=90)
    drawn.legend(loc="outside upper center", ncols=3)
    return page.figure(
        drawn,
        title="Error of each layer",
        caption="Each graph against the reference, layer by layer. Dotted: what rounding in that precision explains. "
        "An error that merely grows is carried on; one that jumps begins in that layer.",
    )


def _power(value: float, place: float) -> str:
    return f"{value:g}"


def _photographs(found: Verification) -> list[str]:
    if not found.engines:
        return []
    changed, same = shown_rows(found.rows)
    num_changed = sum(row.is_changed for row in found.rows)
    parts = [page.heading("Photographs whose answer changed")]
    if not changed:
        parts.append(page.paragraph("Every engine gives every image the answer of the reference."))
    else:
        parts += [
            page.paragraph(
                f"{num_changed:,} of {found.num_images:,}, the largest difference of a probability first"
                + (f"; {len(changed)} of them:" if len(changed) < num_changed else ".")
            ),
            gallery([_card(found, number, _changed_words(found, found.rows[number])) for number in changed]),
        ]
    if same:
        parts += [
            page.heading("Largest differences without another answer"),
            gallery([_card(found, number, _difference_words(found, found.rows[number])) for number in same]),
        ]
    return parts


def _card(found: Verification, number: int, words: Sequence[str]) -> str:
    return card([found.thumbnails.get(number)], found.rows[number].source, words)


def _expected(found: Verification, row: ImageRow) -> str:
    return f"FP32: <b>{page.text(row.expected.label)}</b> {row.expected.probability:.3f}"


def _changed_words(found: Verification, row: ImageRow) -> list[str]:
    return [
        _expected(found, row),
        *(
            f"{engine.backend} {engine.precision}: <b>{page.text(each.answer.label)}</b> {each.answer.probability:.3f}"
            for engine, each in zip(found.engines, row.answers, strict=True)
            if each is not None and each.answer.index != row.expected.index
        ),
    ]


def _difference_words(found: Verification, row: ImageRow) -> list[str]:
    given = [(engine, each) for engine, each in zip(found.engines, row.answers, strict=True) if each is not None]
    engine, each = max(given, key=lambda pair: abs(pair[1].difference))
    return [
        _expected(found, row),
        f"{engine.backend} {engine.precision}: {page.text(each.label)} {each.difference:+.2g}",
    ]
