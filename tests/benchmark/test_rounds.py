"""The processes in which `bench` measures: what they tell, how they end, and the rounds in which they take turns."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import smooth_images, write_pictures
from patience import wait_for

from alexdeploy.benchmark import processes as processes_module
from alexdeploy.benchmark.processes import Process, Processes, Start
from alexdeploy.benchmark.rounds import DECODE, Rounds, ceiling_name
from alexdeploy.benchmark.statistics import BatchConfiguration
from alexdeploy.benchmark.worker import AnswersAtOnce, Done, Job, Task
from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Configuration
from alexdeploy.inference.predictor import Predictor
from alexdeploy.placement.options import PredictOptions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("bench") / "pictures", 4)


@pytest.fixture
def job(tiny_model: ModelFolder, pictures: Path, tmp_path: Path) -> Job:
    np.save(tmp_path / "images.npy", smooth_images(4))
    return Job(
        folder=os.fsencode(tiny_model.path),
        options=PredictOptions(backend="onnxruntime", batch_size=2, num_threads=1, devices="cpu"),
        images=os.fsencode(tmp_path / "images.npy"),
        files=tuple(map(os.fsencode, sorted(pictures.iterdir()))),
    )


def with_options(job: Job, **changes: object) -> Job:
    return msgspec.structs.replace(job, options=dataclasses.replace(job.options, **changes))  # type: ignore[arg-type]


def rounds_of(job: Job, folder: Path, *batches: int, limit_bytes: int | None = None) -> tuple[Rounds, Configuration]:
    """Rounds over one group, which `job` opens, and decoding; `folder` is where its answers go."""
    backend, num_views = job.options.backend, job.options.num_views
    assert backend is not None
    own = [
        BatchConfiguration(backend=backend, precision="fp32", num_views=num_views, batch_size=batch)
        for batch in batches
    ]
    jobs = {str(own[0].group): job, DECODE: msgspec.structs.replace(with_options(job, batch_size=8), decodes_only=True)}
    return Rounds(jobs, own, folder, limit_bytes, lambda step: None), own[0].group


class OnGpu:
    """Stands in for a process on a GPU, whose memory ends with the batches of all that are alive at `capacity`.

    Its own memory grows by a byte with each task of any.
    """

    alive: list[OnGpu]
    events: list[str]
    tasks: list[Task]
    capacity: float
    device: str

    def __init__(self, job: Job) -> None:
        if sum(each.job.options.batch_size for each in self.alive) + job.options.batch_size > self.capacity:
            raise DeviceMemoryError("CUDA out of memory")
        self.job = job
        self.peak_bytes = 1
        self.was_compiled = False
        self.info = dataclasses.replace(AnswersAtOnce(job.options.batch_size).info, device=self.device)
        self.start = Start(open_seconds=1.0, load_seconds=1.0, first_row_seconds=1.0)
        self.alive.append(self)

    def ask(self, task: Task) -> Done:
        self.events.append(f"{self.job.options.batch_size}: {task.kind}")
        self.tasks.append(task)
        if task.kind == "answers":
            np.save(os.fsdecode(task.path), np.ones((1, 2), np.float32))
        return Done(images_per_second=100.0, batch_seconds=(0.01,), peak_bytes=len(self.tasks))

    def end(self) -> None:
        self.alive.remove(self)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> type[OnGpu]:
    OnGpu.alive, OnGpu.events, OnGpu.tasks, OnGpu.capacity, OnGpu.device = [], [], [], float("inf"), "cuda:0"
    monkeypatch.setattr(processes_module, "Process", OnGpu)
    return OnGpu


def test_a_process_tells_its_start_its_speed_and_its_memory(job: Job) -> None:
    process = Process(job)
    try:
        engine = process.ask(Task(kind="engine", batch_size=2))
        files = process.ask(Task(kind="files", batch_size=2, num_images=4))
    finally:
        process.end()
    start = process.start
    assert 0 < start.load_seconds < start.open_seconds < start.first_row_seconds
    assert process.info.backend == "onnxruntime"
    assert engine.images_per_second == pytest.approx(2 / engine.batch_seconds[0], rel=0.05)
    assert files.images_per_second > 0
    # Python with NumPy and ONNX Runtime takes more, and a tiny model not much more.
    assert 30e6 < process.peak_bytes < 2e9


def test_the_answers_of_a_process_are_those_of_predict(
    job: Job, tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    process = Process(job)
    try:
        process.ask(Task(kind="answers", batch_size=2, path=os.fsencode(tmp_path / "answers.npy")))
    finally:
        process.end()
    with Predictor(tiny_model.path, backend="onnxruntime", devices="cpu") as predictor:
        rows = [row.top[0].index for row in predictor.predict([pictures])]
    assert np.load(tmp_path / "answers.npy").argmax(axis=1).tolist() == rows


def test_what_a_bench_compiles_does_not_fill_the_cache_that_predict_has(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    Process(with_options(job, backend="openvino")).end()
    assert [path.parent for path in tmp_path.rglob("*.blob")] == [tmp_path / "cache" / "bench" / "openvino"]


def test_what_is_measured_did_not_compile_its_model_itself(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "cache"))
    job = with_options(job, backend="openvino")
    with Processes({"a": job}, limit_bytes=None) as processes:
        assert not processes.open("a").was_compiled
        assert len(list(tmp_path.rglob("*.blob"))) == 1
    process = Process(job)
    process.end()
    assert not process.was_compiled


def test_where_nothing_compiled_can_be_kept_that_is_told(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "file"))
    rounds, group = rounds_of(with_options(job, backend="openvino"), tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
        assert rounds.processes.open(str(group)).was_compiled
    assert [note.partition(",")[0] for note in rounds.notes] == ["compiled models cannot be kept"]


def test_a_process_that_cannot_open_raises_the_error_of_there(job: Job) -> None:
    with pytest.raises(ModelError, match=r"has no model\.int8\.onnx"):
        Process(with_options(job, precision="int8"))


def test_a_process_that_dies_is_an_error_with_its_end(job: Job) -> None:
    process = Process(job)
    process._process.kill()
    with pytest.raises(DeviceError, match="its process ended by signal 9"):
        process.ask(Task(kind="engine", batch_size=2))
    assert process._process.requests.closed


def test_where_memory_is_short_the_process_asked_longest_ago_makes_room(job: Job) -> None:
    with Processes({"a": job, "b": job}, limit_bytes=1) as processes:
        for name in "aab":
            processes.ask(name, Task(kind="engine", batch_size=1))
        assert list(processes._open) == ["b"]
        processes.ask("a", Task(kind="engine", batch_size=1))
        assert processes.num_restarts == 1


def test_a_process_that_was_started_again_is_warmed_up_and_one_that_is_open_is_not(job: Job, tmp_path: Path) -> None:
    warm_up = Task(kind="answers", batch_size=2, path=os.fsencode(tmp_path / "warm.npy"))
    with Processes({"a": job, "b": job}, limit_bytes=1) as processes:
        processes.open("a")
        processes.ask("a", Task(kind="engine", batch_size=1), warm_up)
        assert not Path(os.fsdecode(warm_up.path)).exists()
        processes.open("b")
        processes.ask("a", Task(kind="engine", batch_size=1), warm_up)
        assert Path(os.fsdecode(warm_up.path)).exists()


def test_processes_that_made_room_for_each_other_are_told_of(job: Job, tmp_path: Path) -> None:
    rounds, group = rounds_of(job, tmp_path, 2, limit_bytes=1)
    with rounds.processes:
        rounds.open([group], [])
        assert rounds.notes == ()
        rounds.run(time.monotonic(), seed=0)
    assert rounds.processes.num_restarts > 0
    assert [note.partition(":")[0] for note in rounds.notes] == ["memory was short"]


def test_between_processes_there_is_a_pause_and_within_one_there_is_none(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, group = rounds_of(job, tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
        on_gpu.events.clear()
        monkeypatch.setattr(time, "sleep", lambda seconds: on_gpu.events.append(f"pause {seconds}"))
        rounds.run(time.monotonic(), seed=0)
    between = "|".join(on_gpu.events).split("pause 0.3")
    assert sorted(sorted(turn.strip("|").split("|")) for turn in between) == [
        [""],
        ["2: engine", "2: files"],
        ["8: files"],
    ]


def test_on_a_gpu_every_batch_has_an_engine_of_its_own(job: Job, tmp_path: Path, on_gpu: type[OnGpu]) -> None:
    rounds, group = rounds_of(with_options(job, batch_size=4), tmp_path, 1, 2, 4)
    with rounds.processes:
        rounds.open([group], [])
        assert sorted(each.job.options.batch_size for each in on_gpu.alive) == [1, 2, 4, 8]
        batches = [f"{batch}: {kind}" for batch in (1, 2, 4) for kind in ("engine", "files")]
        assert on_gpu.events == ["8: files", *batches, "1: answers"]
    assert group in rounds.answers
    assert on_gpu.alive == []


def test_in_openvino_whose_shapes_are_fixed_every_batch_has_an_engine_of_its_own(job: Job, tmp_path: Path) -> None:
    rounds, group = rounds_of(with_options(job, backend="openvino", batch_size=4), tmp_path, 1, 4)
    with rounds.processes:
        rounds.open([group], [])
        starts = rounds.processes.starts
        assert set(starts) == {DECODE, str(group), f"{group}, batch 1"}
        assert rounds.processes.infos[f"{group}, batch 1"].batch_size == 1


def test_from_files_the_first_run_takes_as_many_images_as_the_pipeline_holds(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu]
) -> None:
    rounds, group = rounds_of(with_options(job, num_threads=3), tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
    # A batch that runs, one that is ready and one that fills, of 2 images each, and one image in each of 3 threads.
    (files,) = (task for task in on_gpu.tasks if task.kind == "files" and task.batch_size == 2)
    assert files.num_images == 9


@pytest.mark.parametrize(("device", "rises"), [("cuda:0", [True, True]), ("cpu", [False, True])])
def test_memory_rises_in_the_rounds_except_where_a_larger_batch_may_have_taken_it(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu], device: str, rises: list[bool]
) -> None:
    on_gpu.device = device
    rounds, group = rounds_of(job, tmp_path, 1, 2)
    with rounds.processes:
        rounds.open([group], [])
        keys = [key for key in rounds.measured if key != DECODE]
        before = [rounds.measured[key].peak_bytes or 0 for key in keys]
        # Decoding came first, and then engine and files of each.
        assert before == [3, 5]
        rounds.run(time.monotonic(), seed=0)
    assert [(rounds.measured[key].peak_bytes or 0) > peak for key, peak in zip(keys, before, strict=True)] == rises


def test_where_a_gpu_is_full_the_other_processes_end_and_it_is_tried_once_more(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu]
) -> None:
    on_gpu.capacity = 8
    rounds, group = rounds_of(job, tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
        assert [each.job.options.batch_size for each in on_gpu.alive] == [2]
    assert all(seen.failure is None for seen in rounds.measured.values())
    on_gpu.capacity = 1
    rounds, group = rounds_of(job, tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
    assert all(isinstance(seen.failure, DeviceMemoryError) for seen in rounds.measured.values())


def test_how_long_a_round_takes_is_told_from_the_first_run_of_each(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu]
) -> None:
    rounds, group = rounds_of(job, tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
        # At 100 images/s, with slices of 0.05 s: 16 and 4 images from files, the engine for a slice, and two pauses.
        assert rounds.round_seconds(time.monotonic()) == pytest.approx(0.16 + 0.04 + 0.05 + 2 * 0.3)
        # One that made room for others takes its start as well, which is 1 s.
        rounds.processes.end(DECODE)
        assert rounds.round_seconds(time.monotonic()) == pytest.approx(1.85)
        # With time, slices of 1 s: 96 and 100 images.
        assert rounds.round_seconds(time.monotonic() + 600) == pytest.approx(0.96 + 1.0 + 1.0 + 2 * 0.3 + 1.0)


@pytest.mark.parametrize(
    ("seconds", "measured", "end"),
    [
        # Decoding opens at 0 s and each of three groups takes 10 s: until 20 s two of them begin.
        (40.0, ["onnxruntime fp32 1 view", "onnxruntime fp32 5 views"], 40.0),
        # The first opens whatever the time is, and is measured once.
        (2.0, ["onnxruntime fp32 1 view"], 10.0),
        (None, ["onnxruntime fp32 1 view", "onnxruntime fp32 5 views", "onnxruntime fp32 10 views"], 30.0),
    ],
)
def test_opening_counts_towards_the_time_and_what_was_not_opened_is_told(
    job: Job,
    tmp_path: Path,
    on_gpu: type[OnGpu],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float | None,
    measured: list[str],
    end: float,
) -> None:
    now = [0.0]

    class Slow(OnGpu):
        """Takes 10 s to open, and a second for each slice of a round."""

        def __init__(self, job: Job) -> None:
            super().__init__(job)
            now[0] += 0.0 if job.decodes_only else 10.0

        def ask(self, task: Task) -> Done:
            is_round = len(opened) == 1
            now[0] += 1.0 if is_round else 0.0
            return super().ask(task)

    opened: list[bool] = []
    monkeypatch.setattr(processes_module, "Process", Slow)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    common = {"backend": "onnxruntime", "precision": "fp32", "batch_size": 2}
    own = [BatchConfiguration(**common, num_views=views) for views in (1, 5, 10)]
    jobs = {str(each.group): with_options(job, num_views=each.num_views) for each in own}
    jobs[DECODE] = msgspec.structs.replace(job, decodes_only=True)
    rounds = Rounds(jobs, own, tmp_path, None, lambda step: None, clock=lambda: now[0])
    with rounds.processes:
        rounds.open([each.group for each in own], [], seconds)
        opened.append(True)
        rounds.run(now[0] if seconds is None else seconds, seed=0)
    assert [str(each.group) for each in own if rounds.measured[each].slices] == measured
    left_out = [each for each in own if str(each.group) not in measured]
    assert all(isinstance(rounds.measured[each].failure, UsageError) for each in left_out)
    assert [all(str(each.group) in note for each in left_out) for note in rounds.notes] == [True] * bool(left_out)
    # One slice more than the time at most; a round of what is open is 2 slices each, and 1 of decoding.
    assert now[0] <= max(end, len(measured) * 10.0 + 2 * len(measured) + 1) + 1


def test_answers_that_fail_leave_agreement_unknown_and_nothing_else(job: Job, tmp_path: Path) -> None:
    rounds, group = rounds_of(job, tmp_path / "missing", 2)
    with rounds.processes:
        rounds.open([group], [])
        rounds.run(time.monotonic(), seed=0)
    (seen,) = (seen for key, seen in rounds.measured.items() if key != DECODE)
    assert seen.failure is None
    assert len(seen.slices) == len(seen.file_rates) == 1
    assert rounds.answers == {}
    assert rounds.notes[0].startswith("no answers of onnxruntime fp32 1 view to compare: FileNotFoundError")


def test_more_images_may_take_longer(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(job)
    monkeypatch.setattr(processes_module, "_TASK_SECONDS", 0.0)
    monkeypatch.setattr(processes_module, "_IMAGE_SECONDS", 10.0)
    answers = Task(kind="answers", batch_size=2, num_images=4, path=os.fsencode(tmp_path / "answers.npy"))
    process.ask(answers)
    with pytest.raises(DeviceError, match="no answer in 0 s"):
        process.ask(msgspec.structs.replace(answers, num_images=0))


def test_what_failed_is_kept_with_its_class_and_its_cure(job: Job, tmp_path: Path) -> None:
    rounds, group = rounds_of(with_options(job, precision="int8"), tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
    (seen,) = (seen for key, seen in rounds.measured.items() if key != DECODE)
    assert isinstance(seen.failure, ModelError)
    assert seen.failure.hint is not None
    assert seen.error == seen.failure.message


def test_decoding_that_fails_is_told(job: Job, tmp_path: Path) -> None:
    rounds, _ = rounds_of(msgspec.structs.replace(job, files=(os.fsencode(tmp_path / "gone.jpg"),)), tmp_path, 2)
    with rounds.processes:
        rounds.open([], [])
    (note,) = rounds.notes
    assert note.startswith("no bound is known, as decoding alone failed: ")
    assert "gone.jpg" in note


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
def test_paths_that_are_not_utf_8_are_measured_as_others(job: Job, tiny_model: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"model \xff")
    shutil.copytree(tiny_model.path, folder)
    picture = tmp_path / os.fsdecode(b"picture \xff.jpg")
    shutil.copy(os.fsdecode(job.files[0]), picture)
    process = Process(msgspec.structs.replace(job, folder=os.fsencode(folder), files=(os.fsencode(picture),)))
    try:
        assert process.ask(Task(kind="files", batch_size=1, num_images=2)).images_per_second > 0
    finally:
        process.end()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_process_that_hangs_ends_with_the_one_that_started_it(job: Job) -> None:
    psutil = pytest.importorskip("psutil")
    code = (
        "import sys, time, msgspec\n"
        "from alexdeploy.benchmark.processes import Process\n"
        "from alexdeploy.benchmark.worker import Job\n"
        "print(Process(msgspec.json.decode(sys.argv[1], type=Job))._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, msgspec.json.encode(job).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        worker.send_signal(signal.SIGSTOP)
        parent.kill()

    def has_ended() -> bool:
        try:
            # Whoever takes in orphans here may leave it so for a while.
            return bool(worker.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    wait_for(has_ended)


@pytest.mark.parametrize(
    ("capacity", "seconds", "failure"), [(100, None, None), (20, None, DeviceMemoryError), (100, 2.0, UsageError)]
)
def test_matrix_products_are_larger_on_a_gpu_and_left_out_where_they_do_not_fit_or_are_late(
    job: Job,
    tmp_path: Path,
    on_gpu: type[OnGpu],
    monkeypatch: pytest.MonkeyPatch,
    capacity: float,
    seconds: float | None,
    failure: type[Exception] | None,
) -> None:
    on_gpu.capacity = capacity
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    own = BatchConfiguration(backend="onnxruntime", precision="fp32", num_views=1, batch_size=2)
    name, larger = (ceiling_name("onnxruntime", "fp32", on_gpu=is_gpu) for is_gpu in (False, True))
    jobs = {
        str(own.group): with_options(job, batch_size=2),
        DECODE: msgspec.structs.replace(with_options(job, batch_size=8), decodes_only=True),
        name: with_options(job, batch_size=31),
        larger: with_options(job, batch_size=32),
    }
    now = itertools.count()
    rounds = Rounds(jobs, [own], tmp_path, None, lambda step: None, clock=lambda: next(now))
    with rounds.processes:
        rounds.open([own.group], [("onnxruntime", "fp32")], seconds)
    assert rounds.measured[own].failure is None
    if failure is None:
        assert rounds.measured[name].failure is None
        assert on_gpu.events[-1] == "32: engine"
    else:
        assert isinstance(rounds.measured[name].failure, failure)


def test_batches_of_a_group_that_come_late_are_left_out(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    now = itertools.count()
    own = [
        BatchConfiguration(backend="onnxruntime", precision="fp32", num_views=1, batch_size=batch)
        for batch in (1, 2, 4)
    ]
    jobs = {str(own[0].group): job, DECODE: msgspec.structs.replace(job, decodes_only=True)}
    rounds = Rounds(jobs, own, tmp_path, None, lambda step: None, clock=lambda: next(now))
    with rounds.processes:
        rounds.open([own[0].group], [], 4.0)
    assert rounds.measured[own[0]].failure is None
    for each in own[1:]:
        assert "the time for opening (half of seconds) was over" in str(rounds.measured[each].failure)


def test_a_first_run_that_fails_is_kept_as_the_failure_of_its_batch(
    job: Job, tmp_path: Path, on_gpu: type[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(process: OnGpu, task: Task) -> Done:
        if task.kind == "engine":
            raise DeviceError("the GPU has fallen off the bus")
        return Done(images_per_second=100.0, batch_seconds=(0.01,), peak_bytes=1)

    monkeypatch.setattr(on_gpu, "ask", fail)
    rounds, group = rounds_of(job, tmp_path, 2)
    with rounds.processes:
        rounds.open([group], [])
        assert not rounds.has_configurations
    (failure,) = [seen.failure for key, seen in rounds.measured.items() if isinstance(key, BatchConfiguration)]
    assert str(failure).startswith("the GPU has fallen off the bus")
