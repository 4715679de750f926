"""The files of a model folder: their paths, reading and removing them, and finding a model."""

from __future__ import annotations

import io
import os
import shlex
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError
from alexdeploy.core.files import atomic_write, is_name_too_long, remove_file, sha256_bytes
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision
from alexdeploy.core.stores.urls import is_url, printable_url

MODELS_FOLDER = Path("models")
CALIBRATION_FOLDER = Path("calibration")
VIEW_WORDS = {1: "centre", 5: "fivecrop", 10: "tencrop"}
"""Numbers of views in the names of files; those of deployment graphs leave out `centre`."""
_NO_MODEL_HINT = "Train one: alexdeploy train\nor import one: alexdeploy import FILE.onnx"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The files of one model. Stores only the path; files are read on access."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(check_argument("path", self.path, str)))

    @property
    def quoted(self) -> str:
        """The path, quoted for a shell."""
        return shlex.quote(str(self.path))

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
        """The checkpoint from which an interrupted run resumes."""
        return self.checkpoints / "last.pt"

    @property
    def candidate(self) -> ModelFolder:
        """A separate model folder for weights newer than the exported ones, from a resumed run until the next export.

        Training does not replace the weights of exported graphs, so that the graphs can be used meanwhile.
        """
        return ModelFolder(self.checkpoints / "best")

    @property
    def has_graphs(self) -> bool:
        """Whether any graph has been exported."""
        return any(self.onnx_path(precision).is_file() for precision in get_args(Precision))

    @property
    def publish_lock(self) -> Path:
        """The lock file for replacing weights and graphs; unlike `.lock`, it is not held during a whole run."""
        return self.path / ".publish.lock"

    @property
    def engines(self) -> Path:
        """The folder of TensorRT engines, which may have one engine for each kind of GPU."""
        return self.path / "engines"

    def onnx_path(self, precision: str = "fp32", num_views: int | None = None) -> Path:
        """The network of a precision; with `num_views`, its deployment graph: deployment.fp16.tencrop.onnx."""
        words = ["model" if num_views is None else "deployment"]
        if precision != "fp32":
            words.append(precision)
        if num_views is not None and num_views > 1:
            words.append(VIEW_WORDS[num_views])
        return self.path / ".".join((*words, "onnx"))

    def sum_path(self, precision: str = "fp32", num_views: int | None = None) -> Path:
        """The file with the hash of a graph as it was written, in the format of `sha256sum`."""
        path = self.onnx_path(precision, num_views)
        return path.with_name(f"{path.name}.sha256")

    @property
    def backends_path(self) -> Path:
        """The file that records which backends give the model's answers."""
        return self.path / "backends.json"

    @property
    def ranges_path(self) -> Path:
        """The measured ranges, in the working folder like `models/`, because images are not copied with the model."""
        return CALIBRATION_FOLDER / f"{self.path.resolve().name}.ranges.json"

    def spec(self) -> ModelSpec:
        """Read and check `spec.json`. Raises ModelError."""
        try:
            data = read_regular(self.spec_path, MAX_TEXT_BYTES)
        except OSError as exc:
            raise ModelError(
                f"{self.path} is not a model folder: {self.spec_path.name}: {exc.strerror}",
                hint=_NO_MODEL_HINT,
            ) from exc
        try:
            return decode_json(data, ModelSpec)
        except msgspec.DecodeError as exc:
            raise ModelError(f"{self.spec_path} is damaged: {exc}", hint="Train or import the model again.") from exc

    def mean_image(self, spec: ModelSpec) -> NDArray[np.float32] | None:
        """The mean image, float32 [3, 256, 256] in the network's channel order, checked against its hash.

        Of an ensemble: those of the members that have one, float32 [M, 3, 256, 256], each in its network's order.
        """
        if spec.preprocessing.mean_image is None:
            return None
        hint = f"Restore {self.mean_path.name} from a copy, or train or import the model again."
        try:
            content = read_regular(self.mean_path, MAX_TEXT_BYTES)
        except FileNotFoundError as exc:
            raise ModelError(f"{self.path} has no {self.mean_path.name}, which its spec requires", hint=hint) from exc
        except OSError as exc:
            raise ModelError(f"{self.mean_path} cannot be read: {exc.strerror}", hint=hint) from exc
        found = sha256_bytes(content)
        if found != spec.preprocessing.mean_image:
            raise StaleArtifactError(
                f"SHA-256 mismatch: {self.mean_path} {found[:12]}, recorded {spec.preprocessing.mean_image[:12]}",
                hint=hint,
            )
        try:
            mean: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        # np.load raises any exception of its header parsers: ValueError, EOFError, OverflowError, TokenError ...
        except Exception as exc:
            raise ModelError(f"{self.mean_path} is damaged: {exc}", hint=hint) from exc
        num_means = sum(each.preprocessing.mean_image is not None for each in spec.members)
        expected = (*((num_means,) if spec.members else ()), 3, IMAGE_SIZE, IMAGE_SIZE)
        if mean.shape != expected or mean.dtype != np.float32:
            raise ModelError(f"{self.mean_path} is {mean.dtype} {mean.shape}, expected float32 {expected}", hint=hint)
        return mean

    def write_spec(self, spec: ModelSpec) -> None:
        with atomic_write(self.spec_path) as file:
            file.write(spec.to_json())

    @property
    def is_used(self) -> bool:
        """Whether it contains a model or a part of one: anything that `clear` removes, except the log of a run.

        Raises ModelError if the folder cannot be read.
        """
        try:
            parts = (*self._files(), *self.checkpoints.glob("*.pt"), *self.engines.glob("*"))
        except OSError as exc:
            raise ModelError(f"{self.path} cannot be read: {exc.strerror}", hint="Change its permissions.") from exc
        return any(os.path.exists(path) for path in parts)

    def check_unused(self, *, can_resume: bool = False) -> None:
        """Raise UsageError if it is in use; with `can_resume`, training may resume."""
        if self.is_used:
            resume = "Resume it: --resume\n" if can_resume else ""
            is_model = self.spec_path.exists() or not self.checkpoint_path.exists()
            raise UsageError(
                f"{self.path} already holds {'a model' if is_model else 'an unfinished run'}",
                hint=f"{resume}Use another name: --name NAME\nReplace it: --overwrite",
            )

    def check_resumable(self) -> None:
        """Raise UsageError if it is in use and has no checkpoint from which training can resume."""
        if self.is_used and not self.checkpoint_path.is_file():
            raise UsageError(
                f"{self.path} has no checkpoint to resume from", hint="Start again: --overwrite, or another --name"
            )

    def clear(self, keep: Collection[Path] = ()) -> None:
        """Remove the model, except for the files to `keep` and unrelated files. Raises OutputError.

        The spec is removed first: without it a folder is not a model.
        """
        for path in self._files():
            if path not in keep:
                remove_file(path)
        for folder in (self.checkpoints, self.engines):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_candidate(self) -> None:
        """Remove the candidate, if there is one. Raises OutputError."""
        remove_file(self.candidate.spec_path)
        shutil.rmtree(self.candidate.path, ignore_errors=True)

    @property
    def portable_files(self) -> tuple[Path, ...]:
        """The files of a model that run on any machine and are there, the spec first: no engines, no checkpoints.

        Also those that cannot be read, such as links to nothing.
        """
        return tuple(path for path in self._files()[:-1] if os.path.lexists(path))

    def _files(self) -> tuple[Path, ...]:
        of_graphs = (self.onnx_path, self.sum_path)
        graphs = (path(*each) for each in product(get_args(Precision), (None, *VIEW_WORDS)) for path in of_graphs)
        return (self.spec_path, self.weights_path, self.mean_path, self.backends_path, *graphs, self.checkpoint_path)


def is_model(name: str | os.PathLike[str]) -> bool:
    """Whether `find_model` would find a model by this path or name."""
    return any(os.path.isfile(folder / name / "spec.json") for folder in (Path(), MODELS_FOLDER))


def model_named(name: str) -> ModelFolder:
    """The folder models/NAME. Raises UsageError for a name that is another path, where no command would find it."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(
            f"--name {name!r} is not a name of a folder under {MODELS_FOLDER}/", hint="Give one without / in it."
        )
    folder = ModelFolder(MODELS_FOLDER / name)
    if is_name_too_long(folder.ranges_path):
        raise UsageError(
            f"--name {name!r} is too long: {folder.ranges_path.name} is a file that the model may have",
            hint="Give a shorter one.",
        )
    return folder


def own_model(model: ModelFolder | str | os.PathLike[str] | None = None) -> ModelFolder:
    """`find_model` for a step that writes into the folder. Raises UsageError for a URL, which has only a copy here."""
    if isinstance(model, str) and is_url(model):
        raise UsageError(f"{printable_url(model)} is a URL; files are written to local models", hint="Copy it first.")
    return find_model(model)


def find_model(model: ModelFolder | str | os.PathLike[str] | None = None) -> ModelFolder:
    """A model folder by path, by name under `models/`, by the URL of a bucket, or the newest in `models/` for None.

    A URL is copied to the user's cache (`core.stores.copies`). A ModelFolder is returned unchanged. Raises UsageError
    if there is no model, ModelError for a folder with only a part of one.
    """
    if isinstance(model, ModelFolder):
        return model
    name: str | None = check_argument("model", model, str | None)
    if name is not None and is_url(name):
        from alexdeploy.core.stores.copies import copy_model

        return ModelFolder(copy_model(name))
    if name is not None:
        for path in (Path(name), MODELS_FOLDER / name):
            if os.path.isfile(path / "spec.json"):
                return ModelFolder(path)
        if any(is_name_too_long(folder / name / "spec.json") for folder in (Path(), MODELS_FOLDER)):
            raise UsageError(f"invalid model name {os.fspath(name)!r}: the file name is too long")
        for path in (Path(name), MODELS_FOLDER / name):
            _refuse_part(ModelFolder(path))
        known = sorted(path.parent.name for path in MODELS_FOLDER.glob("*/spec.json"))
        hint = f"Models here: {', '.join(known)}" if known else _NO_MODEL_HINT
        # The name may be an absolute path.
        places = dict.fromkeys((os.fspath(name), str(MODELS_FOLDER / name)))
        raise UsageError(f"no model at {' or '.join(places)}", hint=hint)
    specs = list(MODELS_FOLDER.glob("*/spec.json"))
    if not specs:
        for path in sorted(MODELS_FOLDER.glob("*/")):
            _refuse_part(ModelFolder(path))
        raise UsageError(f"no model in {MODELS_FOLDER.resolve()}", hint=_NO_MODEL_HINT)
    return max((ModelFolder(path.parent) for path in specs), key=_last_change)


def _last_change(folder: ModelFolder) -> int:
    """When the spec or that of newer weights was written, in nanoseconds."""
    paths = (folder.spec_path, folder.candidate.spec_path)
    return max(path.stat().st_mtime_ns for path in paths if path.is_file())


def _refuse_part(folder: ModelFolder) -> None:
    """Raise ModelError if the folder has parts of a model but no spec."""
    if not folder.is_used:
        return
    hints = [f"Restore {folder.spec_path.name} from a copy, or train or import the model again."]
    problem = f"has no {folder.spec_path.name}, which describes its files"
    if folder.checkpoint_path.is_file():
        name = shlex.quote(folder.path.name)
        resume = f"alexdeploy train --name {name} --resume, with the options of the original run"
        if folder.weights_path.is_file():
            hints.append(f"If its training was interrupted, resume it: {resume}")
        else:
            problem, hints = "is not fully trained", [f"Resume it: {resume}"]
    raise ModelError(f"{folder.path} {problem}", hint="\n".join(hints))
