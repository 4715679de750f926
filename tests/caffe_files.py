"""Caffe's files, written byte by byte: an encoder of protobuf's wire format that shares nothing with the reader."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

INTS, FLOATS, TEXTS = 0, 5, 2

PARAMETERS = {
    "Convolution": {
        "num_output": (1, INTS), "bias_term": (2, INTS), "pad": (3, INTS), "kernel_size": (4, INTS),
        "group": (5, INTS), "stride": (6, INTS), "kernel_h": (11, INTS), "kernel_w": (12, INTS), "dilation": (18, INTS),
        "pad_h": (9, INTS), "pad_w": (10, INTS), "stride_h": (13, INTS),
    },
    "InnerProduct": {"num_output": (1, INTS), "bias_term": (2, INTS), "axis": (5, INTS), "transpose": (6, INTS)},
    "Pooling": {
        "pool": (1, INTS), "kernel_size": (2, INTS), "stride": (3, INTS), "pad": (4, INTS),
        "global_pooling": (12, INTS), "round_mode": (13, INTS),
    },
    "LRN": {
        "local_size": (1, INTS), "alpha": (2, FLOATS), "beta": (3, FLOATS), "norm_region": (4, INTS), "k": (5, FLOATS),
    },
    "ReLU": {"negative_slope": (1, FLOATS)},
    "Dropout": {"dropout_ratio": (1, FLOATS)},
    "Data": {
        "scale": (1, FLOATS), "mirror": (2, INTS), "crop_size": (3, INTS), "mean_file": (4, TEXTS),
        "mean_value": (5, FLOATS),
    },
    "OldData": {"scale": (2, FLOATS), "mean_file": (3, TEXTS), "batch_size": (4, INTS), "crop_size": (5, INTS)},
    "ImageData": {"scale": (2, FLOATS), "mean_file": (3, TEXTS), "crop_size": (5, INTS)},
}  # fmt: skip
"""Field number and kind of what tests use, from caffe.proto. "Data" is transform_param, "OldData" V1's data_param,
"ImageData" V1's image_data_param."""

V2_FIELD = {"Convolution": 106, "InnerProduct": 117, "Pooling": 121, "LRN": 118, "ReLU": 123, "Dropout": 108}
V2_FIELD |= {"Data": 100, "OldData": 107, "ImageData": 115}
V1_FIELD = {"Convolution": 10, "InnerProduct": 17, "Pooling": 19, "LRN": 18, "ReLU": 30, "Dropout": 12}
V1_FIELD |= {"Data": 36, "OldData": 11, "ImageData": 15}
V1_TYPE = {"Convolution": 4, "Data": 5, "Dropout": 6, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18}
V1_TYPE |= {"Sigmoid": 19, "Softmax": 20, "SoftmaxWithLoss": 21, "Split": 22, "TanH": 23, "Eltwise": 25, "OldData": 5}
V1_TYPE |= {"ImageData": 12, "HDF5Data": 9}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A layer to be written."""

    name: str
    type: str
    bottom: tuple[str, ...] = ()
    top: tuple[str, ...] = ()
    parameters: dict[str, object] | None = field(default_factory=dict)
    blobs: tuple[np.ndarray, ...] = ()


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def chunk(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def text(number: int, value: str) -> bytes:
    return chunk(number, value.encode())


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def blob(array: np.ndarray, form: str = "shape") -> bytes:
    """A BlobProto: with `shape`, with the four "legacy" dimensions, with "double" data, or with "unpacked" floats."""
    if form == "legacy":
        sizes = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(integer(number, size) for number, size in zip((1, 2, 3, 4), sizes, strict=True))
    else:
        shape = chunk(7, chunk(1, b"".join(varint(size) for size in array.shape)))
    if form == "double":
        return shape + chunk(8, array.astype("<f8").tobytes())
    if form == "unpacked":
        return shape + b"".join(single(5, float(value)) for value in array.reshape(-1))
    return shape + chunk(5, array.astype("<f4").tobytes())


def parameters(type_: str, values: dict[str, object]) -> bytes:
    out = b""
    for key, value in values.items():
        number, kind = PARAMETERS[type_][key]
        write = {INTS: integer, FLOATS: single, TEXTS: text}[kind]
        for item in value if isinstance(value, (list, tuple)) else [value]:
            out += write(number, item)
    return out


def shape(*sizes: int) -> bytes:
    """A BlobShape."""
    return chunk(1, b"".join(varint(size) for size in sizes))


def v2(entry: Entry, form: str = "shape") -> bytes:
    out = text(1, entry.name) + text(2, "Data" if entry.type == "OldData" else entry.type)
    out += b"".join(text(3, name) for name in entry.bottom) + b"".join(text(4, name) for name in entry.top)
    out += b"".join(chunk(7, blob(array, form)) for array in entry.blobs)
    if entry.type == "Input" and entry.parameters is not None:
        out += chunk(143, chunk(1, shape(*entry.parameters["shape"])))
    if entry.type in V2_FIELD and entry.parameters is not None:
        out += chunk(V2_FIELD[entry.type], parameters(entry.type, entry.parameters))
    return out


def v1(entry: Entry, form: str = "legacy") -> bytes:
    out = b"".join(text(2, name) for name in entry.bottom) + b"".join(text(3, name) for name in entry.top)
    out += text(4, entry.name) + integer(5, V1_TYPE[entry.type])
    out += b"".join(chunk(6, blob(array, form)) for array in entry.blobs)
    out += single(7, 1.0) + single(7, 2.0)
    if entry.type in V1_FIELD and entry.parameters is not None:
        out += chunk(V1_FIELD[entry.type], parameters(entry.type, entry.parameters))
    return out


def net(entries: Iterable[Entry], *, old: bool = False, form: str | None = None, head: bytes = b"") -> bytes:
    """A NetParameter: of V1LayerParameters and legacy blobs if `old`, else of LayerParameters."""
    write, number, usual = (v1, 2, "legacy") if old else (v2, 100, "shape")
    return text(1, "AlexNet") + head + b"".join(chunk(number, write(entry, form or usual)) for entry in entries)


def changed(entries: list[Entry], name: str, **changes: object) -> list[Entry]:
    """The same with another entry in the place of `name`; a dict of parameters is added to those that are there."""
    assert any(entry.name == name for entry in entries)
    result = []
    for entry in entries:
        if entry.name == name:
            fresh = dict(changes)
            if isinstance(fresh.get("parameters"), dict):
                fresh["parameters"] = {**(entry.parameters or {}), **fresh["parameters"]}
            entry = replace(entry, **fresh)
        result.append(entry)
    return result


MAPS, HIDDEN, CLASSES = (8, 16, 16, 16, 8), 12, 7


def weights(seed: int = 0, *, classes: int = CLASSES, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Of a narrow AlexNet with two groups at 227 pixels, by our names; the answers differ from image to image."""
    rng = np.random.default_rng(seed)
    c1, c2, c3, c4, c5 = MAPS
    shapes = {
        "conv1": (c1, 3, 11, 11), "conv2": (c2, c1 // 2, 5, 5), "conv3": (c3, c2, 3, 3), "conv4": (c4, c3 // 2, 3, 3),
        "conv5": (c5, c4 // 2, 3, 3), "fc6": (HIDDEN, c5 * 36), "fc7": (HIDDEN, HIDDEN), "fc8": (classes, HIDDEN),
    }  # fmt: skip
    result = {}
    for name, shape in shapes.items():
        std = np.sqrt(2 / np.prod(shape[1:])) * (scale / 60 if name == "conv1" else 1)
        result[f"{name}.weight"] = rng.normal(0, std, shape).astype(np.float32)
        result[f"{name}.bias"] = rng.uniform(-0.1, 0.1, shape[0]).astype(np.float32)
    return result


def alexnet(values: dict[str, np.ndarray], *, pool_first: bool = False, data: Entry | None = None) -> list[Entry]:
    """bvlc_alexnet's layers, or with `pool_first` bvlc_reference_caffenet's, at another width."""
    data = data or Entry(
        name="data", type="Data", top=("data", "label"), parameters={"mirror": 1, "crop_size": 227, "mean_file": "mean"}
    )
    entries, current = [data], "data"

    def add(name: str, type_: str, *, in_place: bool = False, **given: object) -> None:
        nonlocal current
        blobs = tuple(values[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in values)
        top = current if in_place else name
        entries.append(Entry(name=name, type=type_, bottom=(current,), top=(top,), parameters=given, blobs=blobs))
        current = top

    convs = [{"kernel_size": 11, "stride": 4}, {"kernel_size": 5, "pad": 2, "group": 2}, {"kernel_size": 3, "pad": 1}]
    convs += [{"kernel_size": 3, "pad": 1, "group": 2}] * 2
    for index, given in enumerate(convs, start=1):
        add(f"conv{index}", "Convolution", num_output=len(values[f"conv{index}.bias"]), **given)
        add(f"relu{index}", "ReLU", in_place=True)
        steps = [("norm", "LRN")] if index < 3 else []
        steps += [("pool", "Pooling")] if index in (1, 2, 5) else []
        for name, type_ in reversed(steps) if pool_first else steps:
            constants = {"local_size": 5, "alpha": 1e-4, "beta": 0.75} if type_ == "LRN" else {}
            add(f"{name}{index}", type_, **constants or {"pool": 0, "kernel_size": 3, "stride": 2})
    for index in (6, 7, 8):
        add(f"fc{index}", "InnerProduct", num_output=len(values[f"fc{index}.bias"]))
        if index < 8:
            add(f"relu{index}", "ReLU", in_place=True)
            add(f"drop{index}", "Dropout", in_place=True, dropout_ratio=0.5)
    entries.append(Entry(name="loss", type="SoftmaxWithLoss", bottom=(current, "label"), top=("loss",)))
    return entries


def narrow(folder: Path, name: str = "caffe-alexnet", change: tuple[str, str] = ("", "")) -> str:
    """A recipe at the width of `weights`, as a file."""
    text = (Path(__file__).parents[1] / "models" / f"{name}.toml").read_text(encoding="utf-8")
    for wide, thin in zip((96, 256, 384, 384, 256), MAPS, strict=True):
        text = text.replace(f"channels = {wide},", f"channels = {thin},", 1)
    text = text.replace("hidden = [4096, 4096]", f"hidden = [{HIDDEN}, {HIDDEN}]").replace(*change)
    path = folder / f"narrow-{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)
