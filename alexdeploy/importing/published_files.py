"""Published weight files by name and hash, and unsupported formats with the command that converts each to ONNX."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.reading import MAX_DATA_BYTES, read_regular
from alexdeploy.importing.state_dict import TORCHSCRIPT_HINT


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A published file. `digest` is its hash, or the beginning of it where only that is published."""

    name: str
    title: str
    digest: str
    algorithm: str = "sha256"


_CAFFE, _ZOO, _TORCH = "BVLC's model zoo", "the ONNX model zoo", "torchvision"

KNOWN = (
    KnownFile(
        name="bvlc_alexnet.caffemodel",
        title=f"bvlc_alexnet of {_CAFFE}",
        digest="9116a64c0fbe4459d18f4bb6b56d647b63920377",
        algorithm="sha1",
    ),
    KnownFile(
        name="bvlc_reference_caffenet.caffemodel",
        title=f"bvlc_reference_caffenet of {_CAFFE}",
        digest="4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
        algorithm="sha1",
    ),
    # The digits in the name are the beginning of the SHA-256, by torch.hub's convention.
    KnownFile(name="alexnet-owt-7be5be79.pth", title=f"alexnet of {_TORCH}", digest="7be5be79"),
    KnownFile(name="alexnet-owt-4df8aa71.pth", title=f"alexnet of {_TORCH}, up to 0.10", digest="4df8aa71"),
    KnownFile(
        name="bvlcalexnet-12.onnx",
        title=f"bvlcalexnet-12 of {_ZOO}",
        digest="6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
    ),
    KnownFile(
        name="bvlcalexnet-9.onnx",
        title=f"bvlcalexnet-9 of {_ZOO}",
        digest="ef3c82dad5c512f969dbf701fe35c0b3feb1585687d541f765eb68730c0a8af7",
    ),
    KnownFile(
        name="bvlcalexnet-8.onnx",
        title=f"bvlcalexnet-8 of {_ZOO}",
        digest="9a4dc22fd706a19462aaec3b08e027e0ef89daf63d123824f20b59b6de9a727b",
    ),
    KnownFile(
        name="caffenet-8.onnx",
        title=f"caffenet-8 of {_ZOO}",
        digest="82f8997778cd9c5ef9673fc86e340f86e3b29650886b923e5e1aa478d5f83f92",
    ),
    KnownFile(
        name="caffenet-7.onnx",
        title=f"caffenet-7 of {_ZOO}",
        digest="a249fe5683aa6b517dfb198e4b3bd40a1b7611d4995fde0b0b9ced5f4143bc5c",
    ),
)

_KERAS = """python -c "import keras; keras.models.load_model('{file}').export('{stem}.onnx', format='onnx')\""""
_COREML = """python -c "import coremltools, onnxmltools as o; o.utils.save_model(\\
o.convert_coreml(coremltools.utils.load_spec('{file}')), '{stem}.onnx')\""""

CONVERSIONS = {
    ".h5": ("a Keras model", _KERAS),
    ".hdf5": ("a Keras model", _KERAS),
    ".keras": ("a Keras model", _KERAS),
    ".pb": (
        "a TensorFlow graph",
        "python -m tf2onnx.convert --graphdef {file} --inputs INPUT:0 --outputs OUTPUT:0 --output {stem}.onnx\n"
        "or, for the saved_model.pb of a SavedModel: "
        "python -m tf2onnx.convert --saved-model {folder} --output model.onnx",
    ),
    ".tflite": ("a TensorFlow Lite model", "python -m tf2onnx.convert --tflite {file} --output {stem}.onnx"),
    ".mlmodel": ("a Core ML model", _COREML),
    ".mlpackage": (
        "a Core ML package",
        "No tool converts Core ML packages to ONNX: export the model to ONNX from the framework that it was made in.",
    ),
    ".torchscript": ("a TorchScript archive", TORCHSCRIPT_HINT),
}
"""Unsupported formats: the format of a file with that suffix, and how to convert it."""


def refuse_other_format(path: Path, supported: Sequence[str]) -> NoReturn:
    """Raise UsageError for a file in an unsupported format, with the command that converts it, if known."""
    suffix = path.suffix.lower()
    if suffix not in CONVERSIONS:
        raise UsageError(f"unsupported file type: {path}", hint=f"Supported: {', '.join(supported)}.")
    kind, command = CONVERSIONS[suffix]
    raise UsageError(
        f"{path} is {kind}, which is not supported; convert it to ONNX",
        hint=command.format(file=path, stem=path.stem, folder=path.parent),
    )


def recognise(path: Path, content: bytes, on_warning: Callable[[str], None]) -> KnownFile | None:
    """The published file with this content, under any name; warns about a file that has only the name of one."""
    digests = {algorithm: hashlib.new(algorithm, content).hexdigest() for algorithm in ("sha1", "sha256")}
    for known in KNOWN:
        if digests[known.algorithm].startswith(known.digest):
            return known
    for known in KNOWN:
        if path.name == known.name:
            on_warning(
                f"{path.name} is not the published file of that name: its {known.algorithm} is "
                f"{digests[known.algorithm][:12]}, expected {known.digest[:12]}"
            )
    return None


def read_foreign(path: Path) -> bytes:
    """The bytes of a model file. Raises ModelError for a web page or Git LFS pointer downloaded instead."""
    try:
        content = read_regular(path, MAX_DATA_BYTES)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    refuse_placeholder(path, content)
    return content


def refuse_placeholder(path: Path, content: bytes) -> None:
    """Raise ModelError if `content`, a file or the beginning of one, is a web page or a Git LFS pointer."""
    if content.startswith(b"version https://git-lfs.github.com/"):
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself", hint="Get the file: git lfs pull")
    if content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ModelError(
            f"{path} is a web page, not a model", hint="Download it again: follow the link to the raw file."
        )
