"""A result row: one per input, whether or not it could be classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One class of the top k. `probability` is the shortest decimal number that identifies the float32."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A row without its answer: the origin of a row, as every format that can be read back stores it."""

    index: int
    source: str
    num_choices: int
    num_views: int
    model: str | None
    backend: str
    precision: str
    artifact: str
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The answer for one input, or its error.

    `top` is best first. `views_agreeing` counts the views whose own answer is the row's answer. `model` is the name in
    the model's spec, None in rows written by an earlier version. `artifact` is `short_artifact` of the files that ran;
    with several replicas, of all that may have run. Nothing in a row depends on time.
    """

    index: int
    source: str
    top: tuple[Choice, ...] = ()
    views_agreeing: int | None = None
    num_views: int
    model: str | None = None
    backend: str
    precision: str
    artifact: str
    error: str | None = None

    @property
    def label(self) -> str | None:
        return self.top[0].label if self.top else None

    @property
    def probability(self) -> float | None:
        return self.top[0].probability if self.top else None

    @property
    def record(self) -> Record:
        return Record(
            index=self.index,
            source=self.source,
            num_choices=len(self.top),
            num_views=self.num_views,
            model=self.model,
            backend=self.backend,
            precision=self.precision,
            artifact=self.artifact,
            error=self.error,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields under the names and in the order of every nested format."""
        return {
            "index": self.index,
            "source": self.source,
            "label": self.label,
            "probability": self.probability,
            "top": [
                {"label": choice.label, "index": choice.index, "probability": choice.probability} for choice in self.top
            ],
            "views_agreeing": self.views_agreeing,
            "num_views": self.num_views,
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "artifact": self.artifact,
            "error": self.error,
        }

    def to_json(self) -> bytes:
        """One line of UTF-8 JSON without newlines inside or at its end."""
        return msgspec.json.encode(self.to_dict())

    @staticmethod
    def from_json(line: bytes) -> Row:
        """Parse the output of `to_json`. Raises msgspec.DecodeError (a ValueError) for anything else."""
        return _ROW_DECODER.decode(line)


_ROW_DECODER = msgspec.json.Decoder(Row)
