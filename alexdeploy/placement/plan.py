"""Planning of replicas from devices and requirements: a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.engines.base import ENGINE_BACKENDS, TENSORRT_STREAMS, Backend, EngineBackend, EngineOptions, can_run
from alexdeploy.engines.trt.files import NAMES
from alexdeploy.placement.devices import Device
from alexdeploy.placement.options import BATCH_SIZE, PredictOptions

Kind = Literal["cpu", "cuda"]

MOST_IMAGES = 256
"""The largest batch chosen for a GPU: larger ones increase latency but not throughput."""

MEMORY_SHARE = 0.8
"""Share of a GPU's free memory. The rest is for CUDA, cuBLAS and cuDNN, and for fragmentation."""

_PREFERENCE: dict[Kind, tuple[Backend, ...]] = {
    "cpu": ("openvino", "onnxruntime", "torch"),
    "cuda": ("tensorrt-rtx", "tensorrt", "onnxruntime"),
}
GPU_BACKENDS = _PREFERENCE["cuda"]

_RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""The compute capabilities that TensorRT-RTX runs on (its support matrix)."""


def supports(backend: Backend, device: Device) -> bool:
    """Whether the backend runs on such devices, installed or not."""
    if backend == "tensorrt-rtx" and device.compute_capability not in _RTX_CAPABILITIES:
        return False
    return backend in _PREFERENCE[device.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One engine on one device. A GPU is "cuda:0" in `options`, because its process sees no other."""

    device: Device
    backend: Backend
    options: EngineOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class NoEngine:
    """Why a backend has no engine file for a GPU, and the hint; `error` is the exception class for a requested GPU."""

    reason: str
    hint: str
    error: type[AlexDeployError] = ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What to run. `named` are the devices of `options.devices`, None for any.

    `available` are the installed backends for each kind of device. TensorRT and TensorRT-RTX also need an engine file
    for the GPU: `engines` has the largest batch of one for each compute capability, or why there is none. An engine
    takes `fixed_bytes`, plus `image_bytes` for each image of a batch with all its views; one from a file takes the
    memory of its largest batch in each stream.
    """

    options: PredictOptions
    named: tuple[Device, ...] | None = None
    available: Mapping[Kind, tuple[Backend, ...]]
    engines: Mapping[EngineBackend, Mapping[tuple[int, int], int | NoEngine]] = field(default_factory=dict)
    num_processors: int
    fixed_bytes: int
    image_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A skipped device and the reason; `error` is the exception class to raise if it was requested.

    `backend` is the one for which the reason holds, if it is not all of them.
    """

    device: Device
    reason: str
    hint: str
    error: type[AlexDeployError] = DeviceError
    backend: EngineBackend | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`replicas` in the order of the devices; there is at least one.

    `without_engine` are GPUs that run another backend than an installed one that has no engine file for them.
    """

    replicas: tuple[Replica, ...]
    left_out: tuple[LeftOut, ...] = ()
    without_engine: tuple[LeftOut, ...] = ()


def plan_replicas(devices: Sequence[Device], demand: Demand) -> Plan:
    """Place replicas on the requested devices, else on all GPUs that can run the model, else on the CPU.

    A device gets `options.replicas` replicas each time that it is listed. There is no silent fallback for a requested
    device: raises DeviceError if it cannot run the model, UsageError if no backend for it is installed,
    DeviceMemoryError if it has too little memory, and ModelError if the requested backend has no engine for it. A GPU
    that was not requested is skipped instead.
    """
    if demand.named is not None:
        return _plan(demand.named, demand)
    fitting: list[Device] = []
    left_out: list[LeftOut] = []
    # A backend that runs only on CPUs implies the CPU.
    backend = demand.options.backend
    wants_gpu = backend is None or backend in GPU_BACKENDS
    for gpu in (device for device in devices if device.kind == "cuda" and wants_gpu):
        reason = _reason_against(gpu, demand.options.replicas, demand)
        if reason is None:
            fitting.append(gpu)
        else:
            left_out.append(reason)
    cpus = [device for device in devices if device.kind == "cpu"][:1]
    if left_out and backend not in (None, *_PREFERENCE["cpu"]):
        # Then only the reasons for the GPUs matter.
        cpus = []
    try:
        return replace(_plan(fitting or cpus, demand), left_out=tuple(left_out))
    except (DeviceError, UsageError) as exc:
        if not left_out:
            raise
        reasons = "; ".join(f"{each.device}: {each.reason}" for each in left_out)
        raise left_out[0].error(f"{exc.message}; {reasons}", hint=left_out[0].hint) from exc


def _plan(devices: Sequence[Device], demand: Demand) -> Plan:
    if not devices:
        raise DeviceError("no device can run the model", hint="List them: alexdeploy devices")
    slots = [device for device in devices for _ in range(demand.options.replicas)]
    num_on = Counter(slots)
    threads = _shares(demand.num_processors, sum(device.kind == "cpu" for device in slots))
    replicas = []
    for device in slots:
        against = _reason_against(device, num_on[device], demand)
        if against is not None:
            name = f" ({device.name})" if device.name else ""
            raise against.error(f"{device}{name}: {against.reason}", hint=against.hint)
        backend = _backend_for(device, num_on[device], demand)
        assert backend is not None
        is_cpu = device.kind == "cpu"
        options = EngineOptions(
            precision=demand.options.precision,
            num_views=demand.options.num_views,
            batch_size=_batch_size(device, num_on[device], demand),
            num_threads=threads.pop(0) if is_cpu else None,
            num_streams=demand.options.num_streams,
            device="cpu" if is_cpu else "cuda:0",
        )
        replicas.append(Replica(device=device, backend=backend, options=options))
    wants_engine = demand.options.backend is None and can_run("tensorrt", demand.options.precision)
    lacking = [
        _without_engine(device, num_replicas, demand)
        for device, num_replicas in num_on.items()
        if wants_engine and device.kind == "cuda"
    ]
    return Plan(replicas=tuple(replicas), without_engine=tuple(each for each in lacking if each is not None))


def _backend_for(device: Device, num_replicas: int, demand: Demand) -> Backend | None:
    for backend in _PREFERENCE[device.kind]:
        if (
            demand.options.backend in (None, backend)
            and supports(backend, device)
            and backend in demand.available.get(device.kind, ())
            and can_run(backend, demand.options.precision)
            and (backend not in ENGINE_BACKENDS or isinstance(_engine_for(device, num_replicas, demand, backend), int))
        ):
            return backend
    return None


def _engine_for(device: Device, num_replicas: int, demand: Demand, backend: EngineBackend) -> int | NoEngine:
    """The largest batch of the backend's engine for the GPU, or why it has none that `num_replicas` can run."""
    if device.compute_capability is None:
        return NoEngine(reason="its compute capability is unknown", hint="See: alexdeploy doctor")
    name = NAMES[backend]
    nothing = NoEngine(reason=f"there is no {name} engine for it", hint="Build one: alexdeploy build")
    found = demand.engines.get(backend, {}).get(device.compute_capability, nothing)
    room = _room(device, num_replicas)
    if isinstance(found, NoEngine) or room is None:
        return found
    needed = demand.fixed_bytes + TENSORRT_STREAMS * found * demand.image_bytes
    if needed <= room:
        return found
    why = f"its {name} engine is for up to {found} images, for which {TENSORRT_STREAMS} streams reserve memory"
    hint = "Stop other processes on this GPU"
    smaller = found // 2
    while smaller and demand.fixed_bytes + TENSORRT_STREAMS * smaller * demand.image_bytes > room:
        smaller //= 2
    if smaller:
        hint += f", or build one with --max-batch {smaller} and give --batch-size {smaller}"
    reason = f"{why}; {_too_little(device, num_replicas, needed)}"
    return NoEngine(reason=reason, hint=hint, error=DeviceMemoryError)


def _without_engine(device: Device, num_replicas: int, demand: Demand) -> LeftOut | None:
    """Why no installed backend has an engine file for the GPU; None if one has, or no such backend is installed."""
    asked = demand.options.backend
    lacking = []
    for backend in _PREFERENCE["cuda"]:
        if (
            backend in ENGINE_BACKENDS
            and asked in (None, backend)
            and backend in demand.available.get("cuda", ())
            and supports(backend, device)
        ):
            found = _engine_for(device, num_replicas, demand, backend)
            if isinstance(found, int):
                return None
            lacking.append(
                LeftOut(device=device, reason=found.reason, hint=found.hint, error=found.error, backend=backend)
            )
    return lacking[0] if lacking else None


def _reason_against(device: Device, num_replicas: int, demand: Demand) -> LeftOut | None:
    """Why the device cannot run `num_replicas` replicas, or None if it can."""
    if _backend_for(device, num_replicas, demand) is None:
        return _no_backend(device, num_replicas, demand)
    room = _room(device, num_replicas)
    needed = demand.fixed_bytes + demand.image_bytes
    if room is None or needed <= room:
        return None
    num_views = demand.options.num_views
    views = "a view" if num_views == 1 else f"{num_views} views"
    fewer = "" if num_replicas == 1 else "fewer replicas on it, "
    return LeftOut(
        device=device,
        reason=_too_little(device, num_replicas, needed, f" with one image of {views}"),
        hint=f"Stop other processes on this GPU, or use {fewer}{'' if num_views == 1 else 'fewer --views, '}"
        "another device: --devices",
        error=DeviceMemoryError,
    )


def _too_little(device: Device, num_replicas: int, needed: int, what: str = "") -> str:
    free = 0 if device.free_bytes is None else device.free_bytes
    on_it = "a replica" if num_replicas == 1 else f"each of {num_replicas} replicas"
    return (
        f"{free / 1e9:.1f} GB are free, {MEMORY_SHARE:.0%} of that may be used; "
        f"{on_it}{what} needs {needed / 1e9:.1f} GB"
    )


def _no_backend(device: Device, num_replicas: int, demand: Demand) -> LeftOut:
    asked = demand.options
    kind = "GPUs" if device.kind == "cuda" else "the CPU"
    known = [backend for backend in _PREFERENCE[device.kind] if supports(backend, device)]
    installed = [backend for backend in known if backend in demand.available.get(device.kind, ())]
    if asked.backend is not None and asked.backend not in known:
        if device.kind == "cuda" and asked.backend == "tensorrt-rtx":
            capability = ".".join(map(str, device.compute_capability or ("unknown",)))
            kind = f"compute capability {capability}"
        reason = f"{asked.backend} does not run on {kind}"
        return LeftOut(device=device, reason=reason, hint=f"Use --backend {known[0]} there.")
    wanted = [backend for backend in installed if asked.backend in (None, backend)]
    if not wanted:
        extra = "rtx" if asked.backend == "tensorrt-rtx" else "gpu" if device.kind == "cuda" else "cpu"
        reason = f"no backend for {kind} is installed"
        if asked.backend is not None:
            reason = f"{asked.backend} is not installed for {kind}"
        return LeftOut(
            device=device,
            reason=reason,
            hint=f"pip install 'alexdeploy[{extra}]', then run: alexdeploy doctor",
            error=UsageError,
        )
    if not any(can_run(backend, asked.precision) for backend in wanted):
        reason = f"{' and '.join(wanted)} cannot run {asked.precision} there"
        return LeftOut(device=device, reason=reason, hint="Use another --precision.")
    lacking = _without_engine(device, num_replicas, demand)
    assert lacking is not None
    return lacking


def _room(device: Device, num_replicas: int) -> float | None:
    """Bytes that one replica may use; None for a CPU, or if the driver does not report memory."""
    if device.kind == "cpu" or device.free_bytes is None:
        return None
    return MEMORY_SHARE * device.free_bytes / num_replicas


def _batch_size(device: Device, num_replicas: int, demand: Demand) -> int:
    if demand.options.batch_size != "auto":
        return demand.options.batch_size
    backend = _backend_for(device, num_replicas, demand)
    engine = _engine_for(device, num_replicas, demand, backend) if backend in ENGINE_BACKENDS else None
    most = min(engine, MOST_IMAGES) if isinstance(engine, int) else MOST_IMAGES
    room = _room(device, num_replicas)
    if room is None:
        return min(BATCH_SIZE, most)
    # The largest batch of an engine file fits twice, otherwise it would not have been chosen.
    size = most
    while size > 1 and demand.fixed_bytes + size * demand.image_bytes > room:
        size //= 2
    return size


def _shares(total: int, count: int) -> list[int]:
    """Split `total` evenly into `count` shares of at least 1; the first ones get the remainder."""
    return [max(1, total // count + (place < total % count)) for place in range(count)]
