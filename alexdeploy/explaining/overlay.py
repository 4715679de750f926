"""Pictures of explanations: the photograph, and beside it the same in grey with the evidence in colour."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.explaining.explain import Explanation
from alexdeploy.explaining.heatmap import Heatmap
from alexdeploy.reports.lettering import fit, font

_FOR, _AGAINST = np.array((213, 94, 0), np.float32), np.array((0, 114, 178), np.float32)
"""Colours that colour-blind readers can distinguish (Okabe and Ito 2008)."""

_STRENGTH = 0.8
"""Opacity of the strongest evidence."""

_FLOOR: Final = 0.01
"""A drop of log-odds below it is no evidence: rounding, in INT8 as well."""

_PANEL, _GAP, _LARGE, _SMALL = 384, 8, 20, 14
_INK, _PALE, _PAPER = (255, 255, 255), (190, 190, 190), (24, 24, 24)


def overlay(image: NDArray[np.uint8], heatmap: Heatmap) -> NDArray[np.uint8]:
    """The image, uint8 [256, 256, 3], in grey, orange where evidence for the class is and blue where it is against it.

    Colours are as strong as the evidence in relation to the strongest of this image.
    """
    grey = np.repeat(np.asarray(Image.fromarray(image).convert("L"), np.float32)[:, :, None], 3, axis=2)
    share = heatmap.values / scale_of(heatmap)
    colour = np.where(share[:, :, None] > 0, _FOR, _AGAINST)
    opacity = _STRENGTH * np.minimum(np.abs(share), 1)[:, :, None]
    return np.asarray(np.rint(grey * (1 - opacity) + colour * opacity), dtype=np.uint8)


def scale_of(heatmap: Heatmap) -> float:
    """The evidence with the strongest colour."""
    strongest = float(np.abs(heatmap.values).max())
    return max(strongest, _FLOOR) if heatmap.method == "occlusion" else strongest or 1.0


def with_box(image: NDArray[np.uint8], heatmap: Heatmap, size: int) -> Image.Image:
    """An image of [256, 256, 3] pixels at `size` x `size`, with the box of the largest evidence."""
    shown = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    factor = size / IMAGE_SIZE
    left, top, right, bottom = (round(each * factor) for each in heatmap.box)
    draw = ImageDraw.Draw(shown)
    # White on black: visible on any picture.
    draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=3)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=(255, 255, 255), width=1)
    return shown


def panel(explanation: Explanation, heatmap: Heatmap) -> bytes:
    """A PNG file: the photograph, its overlay, and a legend with the class and the numbers."""
    assert explanation.image is not None
    assert explanation.label is not None
    width = 2 * _PANEL + _GAP
    sheet = Image.new("RGB", (width, _PANEL + _LARGE + 2 * _SMALL + 4 * _GAP), _PAPER)
    photograph = Image.fromarray(explanation.image).resize((_PANEL, _PANEL), Image.Resampling.BICUBIC)
    sheet.paste(photograph, (0, 0))
    sheet.paste(with_box(overlay(explanation.image, heatmap), heatmap, _PANEL), (_PANEL + _GAP, 0))
    draw = ImageDraw.Draw(sheet)
    probability = f"{explanation.probability:.3f}"
    taken = font(_LARGE).getlength(probability)
    down = _PANEL + _GAP
    draw.text((_GAP, down), fit(explanation.label, _LARGE, _PANEL - taken - 3 * _GAP), _INK, font(_LARGE))
    draw.text((_PANEL - taken - _GAP, down), probability, _INK, font(_LARGE))
    down += _LARGE + _GAP
    for line in (in_words(heatmap), explanation.source):
        text = fit(line, _SMALL, _PANEL - 2 * _GAP, keep_end=line is explanation.source)
        draw.text((_GAP, down), text, _PALE, font(_SMALL))
        down += _SMALL + _GAP
    _legend(sheet, draw, heatmap)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def in_words(heatmap: Heatmap) -> str:
    """What the number behind the box is."""
    if heatmap.covered_probability is None:
        return "Grad-CAM of the last convolution"
    return f"with the box covered: {heatmap.covered_probability:.3f}"


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, heatmap: Heatmap) -> None:
    """A bar of the colours below the overlay, with what they stand for."""
    left, top, width = _PANEL + 2 * _GAP, _PANEL + _GAP + 4, _PANEL - 2 * _GAP
    is_signed = heatmap.method == "occlusion"
    shares = np.linspace(-1 if is_signed else 0, 1, width)[None, :, None]
    colour = np.where(shares > 0, _FOR, _AGAINST)
    opacity = _STRENGTH * np.abs(shares)
    bar = np.repeat(128 * (1 - opacity) + colour * opacity, _LARGE - 6, axis=0)
    sheet.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (left, top))
    scale = scale_of(heatmap)
    words = (f"against: {-scale:.2f}", f"for: {scale:+.2f}") if is_signed else ("none", "most")
    down = top + _LARGE
    draw.text((left, down), words[0], _PALE, font(_SMALL))
    end = left + width - font(_SMALL).getlength(words[1])
    draw.text((end, down), words[1], _PALE, font(_SMALL))
    if is_signed:
        text = "mean loss of log-odds where covered"
        draw.text((left, down + _SMALL + 4), text, _PALE, font(_SMALL))
