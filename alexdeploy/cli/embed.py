"""`alexdeploy embed`: the features of a layer for photographs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import (
    BackendOption,
    BatchSizeOption,
    DevicesOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    ReplicasOption,
    ResumeOption,
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsOption,
    check_output_free,
    open_output,
    view_count,
)
from alexdeploy.core.errors import DeviceError, ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from alexdeploy.inference.feature_row import FeatureRow

EXAMPLES = (
    "alexdeploy embed images/",
    "alexdeploy embed images/ --layer conv5 --precision int8 -o conv5.npy",
    "alexdeploy embed @list.txt --tencrop -o features.parquet --resume",
)


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Image files, folders, .zip and .tar archives, globs, @list.txt, or - for a list on stdin; "
            "also as URLs (s3, gs, az, https).",
        ),
    ],
    model: ModelOption = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer of the plan: fc7 or relu7 after its activation, fc7:pre before it, conv5, norm1, pool5 and so "
            "on. Default: the last hidden layer.",
        ),
    ] = None,
    precision: PrecisionOption = "fp32",
    tencrop: TencropOption = False,
    views: ViewsOption = None,
    backend: BackendOption = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    output_name: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here: .parquet, or .npy with its rows in .npy.jsonl; FILE appears when it is complete.",
        ),
    ] = "features.parquet",
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write the features of a layer for photographs: one row for each, in order, with the error if it cannot be read.

    Ends with exit code 3 if some of the rows are errors.
    """
    from alexdeploy.cli.predict_report import describe
    from alexdeploy.images.named import check_named
    from alexdeploy.images.sources import read_inputs
    from alexdeploy.inference import embed_file
    from alexdeploy.inference.embedder import Embedder, EmbedOptions
    from alexdeploy.inference.feature_files import feature_format
    from alexdeploy.inference.journal import journal_path

    options = EmbedOptions(
        layer=layer,
        backend=backend,
        precision=precision,
        num_views=view_count(views, tencrop=tencrop),
        batch_size=batch_size,
        num_threads=threads,
        devices=devices,
        replicas=replicas,
    )
    stored, local = open_output(output_name)
    assert local is not None
    if feature_format(local) == "npy" and stored is not None:
        raise UsageError(f"--output {stored.name}: .npy is two files", hint="Write features.parquet there.")
    written = stored.name if stored else local
    # The link stays and its target is replaced.
    path = Path(os.path.realpath(local))
    finished = path
    if stored is not None and resume and not (stored.path.exists() or journal_path(stored.path).exists()):
        finished = stored.fetch()
    has_finished = embed_file.has_finished(finished, resume=resume)
    if not resume:
        check_output_free(stored, local, overwrite=overwrite)
    check_named(inputs)
    embedder = Embedder(model, options)
    for note in embedder.notes:
        out.note(note)
    given = read_inputs(inputs)
    began = time.monotonic()
    with embedder:
        if has_finished:
            summary = embed_file.check_finished(embedder, given, finished)
            out.note(f"{written} is complete, nothing to resume. To replace it: --overwrite instead of --resume.")
        else:
            with _progress() as count, _last_words(journal_path(path)):
                summary = embed_file.embed_to_file(embedder, given, path, on_row=count)
        info = embedder.info
    if stored is not None and (not has_finished or finished == path):
        stored.publish()
    if not has_finished:
        seconds = max(time.monotonic() - began, 1e-9)
        kept = f", {summary.num_kept} of them from before" if summary.num_kept else ""
        out.note(
            f"{out.count(summary.num_rows, 'image')}{kept}, {out.count(summary.num_errors, 'error')}, "
            f"{(summary.num_rows - summary.num_kept) / seconds:,.1f} images/s, {describe(info)}"
        )
        if skipped := str(given.skipped):
            out.note(f"skipped {skipped}")
        out.note(
            f"wrote {written}: {out.count(summary.num_rows, 'row')} of {embedder.layer} {list(info.feature_shape)}"
        )
    if json:
        facts = {"output": str(written), "layer": embedder.layer, "shape": info.feature_shape}
        counts = {"rows": summary.num_rows, "errors": summary.num_errors, "kept": summary.num_kept}
        kind = {"model": embedder.model_name, "backend": info.backend, "precision": info.precision}
        out.print_json({**facts, **counts, **kind, "num_views": info.num_views, "artifact": info.artifact})
    if summary.num_errors:
        raise typer.Exit(3)


@contextmanager
def _progress() -> Iterator[Callable[[FeatureRow], None]]:
    if not sys.stderr.isatty():
        yield lambda row: None
        return
    with out.progress("images") as bar:
        task = bar.add_task("embed", total=None, kept=0)

        def count(row: FeatureRow) -> None:
            if not bar.tasks[0].completed:
                # The rows before it come from the run that is being resumed.
                bar.update(task, kept=row.index)
            bar.update(task, completed=row.index + 1)

        yield count


@contextmanager
def _last_words(journal: Path) -> Iterator[None]:
    """Say how to go on if the command is stopped, or fails after some rows."""
    from alexdeploy.core.interrupts import set_last_words

    def tell() -> None:
        if journal.exists():
            out.note(f"Stopped; the rows so far are in {journal}. To go on, add --resume.", always=True)

    set_last_words(tell)
    try:
        yield
    except (KeyboardInterrupt, DeviceError, ModelError, OutputError):
        set_last_words(lambda: None)
        tell()
        raise
