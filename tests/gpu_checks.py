"""Every check that needs an NVIDIA GPU, all or some: `make test-gpu`, or PYTHONPATH=. python3 tests/gpu_checks.py.

It needs tensorrt, pycuda and onnxruntime, and no torch: `alexnet` with random weights is made here. Trained models are
those in the folders named on the command line, made by `make gpu-models` where torch is. With --root, models, engines
and references stay for the next call. Each check ends in a row for the table of docs/gpu.md; exit code 1: one failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from gpu_engine_checks import OF_AN_ENGINE, CheckFailedError, CheckSkippedError, Setting
from gpu_model_checks import OF_A_MODEL
from gpu_models import make_random_model

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder

PRECISIONS = ("fp32", "fp16", "int8")
SMALL = ("architecture.width=0.0625", "architecture.hidden=[512, 512]")


@dataclass
class Ledger:
    """Runs checks, one after the other, until the time is up, and prints a row for each that ran."""

    device: str
    versions: str
    end: float
    num_failed: int = 0
    num_skipped: int = 0
    num_left: int = 0

    def check(self, name: str, work: Callable[[], str]) -> None:
        """One that fails does not keep the next from running."""
        began = time.monotonic()
        if began >= self.end:
            print(f"not begun: {name}", flush=True)
            self.num_left += 1
            return
        try:
            result = f"ok: {work()}"
        except CheckSkippedError as exc:
            print(f"skipped: {name}: {exc}", flush=True)
            self.num_skipped += 1
            return
        except Exception as exc:
            if not isinstance(exc, (CheckFailedError, AlexDeployError)):
                traceback.print_exc()
            result = f"FAILED: {type(exc).__name__}: {exc}"
            self.num_failed += 1
        told = f"{result.replace('|', '/').replace(chr(10), ' ')} ({time.monotonic() - began:.1f} s)"
        print(f"| {date.today()} | {self.device} | {self.versions} | {name} | {told} |", flush=True)


def main() -> int:
    arguments = _arguments()
    try:
        from alexdeploy.engines.trt.context import find_gpu

        gpu = find_gpu("cuda:0")
    except AlexDeployError as exc:
        print(f"no check can run: {exc}")
        return 1
    import tensorrt

    capability = ".".join(map(str, gpu.compute_capability))
    ledger = Ledger(
        device=f"{gpu.name}, {capability}",
        versions=f"TensorRT {tensorrt.__version__}, CUDA {gpu.cuda}, Python {platform.python_version()}",
        end=time.monotonic() + arguments.seconds,
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = (arguments.root or Path(scratch)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        os.environ["ALEXDEPLOY_STATE"], os.environ["ALEXDEPLOY_CACHE"] = str(root / "state"), str(root / "cache")
        _run_all(ledger, arguments, root)
    print(f"\n{ledger.num_failed} failed, {ledger.num_skipped} skipped, {ledger.num_left} not begun")
    return 1 if ledger.num_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="folders of trained models with FP32, FP16 and INT8")
    parser.add_argument("--small", action="store_true", help="a sixteenth of the network: to try the checks")
    parser.add_argument("--precisions", type=_words(PRECISIONS), default=PRECISIONS)
    parser.add_argument("--views", type=_words(("1", "5", "10")), default=("1", "10"))
    names = (*OF_AN_ENGINE, *OF_A_MODEL)
    parser.add_argument("--checks", type=_words(names), default=names, help=f"some of: {','.join(names)}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no check begins after so many")
    parser.add_argument("--num-images", type=int, help="photographs that are decoded from end to end")
    parser.add_argument("--max-batch", type=int, help="default: 64, with --small 4")
    parser.add_argument("--root", type=Path, help="a folder that is kept from call to call")
    parser.add_argument("--tactic-sources", type=lambda text: tuple(text.split(",")), help="as in alexdeploy build")
    return parser.parse_args()


def _words(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def split(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := [word for word in found if word not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; known are {', '.join(known)}")
        return found

    return split


def _run_all(ledger: Ledger, arguments: argparse.Namespace, root: Path) -> None:
    small = arguments.small
    setting = Setting(
        root=root,
        max_batch=arguments.max_batch or (4 if small else 64),
        num_images=arguments.num_images or (100 if small else 2000),
        num_steady=20 if small else 200,
        seconds=1.0 if small else 5.0,
        is_full=not small,
        tactic_sources=arguments.tactic_sources,
    )
    random = ModelFolder(root / "models" / ("alexnet-small" if small else "alexnet-random"))
    ledger.check(f"{random.path.name} made", lambda: _make(random, small))
    models = [folder for folder in (random, *map(ModelFolder, arguments.models)) if folder.onnx_path("fp32").is_file()]
    for folder in models:
        for num_views in map(int, arguments.views):
            for precision in arguments.precisions:
                for name in (each for each in OF_AN_ENGINE if each in arguments.checks):
                    work = OF_AN_ENGINE[name]
                    ledger.check(
                        f"{folder.path.name} {precision}, {num_views} views: {name}",
                        lambda work=work, given=(setting, folder, precision, num_views): work(*given),
                    )
    for name in (each for each in OF_A_MODEL if each in arguments.checks and random in models):
        ledger.check(name, lambda work=OF_A_MODEL[name]: work(setting, random))


def _make(folder: ModelFolder, small: bool) -> str:
    """Make the model if no earlier call has; one that is ended meanwhile leaves no half of it."""
    if folder.path.is_dir():
        return "kept"
    with tempfile.TemporaryDirectory(dir=folder.path.parents[1]) as scratch:
        made = make_random_model(Path(scratch) / folder.path.name, SMALL if small else (), 10 if small else 1000)
        folder.path.parent.mkdir(exist_ok=True)
        made.path.rename(folder.path)
    return "FP32, FP16, INT8"


if __name__ == "__main__":
    sys.exit(main())
