"""Texts of a benchmark that the terminal and the HTML page share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alexdeploy.benchmark.results import Picked, Row
from alexdeploy.engines.base import Configuration

_MOST_NAMED = 4
"""How many close alternatives to the pick are listed; the others are counted."""


def errors_of(rows: Sequence[Row]) -> list[str]:
    """One line per error: for a group if all its batches share the error, else for a configuration."""
    by_group: dict[Configuration, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.configuration.group, []).append(row)
    lines = []
    for group, own in by_group.items():
        told = [_told(row) for row in own]
        is_one = len(set(told)) == 1
        named = [(group, told[0])] if is_one else list(zip([row.configuration for row in own], told, strict=True))
        lines += [f"{name}: {error}" for name, error in named if error is not None]
    return lines


def _told(row: Row) -> str | None:
    if row.error is None or row.latency is None:
        return row.error
    rounds = f"{row.num_rounds} round{'' if row.num_rounds == 1 else 's'}"
    return f"failed after {rounds}, whose figures are shown, and is not picked: {row.error}"


def hints_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Hints for fixing the errors, each once."""
    return tuple(dict.fromkeys(row.hint for row in rows if row.hint is not None))


def number(value: float | None, form: str) -> str:
    """A table cell: empty if unknown."""
    return "" if value is None else f"{value:{form}}"


def rate(images_per_second: float | None) -> str:
    """A table cell: more than four digits would vary between rounds."""
    if images_per_second is None:
        return ""
    return f"{images_per_second:,.1f}" if images_per_second < 999.95 else f"{images_per_second:,.0f}"


def spread(rates: Sequence[float]) -> str:
    """The slowest and the fastest round, as a table cell; empty with fewer than two rounds."""
    if len(rates) < 2:
        return ""
    return "-".join(f"{each:.0f}" if each >= 99.95 else f"{each:.1f}" for each in (min(rates), max(rates)))


def confidence_note(picked: Picked) -> str | None:
    """Why a pick may be unreliable; None if its slowest round beat every round of all others."""
    if len(picked.file_rates) < 2:
        return "measured in one round alone: how far its rate varies is not known, and another run may pick another"
    if not picked.close_seconds:
        return None
    behind = 100 * (1 - picked.close_seconds[-1].files_per_second / picked.files_per_second)
    others = [each.configuration for each in picked.close_seconds]
    # All have the same number of views.
    names = ", ".join(f"{each.backend} {each.precision} batch {each.batch_size}" for each in others[:_MOST_NAMED])
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return f"within {max(math.ceil(behind), 1)} % of it, in rounds that overlap its own: {names}{more}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
