"""Variables of a .mat file as plain Python objects: MATLAB 5 to 7 through SciPy, 7.3 (HDF5) through h5py."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from alexdeploy.core.errors import AlexDeployError, ModelError, first_line
from alexdeploy.core.matfile import is_mat_file, read_variables
from alexdeploy.core.packages import missing_package

if TYPE_CHECKING:
    import h5py

_HDF5 = b"\x89HDF\r\n\x1a\n"
_SMALL_BYTES = 16 << 20
_MAX_VALUES = 100_000
_MAX_DEPTH = 32


def is_matlab(head: bytes) -> bool:
    """Whether a file that begins with `head`, at least 1,024 bytes, is a MATLAB file of version 5 or newer."""
    return is_mat_file(head) or (head.startswith(b"MATLAB 7.3") and _HDF5 in head)


def read_matlab(content: bytes, names: Collection[str], source: str) -> dict[str, Any]:
    """The variables of a .mat named in `names`, as far as they exist, in the form of `read_variables`.

    Uses at most a small multiple of the file's size in memory. Raises UsageError without SciPy or h5py, and ModelError
    for a file that is damaged, of another kind, or compressed to a small part of its content.
    """
    max_bytes = 4 * len(content) + _SMALL_BYTES
    try:
        if content.startswith((_HDF5, b"MATLAB 7.3")):
            return _read_hdf5(content, names, max_bytes)
        return read_variables(content, names, max_bytes)
    except AlexDeployError:
        raise
    except ImportError as exc:
        raise missing_package("h5py", f"{source} is a MATLAB 7.3 file: reading it", "matlab") from exc
    # On damaged files h5py raises almost any exception; MatError is a ValueError.
    except Exception as exc:
        raise ModelError(f"{source} cannot be read as a MATLAB file: {first_line(exc)}", hint="Get it again.") from exc


def _read_hdf5(content: bytes, names: Collection[str], max_bytes: int) -> dict[str, Any]:
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        reader = _Hdf5Reader(file, max_bytes)
        return {name: reader.read_member(file, name, 0) for name in names if name in file}


class _Hdf5Reader:
    """Reads MATLAB's groups and data sets, if stored in the file itself, up to `max_bytes` in total."""

    def __init__(self, file: h5py.File, max_bytes: int) -> None:
        self._file = file
        self._left = max_bytes
        self._num_values = 0

    def read_member(self, group: Any, name: str, depth: int) -> Any:
        import h5py

        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link to another place")
        return self._read(group[name], depth)

    def _read(self, node: Any, depth: int) -> Any:
        import h5py

        self._num_values += 1
        if self._num_values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_VALUES:,} values, or values nested deeper than {_MAX_DEPTH}")
        if isinstance(node, h5py.Group):
            return self._read_struct(node, depth)
        if not isinstance(node, h5py.Dataset):
            return None
        matlab_class = _text(node.attrs.get("MATLAB_class", b""))
        if "MATLAB_empty" in node.attrs:
            # An empty array stores its shape in place of values.
            return {"char": "", "cell": [], "struct": []}.get(matlab_class, np.zeros((0, 0)))
        if h5py.check_ref_dtype(node.dtype) is h5py.Reference:
            return [self._read(self._file[each], depth + 1) for each in np.ravel(self._load(node))]
        if node.dtype.kind not in "fiub":
            return None
        # HDF5 has the axes in the opposite order.
        values = self._load(node).T
        return values.astype("<u2").tobytes(order="F").decode("utf-16-le") if matlab_class == "char" else values

    def _read_struct(self, group: Any, depth: int) -> Any:
        """A struct is a group of its fields; in an array of structs, each field has references to the values."""
        import h5py

        fields = {name: self.read_member(group, name, depth + 1) for name in group}
        is_array = bool(fields) and all(
            isinstance(group[name], h5py.Dataset) and not group[name].attrs.get("MATLAB_class") for name in group
        )
        if not is_array:
            return fields
        return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]

    def _load(self, node: Any) -> np.ndarray[Any, Any]:
        if node.external or node.is_virtual:
            raise ValueError(f"{node.name} has its values in another file")
        self._left -= node.size * node.dtype.itemsize
        if self._left < 0:
            raise ValueError("it expands to much more than its own size")
        return np.asarray(node[()])


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
