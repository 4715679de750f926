"""Weights by layer from a pickled .npy, as caffe-tensorflow writes it (bvlc_alexnet.npy), without running its code.

The file is a zero-dimensional NumPy array that contains a dictionary: layer -> [weights, biases], or layer ->
{"weights": ..., "biases": ...}. Convolutions are [H, W, in / groups, out], fully connected layers [in, out]. The inputs
of the first fully connected layer are in the order H, W, channels, as TensorFlow flattens an image.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.importing.state_dict import StateDict

MAGIC = b"\x93NUMPY"

_MAX_OPCODES = 100_000
"""Limit for a pickle, which needs about a hundred per layer. Without it, each byte could create a fifty-byte object."""

_HINT = "Load the file where it is trusted, and save the weights as .safetensors."


class _Dtype:
    """Replaces numpy.dtype: a kind and a size, and the byte order that a pickle sets afterwards."""

    __slots__ = ("_kind", "_order")

    def __init__(self, kind: object) -> None:
        self._kind, self._order = _text(kind), "|"

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2):
            raise ValueError("a type without a byte order")
        self._order = _text(state[1])

    @property
    def is_object(self) -> bool:
        return self._kind in ("O", "O4", "O8")

    def numbers(self) -> np.dtype[Any]:
        if self._kind not in ("f2", "f4", "f8") or self._order not in ("<", ">", "=", "|"):
            raise ValueError(f"numbers of type {self._order}{self._kind}; expected f2, f4 or f8")
        return np.dtype((self._order if self._order != "|" else "<") + self._kind)


class _Array:
    """Replaces numpy.ndarray. `value` is the array, or the list of objects of an object array."""

    __slots__ = ("value",)

    def __setstate__(self, state: object) -> None:
        # (version, shape, type, whether in Fortran order, bytes or a list)
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[1], tuple)):
            raise ValueError("an array of unknown form")
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an array of unknown type or shape")
        if dtype.is_object and isinstance(data, list):
            self.value: Any = data
            return
        numbers = dtype.numbers()
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * numbers.itemsize:
            raise ValueError(f"an array of {list(shape)} with another number of bytes")
        self.value = np.frombuffer(data, numbers).reshape(shape, order="F" if is_fortran else "C")


def _globals() -> dict[tuple[str, str], object]:
    """The only globals a pickle may use. Created for each file, since a pickle can set attributes on them."""

    def reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
        return _Array()

    def dtype(kind: object, _align: object = None, _copy: object = None) -> _Dtype:
        return _Dtype(kind)

    def encode(text: object, encoding: object = "latin1") -> bytes:
        # Python 3 writes bytes this way in a pickle that Python 2 can read.
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError(f"a text encoded as {encoding!r}")
        return text.encode("latin-1")

    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): OrderedDict,
    }


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, source: str) -> None:
        # Python 2 wrote its strings as bytes: names, and the data of arrays.
        super().__init__(file, fix_imports=False, encoding="bytes")
        self._known = _globals()
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise ModelError(
                f"{self._source} is refused: loading it would call {module}.{name}, which weights do not need",
                hint=_HINT,
            )
        return self._known[module, name]


def read_npy_layers(content: bytes, source: str) -> StateDict:
    """The tensors in PyTorch's layout: conv1.weight [O, I, H, W], fc6.weight [O, I] in the order C, H, W, and biases.

    No code in the file is run. Raises ModelError for another kind of file, and for a pickle of anything but arrays.
    """
    layers = _layers(_unpickle(content, source), source)
    tensors: dict[str, NDArray[np.generic]] = {}
    num_maps = 0
    for name, (weight, bias) in layers.items():
        if weight.ndim == 4:
            num_maps = weight.shape[3]
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.ndim == 2:
            weight = weight.T
            if num_maps:
                weight = _channels_first(weight, num_maps, name, source)
            num_maps = 0
        else:
            raise ModelError(f"{source}: {name} has weights of {list(weight.shape)}; expected four dimensions or two")
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return tensors


def _channels_first(weight: NDArray[Any], num_maps: int, name: str, source: str) -> NDArray[Any]:
    """[O, H * W * C] -> [O, C * H * W], as PyTorch and Caffe flatten the C maps of the last convolution."""
    side = math.isqrt(weight.shape[1] // num_maps)
    if side * side * num_maps != weight.shape[1]:
        raise ModelError(
            f"{source}: {name} has {weight.shape[1]} inputs; expected {num_maps} maps of as many rows as columns"
        )
    planes = weight.reshape(len(weight), side, side, num_maps).transpose(0, 3, 1, 2)
    return planes.reshape(len(weight), -1)


def _unpickle(content: bytes, source: str) -> object:
    """The object in the array of a .npy. Raises ModelError."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.kind != "O" or math.prod(shape) != 1:
            raise ModelError(
                f"{source} holds {dtype} {list(shape)}; expected a dictionary of layers, as bvlc_alexnet.npy is",
                hint="Give a mean image together with the weights: --mean-image FILE",
            )
        start = file.tell()
        _check_size(file)
        file.seek(start)
        array = _Unpickler(file, source).load()
        if not isinstance(array, _Array) or not isinstance(array.value, list) or len(array.value) != 1:
            raise ValueError("it contains no array of one object")
        return array.value[0]
    except ModelError:
        raise
    # The header and pickle readers raise UnpicklingError, ValueError, EOFError, TypeError ...
    except Exception as exc:
        raise ModelError(f"{source} cannot be read as weights by layer: {first_line(exc)}", hint=_HINT) from exc


def _check_size(pickled: io.BytesIO) -> None:
    """Raise ValueError for a pickle that would use much more memory than its size."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        # The memo index, up to which the unpickler allocates a table.
        place = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else 0
        if max(count, place or 0) > _MAX_OPCODES:
            raise ValueError(f"its pickle has more than {_MAX_OPCODES:,} operations or objects")


def _layers(value: object, source: str) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Name -> weights and biases, in the order of the network."""
    layers: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    try:
        if not isinstance(value, Mapping):
            raise ValueError(type(value).__name__)
        for key, entry in value.items():
            if isinstance(entry, Mapping):
                named = {_text(kind): array for kind, array in entry.items()}
                entry = [named.pop("weights"), named.pop("biases"), *named]
            weight, bias = (each.value for each in entry)
            if not isinstance(weight, np.ndarray) or not isinstance(bias, np.ndarray):
                raise ValueError("no numbers")
            layers[_text(key)] = (weight, bias)
    except (KeyError, ValueError, TypeError, AttributeError) as exc:
        raise ModelError(
            f"{source} contains no weights by layer; expected a dictionary: layer -> [weights, biases]", hint=_HINT
        ) from exc
    # Sorted as conv1 ... conv5, fc6 ...: a Python 2 dictionary has no order.
    return dict(sorted(layers.items(), key=lambda layer: (layer[1][0].ndim != 4, len(layer[0]), layer[0])))


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError(f"a name of type {type(value).__name__}")
    return value
