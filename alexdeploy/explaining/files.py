"""Explanations as files: pictures, arrays, one JSON document, and a page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Final

from PIL import Image

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write, check_output, npy_bytes, remove_file
from alexdeploy.engines.base import EngineInfo
from alexdeploy.explaining.explain import ExplainOptions, Explanation
from alexdeploy.explaining.heatmap import Heatmap
from alexdeploy.explaining.overlay import in_words, overlay, panel, scale_of, with_box
from alexdeploy.inference.annotate import file_stem
from alexdeploy.inference.writers import short_artifact
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import picture, thumbnail

DOCUMENT: Final = "explanations.json"
MAX_IMAGES = 100
"""Images in a page; others are counted."""

_MAX_ERRORS = 100
_MAX_TEXT = 300
_STYLE = """
.explained { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.6rem; }
.explained figure { margin: 0; }
.explained .row { display: flex; gap: .4rem; align-items: start; }
.explained .row img { flex: 1 1 0; min-width: 0; max-width: 256px; }
.explained figcaption { overflow-wrap: anywhere; }
"""


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError or OutputError if `folder` is a file, or has explanations and `overwrite` is false."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; expected a folder")
    check_output(folder / DOCUMENT)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"--output {folder} is not empty", hint="Write into it all the same: --overwrite\nOr name another folder."
        )


def remove_document(folder: Path) -> None:
    """Remove an earlier run's document, before its pictures are replaced. Raises OutputError."""
    remove_file(folder / DOCUMENT)


def write_files(explanation: Explanation, folder: Path) -> dict[str, Any]:
    """Write NAME.METHOD.png and NAME.METHOD.npy (float32 [256, 256]) for each method. Raises OutputError.

    Returns the explanation for the JSON document. NAME is the index and the image's name: no two are alike.
    """
    found = []
    for heatmap in explanation.heatmaps:
        name = f"{explanation.index:06}{file_stem(explanation.source)}.{heatmap.method}"
        contents = {f"{name}.png": panel(explanation, heatmap), f"{name}.npy": npy_bytes(heatmap.values)}
        for file_name, data in contents.items():
            with atomic_write(folder / file_name) as file:
                file.write(data)
        found.append(
            {
                "method": heatmap.method,
                "box": list(heatmap.box),
                "peak": list(heatmap.peak),
                "covered_probability": heatmap.covered_probability,
                "largest_drop": heatmap.largest_drop,
                "picture": f"{name}.png",
                "values": f"{name}.npy",
            }
        )
    return {
        "index": explanation.index,
        "source": explanation.source,
        "label": explanation.label,
        "probability": explanation.probability,
        "answer": explanation.answer,
        "answer_probability": explanation.answer_probability,
        "heatmaps": found,
        "error": explanation.error,
    }


def document(model: str, info: EngineInfo, options: ExplainOptions, explanations: list[dict[str, Any]]) -> Any:
    """The JSON document of a run."""
    return {
        "model": model,
        "backend": info.backend,
        "precision": info.precision,
        "num_views": info.num_views,
        "artifact": short_artifact(info.artifact),
        "method": options.method,
        "size": options.size,
        "stride": options.stride,
        "explanations": explanations,
    }


def write_document(found: Any, folder: Path) -> None:
    """Write the document of `document` to `folder`. Raises OutputError."""
    with atomic_write(folder / DOCUMENT) as file:
        file.write(json.dumps(found, indent=2, ensure_ascii=False).encode() + b"\n")


class Page:
    """A page of explanations, the first MAX_IMAGES of them."""

    def __init__(self) -> None:
        self._cards: list[str] = []
        self._errors: list[tuple[int, str, str]] = []
        self._num_images = self._num_errors = 0

    def add(self, explanation: Explanation) -> None:
        """Add one image; it is not kept in memory at its size."""
        if explanation.error is not None or explanation.image is None:
            self._num_errors += 1
            if len(self._errors) < _MAX_ERRORS:
                self._errors.append((explanation.index, explanation.source[-_MAX_TEXT:], str(explanation.error)))
            return
        self._num_images += 1
        if len(self._cards) < MAX_IMAGES:
            self._cards.append(_card(explanation))

    def write(self, path: Path, model: str, info: EngineInfo, options: ExplainOptions) -> None:
        """Write the page. Raises OutputError."""
        views = f"{info.num_views} view{'' if info.num_views == 1 else 's'}"
        what = f"{model}, {info.backend} {info.precision}, {views}, artifact {short_artifact(info.artifact)}"
        parts = [page.paragraph(f"{what}. Orange: evidence for the class. Blue: evidence against it.")]
        if options.method != "grad-cam":
            parts.append(
                page.paragraph(
                    f"Occlusion: a square of {options.size} pixels in the mean colour is moved by {options.stride}; "
                    "the box is where the class loses most."
                )
            )
        if options.method != "occlusion":
            parts.append(page.paragraph("Grad-CAM: the last convolution, FP32; the box is its largest cell."))
        if options.method == "both":
            parts.append(page.paragraph("From the left: the image, occlusion, Grad-CAM."))
        if self._num_images > len(self._cards):
            left = self._num_images - len(self._cards)
            parts.append(page.paragraph(f"The first {len(self._cards)} images; {left:,} others are left out."))
        parts += ['<div class="explained">', *self._cards, "</div>"]
        if self._errors:
            parts += [page.heading("Not explained"), page.table(["index", "image", "error"], self._errors, numbers=[0])]
            if self._num_errors > len(self._errors):
                parts.append(page.paragraph(f"And {self._num_errors - len(self._errors):,} others."))
        page.write_page(path, f"{model}: where the evidence is", parts, style=_STYLE)


def _card(explanation: Explanation) -> str:
    assert explanation.image is not None
    source = explanation.source[-_MAX_TEXT:]
    images = [picture(thumbnail(explanation.image, 256), name=source)]
    words = [f"{_cut(explanation.label)}: {explanation.probability:.3f}"]
    if explanation.answer != explanation.label:
        words.append(f"answered {_cut(explanation.answer)}: {explanation.answer_probability:.3f}")
    for heatmap in explanation.heatmaps:
        images.append(picture(_jpeg(explanation, heatmap), name=f"{heatmap.method}: {source}"))
        if heatmap.covered_probability is not None:
            words.append(f"{in_words(heatmap)}, strongest colour: {scale_of(heatmap):.2f} of log-odds")
    caption = f'{page.text("; ".join(words))}<br><span class="note">{page.text(source)}</span>'
    return f'<figure><div class="row">{"".join(images)}</div><figcaption>{caption}</figcaption></figure>'


def _cut(label: str | None) -> str:
    return (label or "")[:_MAX_TEXT]


def _jpeg(explanation: Explanation, heatmap: Heatmap) -> bytes:
    assert explanation.image is not None
    file = io.BytesIO()
    shown: Image.Image = with_box(overlay(explanation.image, heatmap), heatmap, 256)
    shown.save(file, "JPEG", quality=85, optimize=True)
    return file.getvalue()
