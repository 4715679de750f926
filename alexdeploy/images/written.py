"""Recognizing folders that alexdeploy wrote: they may lie among class folders but are not classes."""

from __future__ import annotations

import os
import re

from alexdeploy.images.listing import is_folder, is_hidden, is_image_name
from alexdeploy.images.packed import is_packed
from alexdeploy.images.sample import MANIFEST_NAME, STARTED_NAME
from alexdeploy.images.shapes import CLASSES

_MARKS = frozenset({"spec.json", "last.pt", "log.jsonl", MANIFEST_NAME, STARTED_NAME})
"""Files of a model folder, of its checkpoints, and of the rendered set."""

_RANGES = ".ranges.json"
_PHOTOGRAPH = re.compile(rf"({'|'.join(CLASSES)})-\d\d\.jpg")
_MOST_LEVELS = 3
"""Depth of models/NAME/checkpoints, the deepest."""


def is_written(folder: str) -> bool:
    """Whether alexdeploy wrote `folder`, recognized by its files and not by its name.

    A folder that contains an image does not count, except for the photographs that `train` renders. A folder whose
    sub-folders all count also counts.
    """
    return _is_written(folder, _MOST_LEVELS)


def _is_written(folder: str, levels: int) -> bool:
    inner: list[str] = []
    photographs: set[str] = set()
    has_mark = has_other = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if is_folder(entry):
                    inner.append(entry.path)
                elif match := _PHOTOGRAPH.fullmatch(entry.name):
                    photographs.add(match[1])
                elif is_image_name(entry.name):
                    # Stop here: this may be a large class.
                    return False
                else:
                    has_other = True
                    has_mark = has_mark or entry.name in _MARKS or entry.name.endswith(_RANGES)
    except OSError:
        return False
    if photographs:
        return len(photographs) == len(CLASSES) and not inner and not has_other
    if has_mark or is_packed(folder):
        return True
    return bool(inner) and levels > 1 and all(_is_written(path, levels - 1) for path in inner)
