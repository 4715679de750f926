"""The Linux control groups of this process, which have a container's limits: versions 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeVar

PROC = Path("/proc")

_T = TypeVar("_T")


class ControlGroup(NamedTuple):
    """A group in the hierarchy that limits a resource. The limits of all groups around a process apply."""

    version: Literal[1, 2]
    folder: Path

    def read(self, name: str) -> str:
        """Raises OSError if the group does not have the file, as for the root of version 2."""
        return (self.folder / name).read_text()


def control_groups(controller: Literal["cpu", "memory"], proc: Path = PROC) -> Iterator[ControlGroup]:
    """The visible groups around this process, innermost first; none on systems other than Linux.

    If both versions are mounted, a controller is in only one of them. See cgroups(7) and proc_pid_mountinfo(5).
    """
    found: dict[Literal[1, 2], Iterator[ControlGroup]] = {}
    with suppress(OSError, ValueError):
        paths = dict(_paths(proc))
        for line in (proc / "self/mountinfo").read_text().splitlines():
            mount, _, source = line.partition(" - ")
            kind, _, options = source.split(" ", 2)
            root, folder = map(_unescape, mount.split(" ")[3:5])
            if kind == "cgroup" and controller in options.split(",") and controller in paths:
                found[1] = _upward(1, folder, root, paths[controller])
            elif kind == "cgroup2" and "" in paths:
                found[2] = _upward(2, folder, root, paths[""])
    yield from found.get(1) or found.get(2) or ()


def group_limits(controller: Literal["cpu", "memory"], read: Callable[[ControlGroup], _T], proc: Path) -> list[_T]:
    """The results of `read` for each group around this process, except where it raises OSError or ValueError."""
    limits = []
    for group in control_groups(controller, proc):
        with suppress(OSError, ValueError):
            limits.append(read(group))
    return limits


def _paths(proc: Path) -> Iterator[tuple[str, str]]:
    """Controller -> the group of this process in its hierarchy; "" stands for version 2."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _upward(version: Literal[1, 2], folder: str, root: str, path: str) -> Iterator[ControlGroup]:
    # In a container, its own group may be the root of the mount, while the path is the one outside.
    inside = PurePosixPath(path)
    with suppress(ValueError):
        inside = PurePosixPath("/") / inside.relative_to(root)
    if ".." in inside.parts:
        # The path is outside of what this process can see.
        inside = PurePosixPath("/")
    for group in (inside, *inside.parents):
        yield ControlGroup(version, Path(folder) / group.relative_to("/"))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
