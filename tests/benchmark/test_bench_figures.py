"""Figures of `bench` that are known beforehand: of answers that differ, of files that run, of rounds and of layers."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import replace_graph, smooth_images, write_pictures
from onnx import numpy_helper

from alexdeploy.benchmark.bench import bench as benchmark
from alexdeploy.benchmark.plan import BenchOptions
from alexdeploy.benchmark.results import Profile, make_row
from alexdeploy.benchmark.rounds import Measured
from alexdeploy.benchmark.statistics import BatchConfiguration, Candidate, Limits, Slice, close_seconds
from alexdeploy.benchmark.worker import run_files
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Configuration, EngineOptions, open_engine
from alexdeploy.engines.profile import LayerTime
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import PipelineOptions

GROUP = Configuration(backend="onnxruntime", precision="fp32", num_views=1)


@pytest.mark.usefixtures("quick_bench")
def test_answers_that_are_not_fp32s_are_counted_and_a_limit_on_them_is_kept(
    tiny_model: ModelFolder, tmp_path: Path
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    with open_engine(tiny_model, "onnxruntime", EngineOptions(batch_size=8)) as engine:
        answers = engine.run(smooth_images(8)).probabilities.argmax(axis=1)
    # FP16's graph calls class 0 what is class 1, and the other way round: what FP32 has in neither stays the same.
    graph = onnx.load(tiny_model.onnx_path("fp16"))
    for tensor in graph.graph.initializer:
        if tensor.name in ("fc8.weight", "fc8.bias"):
            swapped = numpy_helper.to_array(tensor)[[1, 0, 2, 3, 4]]
            tensor.CopyFrom(numpy_helper.from_array(swapped, tensor.name))
    replace_graph(tiny_model, "fp16", graph)
    num_same = int((answers > 1).sum())
    assert 0 < num_same < 8
    options = BenchOptions(
        backends=("onnxruntime",),
        precisions=("fp16",),
        num_views=(1,),
        batch_sizes=(1,),
        images=(str(pictures),),
        seconds=0.0,
        limits=Limits(min_agreement=0.999),
    )
    found = benchmark(tiny_model, options)
    (row,) = found.rows
    assert row.agreed is not None
    assert (row.agreed.num_same, row.agreed.num_images, row.agreed.share) == (num_same, 8, num_same / 8)
    assert found.picked == ()
    assert found.failure is not None
    assert f"the best agreement is {num_same / 8:.4g} " in found.failure


def test_as_many_images_run_from_files_as_are_counted(colour_engine: Any, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)
    sources = [Source(name=path.name, path=str(path)) for path in sorted(pictures.iterdir())]
    with colour_engine(options=EngineOptions(batch_size=2)) as engine:
        run_files(engine, sources, 10, PipelineOptions())
    assert sum(engine.batch_sizes) == 10


def test_the_share_of_the_bound_is_that_of_each_round_whose_figures_were_taken_together() -> None:
    # A machine four times as fast in the second round: 40 of at most 50 images/s, then 180 of 200. Medians of the three
    # (110, 250 and 250) would give 0.88.
    rates = (100.0, 400.0)
    seen = Measured(
        slices=[Slice(batch_seconds=(1 / rate,), images_per_second=rate) for rate in rates], file_rates=[40.0, 180.0]
    )
    row = make_row(
        BatchConfiguration(backend="onnxruntime", precision="fp32", num_views=1, batch_size=1),
        seen,
        device="cpu",
        decode_rates=rates,
        flops=None,
        ceiling_gflops=None,
        start=None,
        agreed=None,
    )
    assert row.fraction_of_bound == pytest.approx((0.8 + 0.9) / 2)
    assert row.bound_per_second == pytest.approx(125)


def test_rates_of_each_round_are_kept_as_they_were_taken() -> None:
    seen = Measured(
        slices=[Slice(batch_seconds=(1 / rate,), images_per_second=rate) for rate in (90.0, 70.0, 80.0)],
        file_rates=[60.0, 65.0],
    )
    row = make_row(
        BatchConfiguration(backend="onnxruntime", precision="fp32", num_views=1, batch_size=1),
        seen,
        device="cpu",
        decode_rates=[300.0] * 3,
        flops=None,
        ceiling_gflops=None,
        start=None,
        agreed=None,
    )
    assert (row.engine_rates, row.images_per_second) == ((90.0, 70.0, 80.0), 80.0)
    assert (row.file_rates, row.files_per_second) == ((60.0, 65.0), 62.5)


def test_close_seconds_of_a_pick_overlap_it_and_keep_the_limits_with_as_many_views() -> None:
    def candidate(*rates: float, p95: float = 5.0, **changes: Any) -> Candidate:
        named: dict[str, Any] = {"backend": "openvino", "precision": "fp32", "num_views": 1, "batch_size": 1}
        return Candidate(
            configuration=BatchConfiguration(**(named | changes)),
            images_per_second=statistics.median(rates),
            p95_ms=p95,
            agreement=None,
            rates=rates,
        )

    best = candidate(100.0, 200.0, 210.0)
    below, above = candidate(80.0, 90.0, 99.0, batch_size=2), candidate(80.0, 90.0, 100.0, batch_size=3)
    nearer, late = candidate(150.0, 190.0, batch_size=4), candidate(150.0, 190.0, batch_size=5, p95=50.0)
    found = [above, below, best, late, nearer, candidate(150.0, 190.0, num_views=10)]
    assert close_seconds(best, found, Limits(budget_ms=10)) == [nearer, above]
    once = candidate(169.0, precision="int8")
    assert close_seconds(once, [once, candidate(94.0)], Limits()) == []


def test_preprocessing_has_the_share_of_the_time_that_its_layers_take() -> None:
    times = ((1.0, True), (2.0, True), (9.0, False))
    layers = tuple(
        LayerTime(name=f"layer {number}", kind="any", milliseconds=milliseconds, is_preprocessing=is_before)
        for number, (milliseconds, is_before) in enumerate(times)
    )
    assert Profile(group=GROUP, num_images=1, layers=layers).preprocessing_share == pytest.approx(0.25)
