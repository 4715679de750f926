"""The checks of tests/gpu_checks.py for the engine of a precision and a number of views, and what all checks share.

Each returns what it found, or raises CheckFailedError or CheckSkippedError. A check builds the engine that it needs if
it is not there, so that each can be run alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.engines.trt.files import BuildOptions, load_engine
from alexdeploy.engines.trt.inspector import is_half, layer_types
from alexdeploy.images.decode import decode
from alexdeploy.images.sample import write_photographs

CEILINGS = {"fp16": 683_000, "int8": 2 * 683_000}
"""Views/s of the full network that an H100's arithmetic allows: 989.5 TFLOPS in FP16, double in INT8."""

LIMITS = {"fp32": (1e-4, 0.0), "fp16": (1e-2, 0.02), "int8": (0.1, 0.05)}
"""Largest error of a probability and share of other answers that are allowed against ONNX Runtime on the same graph.

Against FP32 both are told and not judged: what FP16 and INT8 cost is the graph's, and verify and evaluate measure it.
"""


class CheckFailedError(Exception):
    """A check that ran and found something wrong."""


class CheckSkippedError(Exception):
    """A check that cannot run here, and why."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all checks share. Everything that can be used again is under `root`."""

    root: Path
    max_batch: int
    num_images: int
    num_steady: int
    seconds: float
    is_full: bool
    tactic_sources: tuple[str, ...] | None

    @cached_property
    def photographs(self) -> Path:
        return write_photographs(self.root / f"photographs-{self.num_images}", num=self.num_images, seed=7)

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 [N, 256, 256, 3], at least a full batch."""
        some = sorted(self.photographs.iterdir())[: max(16, self.max_batch)]
        return np.stack([decode(path.read_bytes(), "crop") for path in some])

    def options(self, precision: str, num_views: int) -> BuildOptions:
        return BuildOptions(
            precision=precision,  # type: ignore[arg-type]
            num_views=num_views,  # type: ignore[arg-type]
            max_batch=self.max_batch,
            tactic_sources=self.tactic_sources,
        )

    def built(self, folder: ModelFolder, precision: str, num_views: int) -> Any:
        from alexdeploy.engines.trt.build import build_engine

        return build_engine(folder, self.options(precision, num_views))

    def open(self, folder: ModelFolder, precision: str, num_views: int, batch_size: int | None = None) -> Any:
        self.built(folder, precision, num_views)
        return open_any(folder, "tensorrt", precision, num_views, batch_size or self.max_batch, "cuda:0")


def open_any(
    folder: ModelFolder, backend: str, precision: str, num_views: int, batch_size: int, device: str = "cpu"
) -> Any:
    options = EngineOptions(
        precision=precision,  # type: ignore[arg-type]
        num_views=num_views,  # type: ignore[arg-type]
        batch_size=batch_size,
        device=device,
    )
    return open_engine(folder, backend, options)  # type: ignore[arg-type]


def _build(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    built = setting.built(folder, precision, num_views)
    before = " by an earlier call" if built.reused else ""
    record = built.record
    return f"{record.build_seconds:.1f} s, {record.engine_bytes / 1e6:.1f} MB, {built.path.name}{before}"


def _reuse(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    setting.built(folder, precision, num_views)
    began = time.monotonic()
    if not setting.built(folder, precision, num_views).reused:
        raise CheckFailedError("it was built again")
    return f"found in {time.monotonic() - began:.2f} s"


def _layers(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    """The types in which an engine computes, from the inspector with a full batch; all layers go to root/layers/."""
    import pycuda.driver as cuda

    from alexdeploy.engines.trt.context import on_gpu
    from alexdeploy.engines.trt.library import load_library
    from alexdeploy.engines.trt.stream import make_context

    path = setting.built(folder, precision, num_views).path
    _, plan = load_engine(path)
    library = load_library("tensorrt")

    def look() -> str:
        engine, stream = library.open_plan(plan, path), cuda.Stream(0)
        context = make_context(library, engine, stream, "")
        context.set_input_shape("images", (setting.max_batch, *setting.images.shape[1:]))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(library.api.LayerInformationFormat.JSON))

    information = on_gpu(0, look)
    kept = setting.root / "layers" / f"{path.stem}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(information)
    types = {kind: Counter(layer_types(information, kind).values()) for kind in ("Convolution", "LRN")}
    told = "; ".join(f"{kind}: {counts_of(found)}" for kind, found in types.items())
    if precision == "fp16" and types["Convolution"] and not any(map(is_half, types["Convolution"])):
        raise CheckFailedError(f"no convolution is FP16: {told}")
    if any(map(is_half, types["LRN"])):
        raise CheckFailedError(f"an LRN is FP16: {told}")
    return f"{len(json.loads(information)['Layers'])} layers; {told}"


def counts_of(found: Counter[Any]) -> str:
    return ", ".join(f"{count} {each}" for each, count in sorted(found.items(), key=str)) or "none"


def _reference(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> np.ndarray:
    """ONNX Runtime's probabilities on the CPU, computed once for a graph and some images."""
    graph = sha256_file(folder.onnx_path(precision))[:16]  # type: ignore[arg-type]
    kept = setting.root / "references" / f"{graph}-{num_views}-{len(setting.images)}.npy"
    if not kept.is_file():
        with open_any(folder, "onnxruntime", precision, num_views, 8) as engine:
            found = run_all(engine, setting.images)
        kept.parent.mkdir(exist_ok=True)
        np.save(kept, found)
    return np.asarray(np.load(kept))


def _answers(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    same, whole = (_reference(setting, folder, each, num_views) for each in (precision, "fp32"))
    with setting.open(folder, precision, num_views) as engine:
        found = run_all(engine, setting.images)
    if not np.isfinite(found).all() or not np.allclose(found.sum(axis=1), 1, atol=1e-3):
        raise CheckFailedError("the rows are not probabilities")
    error, flips = _difference(found, same)
    whole_error, whole_flips = _difference(found, whole)
    told = (
        f"off ONNX Runtime on the same graph by {error:.1e} and {flips:.1%} of {len(found)} answers "
        f"({len(np.unique(same.argmax(axis=1)))} different ones), off FP32 by {whole_error:.1e} and {whole_flips:.1%}"
    )
    if error > LIMITS[precision][0] or flips > LIMITS[precision][1]:
        raise CheckFailedError(f"{told}; allowed {LIMITS[precision]}")
    return told


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest error of a probability, and the share of answers that differ."""
    flips = found.argmax(axis=1) != expected.argmax(axis=1)
    return float(np.abs(found - expected).max()), float(flips.mean())


def run_all(engine: Any, images: np.ndarray) -> np.ndarray:
    size = engine.info.batch_size
    return np.concatenate([engine.run(images[at : at + size]).probabilities for at in range(0, len(images), size)])


def _tails(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    size = setting.max_batch
    counts = sorted({count for count in (1, 2, 3, size // 2, size - 1, size) if 0 < count <= size})
    with setting.open(folder, precision, num_views) as engine:
        whole = engine.run(setting.images[:size])
        for count in (*counts, *reversed(counts), size, size):
            part = engine.run(setting.images[:count])
            if part.probabilities.shape[0] != count or part.view_classes.shape != (count, num_views):
                raise CheckFailedError(f"{count} images gave {part.probabilities.shape} and {part.view_classes.shape}")
            # Kernels may differ from size to size, rows may not.
            error = float(np.abs(part.probabilities - whole.probabilities[:count]).max())
            if error > LIMITS[precision][0] / 10:
                raise CheckFailedError(f"a batch of {count} differs from the full one by {error:.1e}")
    return f"batches of {', '.join(map(str, counts))} in either order"


def _speed(setting: Setting, folder: ModelFolder, precision: str, num_views: int) -> str:
    """The engine alone, with as many threads as it has streams."""
    batch = setting.images[: setting.max_batch]
    num_done = 0
    lock = threading.Lock()
    with setting.open(folder, precision, num_views) as engine:
        end = time.monotonic() + setting.seconds

        def work() -> None:
            nonlocal num_done
            while time.monotonic() < end:
                engine.run(batch)
                with lock:
                    num_done += len(batch)

        began = time.monotonic()
        with ThreadPoolExecutor(engine.info.num_streams) as threads:
            for future in [threads.submit(work) for _ in range(engine.info.num_streams)]:
                future.result()
        rate = num_done / (time.monotonic() - began)
    told = f"engine alone: {rate:,.0f} images/s, {rate * num_views:,.0f} views/s"
    if setting.is_full and precision in CEILINGS:
        told += f", {rate * num_views / CEILINGS[precision]:.1%} of an H100's ceiling"
    return told


OF_AN_ENGINE: dict[str, Callable[[Setting, ModelFolder, str, int], str]] = {
    "build": _build,
    "reuse": _reuse,
    "layers": _layers,
    "answers": _answers,
    "tails": _tails,
    "speed": _speed,
}
