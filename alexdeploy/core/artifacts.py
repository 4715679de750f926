"""Where things are on disk, how they are hashed, and how they are written so that no half file is ever seen."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import ModelError, OutputError, StaleArtifactError, UsageError
from alexdeploy.core.reading import MAX_DATA_BYTES, MAX_TEXT_BYTES, decode_json, open_regular, read_regular
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision

MODELS_FOLDER = Path("models")
CALIBRATION_FOLDER = Path("calibration")
_TEMPORARY_BYTES = 128
_NO_MODEL_CURE = "Train one: alexdeploy train\nor bring one: alexdeploy import FILE.onnx"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The files of one model. Holds only the path: nothing is read before it is asked for."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(check_argument("path", self.path, str)))

    @property
    def spec_path(self) -> Path:
        return self.path / "spec.json"

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def mean_path(self) -> Path:
        return self.path / "mean.npy"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint_path(self) -> Path:
        """What a run that was stopped goes on from."""
        return self.checkpoints / "last.pt"

    @property
    def engines(self) -> Path:
        """Those of TensorRT, of which there may be one for each kind of GPU."""
        return self.path / "engines"

    def onnx_path(self, precision: str = "fp32") -> Path:
        return self.path / ("model.onnx" if precision == "fp32" else f"model.{precision}.onnx")

    def sum_path(self, precision: str = "fp32") -> Path:
        """The hash of a graph as it was written, in the format of `sha256sum`."""
        path = self.onnx_path(precision)
        return path.with_name(f"{path.name}.sha256")

    @property
    def backends_path(self) -> Path:
        """Which backends were found to give the model's answers."""
        return self.path / "backends.json"

    @property
    def ranges_path(self) -> Path:
        """The ranges measured for it: of the working folder, like `models/`, since images do not travel with it."""
        return CALIBRATION_FOLDER / f"{self.path.resolve().name}.ranges.json"

    def spec(self) -> ModelSpec:
        """Read and check `spec.json`. Raises ModelError."""
        try:
            data = read_regular(self.spec_path, MAX_TEXT_BYTES)
        except OSError as exc:
            raise ModelError(
                f"{self.path} is not a model folder: {self.spec_path.name}: {exc.strerror}",
                cure=_NO_MODEL_CURE,
            ) from exc
        try:
            return decode_json(data, ModelSpec)
        except msgspec.DecodeError as exc:
            raise ModelError(f"{self.spec_path} is damaged: {exc}", cure="Train or import the model again.") from exc

    def mean_image(self, spec: ModelSpec) -> NDArray[np.float32] | None:
        """The mean image, float32 [3, 256, 256] in the network's channel order, checked against its hash."""
        if spec.preprocessing.mean_image is None:
            return None
        cure = f"Restore {self.mean_path.name} from a copy, or train or import the model again."
        try:
            content = read_regular(self.mean_path, MAX_TEXT_BYTES)
        except FileNotFoundError as exc:
            raise ModelError(f"{self.path} has no {self.mean_path.name}, which its spec names", cure=cure) from exc
        except OSError as exc:
            raise ModelError(f"{self.mean_path} cannot be read: {exc.strerror}", cure=cure) from exc
        found = sha256_bytes(content)
        if found != spec.preprocessing.mean_image:
            raise StaleArtifactError(
                f"{self.mean_path} has hash {found[:12]}, the spec expects {spec.preprocessing.mean_image[:12]}",
                cure=cure,
            )
        try:
            mean: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        # np.load raises whatever the readers of its header do: ValueError, EOFError, OverflowError, TokenError ...
        except Exception as exc:
            raise ModelError(f"{self.mean_path} is damaged: {exc}", cure=cure) from exc
        if mean.shape != (3, IMAGE_SIZE, IMAGE_SIZE) or mean.dtype != np.float32:
            raise ModelError(
                f"{self.mean_path} is {mean.dtype} {mean.shape}, expected float32 (3, {IMAGE_SIZE}, {IMAGE_SIZE})",
                cure=cure,
            )
        return mean

    def write_spec(self, spec: ModelSpec) -> None:
        with atomic_write(self.spec_path) as file:
            file.write(spec.to_json())

    @property
    def is_used(self) -> bool:
        """Whether it holds a model or a part of one: anything that `clear` removes, but for the log of a run.

        Raises ModelError for a folder that may not be looked into.
        """
        try:
            parts = (*self._files(), *self.checkpoints.glob("*.pt"), *self.engines.glob("*"))
        except OSError as exc:
            raise ModelError(f"{self.path} cannot be read: {exc.strerror}", cure="Change its permissions.") from exc
        return any(os.path.exists(path) for path in parts)

    def check_unused(self, *, can_resume: bool = False) -> None:
        """Raise UsageError if it is in use; with `can_resume` training may go on with what is there."""
        if self.is_used:
            resume = "Go on with it: --resume\n" if can_resume else ""
            is_model = self.spec_path.exists() or not self.checkpoint_path.exists()
            raise UsageError(
                f"{self.path} already holds {'a model' if is_model else 'an unfinished run'}",
                cure=f"{resume}Put the new one beside it: --name NAME\nReplace it: --overwrite",
            )

    def clear(self, keep: Collection[Path] = ()) -> None:
        """Remove the model, but for the files to `keep` and what is none of it. Raises OutputError.

        The spec goes first, without which a folder is no model.
        """
        for path in self._files():
            if path not in keep:
                remove_file(path)
        for folder in (self.checkpoints, self.engines):
            shutil.rmtree(folder, ignore_errors=True)

    def _files(self) -> tuple[Path, ...]:
        of_graphs = (self.onnx_path, self.sum_path)
        graphs = (path(precision) for precision in get_args(Precision) for path in of_graphs)
        return (self.spec_path, self.weights_path, self.mean_path, self.backends_path, *graphs, self.checkpoint_path)


def find_model(name: str | os.PathLike[str] | None = None) -> ModelFolder:
    """A model folder by path, by name under `models/`, or the newest there when `name` is None.

    Raises UsageError where there is none, ModelError for a folder with only a part of a model.
    """
    name = check_argument("name", name, str | None)
    if name is not None:
        for path in (Path(name), MODELS_FOLDER / name):
            if os.path.isfile(path / "spec.json"):
                return ModelFolder(path)
        if any(is_name_too_long(folder / name / "spec.json") for folder in (Path(), MODELS_FOLDER)):
            raise UsageError(f"no model can be called {os.fspath(name)!r}: the file name is too long")
        for path in (Path(name), MODELS_FOLDER / name):
            _refuse_part(ModelFolder(path))
        known = sorted(path.parent.name for path in MODELS_FOLDER.glob("*/spec.json"))
        cure = f"Models here: {', '.join(known)}" if known else _NO_MODEL_CURE
        raise UsageError(f"no model at {os.fspath(name)} nor at {MODELS_FOLDER / name}", cure=cure)
    specs = sorted(MODELS_FOLDER.glob("*/spec.json"), key=lambda path: path.stat().st_mtime_ns)
    if not specs:
        for path in sorted(MODELS_FOLDER.glob("*/")):
            _refuse_part(ModelFolder(path))
        raise UsageError(f"no model in {MODELS_FOLDER.resolve()}", cure=_NO_MODEL_CURE)
    return ModelFolder(specs[-1].parent)


def _refuse_part(folder: ModelFolder) -> None:
    """Raise ModelError if there is a part of a model, without the spec that makes it one."""
    if not folder.is_used:
        return
    cures = [f"Restore {folder.spec_path.name} from a copy, or train or import the model again."]
    problem = f"has no {folder.spec_path.name}, which says what the files in it are"
    if folder.checkpoint_path.is_file():
        resume = f"alexdeploy train --name {folder.path.name} --resume, with the options that it was begun with"
        if folder.weights_path.is_file():
            cures.append(f"If its training was stopped, go on with it: {resume}")
        else:
            problem, cures = "is not trained to the end", [f"Go on with it: {resume}"]
    raise ModelError(f"{folder.path} {problem}", cure="\n".join(cures))


def sha256_file(path: Path, max_bytes: int = MAX_DATA_BYTES) -> str:
    """SHA-256 of a file as 64 hexadecimal digits. Raises ModelError if it cannot be read, or holds more."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size
            if left > max_bytes:
                raise ModelError(f"{path} holds {left:,} bytes; at most {max_bytes:,} are read")
            # What is added meanwhile is none of it, and a file of the kernel's may have no end.
            while chunk := file.read(min(left, 1 << 20)):
                digest.update(chunk)
                left -= len(chunk)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """The content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a sibling temporary file for writing; sync and rename it to `path` when the block ends well.

    A killed process leaves the old file or the new one. Raises OutputError when the disk is full or closed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of 255 bytes leaves no room for another beside it.
        beginning = os.fsdecode(os.fsencode(path.name)[:_TEMPORARY_BYTES])
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{beginning}.", suffix=".tmp")
    except OSError as exc:
        raise output_error(path, exc) from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        raise output_error(path, exc) from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def is_name_too_long(path: Path) -> bool:
    """Whether the file system refuses `path` for its length, or that of a name in it: most take 255 bytes."""
    there = next((folder for folder in path.parents if os.path.isdir(folder)), Path())
    # Below a folder that is missing the system says nothing of names: each is asked for in the last folder there is.
    for tried in (path, *(there / part for part in path.parts if part != path.anchor)):
        try:
            os.lstat(tried)
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:
                return True
        except ValueError:
            # A NUL, which no name has.
            return False
    return False


def check_output(path: Path) -> None:
    """Raise OutputError if no file can have this path. To be asked before anything costly is begun."""
    if is_name_too_long(path):
        raise OutputError(f"{path} could not be written: the file name is too long")


def remove_file(path: Path) -> None:
    """Remove it if it is there. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise output_error(path, exc) from exc


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def output_error(path: Path, exc: OSError) -> OutputError:
    """The OutputError that says why `path` could not be written."""
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "Free some space and run it again." if full else None
    return OutputError(f"{path} could not be written: {exc.strerror or exc}", cure=cure)


def _umask() -> int:
    # There is no call that only reads it; /proc has it on Linux, elsewhere set it and set it back.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
