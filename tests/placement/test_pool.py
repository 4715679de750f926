from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from faults import POISON, Gate, inject, one_worker_waits
from helpers import change_weights, replace_graph, smooth_images
from patience import HANG, PATIENCE, wait_for
from PIL import Image

from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, open_engine
from alexdeploy.export.export import export_model
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import PipelineOptions, run_pipeline
from alexdeploy.placement import pool as pool_module
from alexdeploy.placement import replica as replica_module
from alexdeploy.placement.child import Child
from alexdeploy.placement.devices import Device
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.pool import Pool, file_identities, join_infos
from alexdeploy.placement.replica import TimeLimits

CPU = Device(kind="cpu", index=0)
IMAGES = smooth_images(32)
BATCHES = [IMAGES[start : start + 8] for start in range(0, 32, 8)]


def _pool(folder: ModelFolder, count: int = 2, **options: float) -> Pool:
    replica = Replica(device=CPU, backend="onnxruntime", options=EngineOptions(batch_size=8, num_threads=1))
    return Pool(folder, [replica] * count, TimeLimits(**options))  # type: ignore[arg-type]


def _workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "alexdeploy.placement.worker" in " ".join(child.cmdline())]


def _run_all(pool: Pool, batches: list[np.ndarray] = BATCHES, meanwhile: Callable[[], None] = lambda: None):
    """All batches from as many threads as the pool has streams, as the pipeline does."""
    with ThreadPoolExecutor(pool.info.num_streams) as threads:
        answers = [threads.submit(pool.run, batch) for batch in batches]
        meanwhile()
        return [answer.result(timeout=PATIENCE) for answer in answers]


@pytest.fixture
def expected(tiny_model: ModelFolder) -> list[Predictions]:
    with open_engine(tiny_model, "onnxruntime", EngineOptions(num_threads=1)) as engine:
        return [engine.run(batch) for batch in BATCHES]


def _assert_same(found: list[Predictions], expected: list[Predictions]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.view_classes, other.view_classes)
        assert not one.errors


def test_a_pool_gives_bitwise_the_answers_of_one_engine_and_every_replica_works(
    tiny_model: ModelFolder, expected: list[Predictions]
) -> None:
    with _pool(tiny_model, 3) as pool:
        assert (pool.info.device, pool.info.num_streams, pool.info.batch_size) == ("cpu,cpu,cpu", 3, 8)
        _assert_same(_run_all(pool, BATCHES * 3), expected * 3)
        reports = pool.reports()
    assert sum(report.num_images for report in reports) == 96
    assert all(report.num_images > 0 and report.num_losses == 0 for report in reports)


def test_a_tail_batch_gives_its_own_rows(tiny_model: ModelFolder) -> None:
    with _pool(tiny_model, 1) as pool:
        assert len(pool.run(IMAGES[:3]).probabilities) == 3
        with pytest.raises(UsageError, match="expected uint8"):
            pool.run(IMAGES[:9])


def test_low_latency_reaches_the_workers_also_at_the_second_try(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    inject(
        monkeypatch,
        tmp_path / "faults",
        f"""
        with open({str(log)!r}, "a") as file:
            file.write(f"{{len(images)}} {{low_latency}}\\n")
        if len(images) == 2 and os.path.getsize({str(log)!r}) < 20:
            raise DeviceError("once")
        """,
    )
    with _pool(tiny_model, 2) as pool:
        pool.run(IMAGES[:1])
        pool.run(IMAGES[:2], low_latency=True)
    assert log.read_text().splitlines() == ["1 False", "2 True", "2 True"]


def test_a_model_whose_path_is_no_utf8_opens(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    shutil.copytree(tiny_model.path, folder)
    with _pool(ModelFolder(folder), 1) as pool:
        _assert_same([pool.run(BATCHES[0])], expected[:1])


def test_no_process_is_left_when_it_is_closed(tiny_model: ModelFolder) -> None:
    with _pool(tiny_model):
        workers = _workers()
        assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)
    with pytest.raises(DeviceError, match="not open"):
        _pool(tiny_model).run(IMAGES[:1])


def test_batches_of_a_killed_replica_go_to_the_others_and_it_comes_back(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    inject(monkeypatch, tmp_path / "faults", gate.fault)

    def kill_one() -> None:
        gate.wait_until_there(2)
        _workers()[0].kill()
        gate.open()

    with _pool(tiny_model) as pool:
        found = _run_all(pool, BATCHES * 2, kill_one)
        _assert_same(found, expected * 2)
        reports = pool.reports()
        assert sorted(report.num_losses for report in reports) == [0, 1]
        assert [report.last_loss for report in reports if report.num_losses] == [f"ended by signal {signal.SIGKILL:d}"]
        wait_for(lambda: len(_workers()) == 2)
        _assert_same(_run_all(pool), expected)


def _shorten(
    monkeypatch: pytest.MonkeyPatch,
    is_short: Callable[[Child, float], bool],
    afterwards: Callable[[], None] = lambda: None,
) -> list[float]:
    """Have limits that are `is_short` come to an end at once, and no other; returns what each was to be, as they come.

    `afterwards` is called when what a limit ends has been ended.
    """
    limits: list[float] = []

    def time_limit(child: Child, seconds: float, end: Callable[[], None]) -> AbstractContextManager[None]:
        def end_all() -> None:
            end()
            afterwards()

        limits.append(seconds)
        return real_limit(child, 0.1 if is_short(child, seconds) else PATIENCE, end_all)

    real_limit = Child.time_limit
    monkeypatch.setattr(Child, "time_limit", time_limit)
    return limits


def test_a_replica_that_hangs_is_ended_and_its_batch_runs_elsewhere(
    tiny_model: ModelFolder, expected: list[Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _pool(tiny_model, batch_seconds=6.0) as pool:
        worker = _workers()[0]
        _shorten(monkeypatch, lambda child, seconds: child.pid == worker.pid)
        worker.suspend()
        _assert_same(_run_all(pool), expected)
        wait_for(lambda: sum(report.num_losses for report in pool.reports()) == 1)
        assert {report.last_loss for report in pool.reports()} == {None, "it gave no answer in 6 s"}


def test_a_replica_that_is_slower_than_its_time_gets_more_of_it(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    inject(monkeypatch, tmp_path / "faults", gate.fault)
    limits = _shorten(monkeypatch, lambda child, seconds: seconds == 600, gate.open)
    with _pool(tiny_model, 1, batch_seconds=600.0, open_seconds=900.0) as pool:
        _assert_same([pool.run(batch) for batch in BATCHES[:2]], expected[:2])
        (report,) = pool.reports()
    assert limits == [900, 600, 900, 1200, 1200]
    assert (report.num_losses, report.last_loss) == (1, "it gave no answer in 600 s")


def test_a_replica_that_never_answers_is_given_up(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", f"time.sleep({HANG})")
    with _pool(tiny_model, 1, batch_seconds=0.25) as pool, pytest.raises(DeviceError, match="no answer in 1 s"):
        pool.run(BATCHES[0])
    assert pool.reports()[0].num_losses == 3


def test_large_batches_have_more_time() -> None:
    assert TimeLimits().seconds_for(80) == 120
    assert TimeLimits().seconds_for(2560) == 640


def test_time_in_which_the_program_stands_still_does_not_count(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    inject(monkeypatch, tmp_path / "faults", gate.fault)
    use = """
        pool.run(images)
        print(pool.reports()[0].num_losses)
    """
    with _program(tiny_model, use, count=1, batch_seconds=6.0) as program:
        assert program.stdout is not None
        gate.wait_until_there(1)
        program.send_signal(signal.SIGSTOP)
        time.sleep(7)
        gate.open()
        program.send_signal(signal.SIGCONT)
        assert program.stdout.readline() == "0\n"


def test_a_run_can_be_cancelled_and_the_pool_goes_on(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    inject(monkeypatch, tmp_path / "faults", gate.fault)
    with _pool(tiny_model) as pool, ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(pool.run, batch) for batch in BATCHES]
        gate.wait_until_there(2)

        def cancelled() -> bool:
            pool.cancel()
            return all(run.done() for run in runs)

        wait_for(cancelled)
        gate.open()
        assert all("the run was stopped" in str(run.exception()) for run in runs)
        _assert_same(_run_all(pool), expected)
        assert [report.num_losses for report in pool.reports()] == [0, 0]


def test_a_pool_that_an_error_leaves_does_not_wait_for_a_replica_that_stands_still(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", HANG)
    pool = _pool(tiny_model)
    pool.__enter__()
    for worker in _workers():
        worker.suspend()
    pool.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not _workers()


def test_closing_does_not_wait_for_a_replica_that_takes_no_more_of_a_batch(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CLOSE_SECONDS", HANG)
    with ThreadPoolExecutor(1) as threads, _pool(tiny_model, 1) as pool:
        _workers()[0].suspend()
        # Larger than what a pipe holds.
        run = threads.submit(pool.run, IMAGES[:8])
        time.sleep(0.3)
        pool.__exit__(None, None, None)
        with pytest.raises(DeviceError, match="closed"):
            run.result()


def test_a_slow_replica_takes_fewer_batches(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", one_worker_waits(tmp_path / "slow", 10))
    with _pool(tiny_model) as pool:
        _assert_same(_run_all(pool, BATCHES * 3), expected * 3)
        slow, fast = sorted(report.num_batches for report in pool.reports())
        assert [report.num_losses for report in pool.reports()] == [0, 0]
    assert slow + fast == 12
    assert slow <= 2


def test_out_of_memory_halves_the_batch_and_remembers(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "sizes"
    fault = f"""
        with open({str(seen)!r}, "a") as file:
            file.write(f"{{len(images)}} ")
        if len(images) > 3:
            raise DeviceMemoryError("out of memory")
    """
    inject(monkeypatch, tmp_path / "faults", fault)
    with _pool(tiny_model, 1) as pool:
        found = [pool.run(batch) for batch in BATCHES]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
    sizes = list(map(int, seen.read_text().split()))
    assert sizes == [8, 4, 2, 2, 2, 2] + [2, 2, 2, 2] * 3


def test_out_of_memory_for_a_single_image_is_an_error(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", 'raise DeviceMemoryError("none at all")')
    with _pool(tiny_model, 1) as pool, pytest.raises(DeviceMemoryError, match="none at all"):
        pool.run(BATCHES[0])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("if poisoned: os._exit(7)", "exit code 7"), ('if poisoned: raise DeviceError("bad kernel")', "bad kernel")],
)
def test_an_image_that_every_replica_fails_on_has_an_error_and_the_others_their_answers(
    tiny_model: ModelFolder,
    expected: list[Predictions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    reason: str,
) -> None:
    inject(monkeypatch, tmp_path / "faults", fault)
    images = BATCHES[0].copy()
    images[5, 0, 0] = POISON
    with _pool(tiny_model) as pool:
        found = pool.run(images)
        assert list(found.errors) == [5]
        assert reason in found.errors[5]
        others = [row for row in range(8) if row != 5]
        np.testing.assert_allclose(found.probabilities[others], expected[0].probabilities[others], atol=1e-6)
        _assert_same([pool.run(batch) for batch in BATCHES[1:]], expected[1:])


def test_when_every_replica_is_lost_for_good_it_says_so(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", "sys.stderr.write('the bus is gone\\n'); sys.stderr.flush(); os._exit(9)")
    with _pool(tiny_model, 1) as pool, pytest.raises(DeviceError, match="exit code 9: the bus is gone"):
        _run_all(pool)


def _only_first(marker: Path, fault: str) -> str:
    """`fault` in the worker that comes first, however often it is started again none of the others."""
    return f"""
        if not os.path.exists({str(marker)!r}):
            open({str(marker)!r}, "w").write(str(os.getpid()))
        if open({str(marker)!r}).read() == str(os.getpid()):
            {fault}
    """


def test_a_sick_replica_ruins_no_image_and_is_started_again(
    tiny_model: ModelFolder, expected: list[Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", _only_first(tmp_path / "sick", 'raise DeviceError("illegal address")'))
    with _pool(tiny_model) as pool:
        _assert_same(_run_all(pool, BATCHES * 4), expected * 4)

        def is_ended() -> bool:
            # The sick one gets only what the other has no time for: more batches, until it has failed often enough.
            _assert_same(_run_all(pool), expected)
            return any("illegal address" in str(report.last_loss) for report in pool.reports())

        wait_for(is_ended)


def test_where_all_replicas_are_sick_the_run_ends_and_gives_no_rows_of_errors(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", 'raise DeviceError("illegal address")')
    with _pool(tiny_model, 1) as pool, pytest.raises(DeviceError, match="illegal address"):
        pool.run(BATCHES[0])


def test_replicas_of_unequal_batches_share_the_work(tiny_model: ModelFolder, expected: list[Predictions]) -> None:
    replicas = [
        Replica(device=CPU, backend="onnxruntime", options=EngineOptions(batch_size=size, num_threads=1))
        for size in (3, 8)
    ]
    with Pool(tiny_model, replicas) as pool:
        assert pool.info.batch_size == 8
        found = _run_all(pool, BATCHES * 2)
    for one, other in zip(found, expected * 2, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def test_a_replica_that_comes_back_with_another_model_is_given_up(tiny_model: ModelFolder, tmp_path: Path) -> None:
    with _pool(tiny_model, 1) as pool:
        pool.run(BATCHES[0])
        change_weights(tiny_model, fc8__bias=lambda bias: bias + 1)
        export_model(tiny_model)
        _workers()[0].kill()
        wait_for(lambda: pool.reports()[0].num_losses == 2)
        with pytest.raises(DeviceError, match="the model has changed since the run began"):
            pool.run(BATCHES[0])


def test_many_images_without_an_answer_do_not_stop_the_pipeline(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path / "faults", 'if poisoned: raise DeviceError("bad kernel")')
    poison = io.BytesIO()
    Image.new("RGB", (256, 256), (POISON,) * 3).save(poison, "PNG")
    sources = [Source(name=str(index), data=poison.getvalue()) for index in range(40)]
    with _pool(tiny_model, 1) as pool:
        outcomes = list(run_pipeline(pool, sources, PipelineOptions()))
        # One that answers nothing in between is given up after seven.
        assert pool.reports()[0].num_losses > 7
    assert [outcome.index for outcome in outcomes] == list(range(40))
    assert all("bad kernel" in str(outcome.error) for outcome in outcomes)


def test_a_model_that_changes_while_its_replicas_are_opened_is_refused(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_and_change(folder: ModelFolder, precision: Precision) -> list[tuple[int, int, int] | None]:
        found = file_identities(folder, precision)
        tiny_model.weights_path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(pool_module, "file_identities", look_and_change)
    with pytest.raises(ModelError, match="changed while its replicas opened"):
        _pool(tiny_model).__enter__()
    assert not _workers()


def test_in_bfloat16_it_is_the_fp32_graph_that_may_not_change_meanwhile(tiny_model: ModelFolder) -> None:
    before = file_identities(tiny_model, "bf16")
    replace_graph(tiny_model, "fp32", onnx.load(tiny_model.onnx_path()))
    assert file_identities(tiny_model, "bf16") != before


def test_replicas_of_other_weights_files_of_one_network_are_one_engine(tiny_model: ModelFolder) -> None:
    replicas = [
        Replica(device=CPU, backend="onnxruntime", options=EngineOptions(batch_size=8, num_threads=1)),
        Replica(device=CPU, backend="torch", options=EngineOptions(batch_size=8, num_threads=1)),
    ]
    with Pool(tiny_model, replicas) as pool:
        assert pool.info.backend == "onnxruntime+torch"
        graph, weights = pool.info.artifact.split("+")
    assert (graph, weights) == (sha256_file(tiny_model.onnx_path()), sha256_file(tiny_model.weights_path))


def _info(**facts: object) -> EngineInfo:
    common = {"device": "cuda:0", "precision": "fp16", "num_views": 10, "classes": ("a", "b"), "batch_size": 8}
    return EngineInfo(**(common | {"num_streams": 2} | facts))  # type: ignore[arg-type]


def test_engine_files_of_two_kinds_of_gpu_are_one_engine_that_names_both() -> None:
    infos = [_info(backend="tensorrt", artifact=artifact * 64) for artifact in "aba"]
    joined = join_infos([Device(kind="cuda", index=index) for index in range(3)], infos)
    assert (joined.backend, joined.device) == ("tensorrt", "cuda:0,cuda:1,cuda:2")
    assert joined.artifact == "a" * 64 + "+" + "b" * 64
    assert joined.num_streams == 6


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "onnxruntime", "artifact": "b" * 64},
        {"backend": "tensorrt", "artifact": "b" * 64, "precision": "int8"},
        {"backend": "tensorrt", "artifact": "b" * 64, "num_views": 1},
        {"backend": "tensorrt", "artifact": "b" * 64, "classes": ("a", "c")},
    ],
)
def test_replicas_of_different_models_are_no_engine(other: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="different models"):
        join_infos([CPU, CPU], [_info(backend="onnxruntime", artifact="a" * 64), _info(**other)])


def test_what_keeps_an_engine_from_opening_is_raised_as_it_is(tiny_model: ModelFolder) -> None:
    tiny_model.onnx_path().unlink()
    with pytest.raises(ModelError, match=r"has no model\.onnx") as error, _pool(tiny_model):
        pass
    assert "alexdeploy.export_model" in str(error.value)
    assert not _workers()


@pytest.mark.parametrize("state", ["idle", "hanging", "stopped"])
def test_workers_end_when_whoever_started_them_is_killed(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    inject(monkeypatch, tmp_path / "faults", f"time.sleep({HANG})")
    use = f"""
        pids = [child.pid for child in psutil.Process().children() if "placement.worker" in str(child.cmdline())]
        if {state == "hanging"}:
            threading.Thread(target=pool.run, args=(images,)).start()
            threading.Thread(target=pool.run, args=(images,)).start()
            time.sleep(0.5)
        print(*pids, flush=True)
        time.sleep({HANG})
    """
    with _program(tiny_model, use) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        if state == "stopped":
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        parent.kill()
    assert len(pids) == 2
    # Left to themselves they would wait for what hangs.
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def _program(folder: ModelFolder, use: str, count: int = 2, **options: float) -> subprocess.Popen[str]:
    """Another program with a pool, which does what `use` says, a block indented by eight; its output is a pipe."""
    # Nothing of the tests' own: their imports take longer than the rest of it.
    script = f"""
        import sys, threading, time
        from pathlib import Path
        import numpy as np, psutil
        from alexdeploy.core.model_folder import ModelFolder
        from alexdeploy.engines.base import EngineOptions
        from alexdeploy.placement.devices import Device
        from alexdeploy.placement.plan import Replica
        from alexdeploy.placement.pool import Pool
        from alexdeploy.placement.replica import TimeLimits
        images = np.zeros((8, 256, 256, 3), np.uint8)
        cpu = Device(kind="cpu", index=0)
        replica = Replica(device=cpu, backend="onnxruntime", options=EngineOptions(batch_size=8, num_threads=1))
        with Pool(ModelFolder(Path({str(folder.path)!r})), [replica] * {count}, TimeLimits(**{options!r})) as pool:
    """
    script = textwrap.dedent(script) + textwrap.indent(textwrap.dedent(use), "    ")
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_a_process_that_cannot_be_started_is_an_error_and_nobody_waits(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(replica_module, "ReplicaProcess", fail)
    with pytest.raises(DeviceError, match=r"cpu: BlockingIOError: .*Resource temporarily unavailable"):
        _pool(tiny_model).__enter__()
