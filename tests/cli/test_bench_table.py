"""The table of `alexdeploy bench`, of figures that are known."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from alexdeploy.cli.bench import _print_rows
from alexdeploy.inference.bench_process import Start
from alexdeploy.inference.bench_results import Agreed, Row, make_row
from alexdeploy.inference.bench_rounds import Measured
from alexdeploy.inference.bench_timing import Configuration, Slice


def row_of(*rounds: tuple[float, float], **changes: Any) -> Row:
    """A row of `rounds`: images/s of the engine alone and from files. Decoding alone gives 300, a batch takes 10 ms."""
    named: dict[str, Any] = {"backend": "onnxruntime", "precision": "fp32", "num_views": 1, "batch_size": 8}
    return make_row(
        Configuration(**(named | changes)),
        Measured(
            slices=[Slice(batch_seconds=(0.01,) * 19 + (0.02,) * 2, images_per_second=rate) for rate, _ in rounds],
            file_rates=[rate for _, rate in rounds],
            peak_bytes=123_000_000,
        ),
        device="cpu",
        decode_rates=[300.0] * len(rounds),
        flops=1_000_000_000,
        ceiling_gflops=400.0,
        start=Start(open_seconds=1.0, load_seconds=0.5, first_row_seconds=1.25),
        agreed=Agreed(reference="torch", num_images=64, num_same=63),
    )


def table(*rows: Row, width: int = 120) -> list[str]:
    text = io.StringIO()
    _print_rows(Console(file=text, width=width, highlight=False), list(rows))
    return text.getvalue().splitlines()


def test_every_figure_stands_under_its_name() -> None:
    head, line = table(row_of((100.0, 60.0)))
    assert head.split() == [
        *("backend", "precision", "batch", "engine", "files", "bound", "p50", "p95", "same", "ceiling", "MB", "first")
    ]
    # Decoding and the engine allow 75 images/s; 100 images/s are 100 GFLOP/s.
    assert line.replace(" %", "%").split() == [
        *("onnxruntime", "fp32", "8", "100.0", "60.0", "80%", "10.0", "20.0", "63/64", "25%", "123", "1.25")
    ]
