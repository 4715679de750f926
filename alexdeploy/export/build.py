"""Building engine files: one in this process, or those of an export in one process each."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import DeviceError
from alexdeploy.core.events import Status, warn_of_notices
from alexdeploy.core.model_folder import ModelFolder, own_model
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews, is_installed
from alexdeploy.engines.trt.files import BuildOptions
from alexdeploy.export.events import EngineBuildFailed, Event
from alexdeploy.placement.devices import Device, GpuSurvey, survey_gpus

if TYPE_CHECKING:
    from alexdeploy.engines.trt.build import BuiltEngine

_NUM_VIEWS: tuple[NumViews, ...] = (1, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngines:
    """`fit`: the precisions and views with an engine for some GPU. `exit_code`: 0, or that of the first failure."""

    fit: frozenset[tuple[Precision, NumViews]] = frozenset()
    exit_code: int = 0


def build(
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: BuildOptions | None = None,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> BuiltEngine:
    """Build an engine of a model, or return the one built earlier: TensorRT's for a GPU of this machine, TensorRT-RTX's
    for RTX cards that need not be here.

    `model` is a folder or what `find_model` takes. Raises as `build_engine`, and UsageError if a package is missing.
    """
    folder = own_model(model)
    options = check_argument("options", options or BuildOptions(), BuildOptions)
    # Raises an error that names the missing package where TensorRT cannot be imported.
    from alexdeploy.engines.trt.build import build_engine

    return build_engine(folder, options, on_progress)


def build_engines(
    folder: ModelFolder, precisions: Sequence[Precision], on_event: Callable[[Event], None] = warn_of_notices
) -> BuiltEngines:
    """Build an engine for one view and one for ten, for each precision and each kind of GPU, if TensorRT is installed.

    A failure on one GPU does not stop the builds for the others.
    """
    survey = survey_gpus()
    why = why_no_engines(survey)
    if why is not None:
        on_event(Status(message=f"no TensorRT engine: {why}"))
        return BuiltEngines()
    fit: set[tuple[Precision, NumViews]] = set()
    first_code = 0
    for gpu, precision, num_views in itertools.product(one_of_each_kind(survey.devices), precisions, _NUM_VIEWS):
        code = _run(build_words(folder, precision, num_views, gpu), on_event)
        first_code = first_code or code
        if code == 0:
            fit.add((precision, num_views))
    return BuiltEngines(fit=frozenset(fit), exit_code=first_code)


def why_no_engines(survey: GpuSurvey) -> str | None:
    """Why no engine can be built here; None if it can."""
    others = "the ONNX files run on every other backend"
    if not survey.devices:
        return f"no GPU was found ({survey.problem}); {others}"
    if not is_installed("tensorrt"):
        return f"TensorRT is not installed; {others}"
    if not _has_pycuda():
        # The graphs are written and correct, so the export has not failed.
        return f"TensorRT needs pycuda here, and it is not installed: pip install pycuda; until then {others}"
    return None


def _has_pycuda() -> bool:
    return importlib.util.find_spec("pycuda") is not None


def one_of_each_kind(gpus: Sequence[Device]) -> list[Device]:
    """The first GPU of each compute capability: an engine runs on every GPU of the same one."""
    kinds: dict[tuple[int, int] | None, Device] = {}
    for gpu in gpus:
        kinds.setdefault(gpu.compute_capability, gpu)
    return list(kinds.values())


def build_words(folder: ModelFolder, precision: str, num_views: int, gpu: Device) -> list[str]:
    """The arguments of `alexdeploy` that build one engine."""
    return ["build", f"--{precision}", "--views", str(num_views), "--devices", str(gpu), "--", str(folder.path)]


def _run(words: list[str], on_event: Callable[[Event], None]) -> int:
    """Run `alexdeploy` in a subprocess that sees one GPU: TensorRT cannot build for two kinds of GPU in one process.

    Returns its exit code. The subprocess reports its own errors, unless a signal ended it.
    """
    code = subprocess.run([sys.executable, "-m", "alexdeploy", *words], check=False).returncode
    if code >= 0:
        return code
    name = f"signal {-code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
    hint = "See: alexdeploy doctor. Linux sends SIGKILL when memory runs out."
    error = DeviceError(f"alexdeploy {shlex.join(words)} was ended by {name}", hint=hint)
    on_event(EngineBuildFailed(error=error))
    return DeviceError.exit_code
