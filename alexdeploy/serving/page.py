"""The page for people: photographs dropped on it are sent to `predict`, and their answers drawn."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.spec import IMAGE_SIZE, Preprocessing
from alexdeploy.engines.base import EngineInfo
from alexdeploy.images.crops import view_boxes


@functools.cache
def page() -> tuple[bytes, Mapping[str, str]]:
    """The page and its headers, whose policy allows its own style and script, by their hashes, and nothing else."""
    html, style, script = (Path(__file__).with_name(f"page.{suffix}").read_bytes() for suffix in ("html", "css", "js"))
    body = html.replace(b"<style></style>", b"<style>%b</style>" % style)
    body = body.replace(b"<script></script>", b"<script>%b</script>" % script)
    policy = (
        "default-src 'none'",
        f"style-src {_source_hash(style)}",
        f"script-src {_source_hash(script)}",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return body, {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _source_hash(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def views_of(view_classes: NDArray[np.integer[Any]], info: EngineInfo, steps: Preprocessing) -> dict[str, Any]:
    """The answer of each view of one image, and where the view lies: what the page draws.

    `view_classes` is [V]. Positions are pixels of the square of `image_size` that the image is resized to; a view is
    `size` pixels wide and high.
    """
    boxes = view_boxes(info.num_views, steps.crop)
    return {
        "resize": steps.resize,
        "image_size": IMAGE_SIZE,
        "size": steps.crop,
        "boxes": [
            {**box._asdict(), "index": int(index), "label": info.classes[index]}
            for box, index in zip(boxes, view_classes, strict=True)
        ],
    }
