"""Every check that needs an NVIDIA GPU, in one command: `make test-gpu`, or PYTHONPATH=. python3 tests/gpu_checks.py.

It needs tensorrt, pycuda and onnxruntime, and no torch: `alexnet` with random weights is written here. Trained models
are those in the folders named on the command line, made by `make gpu-models` where torch is; without any, that part is
skipped, and said. Prints a line for each check and the lines for the ledger in docs/gpu.md; ends with 1 if any failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from gpu_here import has_onnxruntime_gpu
from gpu_models import make_random_model

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineInfo, EngineOptions, open_engine
from alexdeploy.engines.trt.cuda_driver import cuda_uuids
from alexdeploy.engines.trt.files import BuildOptions
from alexdeploy.images.decode import decode
from alexdeploy.images.sample import write_photographs
from alexdeploy.images.sources import iter_sources
from alexdeploy.inference.pipeline import PipelineOptions, run_pipeline
from alexdeploy.placement.devices import Device
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.pool import Pool

CEILINGS = {"fp16": 683_000, "int8": 2 * 683_000}
"""Views/s of the full network that an H100's arithmetic allows: 989.5 TFLOPS in FP16, double in INT8."""

LIMITS = {"fp32": (1e-4, 0.0), "fp16": (1e-2, 0.02), "int8": (0.1, 0.05)}
"""Largest error of a probability and share of other answers that are allowed against ONNX Runtime on the same graph.

Against FP32 both are told and not judged: what FP16 and INT8 cost is the graph's, and verify and evaluate measure it.
"""

PRECISIONS = ("fp32", "fp16", "int8")


class CheckFailedError(Exception):
    """A check that ran and found something wrong."""


class CheckSkippedError(Exception):
    """A check that cannot run here, and why."""


@dataclasses.dataclass
class Session:
    """What all checks share; `rows` are for the ledger."""

    max_batch: int
    num_images: int
    num_steady: int
    seconds: float
    tactic_sources: tuple[str, ...] | None
    images: np.ndarray
    photographs: Path
    num_failed: int = 0
    num_skipped: int = 0
    rows: list[str] = dataclasses.field(default_factory=list)

    def check(self, name: str, work: Callable[[], str | None]) -> None:
        """Run one check and print how it ended; one that fails does not keep the next from running."""
        began = time.monotonic()
        try:
            word, told = "ok", work() or ""
        except CheckSkippedError as exc:
            word, told = "skipped", str(exc)
            self.num_skipped += 1
        except (CheckFailedError, AlexDeployError) as exc:
            word, told = "FAILED", f"{type(exc).__name__}: {exc}".replace("\n", " | ")
            self.num_failed += 1
        except Exception:
            word, told = "FAILED", traceback.format_exc()
            self.num_failed += 1
        print(f"{word:8} {time.monotonic() - began:6.1f} s  {name}: {told}", flush=True)

    def options(self, precision: str, num_views: int) -> BuildOptions:
        return BuildOptions(
            precision=precision,  # type: ignore[arg-type]
            num_views=num_views,  # type: ignore[arg-type]
            max_batch=self.max_batch,
            tactic_sources=self.tactic_sources,
        )

    def open(self, folder: ModelFolder, precision: str, num_views: int, batch_size: int | None = None) -> Any:
        return open_engine(
            folder,
            "tensorrt",
            EngineOptions(
                precision=precision,  # type: ignore[arg-type]
                num_views=num_views,  # type: ignore[arg-type]
                batch_size=batch_size or self.max_batch,
                device="cuda:0",
            ),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="folders of trained models with FP32, FP16 and INT8")
    parser.add_argument(
        "--small", action="store_true", help="a sixteenth of the network, few images: to try the checks"
    )
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--tactic-sources", help="with commas, e.g. EDGE_MASK_CONVOLUTIONS,JIT_CONVOLUTIONS")
    arguments = parser.parse_args()
    try:
        from alexdeploy.engines.trt.context import find_gpu

        gpu = find_gpu("cuda:0")
    except DeviceError as exc:
        print(f"no check can run: {exc}")
        return 1
    import tensorrt

    print(f"{gpu.name}, sm_{gpu.compute_capability[0]}{gpu.compute_capability[1]}, CUDA {gpu.cuda}, "
          f"TensorRT {tensorrt.__version__}, Python {platform.python_version()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["ALEXDEPLOY_STATE"] = str(root / "state")
        os.environ["ALEXDEPLOY_CACHE"] = str(root / "cache")
        session = _session(arguments, root)
        overrides = ("architecture.width=0.0625", "architecture.hidden=[512, 512]") if arguments.small else ()
        random = make_random_model(root / "models" / "alexnet-random", overrides, 10 if arguments.small else 1000)
        _check_model(session, random, is_full=not arguments.small)
        _check_one(session, random)
        for path in arguments.models:
            _check_model(session, ModelFolder(path), is_full=False)
        if not arguments.models:
            session.check(
                "trained weights", lambda: _skip("no folder was named; make gpu-models writes one where torch is")
            )
    print("\nFor docs/gpu.md:\n")
    print("\n".join(session.rows))
    print(f"\n{session.num_failed} failed, {session.num_skipped} skipped")
    return 1 if session.num_failed else 0


def _session(arguments: argparse.Namespace, root: Path) -> Session:
    small = arguments.small
    num_images = 100 if small else 2000
    photographs = write_photographs(root / "photographs", num=num_images, seed=7)
    some = sorted(photographs.iterdir())[: 16 if small else 64]
    names = arguments.tactic_sources
    return Session(
        max_batch=4 if small else arguments.max_batch,
        num_images=num_images,
        num_steady=20 if small else 200,
        seconds=1.0 if small else 5.0,
        tactic_sources=tuple(names.split(",")) if names else None,
        images=np.stack([decode(path.read_bytes(), "crop") for path in some]),
        photographs=photographs,
    )


def _check_model(session: Session, folder: ModelFolder, *, is_full: bool) -> None:
    """Engines of each precision and number of views against ONNX Runtime on the CPU, and how fast they are."""
    name = folder.path.name
    for num_views in (1, 10):
        references: dict[str, np.ndarray] = {}
        for precision in PRECISIONS:
            if not folder.onnx_path(precision).is_file():
                session.check(f"{name} {precision}", lambda precision=precision: _skip(f"no model.{precision}.onnx"))
                continue
            told = f"{name} {precision} {num_views} views"
            given = (session, folder, precision, num_views)
            session.check(f"{told} reference", lambda given=given, into=references: _reference(*given, into))
            session.check(f"{told} build", lambda given=given: _build(*given))
            session.check(f"{told} reuse", lambda given=given: _reuse(*given))
            session.check(f"{told} answers", lambda given=given, by=references: _compare(*given, by))
            session.check(f"{told} tails", lambda given=given: _tails(*given))
            session.check(f"{told} speed", lambda given=given: _speed(*given, is_full=is_full))


def _check_one(session: Session, folder: ModelFolder) -> None:
    """What needs no more than one engine: FP16 with ten views."""
    session.check("wrong key", lambda: _wrong_key(session, folder))
    session.check("memory over many batches", lambda: _steady(session, folder))
    session.check("opened and closed ten times", lambda: _reopened(session, folder))
    session.check("a GPU that is full", lambda: _full(session, folder))
    session.check("a huge batch", lambda: _huge(session, folder))
    session.check("two replicas on one GPU", lambda: _replicas(session, folder))
    session.check(f"{session.num_images} images end to end", lambda: _end_to_end(session, folder))
    session.check("beside torch", lambda: _beside(session, folder, "torch"))
    session.check("beside ONNX Runtime's CUDA provider", lambda: _beside_onnxruntime(session, folder))


def _skip(why: str) -> str:
    raise CheckSkippedError(why)


def _reference(
    session: Session, folder: ModelFolder, precision: str, num_views: int, found: dict[str, np.ndarray]
) -> str:
    options = EngineOptions(precision=precision, num_views=num_views, batch_size=8)  # type: ignore[arg-type]
    with open_engine(folder, "onnxruntime", options) as engine:
        found[precision] = _run_all(engine, session.images)
    num_answers = len(np.unique(found[precision].argmax(axis=1)))
    return f"ONNX Runtime gives {num_answers} different answers to {len(session.images)} images"


def _build(session: Session, folder: ModelFolder, precision: str, num_views: int) -> str:
    from alexdeploy.engines.trt.build import build_engine

    built = build_engine(folder, session.options(precision, num_views))
    if built.reused:
        raise CheckFailedError(f"{built.path} was there already")
    record = built.record
    session.rows.append(
        f"| build {folder.path.name} {precision}, {num_views} views | {record.build_seconds:.0f} s, "
        f"{record.engine_bytes / 1e6:.0f} MB |"
    )
    return f"{record.build_seconds:.1f} s, {record.engine_bytes / 1e6:.1f} MB, {built.path.name}"


def _reuse(session: Session, folder: ModelFolder, precision: str, num_views: int) -> str:
    from alexdeploy.engines.trt.build import build_engine

    began = time.monotonic()
    built = build_engine(folder, session.options(precision, num_views))
    if not built.reused:
        raise CheckFailedError("it was built again")
    return f"found in {time.monotonic() - began:.2f} s"


def _compare(
    session: Session, folder: ModelFolder, precision: str, num_views: int, references: dict[str, np.ndarray]
) -> str:
    if precision not in references or "fp32" not in references:
        raise CheckSkippedError("there is no reference")
    with session.open(folder, precision, num_views) as engine:
        found = _run_all(engine, session.images)
    if not np.isfinite(found).all() or not np.allclose(found.sum(axis=1), 1, atol=1e-3):
        raise CheckFailedError("the rows are not probabilities")
    error, flips = _difference(found, references[precision])
    told = f"{error:.1e} and {flips:.1%} of {len(found)} answers"
    whole_error, whole_flips = _difference(found, references["fp32"])
    against = f"{whole_error:.1e} and {whole_flips:.1%}"
    name = f"{folder.path.name} {precision}, {num_views} views"
    session.rows.append(f"| {name}, off ONNX Runtime's answers on the same graph; on FP32 | {told}; {against} |")
    if error > LIMITS[precision][0] or flips > LIMITS[precision][1]:
        raise CheckFailedError(f"off by {told}; allowed {LIMITS[precision]}; against FP32 {against}")
    return f"off by {told}; against FP32 {against}"


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest error of a probability, and the share of answers that differ."""
    flips = found.argmax(axis=1) != expected.argmax(axis=1)
    return float(np.abs(found - expected).max()), float(flips.mean())


def _run_all(engine: Any, images: np.ndarray) -> np.ndarray:
    size = engine.info.batch_size
    return np.concatenate([engine.run(images[at : at + size]).probabilities for at in range(0, len(images), size)])


def _tails(session: Session, folder: ModelFolder, precision: str, num_views: int) -> str:
    size = min(session.max_batch, len(session.images))
    counts = sorted({1, 2, 3, size // 2, size - 1, size})
    with session.open(folder, precision, num_views, size) as engine:
        whole = engine.run(session.images[:size])
        for count in (*counts, *reversed(counts), size, size):
            part = engine.run(session.images[:count])
            if part.probabilities.shape[0] != count or part.view_classes.shape != (count, num_views):
                raise CheckFailedError(f"{count} images gave {part.probabilities.shape} and {part.view_classes.shape}")
            # Kernels may differ from size to size, rows may not.
            error = float(np.abs(part.probabilities - whole.probabilities[:count]).max())
            if error > LIMITS[precision][0] / 10:
                raise CheckFailedError(f"a batch of {count} differs from the full one by {error:.1e}")
    return f"batches of {', '.join(map(str, counts))} in either order"


def _speed(session: Session, folder: ModelFolder, precision: str, num_views: int, *, is_full: bool) -> str:
    """The engine alone, with as many threads as it has streams."""
    batch = np.resize(session.images, (session.max_batch, *session.images.shape[1:]))
    num_done = 0
    lock = threading.Lock()
    with session.open(folder, precision, num_views) as engine:
        end = time.monotonic() + session.seconds

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
    told = f"{rate:,.0f} images/s, {rate * num_views:,.0f} views/s"
    if is_full and precision in CEILINGS:
        told += f", {rate * num_views / CEILINGS[precision]:.1%} of an H100's ceiling"
    session.rows.append(f"| {folder.path.name} {precision}, {num_views} views, engine alone | {told} |")
    return told


def _wrong_key(session: Session, folder: ModelFolder) -> str:
    own = os.environ["ALEXDEPLOY_STATE"]
    os.environ["ALEXDEPLOY_STATE"] = own + "-other"
    try:
        with session.open(folder, "fp16", 10):
            raise CheckFailedError("another installation's engine was opened")
    except ModelError as exc:
        if "another installation" not in exc.message:
            raise
    finally:
        os.environ["ALEXDEPLOY_STATE"] = own
    return "refused"


def _free_bytes() -> int:
    import pycuda.driver as cuda

    from alexdeploy.engines.trt.context import on_gpu

    return int(on_gpu(0, lambda: cuda.mem_get_info()[0]))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _steady(session: Session, folder: ModelFolder) -> str:
    size = min(session.max_batch, len(session.images))
    with session.open(folder, "fp16", 10, size) as engine:
        for count in (size, size, 1, size):
            engine.run(session.images[:count])
        free, resident = _free_bytes(), _resident_bytes()
        for index in range(session.num_steady):
            engine.run(session.images[: size if index % 10 else 1])
        lost, grown = free - _free_bytes(), _resident_bytes() - resident
    told = f"{session.num_steady} batches: {lost / 1e6:+.1f} MB on the GPU, {grown / 1e6:+.1f} MB in the process"
    session.rows.append(f"| memory | {told} |")
    if lost > 8e6 or grown > 64e6:
        raise CheckFailedError(told)
    return told


def _reopened(session: Session, folder: ModelFolder) -> str:
    free = []
    for _ in range(10):
        with session.open(folder, "fp16", 10) as engine:
            engine.run(session.images[:1])
        free.append(_free_bytes())
    if free[1] - free[-1] > 8e6:
        raise CheckFailedError(f"free memory goes down: {free}")
    return f"{(free[1] - free[-1]) / 1e6:+.1f} MB from the second to the tenth"


def _full(session: Session, folder: ModelFolder) -> str:
    """All but little of the GPU is taken: opening must say that memory is out, and work again when it is there."""
    import pycuda.driver as cuda

    from alexdeploy.engines.trt.context import on_gpu

    def fill() -> str:
        taken = []
        for size in (1 << 30, 1 << 26, 1 << 22):
            while True:
                try:
                    taken.append(cuda.mem_alloc(size))
                except cuda.MemoryError:
                    break
        try:
            with session.open(folder, "fp16", 10):
                return ""
        except DeviceMemoryError as exc:
            return exc.message
        finally:
            for each in taken:
                each.free()

    told = on_gpu(0, fill)
    if not told:
        raise CheckFailedError("it opened all the same")
    with session.open(folder, "fp16", 10) as engine:
        engine.run(session.images[:1])
    return told


def _huge(session: Session, folder: ModelFolder) -> str:
    from alexdeploy.engines.trt.build import build_engine

    options = dataclasses.replace(session.options("fp32", 10), max_batch=200_000)
    try:
        build_engine(folder, options)
    except AlexDeployError as exc:
        return f"{type(exc).__name__}: {exc.message}"
    raise CheckFailedError("an engine for 200,000 images was built")


def _uuid() -> str:
    """The UUID of the first GPU that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return visible if visible.startswith(("GPU-", "MIG-")) else f"GPU-{uuid.UUID(cuda_uuids()[0])}"


def _replicas(session: Session, folder: ModelFolder) -> str:
    device = Device(kind="cuda", index=0, uuid=_uuid())
    size = min(session.max_batch, 8, len(session.images))
    options = EngineOptions(precision="fp16", num_views=10, batch_size=size, device="cuda:0")
    replica = Replica(device=device, backend="tensorrt", options=options)
    with session.open(folder, "fp16", 10, size) as engine:
        expected = _run_all(engine, session.images)
    with Pool(folder, [replica, replica]) as pool, ThreadPoolExecutor(4) as threads:
        parts = [session.images[at : at + size] for at in range(0, len(session.images), size)]
        found = np.concatenate([part.probabilities for part in threads.map(pool.run, parts)])
        counts = [report.num_images for report in pool.reports()]
    if np.abs(found - expected).max() > LIMITS["fp16"][0] / 10:
        raise CheckFailedError(f"they differ from one engine by {np.abs(found - expected).max():.1e}")
    if 0 in counts:
        raise CheckFailedError(f"one of them did nothing: {counts}")
    return f"{' and '.join(map(str, counts))} images"


def _end_to_end(session: Session, folder: ModelFolder) -> str:
    """Decoding and engine together, as predict runs them: every file gives an answer, in order."""
    with session.open(folder, "fp16", 10) as engine:
        info: EngineInfo = engine.info
        began = time.monotonic()
        options = PipelineOptions(num_decoders=os.cpu_count() or 2)
        with closing(run_pipeline(engine, iter_sources([str(session.photographs)]), options)) as outcomes:
            found = list(outcomes)
        rate = len(found) / (time.monotonic() - began)
    if len(found) != session.num_images or [each.index for each in found] != list(range(len(found))):
        raise CheckFailedError(f"{len(found)} rows for {session.num_images} images, or not in order")
    bad = [each for each in found if each.error is not None or each.probabilities is None]
    if bad:
        raise CheckFailedError(f"{len(bad)} rows are errors, the first: {bad[0].error}")
    told = f"{rate:,.0f} images/s, ten views, batch {info.batch_size}, {options.num_decoders} decoding threads"
    session.rows.append(f"| {folder.path.name} fp16 end to end | {told} |")
    return told


def _beside(session: Session, folder: ModelFolder, package: str) -> str:
    try:
        import torch
    except ImportError as exc:
        raise CheckSkippedError(f"{package} is not installed") from exc
    if torch.version.cuda is None:
        raise CheckSkippedError("this torch is a build for CPUs")
    if not torch.cuda.is_available():
        raise CheckFailedError(f"torch {torch.__version__}, a build for CUDA {torch.version.cuda}, sees no GPU")
    before = torch.randn(512, 512, device="cuda")
    with session.open(folder, "fp16", 10) as engine:
        first = engine.run(session.images[:1]).probabilities
        product = before @ before
        second = engine.run(session.images[:1]).probabilities
    after = before @ before
    if not torch.equal(product, after) or not np.array_equal(first, second):
        raise CheckFailedError("they disturb each other")
    return f"torch {torch.__version__}"


def _beside_onnxruntime(session: Session, folder: ModelFolder) -> str:
    import onnxruntime

    if not has_onnxruntime_gpu():
        raise CheckSkippedError("onnxruntime-gpu is not installed")
    # Where it is installed and another build is imported, opening the engine says so.
    options = EngineOptions(num_views=10, batch_size=4, device="cuda:0")
    with session.open(folder, "fp16", 10) as engine, open_engine(folder, "onnxruntime", options) as other:
        one = engine.run(session.images[:3]).probabilities
        two = other.run(session.images[:3]).probabilities
    error = float(np.abs(one - two).max())
    if error > LIMITS["fp16"][0]:
        raise CheckFailedError(f"they differ by {error:.1e}")
    return f"ONNX Runtime {onnxruntime.__version__}, largest difference {error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
