"""Whether all processes of a run were asked for the same."""

from __future__ import annotations

from typing import Any

from alexdeploy.core.errors import UsageError
from alexdeploy.training.parallel import ProcessGroup


def check_same_everywhere(group: ProcessGroup, facts: dict[str, Any]) -> None:
    """Raise UsageError, with the same message in every process, if `facts` differ from those of rank 0."""
    first, *others = group.gather(facts)
    for rank, found in enumerate(others, start=1):
        changes = [
            f"{key} is {first.get(key)!r} in process 0, {found.get(key)!r} in process {rank}"
            for key in sorted(first.keys() | found.keys())
            if found.get(key) != first.get(key)
        ]
        if changes:
            raise UsageError(
                "not all processes are asked for the same: " + "; ".join(changes),
                hint="Give every machine the same options and the same images.",
            )
