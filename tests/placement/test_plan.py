"""Placement on machines that are imagined: the plan is a pure function."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.engines.base import EngineOptions
from alexdeploy.placement.devices import Device
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.plan import Demand, NoEngine, Plan, plan_replicas

GB = 1_000_000_000
CPU = Device(kind="cpu", index=0, name="a CPU", free_bytes=16 * GB)
BACKENDS = {"cpu": ("torch", "onnxruntime", "openvino"), "cuda": ("onnxruntime", "tensorrt")}


def gpu(index: int, free_gb: float | None = 80, capability: tuple[int, int] = (9, 0)) -> Device:
    free = None if free_gb is None else int(free_gb * GB)
    return Device(kind="cuda", index=index, uuid=f"GPU-{index}", compute_capability=capability, free_bytes=free)


def demand(**more: Any) -> Demand:
    """1 GB for an engine and 10 MB for an image, on 8 processors; TensorRT has engines for A100 and H100.

    `more` are fields of Demand and of its options, whose batch is "auto".
    """
    asked = {name: more.pop(name) for name in list(more) if name in PredictOptions.__dataclass_fields__}
    if "engines" in more:
        more["engines"] = {"tensorrt": more["engines"]}
    usual = {
        "options": PredictOptions(**{"batch_size": "auto", **asked}),
        "available": BACKENDS,
        "engines": {"tensorrt": {(9, 0): 1024, (8, 0): 1024}},
        "num_processors": 8,
        "fixed_bytes": GB,
        "image_bytes": 10_000_000,
    }
    return Demand(**{**usual, **more})


def rows(plan: Plan) -> list[tuple[str, str, int, int | None]]:
    return [
        (str(each.device), each.backend, each.options.batch_size, each.options.num_threads) for each in plan.replicas
    ]


def test_eight_equal_gpus_give_eight_equal_replicas() -> None:
    plan = plan_replicas([CPU, *map(gpu, range(8))], demand())
    assert rows(plan) == [(f"cuda:{index}", "tensorrt", 256, None) for index in range(8)]
    assert plan.left_out == ()


def test_a_batch_is_no_larger_than_the_engine_of_its_gpu() -> None:
    machine = [gpu(0), gpu(1, capability=(8, 0)), gpu(2, capability=(7, 5))]
    asked = demand(engines={(9, 0): 32, (8, 0): 48})
    assert rows(plan_replicas(machine, asked)) == [
        ("cuda:0", "tensorrt", 32, None),
        ("cuda:1", "tensorrt", 48, None),
        ("cuda:2", "onnxruntime", 256, None),
    ]
    assert rows(plan_replicas([gpu(0)], demand(engines={(9, 0): 32}, backend="onnxruntime")))[0][2] == 256


def test_a_small_engine_bounds_the_batch_of_a_gpu_that_does_not_tell_its_memory() -> None:
    assert rows(plan_replicas([gpu(0, free_gb=None)], demand(engines={(9, 0): 4})))[0][2] == 4


def test_tensorrt_needs_room_for_the_greatest_batch_of_its_engine_in_two_streams_whatever_the_batch() -> None:
    # 1 GB and 2 x 128 x 10 MB; of 4.5 GB 3.6 may be used, of 4.4 GB 3.52.
    asked = demand(engines={(9, 0): 128}, batch_size=1)
    plan = plan_replicas([gpu(0, free_gb=4.5), gpu(1, free_gb=4.4)], asked)
    assert rows(plan) == [("cuda:0", "tensorrt", 1, None), ("cuda:1", "onnxruntime", 1, None)]
    (without,) = plan.without_engine
    assert str(without.device) == "cuda:1"
    assert without.reason == (
        "its TensorRT engine is for up to 128 images, for which 2 streams reserve memory; "
        "4.4 GB are free, 80% of that may be used; a replica needs 3.6 GB"
    )
    assert without.hint.endswith("build one with --max-batch 64 and give --batch-size 64")


def test_two_replicas_of_an_engine_need_its_memory_twice() -> None:
    machine = [gpu(0, free_gb=8)]
    asked = demand(engines={(9, 0): 128})
    assert rows(plan_replicas(machine, asked)) == [("cuda:0", "tensorrt", 128, None)]
    two = plan_replicas(machine, replace(asked, options=replace(asked.options, replicas=2)))
    assert [each.backend for each in two.replicas] == ["onnxruntime"] * 2
    assert "each of 2 replicas needs 3.6 GB" in two.without_engine[0].reason


def test_an_engine_that_a_gpu_has_no_room_for_and_that_was_asked_for_is_a_memory_error() -> None:
    asked = demand(engines={(9, 0): 128}, backend="tensorrt")
    for named in (None, (gpu(0, free_gb=4),)):
        with pytest.raises(DeviceMemoryError, match="its TensorRT engine is for up to 128 images") as caught:
            plan_replicas([CPU, gpu(0, free_gb=4)], replace(asked, named=named))
        assert "--max-batch 64" in str(caught.value.hint)
    with pytest.raises(DeviceMemoryError) as caught:
        plan_replicas([gpu(0, free_gb=1)], asked)
    assert caught.value.hint == "Stop other processes on this GPU", "no engine is small enough"


def test_a_gpu_that_is_almost_full_is_left_out_with_its_reason() -> None:
    plan = plan_replicas([CPU, gpu(0), gpu(1, free_gb=1.2), gpu(2)], demand())
    assert [str(each.device) for each in plan.replicas] == ["cuda:0", "cuda:2"]
    (left_out,) = plan.left_out
    assert str(left_out.device) == "cuda:1"
    assert (
        left_out.reason == "1.2 GB are free, 80% of that may be used; a replica with one image of a view needs 1.0 GB"
    )


def test_a_gpu_that_is_almost_full_and_was_named_is_an_error() -> None:
    full = gpu(1, free_gb=1.2)
    with pytest.raises(DeviceMemoryError, match=r"cuda:1: 1\.2 GB are free.* 10 views needs 1\.0 GB") as caught:
        plan_replicas([CPU, gpu(0), full], demand(named=(gpu(0), full), num_views=10))
    assert "fewer --views" in str(caught.value.hint)
    assert "--devices" in str(caught.value.hint)


def test_one_cpu_replica_where_there_is_no_gpu() -> None:
    assert rows(plan_replicas([CPU], demand())) == [("cpu", "openvino", 8, 8)]


def test_one_cpu_replica_where_no_gpu_has_room() -> None:
    plan = plan_replicas([CPU, gpu(0, free_gb=1)], demand())
    assert rows(plan) == [("cpu", "openvino", 8, 8)]
    assert len(plan.left_out) == 1


def test_two_replicas_on_the_cpu_share_its_processors() -> None:
    plan = plan_replicas([CPU], demand(named=(CPU, CPU), num_processors=5))
    assert rows(plan) == [("cpu", "openvino", 8, 3), ("cpu", "openvino", 8, 2)]


def test_two_replicas_on_one_gpu_share_its_memory() -> None:
    one = plan_replicas([gpu(0, free_gb=5)], demand(named=(gpu(0, free_gb=5),)))
    two = plan_replicas([gpu(0, free_gb=5)], demand(named=(gpu(0, free_gb=5),) * 2))
    # 80 % of 5 GB less 1 GB is 300 images; of 2.5 GB, 100.
    assert [each.options.batch_size for each in one.replicas] == [256]
    assert [each.options.batch_size for each in two.replicas] == [64, 64]


def test_replicas_count_as_naming_it_as_often() -> None:
    devices = (CPU, gpu(0, free_gb=5), CPU)
    asked = demand(named=devices, replicas=2)
    assert (
        plan_replicas(devices, asked).replicas
        == plan_replicas(devices, demand(named=(CPU, CPU, devices[1], devices[1], CPU, CPU))).replicas
    )
    assert rows(plan_replicas([CPU], demand(replicas=2))) == [("cpu", "openvino", 8, 4)] * 2


def test_a_gpu_beside_the_cpu_takes_none_of_its_processors() -> None:
    plan = plan_replicas([CPU, gpu(0)], demand(named=(gpu(0), CPU)))
    assert [each.options.num_threads for each in plan.replicas] == [None, 8]


def test_onnxruntime_runs_on_a_gpu_where_tensorrt_is_not_installed() -> None:
    available = {"cpu": ("openvino",), "cuda": ("onnxruntime",)}
    assert rows(plan_replicas([CPU, gpu(0)], demand(available=available))) == [("cuda:0", "onnxruntime", 256, None)]


NO_ENGINE = NoEngine(reason="it has no engine", hint="Build one: alexdeploy build alexnet")


def test_onnxruntime_runs_on_a_gpu_for_which_there_is_no_engine_and_the_plan_says_so() -> None:
    asked = demand(engines={(8, 0): NO_ENGINE, (9, 0): 64})
    plan = plan_replicas([gpu(0, capability=(8, 0)), gpu(1)], asked)
    assert [each.backend for each in plan.replicas] == ["onnxruntime", "tensorrt"]
    assert plan.left_out == ()
    (without,) = plan.without_engine
    assert (str(without.device), without.reason, without.hint) == ("cuda:0", NO_ENGINE.reason, NO_ENGINE.hint)


def test_a_gpu_without_an_engine_and_without_another_backend_is_left_out_with_the_command_that_builds_one() -> None:
    asked = demand(available={"cpu": ("openvino",), "cuda": ("tensorrt",)}, engines={(8, 0): NO_ENGINE, (9, 0): 64})
    plan = plan_replicas([CPU, gpu(0, capability=(8, 0)), gpu(1)], asked)
    assert [str(each.device) for each in plan.replicas] == ["cuda:1"]
    assert [(str(each.device), each.reason, each.hint) for each in plan.left_out] == [
        ("cuda:0", NO_ENGINE.reason, NO_ENGINE.hint)
    ]
    assert rows(plan_replicas([CPU, gpu(0, capability=(8, 0))], asked)) == [("cpu", "openvino", 8, 8)]


@pytest.mark.parametrize("more", [{"named": (gpu(0),)}, {}])
def test_who_asks_for_tensorrt_where_there_is_no_engine_gets_the_command_that_builds_one(more: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^(no device can run the model; )?cuda:0: it has no engine") as caught:
        plan_replicas([CPU, gpu(0)], demand(backend="tensorrt", engines={(9, 0): NO_ENGINE}, **more))
    assert caught.value.hint == NO_ENGINE.hint


def test_a_named_gpu_without_an_engine_and_without_another_backend_is_an_error() -> None:
    asked = demand(named=(gpu(0),), available={"cuda": ("tensorrt",)}, engines={(9, 0): NO_ENGINE})
    with pytest.raises(ModelError, match=r"cuda:0: it has no engine"):
        plan_replicas([gpu(0)], asked)


@pytest.mark.parametrize(
    "more", [{"backend": "onnxruntime"}, {"available": {"cuda": ("onnxruntime",)}}, {"named": (CPU,)}]
)
def test_where_tensorrt_is_not_wanted_or_not_installed_nobody_hears_of_engines(more: dict[str, Any]) -> None:
    assert plan_replicas([CPU, gpu(0)], demand(**{"engines": {(9, 0): NO_ENGINE}, **more})).without_engine == ()


def test_an_unknown_compute_capability_has_no_engine() -> None:
    unknown = replace(gpu(0), compute_capability=None)
    plan = plan_replicas([unknown], demand())
    assert [each.backend for each in plan.replicas] == ["onnxruntime"]
    assert "unknown" in plan.without_engine[0].reason


def test_gpus_without_a_backend_are_left_out_and_the_plan_says_so() -> None:
    plan = plan_replicas([CPU, gpu(0)], demand(available={"cpu": ("onnxruntime",), "cuda": ()}))
    assert rows(plan) == [("cpu", "onnxruntime", 8, 8)]
    assert plan.left_out[0].reason == "no backend for GPUs is installed"
    assert "alexdeploy[gpu]" in plan.left_out[0].hint


def test_who_asks_for_a_backend_of_the_cpu_gets_the_cpu() -> None:
    plan = plan_replicas([CPU, gpu(0)], demand(backend="openvino"))
    assert rows(plan) == [("cpu", "openvino", 8, 8)]
    assert plan.left_out == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"named": (gpu(0),), "backend": "openvino"}, "cuda:0: openvino does not run on GPUs"),
        ({"named": (CPU,), "backend": "tensorrt"}, r"cpu \(a CPU\): tensorrt does not run on the CPU"),
        ({"named": (gpu(0),), "precision": "bf16"}, "tensorrt and onnxruntime cannot run bf16 there"),
        ({"named": (CPU,), "available": {}}, "no backend for the CPU is installed"),
        ({"named": (CPU,), "available": {"cpu": ("torch",)}, "backend": "openvino"}, "openvino is not installed"),
        ({"named": (CPU,), "available": {"cpu": ("torch",)}, "precision": "int8"}, "torch cannot run int8"),
        ({"named": ()}, "no device"),
        ({"backend": "tensorrt", "available": {"cpu": ("torch",)}}, "cuda:0: tensorrt is not installed for GPUs"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_an_error_with_a_cure(more: dict[str, Any], message: str) -> None:
    kind = UsageError if "installed" in message else DeviceError
    with pytest.raises(kind, match=message) as caught:
        plan_replicas([CPU, gpu(0)], demand(**more))
    assert caught.value.hint


def test_without_any_device_there_is_no_plan() -> None:
    with pytest.raises(DeviceError, match="no device"):
        plan_replicas([], demand())


@pytest.mark.parametrize("more", [{"replicas": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_numbers_below_one_are_usage_errors(more: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        demand(**more)


def test_a_batch_size_that_was_asked_for_is_kept() -> None:
    plan = plan_replicas([], demand(named=(CPU, gpu(0, free_gb=2)), batch_size=1000))
    assert [each.options.batch_size for each in plan.replicas] == [1000, 1000]


def test_a_gpu_that_does_not_tell_its_memory_gets_a_small_batch() -> None:
    assert rows(plan_replicas([gpu(0, free_gb=None)], demand())) == [("cuda:0", "tensorrt", 8, None)]


def test_memory_that_is_exactly_enough_is_enough() -> None:
    # 80 % of 4.45 GB is 3.56 GB: 1 GB and 256 images, or two streams of 128; of 1.2625 GB it is 1.01 GB.
    assert rows(plan_replicas([gpu(0, free_gb=4.45)], demand(backend="onnxruntime"))) == [
        ("cuda:0", "onnxruntime", 256, None)
    ]
    assert rows(plan_replicas([gpu(0, free_gb=4.45)], demand(engines={(9, 0): 128}))) == [
        ("cuda:0", "tensorrt", 128, None)
    ]
    assert rows(plan_replicas([gpu(0, free_gb=1.2625)], demand())) == [("cuda:0", "onnxruntime", 1, None)]
    (without,) = plan_replicas([gpu(0, free_gb=4.45)], demand(engines={(9, 0): 1024})).without_engine
    assert (
        without.hint == "Stop other processes on this GPU, or build one with --max-batch 128 and give --batch-size 128"
    )
    assert (without.backend, without.error) == ("tensorrt", DeviceMemoryError)
    # One image fits twice: 80 % of 1.275 GB is 1.02 GB.
    (without,) = plan_replicas([gpu(0, free_gb=1.275)], demand(engines={(9, 0): 1024})).without_engine
    assert without.hint.endswith("--max-batch 1 and give --batch-size 1")


def test_each_replica_gets_the_options_of_the_run_and_the_device_that_its_process_sees() -> None:
    options = {"precision": "fp16", "num_views": 5, "num_streams": 3, "batch_size": 7, "backend": "onnxruntime"}
    plan = plan_replicas([], demand(named=(gpu(3), CPU), num_processors=6, **options))
    assert [each.options for each in plan.replicas] == [
        EngineOptions(precision="fp16", num_views=5, batch_size=7, num_streams=3, device="cuda:0"),
        EngineOptions(precision="fp16", num_views=5, batch_size=7, num_streams=3, device="cpu", num_threads=6),
    ]


RTX_TOO = {"cpu": ("torch",), "cuda": ("onnxruntime", "tensorrt", "tensorrt-rtx")}


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)])
def test_tensorrt_rtx_comes_first_on_the_gpus_that_it_runs_on(capability: tuple[int, int]) -> None:
    engines = {"tensorrt": {capability: 64}, "tensorrt-rtx": {capability: 32}}
    asked = replace(demand(available=RTX_TOO), engines=engines)
    # Hopper and the data centres' Blackwell are not in its support matrix.
    expected = ("tensorrt", 64) if capability in ((9, 0), (10, 0)) else ("tensorrt-rtx", 32)
    assert [row[1:3] for row in rows(plan_replicas([gpu(0, capability=capability)], asked))] == [expected]


def test_a_backend_that_does_not_run_on_a_gpu_is_refused_with_one_that_does() -> None:
    asked = demand(available=RTX_TOO, backend="tensorrt-rtx", named=(gpu(0),))
    with pytest.raises(DeviceError, match=r"cuda:0: tensorrt-rtx does not run on compute capability 9\.0") as caught:
        plan_replicas([], asked)
    assert caught.value.hint == "Use --backend tensorrt there."
    unknown = replace(gpu(0), compute_capability=None)
    with pytest.raises(DeviceError, match="tensorrt-rtx does not run on compute capability unknown"):
        plan_replicas([], replace(asked, named=(unknown,)))


def test_where_neither_tensorrt_has_an_engine_the_plan_tells_of_the_first_and_where_one_has_of_none() -> None:
    card = gpu(0, capability=(8, 9))
    asked = replace(demand(available=RTX_TOO), engines={})
    (without,) = plan_replicas([card], asked).without_engine
    assert (without.backend, without.reason) == ("tensorrt-rtx", "there is no TensorRT-RTX engine for it")
    assert without.hint == "Build one: alexdeploy build"
    one = plan_replicas([card], replace(asked, engines={"tensorrt": {(8, 9): 8}}))
    assert ([each.backend for each in one.replicas], one.without_engine) == (["tensorrt"], ())


@pytest.mark.parametrize(
    ("device", "backend", "extra"),
    [(gpu(0, capability=(8, 9)), "tensorrt-rtx", "rtx"), (gpu(0), "tensorrt", "gpu"), (CPU, "openvino", "cpu")],
)
def test_what_is_not_installed_is_named_with_the_extra_that_has_it(device: Device, backend: str, extra: str) -> None:
    with pytest.raises(UsageError, match=f"{backend} is not installed for") as caught:
        plan_replicas([], demand(named=(device,), backend=backend, available={}))
    assert caught.value.hint == f"pip install 'alexdeploy[{extra}]', then run: alexdeploy doctor"


@pytest.mark.parametrize(
    ("num_views", "replicas", "fewer"),
    [
        (1, 1, ""),
        (10, 1, "fewer --views, "),
        (1, 2, "fewer replicas on it, "),
        (5, 3, "fewer replicas on it, fewer --views, "),
    ],
)
def test_too_little_memory_is_told_with_everything_that_needs_less(num_views: int, replicas: int, fewer: str) -> None:
    card = replace(gpu(0, free_gb=1.2), name="H100")
    with pytest.raises(DeviceMemoryError) as caught:
        plan_replicas([], demand(named=(card,), num_views=num_views, replicas=replicas))
    whose = "a replica" if replicas == 1 else f"each of {replicas} replicas"
    views = "a view" if num_views == 1 else f"{num_views} views"
    assert caught.value.message == (
        f"cuda:0 (H100): 1.2 GB are free, 80% of that may be used; {whose} with one image of {views} needs 1.0 GB"
    )
    assert caught.value.hint == f"Stop other processes on this GPU, or use {fewer}another device: --devices"


@given(
    places=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    per_device=st.integers(1, 3),
    num_processors=st.integers(1, 64),
    image_bytes=st.integers(1, 2 * GB),
)
def test_whatever_is_named_is_placed_in_order_and_fits(
    places: list[int], per_device: int, num_processors: int, image_bytes: int
) -> None:
    machine = (CPU, *(gpu(index, free_gb=10.0 * 3**index) for index in range(4)))
    named = tuple(machine[place] for place in places)
    asked = demand(named=named, replicas=per_device, num_processors=num_processors, image_bytes=image_bytes)
    num_on = {device: count * per_device for device, count in Counter(named).items()}

    def room(device: Device) -> float:
        return 0.8 * (device.free_bytes or 0) / num_on[device]

    gpus = [device for device in named if device.kind == "cuda"]
    if any(GB + image_bytes > room(device) for device in gpus):
        with pytest.raises(DeviceMemoryError):
            plan_replicas(machine, asked)
        return
    replicas = plan_replicas(machine, asked).replicas
    assert [each.device for each in replicas] == [device for device in named for _ in range(per_device)]
    for each in replicas:
        if each.device.kind == "cuda":
            size = each.options.batch_size
            assert size in {2**power for power in range(9)}
            assert GB + size * image_bytes <= room(each.device)
            assert size == 256 or GB + 2 * size * image_bytes > room(each.device)
    threads = [each.options.num_threads for each in replicas if each.device.kind == "cpu"]
    if threads:
        assert all(count is not None and count >= 1 for count in threads)
        assert sum(count or 0 for count in threads) == max(num_processors, len(threads))
        assert max(count or 0 for count in threads) - min(count or 0 for count in threads) <= 1


@given(free=st.lists(st.floats(0, 100), max_size=8), per_device=st.integers(1, 4))
def test_unnamed_gpus_are_used_or_left_out_and_none_is_forgotten(free: list[float], per_device: int) -> None:
    gpus = [gpu(index, free_gb=amount) for index, amount in enumerate(free)]
    plan = plan_replicas([CPU, *gpus], demand(replicas=per_device))
    used = [each.device for each in plan.replicas if each.device.kind == "cuda"]
    left_out = [each.device for each in plan.left_out]
    assert sorted([*used[::per_device], *left_out], key=lambda device: device.index) == gpus
    assert bool(used) != any(each.device == CPU for each in plan.replicas)
    assert all(each.reason and each.hint for each in plan.left_out)
