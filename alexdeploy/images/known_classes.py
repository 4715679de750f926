"""Finding the classes of a model by their names in folders and lists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from alexdeploy.core.errors import DataError
from alexdeploy.images.sources import printable_path

_WNID = re.compile(r"(n\d{8})(?![0-9A-Za-z])")
"""The WordNet id of an ImageNet class, alone or before a description: "n01440764 tench, Tinca tinca"."""


def class_key(name: str) -> str:
    """The key of a class: the WordNet id at the beginning of its name, else the name."""
    match = _WNID.match(name)
    return match[1] if match else name


_NUMBER = re.compile(r"[0-9]{1,9}(?![0-9])")


class KnownClasses:
    """Finds classes by their names in folders and lists."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.names = classes
        self._by_name: dict[str, list[int]] = {}
        self._by_wnid: dict[str, list[int]] = {}
        for index, name in enumerate(classes):
            self._by_name.setdefault(name, []).append(index)
            if match := _WNID.match(name):
                self._by_wnid.setdefault(match[1], []).append(index)
        numbers = [_NUMBER.match(name) for name in classes]
        self._numbers = [int(match[0]) for match in numbers if match]
        self.is_padded = any(match and match[0] == match.string and match[0][0] == "0" != match[0] for match in numbers)
        """Whether a class has a name like 01: then a number that is the name of a class is not an index."""

    def find(self, text: str) -> int | None:
        """The index of a class, None if there is none. Raises DataError if there are several."""
        found = self._by_name.get(text)
        if found is None and (match := _WNID.match(text)):
            found = self._by_wnid.get(match[1])
        if found is not None and len(found) > 1:
            indices = " and ".join(map(str, found))
            raise DataError(
                f"{printable_path(text)!r} is the name of several classes of the model: {indices}",
                hint="Give the labels as indices, in a list: --labels FILE",
            )
        return None if found is None else found[0]

    def numbered_otherwise(self, index: int) -> list[str]:
        """The possible meanings of the number `index` if all names begin with a number and its class with another."""
        if len(self._numbers) < len(self.names) or self._numbers[index : index + 1] == [index]:
            return []
        named = [f"the number of {printable_path(self.names[i])!r}" for i, n in enumerate(self._numbers) if n == index]
        return [f"the index of {printable_path(name)!r}" for name in self.names[index : index + 1]] + named

    def nearest(self, text: str) -> str:
        close = difflib.get_close_matches(text, self.names, n=1)
        return f" (nearest: {close[0]!r})" if close else ""

    def describe(self) -> str:
        shown = ", ".join(map(repr, self.names[:10]))
        return f"The model's classes: {shown}" + (f" and {len(self.names) - 10} more" if len(self.names) > 10 else "")
