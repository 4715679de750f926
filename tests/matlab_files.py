"""Networks as MatConvNet saves them: the layouts of its versions, in MATLAB 5 by SciPy and in MATLAB 7.3 by h5py."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import scipy.io

SYNSETS = [f"n0{index}440764" for index in range(7)]
WORDS = ["tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead", "ray", "stingray"]
CONVOLUTIONS = {1: (4, 0), 2: (1, 2), 3: (1, 1), 4: (1, 1), 5: (1, 1)}
"""Stride and padding."""


def average_image(seed: int = 5) -> np.ndarray:
    """[227, 227, 3], RGB."""
    return np.random.default_rng(seed).uniform(90, 130, (227, 227, 3)).astype(np.float32)


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float64)


def cell(*values: Any) -> np.ndarray:
    """A cell array of one row."""
    array = np.empty((1, len(values)), object)
    for index, value in enumerate(values):
        array[0, index] = value
    return array


def filters(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[H, W, I, O] of each layer; fc6 has the 6 x 6 of its input, the others are 1 x 1."""
    result = {}
    for name in (name.removesuffix(".weight") for name in weights if name.endswith(".weight")):
        value = weights[f"{name}.weight"]
        planes = (
            value.reshape(len(value), -1, 6, 6)
            if name == "fc6"
            else value.reshape(*value.shape, *[1] * (4 - value.ndim))
        )
        result[name] = planes.transpose(2, 3, 1, 0)
    return result


def layers(weights: Mapping[str, np.ndarray], *, tidy: bool, pool_first: bool = False) -> list[dict[str, Any]]:
    """The layers of an AlexNet. `tidy` is as vl_simplenn_tidy leaves them, else as the first versions had them."""
    found: list[dict[str, Any]] = []
    kernels = filters(weights)

    def conv(name: str, stride: int, padding: int) -> None:
        arrays = kernels[name], weights[f"{name}.bias"].reshape(1, -1)
        held = {"weights": cell(*arrays)} if tidy else {"filters": arrays[0], "biases": arrays[1]}
        found.append({"name": name, "type": "conv", **held, "pad": row(*[padding] * 4), "stride": row(stride, stride)})

    def pool(index: int) -> None:
        steps = {"pad": row(0, 0, 0, 0), "pool": row(3, 3), "stride": row(2, 2), "method": "max"}
        found.append({"name": f"pool{index}", "type": "pool", **steps})

    def lrn(index: int) -> None:
        kind = "lrn" if tidy else "normalize"
        found.append({"name": f"norm{index}", "type": kind, "param": row(5, 1, 1e-4 / 5, 0.75)})

    for index, (stride, padding) in CONVOLUTIONS.items():
        conv(f"conv{index}", stride, padding)
        found.append({"name": f"relu{index}", "type": "relu", **({"leak": row(0)} if tidy else {})})
        steps = [lrn, pool] if index in (1, 2) else [pool] if index == 5 else []
        for step in reversed(steps) if pool_first else steps:
            step(index)
    for index in (6, 7, 8):
        conv(f"fc{index}", 1, 0)
        if index < 8:
            found.append({"name": f"relu{index}", "type": "relu"})
    found.append({"name": "prob", "type": "softmax"})
    return found


def network(
    weights: Mapping[str, np.ndarray], *, tidy: bool = True, average: np.ndarray | None = None, **options: Any
) -> dict[str, Any]:
    """The variables of a file."""
    normalization = {
        "imageSize": row(227, 227, 3),
        "averageImage": average_image() if average is None else average,
        "interpolation": "bicubic",
        "keepAspect": np.array([[False]]),
        "border": row(29, 29),
    }
    classes = {"name": cell(*SYNSETS), "description": cell(*WORDS)}
    about = {"normalization": normalization, "classes": classes}
    return {"layers": cell(*layers(weights, tidy=tidy, **options)), **({"meta": about} if tidy else about)}


def version_5(variables: Mapping[str, Any], *, compressed: bool = True) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, oned_as="row", do_compression=compressed, long_field_names=True)
    return file.getvalue()


def version_7_3(variables: Mapping[str, Any], **options: Any) -> bytes:
    """As MATLAB lays it out: axes reversed, texts as 16-bit numbers, the values of a cell array under #refs#."""
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as root:
        writer = _Writer(root, options)
        for name, value in variables.items():
            writer.write(root, name, value)
    content = file.getvalue()
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    return header + content[128:]


class _Writer:
    def __init__(self, root: h5py.File, options: Mapping[str, Any]) -> None:
        self._refs = root.create_group("#refs#")
        self._options = options

    def write(self, group: h5py.Group, name: str, value: Any) -> h5py.HLObject:
        if isinstance(value, dict):
            node = group.create_group(name)
            for field, each in value.items():
                self.write(node, field, each)
            kind = "struct"
        elif isinstance(value, str):
            node = group.create_dataset(name, data=np.frombuffer(value.encode("utf-16-le"), "<u2").reshape(-1, 1))
            kind = "char"
        elif value.dtype == object:
            inner = [self.write(self._refs, f"v{len(self._refs)}", each).ref for each in value.ravel(order="F")]
            node = group.create_dataset(name, value.shape[::-1], dtype=h5py.ref_dtype)
            node[...] = np.array(inner, h5py.ref_dtype).reshape(value.shape[::-1])
            kind = "cell"
        else:
            numbers = value.astype(np.uint8) if value.dtype == bool else value
            is_empty = not value.size
            if is_empty:
                # MATLAB stores the sides instead.
                numbers = np.array(value.shape, np.uint64)
            node = group.create_dataset(name, data=numbers.T, **(self._options if value.size > 100 else {}))
            kind = {"b": "logical", "f": "single" if value.dtype == np.float32 else "double"}[value.dtype.kind]
            if is_empty:
                node.attrs["MATLAB_empty"] = np.uint8(1)
        node.attrs["MATLAB_class"] = np.bytes_(kind)
        return node
