"""The format of a weight file: detected from its first bytes, and from its name only if they do not identify it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from alexdeploy.core.reading import open_regular
from alexdeploy.importing import matlab, npy_layers

WeightFormat = Literal["caffe", "torch", "safetensors", "numpy", "matlab"]

SUFFIXES: dict[str, WeightFormat] = {
    ".caffemodel": "caffe",
    ".pth": "torch",
    ".pt": "torch",
    ".pth.tar": "torch",
    ".ckpt": "torch",
    ".bin": "torch",
    ".safetensors": "safetensors",
    ".npy": "numpy",
    ".mat": "matlab",
}
"""File name endings of each format."""

HEAD_BYTES = 1024
"""Bytes that `weight_format` needs."""

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of torch.save's format before it wrote archives: a pickle of its magic number."""


def file_format(path: Path) -> WeightFormat | Literal["onnx"] | None:
    """The format to import a file as; by its name if it cannot be read, which the format's reader then reports."""
    head = b""
    with suppress(OSError), open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    # ONNX, like any protobuf, has no signature.
    return weight_format(path, head) or ("onnx" if path.suffix.lower() == ".onnx" else None)


def weight_format(path: Path, head: bytes) -> WeightFormat | None:
    """The format of a weight file whose first HEAD_BYTES are `head`; None for another format."""
    if head.startswith(npy_layers.MAGIC):
        return "numpy"
    if matlab.is_matlab(head):
        return "matlab"
    # Other programs write archives too. The first member of torch.save's is data.pkl, in a folder.
    if head.startswith(_LEGACY_TORCH) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head[30:512]):
        return "torch"
    # An eight-byte header length, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)
