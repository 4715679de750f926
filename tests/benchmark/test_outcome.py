"""What `bench` leaves out, compares with, tells and picks, and that its page shows as text what came as text."""

from __future__ import annotations

import dataclasses
import html
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import smooth_images, write_pictures

from alexdeploy.benchmark import bench as bench_module
from alexdeploy.benchmark import plan as plan_module
from alexdeploy.benchmark.bench import bench as benchmark
from alexdeploy.benchmark.events import Event, Step
from alexdeploy.benchmark.format import errors_of
from alexdeploy.benchmark.html import write_report
from alexdeploy.benchmark.plan import BenchOptions, agreement_notes, hidden_references, plan, references, unable
from alexdeploy.benchmark.results import Benchmark, Machine, Row, best_of, candidates, make_row, why_not
from alexdeploy.benchmark.rounds import Measured
from alexdeploy.benchmark.statistics import BatchConfiguration, Candidate, Limits, Slice
from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ImageError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Configuration

BATCH = Slice(batch_seconds=(0.1,), images_per_second=80)


def configuration(**changes: Any) -> BatchConfiguration:
    return BatchConfiguration(
        **({"backend": "openvino", "precision": "fp32", "num_views": 1, "batch_size": 1} | changes)
    )


def row_of(seen: Measured, **changes: Any) -> Row:
    return make_row(
        configuration(**changes),
        seen,
        device="cpu",
        decode_rates=[300.0],
        flops=None,
        ceiling_gflops=None,
        start=None,
        agreed=None,
    )


def found_of(*rows: Row, name: str = "tiny", model: str = "models/tiny") -> Benchmark:
    machine = Machine(
        platform="a system",
        processor="a processor",
        num_processors=1,
        num_threads=1,
        memory_bytes=None,
        free_bytes=None,
        gpus=(),
        load_start=None,
        load_end=None,
        versions={},
    )
    return Benchmark(
        model=model,
        name=name,
        contract_sha256="0" * 64,
        images="4 rendered JPEGs",
        num_images=4,
        image_bytes=4000,
        seed=0,
        seconds=1.0,
        num_rounds=1,
        interrupted=False,
        limits=Limits(),
        decode_per_second=300.0,
        decode_rates=(300.0,),
        ceilings=(),
        rows=rows,
        profiles=(),
        picked=(),
        failure=None,
        notes=(),
        machine=machine,
    )


def test_answers_are_compared_with_the_first_fp32_that_gave_any() -> None:
    first, second, other = (
        Configuration(backend="onnxruntime", precision="fp32", num_views=1),
        Configuration(backend="torch", precision="fp32", num_views=1),
        Configuration(backend="openvino", precision="int8", num_views=10),
    )
    assert references([other, first, second]) == {1: first}
    assert references([other, second]) == {1: second}


def test_what_else_could_give_fp32s_answers_is_none_of_what_is_measured(tiny_model: ModelFolder) -> None:
    groups = [
        Configuration(backend=backend, precision="fp32", num_views=1)  # type: ignore[arg-type]
        for backend in ("openvino", "onnxruntime")
    ]
    pytest.importorskip("torch")
    assert hidden_references(tiny_model, groups) == {1: Configuration(backend="torch", precision="fp32", num_views=1)}
    tiny_model.weights_path.unlink()
    assert hidden_references(tiny_model, groups) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_bench")
def test_where_the_first_fp32_fails_another_is_compared_with(tiny_model: ModelFolder, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pictures = write_pictures(tmp_path / "pictures", 2)
    tiny_model.onnx_path("fp32").write_bytes(b"no graph")
    options = BenchOptions(
        backends=("onnxruntime", "torch"),
        precisions=("fp32",),
        num_views=(1,),
        batch_sizes=(1,),
        images=(str(pictures),),
        num_images=2,
        seconds=0.0,
    )
    broken, good = benchmark(tiny_model, options).rows
    assert (broken.error_kind, broken.agreed) == ("ModelError", None)
    assert good.agreed is not None
    assert (good.agreed.reference, good.agreed.num_same) == ("torch", 2)


@pytest.mark.usefixtures("quick_bench")
def test_an_interrupt_while_layers_are_timed_keeps_what_is_done(tiny_model: ModelFolder, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pictures = write_pictures(tmp_path / "pictures", 1)

    def stop(event: Event) -> None:
        if str(event).startswith("profiling: onnxruntime"):
            raise KeyboardInterrupt

    options = BenchOptions(
        backends=("openvino", "onnxruntime"),
        precisions=("fp32",),
        num_views=(1,),
        batch_sizes=(1,),
        images=(str(pictures),),
        seconds=0.0,
        with_profile=True,
    )
    found = benchmark(tiny_model, options, on_event=stop)
    assert found.interrupted
    assert [each.group.backend for each in found.profiles] == ["openvino"]
    assert all(row.error is None for row in found.rows)


@pytest.mark.usefixtures("quick_bench")
def test_an_empty_folder_is_no_image_among_others_and_an_error_alone(tiny_model: ModelFolder, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    pictures = write_pictures(tmp_path / "pictures", 2)
    (tmp_path / "empty").mkdir()
    options = BenchOptions(backends=("onnxruntime",), images=(str(pictures), str(tmp_path / "empty")))
    found = benchmark(tiny_model, options, on_event=stop)
    assert found.images == f"{pictures}, {tmp_path / 'empty'}: 2 of 2 images"
    with pytest.raises(ImageError, match=r"^no image can be read: .*empty: no images in folder; looked for "):
        benchmark(tiny_model, dataclasses.replace(options, images=(str(tmp_path / "empty"),)))


@pytest.mark.usefixtures("quick_bench")
def test_images_that_cannot_be_read_are_not_counted(tiny_model: ModelFolder, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    pictures = write_pictures(tmp_path / "pictures", 2)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    options = BenchOptions(backends=("onnxruntime",), images=(str(pictures),))
    found = benchmark(tiny_model, options, on_event=stop)
    assert found.images == f"{pictures}: 2 of 3 images"
    assert found.image_bytes == sum(path.stat().st_size for path in pictures.iterdir() if path.name != "broken.jpg")


def test_bf16_that_nobody_named_is_left_out_where_the_machine_has_none() -> None:
    lacks = DeviceError("this CPU has no bfloat16 arithmetic", hint="Use --precision fp32.")
    failures = {
        configuration(): None,
        configuration(precision="fp16"): ModelError("no graph"),
        configuration(precision="bf16", batch_size=1): lacks,
        configuration(precision="bf16", batch_size=2): lacks,
    }
    assert unable(BenchOptions(), failures) == {("openvino", "bf16"): "this CPU has no bfloat16 arithmetic"}
    assert unable(BenchOptions(precisions=("fp32", "bf16")), failures) == {}
    # It is all there is; and a lack of memory says nothing of arithmetic.
    assert unable(BenchOptions(), {configuration(precision="bf16"): lacks}) == {}
    short = {configuration(): None, configuration(precision="bf16"): DeviceMemoryError("no memory")}
    assert unable(BenchOptions(), short) == {}


def test_tensorrt_without_an_engine_is_left_out_with_one_note(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where TensorRT is installed, which a machine without a GPU need not have.
    monkeypatch.setattr(plan_module, "is_installed", lambda backend: True)
    options = BenchOptions(backends=("tensorrt", "onnxruntime"), precisions=("fp32", "fp16"), batch_sizes=(1,))
    found, notes = plan(tiny_model, options)
    assert {each.backend for each in found} == {"onnxruntime"}
    assert notes == (
        "left out, as the model has no engine for them: tensorrt fp32 1 view, tensorrt fp16 1 view, "
        "tensorrt fp32 10 views, tensorrt fp16 10 views. To make one: alexdeploy build",
    )
    with pytest.raises(UsageError, match="nothing is left to measure; left out, as the model has no engine"):
        plan(tiny_model, dataclasses.replace(options, backends=("tensorrt",)))


def test_an_agreement_that_allows_no_other_answer_is_told_and_how_many_images_would() -> None:
    def notes(least: float | None, num_images: int, **changes: Any) -> list[str]:
        options = BenchOptions(limits=Limits(min_agreement=least), **changes)
        return list(agreement_notes(options, num_images))

    (told,) = notes(0.995, 64, images=("pictures",))
    assert told.startswith("an agreement of 0.995 on 64 images allows no answer that differs. At least 200 images")
    for least, num_images in ((0.995, 200), (0.9, 10), (0.99, 100), (1.0, 64), (None, 1)):
        assert notes(least, num_images, images=("pictures",)) == []
    (told,) = notes(0.9, 64)
    assert told.startswith("agreement is measured on rendered shapes")


def test_what_has_no_speed_from_files_is_no_candidate() -> None:
    engine_only = row_of(Measured(slices=[BATCH]), precision="int8")
    whole = row_of(Measured(slices=[BATCH], file_rates=[60.0]))
    assert [(each.configuration, each.images_per_second) for each in candidates([engine_only, whole])] == [
        (whole.configuration, 60.0)
    ]


def test_what_fails_late_keeps_its_figures_beside_the_error_and_is_no_candidate() -> None:
    seen = Measured(slices=[BATCH] * 40, file_rates=[60.0] * 39, failure=DeviceError("no answer", hint="Look."))
    late = row_of(seen, batch_size=8)
    whole = row_of(Measured(slices=[BATCH], file_rates=[50.0]))
    assert (late.error, late.error_kind, late.hint) == ("no answer", "DeviceError", "Look.")
    assert (late.num_rounds, late.images_per_second, late.files_per_second) == (40, 80.0, 60.0)
    assert late.latency is not None
    assert [each.configuration for each in candidates([late, whole])] == [whole.configuration]
    assert best_of([late, whole], late.configuration.group) is whole
    assert errors_of([late, whole]) == [
        "openvino fp32 1 view, batch 8: failed after 40 rounds, whose figures are shown, and is not picked: no answer"
    ]


def test_the_nearest_are_named_among_those_that_keep_the_other_limit() -> None:
    def candidate(p95: float, agreement: float | None, **changes: Any) -> Candidate:
        return Candidate(configuration=configuration(**changes), images_per_second=1.0, p95_ms=p95, agreement=agreement)

    found = [
        candidate(30, 1.0),
        candidate(2, 0.5, precision="int8"),
        candidate(40, 0.9995, precision="fp16"),
        candidate(9, 0.9, precision="bf16"),
    ]
    assert why_not(found, Limits(budget_ms=10, min_agreement=0.999)) == (
        "of those that agree enough, the quickest batch has a p95 of 30 ms (openvino fp32 1 view, batch 1); "
        "of those that are quick enough, the best agreement is 0.9 (openvino bf16 1 view, batch 1)"
    )
    assert why_not(found, Limits(budget_ms=1)) == (
        "the quickest batch has a p95 of 2 ms (openvino int8 1 view, batch 1)"
    )
    assert why_not([], Limits(budget_ms=1, min_agreement=0.9)) == "nothing was measured"


def test_the_page_shows_names_paths_errors_and_cures_as_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    broken = row_of(Measured(failure=ModelError("<img src=x> & <error>", hint="<hint>")), precision="fp16")
    good = row_of(Measured(slices=[BATCH], file_rates=[60.0]))
    write_report(found_of(good, broken, name="<name>", model='models/"<path>"'), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in ("&lt;name&gt;", "&lt;path&gt;", "&lt;img src=x&gt; &amp; &lt;error&gt;", "&lt;hint&gt;"):
        assert shown in text
    for raw in ("<name>", "<path>", "<img", "<error>", "<hint>"):
        assert raw not in text


def test_the_page_tells_what_failed_late_beside_its_figures_and_marks_the_whole_time_of_an_image(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    late = row_of(Measured(slices=[BATCH], file_rates=[70.0], failure=DeviceError("no answer")), batch_size=8)
    write_report(found_of(row_of(Measured(slices=[BATCH], file_rates=[60.0])), late), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "batch 8: failed after 1 round, whose figures are shown, and is not picked: no answer" in text
    assert ">70.0<" in text
    assert ">whole</text>" in text


def cells_of(page: str, title: str) -> list[list[str]]:
    """The text of the first table after a heading, line by line."""
    table = page.partition(f"{title}</h2>")[2].partition("</table>")[0]
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.split("<tr>")[1:]]
    return [[html.unescape(cell) for cell in line] for line in lines]


def test_on_the_page_every_figure_stands_under_its_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # With 80 images/s in the engine and 300 decoded, at most 63.2 come from files.
    row = row_of(Measured(slices=[BATCH], file_rates=[60.0], peak_bytes=123_000_000), num_views=10)
    write_report(found_of(row), tmp_path / "page.html")
    header, line = cells_of((tmp_path / "page.html").read_text(encoding="utf-8"), "All configurations")
    found = dict(zip(header, line, strict=True))
    assert found == {
        **{"backend": "openvino", "precision": "fp32", "views": "10", "batch": "1"},
        **{"engine": "80.0", "views/s": "800", "files": "60.0", "bound": "95 %"},
        **{"p50 ms": "100.0", "p95 ms": "100.0", "p99 ms": "100.0", "batches": "1"},
        **{"GFLOP/s": "", "ceiling": "", "MB": "123", "same": ""},
    }


def test_the_page_shows_how_far_rounds_are_apart_and_what_was_not_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    slices = [Slice(batch_seconds=(0.1,), images_per_second=rate) for rate in (80.0, 120.0, 100.0)]
    rows = row_of(Measured(slices=slices, file_rates=[50.0, 60.0, 40.0])), row_of(Measured(), precision="fp16")
    write_report(found_of(*rows), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cells_of(page, "How far the rounds are apart") == [
        ["configuration", "engine", "least-most", "files", "least-most"],
        ["openvino fp32 1 view, batch 1", "100.0", "80.0-120", "50.0", "40.0-60.0"],
    ]
    assert cells_of(page, "All configurations")[2][:6] == ["openvino", "fp16", "1", "1", "not measured", ""]


def test_latencies_within_one_decade_have_an_axis_that_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    slices = [Slice(batch_seconds=(0.115, 0.15, 0.19, 0.29), images_per_second=50.0)]
    write_report(found_of(row_of(Measured(slices=slices, file_rates=[40.0]))), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Latency of a batch" in text
    assert "mathdefault" not in text
    assert ">200</text>" in text


def test_limits_that_nothing_keeps_are_told_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    limits = Limits(budget_ms=5.0, min_agreement=0.99)
    row = row_of(Measured(slices=[BATCH], file_rates=[60.0]))
    failure = why_not(candidates([row]), limits)
    assert "no agreement is known, as no FP32 answers are there to compare with" in failure
    write_report(dataclasses.replace(found_of(row), limits=limits, failure=failure), tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    told = "p95 of a batch at most 5 ms and at least 0.99 of the answers those of FP32"
    assert f"{told}: {failure}" in page
    # Decoding limits nothing here: its line is where the rates are.
    assert "decoding alone</text>" not in page
    slow = dataclasses.replace(found_of(row), decode_per_second=100.0)
    write_report(slow, tmp_path / "slow.html", tmp_path / "plots")
    assert "decoding alone</text>" in (tmp_path / "slow.html").read_text(encoding="utf-8")


def test_where_nothing_was_measured_the_page_has_no_plots_and_without_a_page_the_plots_are_files(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    write_report(found_of(row_of(Measured(failure=DeviceError("lost")))), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Throughput against batch" not in text
    assert "lost" in text
    gpu = dataclasses.replace(row_of(Measured(slices=[BATCH], file_rates=[60.0])), device="cuda:0")
    write_report(found_of(gpu), None, tmp_path / "plots")
    # Of a GPU, which computes while the CPU decodes, the time of an image has no parts.
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.svg"))
    assert names == ["latency-of-a-batch", "throughput-against-batch"]


def test_a_layer_profile_that_fails_is_told_and_the_others_go_on(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("no layer times")

    rows = [row_of(Measured(slices=[BATCH], file_rates=[60.0]), backend=each) for each in ("openvino", "onnxruntime")]
    monkeypatch.setattr(bench_module, "profile", fail)
    told: list[str] = []
    found = list(bench_module._profiles(tiny_model, rows, np.zeros((1, 256, 256, 3)), lambda event: None, told.append))
    assert found == []
    assert told == [f"{name} fp32 1 view has no times of its layers: no layer times" for name in bench_module.PROFILED]


def test_members_of_an_archive_become_files_for_the_processes(tiny_model: ModelFolder, tmp_path: Path) -> None:
    pictures = sorted(write_pictures(tmp_path / "pictures", 3).iterdir())
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for path in pictures:
            archive.write(path, path.name)
    options = BenchOptions(images=(str(tmp_path / "some.zip"),))
    (tmp_path / "work").mkdir()
    found = bench_module._prepare(options, tiny_model.spec(), tmp_path / "work", lambda event: None)
    assert [Path(path).read_bytes() for path in found.files] == [path.read_bytes() for path in pictures]
    assert found.num_bytes == sum(path.stat().st_size for path in pictures)
    np.testing.assert_array_equal(found.images, smooth_images(3))


def test_no_batch_size_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch size or no number of views is named"):
        BenchOptions(batch_sizes=())
