"""The photographs of an evaluation's page, each with its class and answers."""

from __future__ import annotations

from collections.abc import Sequence

from alexdeploy.evaluation.examples import Example
from alexdeploy.evaluation.results import Evaluation
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import card, gallery


def galleries(found: Evaluation) -> list[str]:
    """Headings and photographs: the surest mistakes, mistakes of each class, and answers that changed."""
    first, examples = found.scores[0], found.examples
    parts = [page.heading(f"Photographs: {first.configuration}")]
    if not examples.confident:
        parts.append(page.paragraph("Every answer is right."))
    else:
        parts += [
            page.paragraph(
                "The photographs are shown as the network got them, 256 x 256 pixels before views are cut, at half "
                "their size. Below each are the answer with its probability, the class of its label, and its file."
            ),
            page.heading("The surest mistakes", level=3),
            _gallery(found, examples.confident, [0]),
        ]
    rows = {row.index: row for row in first.classes}
    for each in examples.by_class:
        row = rows[each.index]
        title = f"{row.name}: {row.num_errors:,} of {row.num_images:,} wrong"
        parts += [page.heading(title, level=3), _gallery(found, each.images, [0])]
    left_out = sum(row.num_errors > 0 for row in first.classes) - len(examples.by_class)
    if left_out > 0:
        parts.append(page.paragraph(f"{left_out:,} more classes with mistakes are in the table of all classes."))
    return parts


def changed_galleries(found: Evaluation) -> list[str]:
    """Photographs with another answer than in the configuration that each one is compared with."""
    parts = []
    for each in found.examples.changed:
        versus = found.scores[each.number].versus
        assert versus is not None
        shown = "" if versus.num_flips == len(each.images) else f", {len(each.images)} of {versus.num_flips:,}"
        title = f"{found.scores[each.number].configuration} against {found.scores[each.base].configuration}{shown}"
        parts += [page.heading(title, level=3), _gallery(found, each.images, [each.base, each.number])]
    return parts


def _gallery(found: Evaluation, images: Sequence[Example], numbers: Sequence[int]) -> str:
    return gallery(
        [card([found.thumbnails.get(image.index)], image.source, _words(found, image, numbers)) for image in images]
    )


def _words(found: Evaluation, image: Example, numbers: Sequence[int]) -> list[str]:
    given = [image.answers[number] for number in numbers]
    answers = [
        f"{name}<b>{page.text(found.classes[answer.label])}</b> {answer.probability:.3f}"
        for name, answer in zip(_differing(found, numbers), given, strict=True)
    ]
    return [*answers, f"is {page.text(found.classes[image.label])}"]


def _differing(found: Evaluation, numbers: Sequence[int]) -> list[str]:
    """In what the configurations differ, for each: "int8: ", or "" for one alone."""
    named = [found.scores[number].configuration for number in numbers]
    words = [(each.backend, each.precision, str(each).rsplit(each.precision, 1)[1].strip()) for each in named]
    kept = [place for place in range(3) if len({each[place] for each in words}) > 1]
    return [page.text(" ".join(each[place] for place in kept)) + ": " * bool(kept) for each in words]
