"""The figures of `bench`, its order, what it picks, and that what breaks has its error and ends nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import smooth_images, write_pictures
from numpy.typing import NDArray
from patience import PATIENCE

from alexdeploy.benchmark.bench import bench as benchmark
from alexdeploy.benchmark.events import Event, Step
from alexdeploy.benchmark.plan import BenchOptions, busy_note, plan
from alexdeploy.benchmark.results import Row, make_row, measured_ceiling, parts, predict_command
from alexdeploy.benchmark.roofline import CPU_SIZE, GPU_SIZE, ceiling_flops, ceiling_size, make_ceiling, num_flops
from alexdeploy.benchmark.rounds import Measured
from alexdeploy.benchmark.statistics import (
    BatchConfiguration,
    Candidate,
    Limits,
    Slice,
    bound,
    interleaved,
    latency,
    percentile,
    pick,
    slice_seconds,
    stream_rate,
    why_none,
)
from alexdeploy.benchmark.worker import AnswersAtOnce, run_engine, run_files
from alexdeploy.core.errors import DeviceError, ImageError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Architecture, Conv, Member, ModelSpec, Pooling, Precision, Preprocessing
from alexdeploy.engines.base import Backend, EngineOptions, open_engine
from alexdeploy.engines.profile import profile
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import PipelineOptions
from alexdeploy.placement.options import DeviceOptions

QUICK = BenchOptions(backends=("onnxruntime",), num_views=(1,), batch_sizes=(1, 3), num_images=4, seconds=0.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("bench") / "pictures", 4)


def configuration(**changes: Any) -> BatchConfiguration:
    return BatchConfiguration(
        **({"backend": "openvino", "precision": "fp32", "num_views": 1, "batch_size": 1} | changes)
    )


def candidate(rate: float, p95: float, agreement: float | None = 1.0, **changes: Any) -> Candidate:
    return Candidate(configuration=configuration(**changes), images_per_second=rate, p95_ms=p95, agreement=agreement)


def row_of(*slices: Slice, device: str = "cpu", files: float = 60.0) -> Row:
    return make_row(
        configuration(num_views=10, batch_size=8),
        Measured(slices=list(slices), file_rates=[files] * len(slices), peak_bytes=1000),
        device=device,
        decode_rates=[300.0] * len(slices),
        flops=2_000_000_000,
        ceiling_gflops=400.0,
        start=None,
        agreed=None,
    )


def test_a_percentile_is_a_nearest_rank() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    found = [percentile(values, percent) for percent in (0, 50, 95, 99, 99.5, 100)]
    assert found == [1, 50, 95, 99, 100, 100]


def test_of_few_batches_the_slowest_is_p95_and_p99() -> None:
    found = latency([Slice(batch_seconds=each, images_per_second=1) for each in ((0.010, 0.030), (0.020,))])
    assert found.num_batches == 3
    assert (found.least_ms, found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((10, 20, 30, 30))


def test_streams_are_counted_for_as_long_as_their_own_batches_took() -> None:
    # 8 images in 1 s beside 8 in 2 s: 12 images/s, though all of them took 2 s.
    assert stream_rate([8, 8], [1.0, 2.0]) == pytest.approx(12.0)


def test_sharing_cores_an_image_takes_both_times_and_else_the_longer_one() -> None:
    assert bound(300.0, 100.0, share_cores=True) == pytest.approx(75.0)
    assert bound(300.0, 100.0, share_cores=False) == 100.0


def test_every_round_has_every_item_once_in_an_order_of_its_own_and_those_of_a_process_together() -> None:
    items = list(range(20))
    turns = [items[start : start + 4] for start in range(0, 20, 4)]
    drawn = list(itertools.islice(interleaved(turns, seed=3), 60))
    rounds = [[item for number, item in drawn if number == each] for each in range(3)]
    assert [number for number, _ in drawn] == [0] * 20 + [1] * 20 + [2] * 20
    assert all(sorted(order) == items for order in rounds)
    assert all(sorted(order[start : start + 4]) in turns for order in rounds for start in range(0, 20, 4))
    assert rounds[0] != rounds[1] != rounds[2]
    assert drawn == list(itertools.islice(interleaved(turns, seed=3), 60))
    assert list(interleaved([], seed=3)) == []


def test_slices_share_what_is_left_over_five_rounds_within_bounds() -> None:
    # A round has 12 s, of which 10 pauses of 0.3 s take 3.
    assert slice_seconds(60.0, 18, 10) == pytest.approx(0.5)
    assert slice_seconds(-5.0, 24, 12) == 0.05
    assert slice_seconds(600.0, 2, 1) == 1.0


def test_the_figures_of_a_row_follow_from_its_slices() -> None:
    # Three rounds of one stream, whose middle one is the median: 8 images in 0.1 s.
    row = row_of(*(Slice(batch_seconds=(each,), images_per_second=8 / each) for each in (0.08, 0.1, 0.5)))
    assert row.latency is not None
    assert row.images_per_second == pytest.approx(8 / (row.latency.p50_ms / 1e3)) == pytest.approx(80)
    assert row.views_per_second == pytest.approx(800)
    assert row.gflops == pytest.approx(160)
    assert row.fraction_of_ceiling == pytest.approx(0.4)
    assert row.bound_per_second == pytest.approx(1 / (1 / 300 + 1 / 80))
    assert row.fraction_of_bound == pytest.approx(60 * (1 / 300 + 1 / 80))
    assert (row.num_rounds, row.peak_bytes) == (3, 1000)


def test_on_a_gpu_decoding_goes_on_beside_the_engine() -> None:
    row = row_of(Slice(batch_seconds=(0.1,), images_per_second=80), device="cuda:0")
    assert row.bound_per_second == pytest.approx(80)


def test_the_parts_of_an_image_are_its_whole_time() -> None:
    row = row_of(Slice(batch_seconds=(0.1,), images_per_second=80), files=50.0)
    found = parts(row, 300.0, 0.2)
    assert found is not None
    assert found.preprocessing is not None
    assert (found.decode, found.preprocessing, found.engine) == pytest.approx((1e3 / 300, 0.2 * 12.5, 0.8 * 12.5))
    assert found.decode + found.preprocessing + found.engine + found.rest == pytest.approx(20.0)
    assert found.whole == pytest.approx(20.0)


def test_the_whole_time_of_an_image_is_that_of_its_file_where_its_parts_take_longer() -> None:
    found = parts(row_of(Slice(batch_seconds=(0.1,), images_per_second=80), files=100.0), 300.0, None)
    assert found is not None
    assert found.decode + found.engine > found.whole == pytest.approx(10.0)
    assert found.rest < 0


def test_a_configuration_without_a_slice_has_neither_figures_nor_an_error() -> None:
    row = row_of()
    assert (row.num_rounds, row.error, row.latency, row.files_per_second, row.file_rates) == (0, None, None, None, ())


def test_the_pick_keeps_both_limits() -> None:
    both = Limits(budget_ms=20, min_agreement=0.995)
    found = [
        candidate(900, 30, batch_size=8),
        candidate(800, 10, 0.99, precision="int8"),
        candidate(700, 10, None, precision="bf16"),
        candidate(600, 20, 0.995, precision="fp16"),
        candidate(500, 5),
    ]
    assert [each.images_per_second for each in pick(found, both)] == [600]
    assert [each.images_per_second for each in pick(found, Limits())] == [900]
    assert [each.images_per_second for each in pick(found, Limits(budget_ms=20))] == [800]


def test_each_number_of_views_has_a_pick_of_its_own() -> None:
    found = [candidate(90, 5, num_views=10), candidate(900, 5), candidate(80, 1, num_views=10)]
    assert [each.images_per_second for each in pick(found, Limits())] == [900, 90]


def test_where_nothing_keeps_the_limits_the_nearest_are_named() -> None:
    found = [candidate(900, 30, 0.9), candidate(800, 10, 0.99, precision="int8")]
    limits = Limits(budget_ms=5, min_agreement=0.999)
    assert pick(found, limits) == ()
    assert why_none(found, limits) == (
        "the quickest batch has a p95 of 10 ms (openvino int8 1 view, batch 1); "
        "the best agreement is 0.99 (openvino int8 1 view, batch 1)"
    )


def test_the_command_of_a_pick_is_one_that_predict_reads() -> None:
    words = predict_command(
        "my models/a", configuration(precision="int8", num_views=10), ["pictures"], DeviceOptions(num_threads=2)
    )
    assert shlex.split(words) == [
        *("alexdeploy", "predict", "pictures", "--model", "my models/a", "--backend", "openvino"),
        *("--precision", "int8", "--views", "10", "--batch-size", "1", "--threads", "2"),
    ]


def test_in_the_command_of_a_pick_names_with_a_dash_are_no_options_and_a_place_is_marked() -> None:
    def named(images: list[str] | None) -> list[str]:
        words = shlex.split(predict_command("tiny", configuration(), images, DeviceOptions()))
        return words[2 : words.index("--model")]

    # A dash alone is a list on standard input.
    assert named(["-p", "--all", "-", "a -b", "@list.txt"]) == ["./-p", "./--all", "-", "a -b", "@list.txt"]
    assert named(None) == ["IMAGES"]


def test_every_stream_is_kept_busy_and_every_batch_is_full(colour_engine: Any) -> None:
    engine = colour_engine(options=EngineOptions(batch_size=3), num_streams=2)
    both = threading.Barrier(2)
    engine.before_run = lambda images: both.wait(timeout=PATIENCE) if len(engine.batch_sizes) <= 2 else None
    with engine:
        done = run_engine(engine, smooth_images(4), 0.0)
    assert engine.batch_sizes == [3, 3]
    assert len(done.batch_seconds) == 2
    assert done.images_per_second == pytest.approx(sum(3 / each for each in done.batch_seconds), rel=0.05)


def test_what_an_engine_raises_in_a_stream_is_raised(colour_engine: Any) -> None:
    def fail(images: NDArray[np.uint8]) -> None:
        raise DeviceError("no more")

    with colour_engine(before_run=fail) as engine, pytest.raises(DeviceError, match="no more"):
        run_engine(engine, smooth_images(1), 0.0)


def test_files_are_taken_round_and_round_and_a_broken_one_is_an_error(pictures: Path, tmp_path: Path) -> None:
    sources = [Source(name=str(path), path=str(path)) for path in sorted(pictures.iterdir())]
    assert run_files(AnswersAtOnce(2), sources, 10, PipelineOptions()).images_per_second > 0
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(DeviceError, match="broken"):
        run_files(AnswersAtOnce(2), [Source(name="broken", path=str(broken))], 2, PipelineOptions())


def test_the_operations_of_the_matrix_products_are_counted() -> None:
    # Eleven products of 1,024 positions with 1,024 x 1,024, one with 3 x 1,024, and 1,024 features for 2 classes.
    assert ceiling_flops(CPU_SIZE) == 2 * (11 * 1_073_741_824 + 3_145_728 + 2_048) == 23_628_615_680
    # On a GPU 16,384 positions, of which 16 are left at the end.
    assert ceiling_flops(GPU_SIZE) == 2 * (11 * 17_179_869_184 + 50_331_648 + 32_768)
    assert (ceiling_size("cpu"), ceiling_size("cuda:0")) == (CPU_SIZE, GPU_SIZE)


def test_products_with_padding_are_not_counted() -> None:
    # Along a side of 4, a kernel of 3 with padding 1 sees 2, 3, 3 and 2 positions; after pooling 2 x 2 x 8 are left.
    convs = (Conv(channels=8, kernel=3, padding=1, pool=True),)
    architecture = Architecture(input=4, pooling=Pooling(kernel=2, stride=2), convs=convs, hidden=())
    preprocessing = Preprocessing(mean=(128.0,) * 3, std=(64.0,) * 3, crop=4)
    spec = ModelSpec(name="small", classes=("a", "b"), preprocessing=preprocessing, architecture=architecture)
    assert num_flops(spec, 10) == 10 * 2 * (8 * 3 * 10 * 10 + 8 * 2 * 2 * 2)


def test_a_ceiling_is_operations_over_seconds() -> None:
    # 2 images of 50 billion operations in half a second, and once in a whole one.
    slices = [Slice(batch_seconds=(each,), images_per_second=2 / each) for each in (0.5, 1.0, 0.5)]
    found = measured_ceiling("openvino", "fp32", Measured(slices=slices), 50_000_000_000)
    assert (found.gflops, found.error) == (200.0, None)
    failed = measured_ceiling("openvino", "fp32", Measured(failure=DeviceError("no more")), 50_000_000_000)
    assert (failed.gflops, failed.error) == (None, "no more")


@pytest.mark.usefixtures("quick_bench")
def test_a_graph_of_matrix_products_runs_in_every_precision(tmp_path: Path) -> None:
    folder = make_ceiling(tmp_path / "ceiling", ("fp32", "fp16", "int8"))
    images, answers = smooth_images(1), []
    cases: tuple[tuple[Backend, Precision], ...] = (
        *(("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")),  # type: ignore[misc]
        ("torch", "fp32"),
    )
    for backend, precision in cases:
        with open_engine(folder, backend, EngineOptions(precision=precision, batch_size=1)) as engine:
            answers.append(np.array(engine.run(images).probabilities))
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=0.1)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_layers_of_a_profile_are_those_of_the_network(tiny_model: ModelFolder, backend: Backend) -> None:
    pytest.importorskip(backend)
    found = profile(tiny_model, backend, "fp32", 10, smooth_images(1))
    assert all(layer.milliseconds >= 0 for layer in found)
    assert {"LRN"} <= {layer.kind for layer in found}
    assert {"deploy/view0", "deploy/view9"} <= {layer.name for layer in found if layer.is_preprocessing}
    # What OpenVINO makes of it has other layers there, and ONNX Runtime joins the views before the network.
    assert ("deploy/views" in {layer.name for layer in found if layer.is_preprocessing}) == (backend == "onnxruntime")
    assert not any("conv3" in layer.name or "softmax" in layer.name for layer in found if layer.is_preprocessing)


def test_a_backend_that_tells_no_times_has_no_profile(tiny_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="torch does not report times"):
        profile(tiny_model, "torch", "fp32", 1, smooth_images(1))


def test_a_profile_that_fails_is_an_error_of_ours(tiny_model: ModelFolder) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(DeviceError, match="onnxruntime could not be profiled"):
        profile(tiny_model, "onnxruntime", "fp32", 1, smooth_images(1)[:, :8])


def test_what_can_run_is_every_backend_with_the_graphs_that_are_there(tiny_model: ModelFolder) -> None:
    options = BenchOptions(backends=("onnxruntime", "torch"), num_views=(1, 10), batch_sizes=(8, 1))
    found, notes = plan(tiny_model, options)
    assert [str(each) for each in found[:4]] == [
        f"onnxruntime {precision} 1 view, batch {batch}" for precision in ("fp32", "fp16") for batch in (1, 8)
    ]
    assert [(each.backend, each.precision) for each in found if (each.num_views, each.batch_size) == (1, 1)] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("torch", "fp32"),
        ("torch", "bf16"),
    ]
    assert len(found) == len(set(found)) == 16
    assert "onnxruntime int8 is left out: there is no model.int8.onnx" in notes
    assert "torch fp16 is left out: torch does not run fp16" in notes


def test_nothing_to_run_is_a_usage_error_that_says_why(tiny_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime bf16 is left out: onnxruntime does not run bf16"):
        plan(tiny_model, BenchOptions(backends=("onnxruntime",), precisions=("bf16",)))


def test_a_machine_with_a_load_of_its_own_is_told_to_be_busy() -> None:
    assert busy_note(None) == busy_note(0.0) == ()
    assert busy_note(1000.0)[0].startswith("the machine is busy: a load of 1000.0 on ")


@pytest.mark.usefixtures("quick_bench")
def test_everything_is_measured_and_fits_together(tiny_model: ModelFolder, pictures: Path) -> None:
    steps: list[str] = []
    options = dataclasses.replace(QUICK, images=(str(pictures),), num_views=(1, 10), precisions=("fp32",))
    found = benchmark(tiny_model, options, on_event=lambda event: steps.extend([str(event)] * isinstance(event, Step)))
    assert [str(row.configuration) for row in found.rows] == [
        f"onnxruntime fp32 {views}, batch {batch}" for views in ("1 view", "10 views") for batch in (1, 3)
    ]
    assert (found.num_images, found.num_rounds, found.interrupted) == (4, 1, False)
    assert found.decode_per_second is not None
    for row in found.rows:
        assert row.error is None
        assert row.images_per_second is not None
        assert row.files_per_second is not None
        assert row.latency is not None
        assert row.latency.p50_ms <= row.latency.p95_ms <= row.latency.p99_ms
        assert row.views_per_second == row.images_per_second * row.configuration.num_views
        expected = bound(found.decode_per_second, row.images_per_second, share_cores=True)
        assert row.bound_per_second == pytest.approx(expected)
        assert row.agreed is not None
        assert row.agreed.num_images == 4
    assert [row.agreed.num_same for row in found.rows if row.agreed] == [4] * 4
    assert [each.configuration.num_views for each in found.picked] == [1, 10]
    assert [ceiling.error for ceiling in found.ceilings] == [None]
    assert steps[0] == "opening: decoding"
    assert sum(step.startswith("round 1: ") for step in steps) == 4 * 2 + 1 + 1


@pytest.mark.usefixtures("quick_bench")
def test_a_graph_that_does_not_load_has_its_error_and_the_others_are_measured(
    tiny_model: ModelFolder, pictures: Path
) -> None:
    tiny_model.onnx_path("fp16").write_bytes(b"no graph")
    options = dataclasses.replace(QUICK, images=(str(pictures),), precisions=("fp32", "fp16"), batch_sizes=(1,))
    found = benchmark(tiny_model, options)
    good, broken = found.rows
    assert good.error is None
    assert good.images_per_second is not None
    assert broken.error is not None
    assert "model.fp16.onnx is not an ONNX file" in broken.error
    assert [each.configuration for each in found.picked] == [good.configuration]


@pytest.mark.usefixtures("quick_bench")
def test_answers_are_compared_with_fp32_also_where_it_is_not_measured(tiny_model: ModelFolder, pictures: Path) -> None:
    options = dataclasses.replace(QUICK, images=(str(pictures),), precisions=("fp16",), batch_sizes=(1,))
    (row,) = benchmark(tiny_model, options).rows
    assert row.agreed is not None
    assert row.agreed.num_images == 4


@pytest.mark.usefixtures("quick_bench")
def test_an_interrupt_keeps_what_was_measured_and_leaves_no_process(tiny_model: ModelFolder, pictures: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.number == 2:
            raise KeyboardInterrupt

    options = dataclasses.replace(QUICK, images=(str(pictures),), precisions=("fp32",), seconds=600.0)
    found = benchmark(tiny_model, options, on_event=stop)
    assert found.interrupted
    assert found.num_rounds == 1
    assert [row.num_rounds for row in found.rows] == [1, 1]
    assert any(note.startswith("stopped after 1 whole round: ") for note in found.notes)


@pytest.mark.usefixtures("quick_bench")
def test_without_photographs_they_are_rendered_and_that_is_told(tiny_model: ModelFolder) -> None:
    notes: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt
        notes.append(event.message)

    found = benchmark(tiny_model, QUICK, on_event=stop)
    assert found.images == "4 rendered JPEGs"
    assert any("no --images: 4 rendered JPEGs are decoded" in note for note in notes)
    assert [(row.error, row.num_rounds) for row in found.rows] == [(None, 0)] * 4


@pytest.mark.usefixtures("quick_bench")
def test_photographs_that_cannot_be_read_are_left_out_and_none_is_an_error(
    tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    notes: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt
        notes.append(event.message)

    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    options = dataclasses.replace(QUICK, images=(str(pictures), str(tmp_path / "broken.jpg")), num_images=5)
    assert benchmark(tiny_model, options, on_event=stop).num_images == 4
    assert any(note.startswith("left out: ") and "broken.jpg" in note for note in notes)
    with pytest.raises(ImageError, match=r"^no image can be read: .*broken\.jpg: "):
        benchmark(tiny_model, dataclasses.replace(QUICK, images=(str(tmp_path / "broken.jpg"),)))


def test_the_command_has_the_devices_that_were_measured() -> None:
    where = DeviceOptions(devices="cuda:0,cuda:1", replicas=2)
    assert predict_command("tiny", configuration(), None, where).endswith(" --devices cuda:0,cuda:1 --replicas 2")


def test_an_ensemble_computes_what_its_members_compute_and_an_unknown_graph_an_unknown_number(
    tiny_model: ModelFolder,
) -> None:
    spec = tiny_model.spec()
    member = {
        "name": "m",
        "preprocessing": spec.preprocessing,
        "recipe": None,
        "provenance": {},
        "graphs": {"fp32": "0"},
    }
    members = tuple(Member(**member, architecture=each) for each in (spec.architecture, spec.architecture))
    both = ModelSpec(name="both", classes=spec.classes, preprocessing=spec.preprocessing, members=members)
    alone = num_flops(spec, 10)
    assert alone is not None
    assert num_flops(both, 10) == 2 * alone
    assert num_flops(dataclasses.replace(spec, architecture=None), 10) is None
    unknown = dataclasses.replace(both, members=(members[0], Member(**member, architecture=None)))
    assert num_flops(unknown, 10) is None
