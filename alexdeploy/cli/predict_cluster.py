"""`alexdeploy predict --ray`: the same on a cluster, with rows in numbered parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from alexdeploy.cli import output as out
from alexdeploy.core.errors import DeviceError, ModelError, OutputError, UsageError
from alexdeploy.core.interrupts import set_last_words

if TYPE_CHECKING:
    from alexdeploy.cluster.classify import ClusterSummary
    from alexdeploy.cluster.parts import Part
    from alexdeploy.placement.options import PredictOptions


def predict_on_cluster(
    address: str,
    inputs: Sequence[str],
    model: str | None,
    output: str | None,
    kind: str | None,
    options: PredictOptions,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Run `classify` on the cluster at `address`; exits with code 3 if some of the rows are errors."""
    from alexdeploy.cluster.classify import ClusterOptions, classify
    from alexdeploy.cluster.connection import connected
    from alexdeploy.core.model_folder import find_model
    from alexdeploy.images.named import check_named
    from alexdeploy.images.sources import read_inputs

    if output is None:
        raise UsageError("--ray writes rows in numbered parts", hint="Name a folder for them: --output DIR")
    if kind not in (None, "parquet", "jsonl"):
        raise UsageError(f"--ray writes no {kind}", hint="--format parquet or jsonl")
    if options.replicas != 1 or options.placement is not None:
        raise UsageError("--ray places the replicas itself", hint="Leave out --replicas and --placement.")
    check_named(inputs)
    folder = find_model(model)
    given = read_inputs(inputs)
    cluster_options = ClusterOptions(
        predict=options, kind="jsonl" if kind == "jsonl" else "parquet", resume=resume, overwrite=overwrite
    )
    began = time.monotonic()
    has_parts = False
    is_over = threading.Event()

    def tell_of_parts() -> None:
        if has_parts:
            out.note(f"Stopped; the parts so far are in {out.printable(output)}. To go on, add --resume.", always=True)

    with out.progress("images") as bar:
        task = bar.add_task("predict", start=False, total=None, kept=0)

        def begin(num_kept: int) -> None:
            nonlocal began, has_parts
            began, has_parts = time.monotonic(), num_kept > 0
            set_last_words(tell_of_parts)
            bar.start_task(task)
            bar.update(task, completed=num_kept, kept=num_kept)
            if not bar.disable:
                threading.Thread(target=count, daemon=True).start()

        def count() -> None:
            total = given.count(lambda: not is_over.is_set())
            if total is not None:
                bar.update(task, total=total)

        def advance(part: Part) -> None:
            nonlocal has_parts
            has_parts = True
            bar.advance(task, part.num_rows)

        try:
            with connected(address):
                summary = classify(
                    given,
                    folder,
                    output,
                    cluster_options,
                    on_begin=begin,
                    on_part=advance,
                    on_note=out.note,
                    on_warning=out.warn,
                )
        except (KeyboardInterrupt, DeviceError, ModelError, OutputError):
            set_last_words(lambda: None)
            tell_of_parts()
            raise
        finally:
            is_over.set()
    _summarize(summary, output, time.monotonic() - began)
    if skipped := str(given.skipped):
        out.note(f"skipped {skipped}")
    if summary.num_errors:
        raise typer.Exit(3)


def _summarize(summary: ClusterSummary, output: str, seconds: float) -> None:
    num_done = summary.num_rows - summary.num_kept
    for number, actor in enumerate(summary.actors):
        gpus = f", {out.count(actor.num_gpus, 'GPU')}" if actor.num_gpus else ""
        restarts = f", replaced {out.count(actor.num_restarts, 'time')}" if actor.num_restarts else ""
        out.note(
            f"{actor.node}, actor {number} with {out.count(actor.num_cpus, 'CPU')}{gpus}: "
            f"{out.count(actor.num_images, 'image')} ({actor.num_images / max(num_done, 1):.0%}), "
            f"{actor.num_images / max(actor.busy_seconds, 1e-9):,.1f} images/s, waited "
            f"{max(seconds - actor.busy_seconds, 0.0):.1f} of {seconds:.1f} s{restarts}"
        )
    kept = f", {summary.num_kept:,} of them from before" if summary.num_kept else ""
    out.note(
        f"{out.count(summary.num_rows, 'image')}{kept}, {out.count(summary.num_errors, 'error')}, "
        f"{num_done / max(seconds, 1e-9):,.1f} images/s"
    )
    out.note(f"wrote {out.printable(output)}: {out.count(summary.num_rows, 'row')}")
