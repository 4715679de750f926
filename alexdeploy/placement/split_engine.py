"""One network on two devices: the towers of 2012 side by side, or convolutions and fully connected layers in a row.

Tensors are exchanged through host memory as NumPy arrays, also between two GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Placement
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images
from alexdeploy.engines.stages import Tensors, open_stage
from alexdeploy.engines.trt.cuda_driver import cuda_ordinal
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.split import Stage, StagePlan, split_graph
from alexdeploy.placement.devices import Device


def open_split_engine(
    folder: ModelFolder, placement: Placement, devices: tuple[Device, Device], options: EngineOptions
) -> SplitEngine:
    """An engine, not yet opened, for one model on two devices in ONNX Runtime. `options.device` is ignored.

    CPU devices share `options.num_threads` equally. Raises UsageError if the network cannot be cut that way.
    """
    if options.precision == "bf16":
        raise UsageError(
            "--placement runs in ONNX Runtime, which has no bfloat16 here", hint="Use --precision fp32 or fp16."
        )
    spec = folder.spec()
    if spec.members:
        raise UsageError(
            f"--placement divides one network; {folder.path} is an ensemble of {len(spec.members)}",
            hint="Leave it out. To use two devices, give each a whole copy: --devices cuda:0,cuda:1",
        )
    graph = load_graph(folder, options.precision, spec)
    model = deployment_graph(graph.model, spec, options.num_views, folder.mean_image(spec))
    info = EngineInfo(
        backend="onnxruntime",
        device=",".join(str(device) for device in devices),
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=graph.sha256,
        batch_size=options.batch_size,
        # Both devices of a pipeline are busy only if each has its own batch.
        num_streams=2 if placement == "pipeline" else 1,
    )
    num_cpus = sum(device.kind == "cpu" for device in devices)
    num_threads = max(1, (options.num_threads or available_processors()) // max(1, num_cpus))
    return SplitEngine(split_graph(model, placement), info, devices, num_threads)


class SplitEngine:
    """Stages on two devices. Each device runs one stage at a time, in the order of the calls.

    `num_threads` is per CPU device.
    """

    def __init__(self, plan: StagePlan, info: EngineInfo, devices: tuple[Device, Device], num_threads: int) -> None:
        self.info = info
        self._plan: StagePlan | None = plan
        self._devices = devices
        self._num_threads = num_threads
        self._steps: list[list[_OpenStage]] = []
        self._workers: tuple[ThreadPoolExecutor, ...] = ()
        self._opened: OpenedHere | None = None

    def __enter__(self) -> SplitEngine:
        assert self._plan is not None, "an engine can be entered only once"
        self._opened = OpenedHere(self)
        self._workers = tuple(
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"alexdeploy-stages-{number}")
            for number in range(len(self._devices))
        )
        try:
            names = [_runtime_name(device) for device in self._devices]
            opening = [
                [self._workers[stage.device].submit(self._open, stage, names[stage.device]) for stage in step]
                for step in self._plan.steps
            ]
            self._steps = [[future.result() for future in step] for step in opening]
        except BaseException:
            self._close()
            raise
        # Free the plan: the sessions have the weights.
        self._plan = None
        return self

    def _open(self, stage: Stage, device: str) -> _OpenStage:
        return _OpenStage(stage, open_stage(stage.model.SerializeToString(), device, self._num_threads))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is None or not self._opened.is_fork:
            self._close()

    def _close(self) -> None:
        self._steps = []
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; up to `info.num_streams` calls run at once."""
        check_images(images, self.info.batch_size)
        if not self._steps or self._opened is None:
            raise DeviceError("the engine is not open", hint="Open it in a with statement.")
        self._opened.check("engine")
        tensors: dict[str, NDArray[Any]] = {"images": images}
        for step in self._steps:
            running: list[Future[dict[str, NDArray[Any]]]] = [
                self._workers[stage.device].submit(stage.run, {name: tensors[name] for name in stage.inputs})
                for stage in step
            ]
            # Wait for both even if one raises, so that the devices are free for the next batch.
            wait(running)
            for future in running:
                tensors.update(future.result())
        return Predictions(tensors["probabilities"], tensors["view_classes"])


class _OpenStage:
    def __init__(self, stage: Stage, run: Callable[[Tensors], dict[str, NDArray[Any]]]) -> None:
        self.device = stage.device
        self.inputs = stage.inputs
        self.run = run


def _runtime_name(device: Device) -> str:
    """The device's name in this process's CUDA numbering: "cpu", or "cuda:0" and so on."""
    if device.kind == "cpu":
        return "cpu"
    return f"cuda:{cuda_ordinal(device.uuid) if device.uuid else device.index}"
