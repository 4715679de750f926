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
"""Names of files, by their ends, for each format."""

HEAD_BYTES = 1024
"""What `weight_format` looks at."""

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch.save wrote first before it wrote archives: a pickle of its magic number."""


def file_format(path: Path) -> WeightFormat | Literal["onnx"] | None:
    """The format to import a file as; from its name alone if it cannot be read, which its reader reports."""
    head = b""
    with suppress(OSError), open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    # ONNX, as any protobuf, begins with nothing of its own.
    return weight_format(path, head) or ("onnx" if path.suffix.lower() == ".onnx" else None)


def weight_format(path: Path, head: bytes) -> WeightFormat | None:
    """The format of weights in a file that begins with `head`, HEAD_BYTES of it. None for another one."""
    if head.startswith(npy_layers.MAGIC):
        return "numpy"
    if matlab.is_matlab(head):
        return "matlab"
    # Other programs write archives too. torch.save's first member is data.pkl, in a folder.
    if head.startswith(_LEGACY_TORCH) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head[30:512]):
        return "torch"
    # The length of a header, eight bytes, and JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)
