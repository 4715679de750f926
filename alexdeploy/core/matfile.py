"""Variables of a .mat file of MATLAB 5 to 7 as plain Python objects, read by SciPy in a separate process.

SciPy recurses into nested cells until the stack overflows, and allocates whatever size a header claims. In a process
with a memory limit, either ends only that process and is reported as an error of the file.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from alexdeploy.core.errors import first_line
from alexdeploy.core.packages import missing_package

_MAX_BYTES = 64 << 20
_MAX_DEPTH = 32
_MAX_SECONDS = 300
"""Far more than a large file needs on a slow machine; a damaged file may put SciPy into an endless loop."""


class MatError(ValueError):
    """The file cannot be read as a .mat file."""


def is_mat_file(head: bytes) -> bool:
    """Whether `read_variables` supports a file that begins with `head`, 128 bytes or more."""
    return head[124:128] == b"\x00\x01IM"


def read_struct(data: bytes, name: str) -> list[dict[str, Any]]:
    """The entries of the struct array `name`: numbers as float, texts as str, everything else as None.

    Raises UsageError without SciPy, and MatError for a file of another type or version, a truncated file, and a file
    without that variable.
    """
    value = read_variables(data, (name,)).get(name)
    if value is None:
        raise MatError(f"no variable {name}")
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MatError(f"{name} is not a struct array")
    return [{field: _simple(value) for field, value in entry.items()} for entry in entries]


def _simple(value: Any) -> float | str | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        return float(value.reshape(-1)[0])
    return value if isinstance(value, str) else None


def read_variables(data: bytes, names: Collection[str], max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The variables in `names` that exist, of at most about `max_bytes` in total (limited only on Linux).

    A struct is a dictionary; an array of structs and a cell array are lists, columns first; a text is a str; numbers
    are an array in MATLAB's shape; everything else is None. Raises UsageError without SciPy, else MatError.
    """
    if not is_mat_file(data[:128]):
        raise MatError("not a MATLAB 5 file with the lowest byte first")
    if importlib.util.find_spec("scipy") is None:
        raise missing_package("scipy", "Reading a MATLAB file", "matlab")
    script = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as it; it.serve({tuple(names)!r}, {max_bytes})"
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=_MAX_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise MatError(f"SciPy did not read it within {_MAX_SECONDS} seconds") from exc
    if done.returncode < 0:
        raise MatError(f"SciPy cannot read it: its process ended with signal {-done.returncode}")
    if done.returncode:
        raise MatError((done.stderr.decode(errors="replace").strip().splitlines() or ["SciPy cannot read it"])[-1])
    # The pickle is written by `serve`, not by the author of the file.
    return dict(pickle.loads(done.stdout))


def serve(names: Collection[str], max_bytes: int) -> None:
    """Run in a separate process: read the file from stdin, and write its variables to stdout as a pickle."""
    from scipy.io import loadmat

    data = sys.stdin.buffer.read()
    # SciPy keeps three copies of decompressed data.
    _limit_memory(3 * max_bytes)
    warnings.simplefilter("error")
    try:
        found = loadmat(io.BytesIO(data), variable_names=list(names), uint16_codec="utf-16-le")
        pickle.dump({name: _plain(found[name], 0) for name in names if name in found}, sys.stdout.buffer, 5)
    except MemoryError:
        sys.exit(f"the file has more than {max_bytes:,} bytes of data, or its headers claim so")
    # SciPy raises many kinds of exceptions on damaged files.
    except Exception as exc:
        sys.exit(first_line(exc))


def _limit_memory(num_bytes: int) -> None:
    """Limit this process to `num_bytes` beyond its current memory. Only on Linux."""
    with suppress(OSError, ImportError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, -1))


def _plain(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise MatError(f"values nested deeper than {_MAX_DEPTH}")
    # SciPy's functions and objects are subclasses of ndarray.
    if type(value) is not np.ndarray:
        return None
    entries = value.ravel(order="F")
    if value.dtype.names is not None:
        structs = [{name: _plain(entry[name], depth + 1) for name in value.dtype.names} for entry in entries]
        return structs[0] if len(structs) == 1 else structs
    if value.dtype.kind == "O":
        return [_plain(entry, depth + 1) for entry in entries]
    if value.dtype.kind == "U":
        return "".join(map(str, entries))
    return value
