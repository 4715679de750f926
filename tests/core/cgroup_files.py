"""The files by which Linux tells a process its control groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_cgroups(
    root: Path,
    *,
    files: Mapping[str, object],
    paths: str = "0::/\n",
    mounts: tuple[tuple[str, str, str], ...] = (("cgroup2", "/", "rw"),),
) -> Path:
    """A folder that stands for /proc. `mounts` are kind, root and options; the first is mounted at `root`/mount-0.

    `files` are relative to `root`; `paths` is the content of /proc/self/cgroup.
    """
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(paths)
    lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
    for number, (kind, group, options) in enumerate(mounts):
        mounted = str(root / f"mount-{number}").replace(" ", r"\040")
        lines.append(
            f"{30 + number} 22 0:{28 + number} {group} {mounted} rw,nosuid shared:{number} - {kind} {kind} {options}"
        )
    (proc / "self" / "mountinfo").write_text("\n".join(lines) + "\n")
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return proc
