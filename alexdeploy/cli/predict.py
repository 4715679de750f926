"""`alexdeploy predict`: classify photographs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import (
    BackendOption,
    DevicesOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    RayOption,
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
from alexdeploy.cli.predict_cluster import predict_on_cluster
from alexdeploy.cli.predict_report import Report, describe
from alexdeploy.core.errors import DeviceError, ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from alexdeploy.images.sources import Inputs
    from alexdeploy.inference.pictures import Pictures
    from alexdeploy.inference.predictor import Predictor
    from alexdeploy.inference.writers import Format

EXAMPLES = (
    "alexdeploy predict images/ --tencrop",
    "alexdeploy predict photographs.zip -o rows.csv --sheet page.html",
    "alexdeploy predict @list.txt --precision int8 --devices cpu,cpu -o rows.jsonl",
)


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Image files, folders, .zip and .tar archives, globs, @list.txt, or - for a list on stdin; "
            "also as URLs (s3, gs, az, https).",
        ),
    ],
    model: ModelOption = None,
    precision: PrecisionOption = "fp32",
    tencrop: TencropOption = False,
    views: ViewsOption = None,
    backend: BackendOption = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    placement: Annotated[
        Literal["towers", "pipeline"] | None,
        typer.Option(
            metavar="towers|pipeline",
            help="Split one network over two devices: by towers, or convolutions and the rest.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, metavar="N", help="Classes reported per image.")] = 5,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Images per batch; auto chooses what fits the device. Default: 8, or 1 for one image file.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    kind: Annotated[
        Literal["table", "jsonl", "csv", "parquet"] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, jsonl, csv or parquet. Default: by the suffix of --output; without it, table on a terminal, "
            "else jsonl.",
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here; FILE, or the object at a URL, appears when it is complete. With --ray: a folder.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page of the photographs with their five best classes, as HTML."),
    ] = None,
    sheet_images: Annotated[
        int, typer.Option(min=1, max=5000, metavar="N", help="Photographs in --sheet: the N most doubtful.")
    ] = 200,
    annotate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write each picture with its answer below it into this folder, as JPEG."),
    ] = None,
    ray: RayOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Classify photographs: one row for each, in order, with the error if it cannot be read.

    Ends with exit code 3 if some of the rows are errors.
    """
    from alexdeploy.images.named import check_named, is_single_image
    from alexdeploy.images.sources import read_inputs
    from alexdeploy.inference import predict_file, writers
    from alexdeploy.inference.journal import journal_path
    from alexdeploy.inference.pictures import PictureOptions, open_pictures
    from alexdeploy.inference.predictor import Predictor
    from alexdeploy.placement.options import PredictOptions

    is_single = is_single_image(inputs)
    options = PredictOptions(
        backend=backend,
        precision=precision,
        num_views=view_count(views, tencrop=tencrop),
        batch_size=_batch_size(batch_size, is_single=is_single),
        top_k=top_k,
        num_threads=threads,
        num_streams=1 if is_single else None,
        devices=devices,
        replicas=replicas,
        placement=placement,
    )
    if ray is not None:
        if sheet is not None or annotate is not None:
            raise UsageError(
                "--ray has no --sheet and no --annotate: the images are read on the nodes",
                hint="Leave out --ray, or classify a part of the images without it.",
            )
        predict_on_cluster(ray, inputs, model, output_name, kind, options, resume=resume, overwrite=overwrite)
        return
    stored, output = open_output(output_name)
    written = stored.name if stored else output
    is_special = output is not None and os.path.exists(output) and not (output.is_file() or output.is_dir())
    chosen = kind or _default_format(output, is_special)
    writers.check_format(chosen)
    # The link stays and its target is replaced.
    path = None if output is None or is_special else Path(os.path.realpath(output))
    if resume and path is None:
        raise UsageError("--resume continues a file of rows", hint="Name it: --output FILE")
    if chosen == "parquet" and path is None:
        raise UsageError("Parquet cannot be streamed", hint="Write it to a file: --output FILE.parquet")
    finished = path
    if stored is not None and resume and not (stored.path.exists() or journal_path(stored.path).exists()):
        finished = stored.fetch()
    has_finished = finished is not None and predict_file.has_finished(finished, chosen, resume=resume)
    if output is not None and path is not None and not resume:
        check_output_free(stored, output, overwrite=overwrite)
    check_named(inputs)
    wanted = None
    if sheet is not None or annotate is not None:
        wanted = PictureOptions(
            sheet=sheet, sheet_images=sheet_images, annotate=annotate, overwrite=overwrite, resume=resume
        )
        wanted.check(inputs)
        if has_finished and not wanted.is_done:
            raise UsageError(
                f"{written} is complete, so no image is classified that could be in --sheet or --annotate",
                hint="Make both again: --overwrite instead of --resume",
            )
    predictor = Predictor(model, options)
    if not quiet:
        for note in predictor.notes:
            out.note(note)
    if finished is not None and has_finished:
        with predictor:
            summary = predict_file.check_finished(predictor, read_inputs(inputs), finished, chosen)
        if stored is not None and finished == path:
            stored.publish()
        out.note(f"{written} is complete, nothing to resume. To replace it: --overwrite instead of --resume.")
        raise typer.Exit(3 if summary.num_errors else 0)
    report = Report(quiet=quiet, shows_progress=path is not None or not sys.stdout.isatty())
    with report, predictor, open_pictures(wanted, predictor) as pictures:
        given = read_inputs(inputs)
        report.begin(given)
        if path is None:
            _stream(predictor, given, output, chosen, report, pictures)
        else:
            _write_file(predictor, given, path, chosen, report, pictures)
        if pictures is not None:
            pictures.finish(predictor.model_name, predictor.info)
    report.summarize(predictor, given)
    if stored is not None:
        stored.publish()
    if path is not None:
        out.note(f"wrote {written}: {out.count(report.num_rows + report.num_kept, 'row')}")
    if sheet is not None:
        out.note(f"wrote {sheet}")
    if annotate is not None and pictures is not None:
        out.note(f"wrote {annotate}: {out.count(pictures.num_annotated, 'picture')}")
    if report.num_errors:
        raise typer.Exit(3)


def _default_format(output: Path | None, is_special: bool) -> Format:
    from alexdeploy.inference.writers import choose_format

    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    return "jsonl" if is_special else choose_format(output)


def _batch_size(text: str | None, *, is_single: bool) -> int | Literal["auto"]:
    if text is None:
        # OpenVINO always computes the batch that it was compiled for, even for fewer images.
        return 1 if is_single else 8
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: expected a number of images from 1 on, or auto")
    return int(text)


def _write_file(
    predictor: Predictor, inputs: Inputs, path: Path, kind: Format, report: Report, pictures: Pictures | None
) -> None:
    from alexdeploy.core.interrupts import set_last_words
    from alexdeploy.inference.journal import journal_path
    from alexdeploy.inference.predict_file import predict_to_file

    def tell_of_rows() -> None:
        if journal_path(path).exists():
            out.note(f"Stopped; the rows so far are in {journal_path(path)}. To go on, add --resume.", always=True)

    set_last_words(tell_of_rows)
    try:
        summary = predict_to_file(predictor, inputs, path, kind, on_row=report.count, pictures=pictures)
    except (KeyboardInterrupt, DeviceError, ModelError, OutputError):
        set_last_words(lambda: None)
        tell_of_rows()
        raise
    report.num_kept = summary.num_kept
    report.num_errors = summary.num_errors


def _stream(
    predictor: Predictor,
    inputs: Inputs,
    output: Path | None,
    kind: Format,
    report: Report,
    pictures: Pictures | None,
) -> None:
    """Write rows to stdout, a pipe or a device as they arrive."""
    import shutil

    from alexdeploy.inference.writers import Shape, text_format

    info = predictor.info
    width = shutil.get_terminal_size((120, 24)).columns
    shape = Shape(classes=info.classes, top_k=predictor.top_k, num_views=info.num_views, width=width)
    form = text_format(kind, shape)
    if kind == "table" and not report.quiet:
        out.note(f"{predictor.folder.path}: {describe(info)}")
    # Files for machines are always UTF-8; a table uses the terminal's encoding.
    encoding = (sys.stdout.encoding or "utf-8") if kind == "table" and output is None else "utf-8"
    with (
        _open_sink(output, report.stdout) as write,
        closing(predictor.predict_sources(inputs, pictures=pictures)) as rows,
    ):
        write(form.header.encode(encoding, "backslashreplace"))
        for row in rows:
            write(form.line(row).encode(encoding, "backslashreplace"))
            report.count(row)


@contextmanager
def _open_sink(output: Path | None, stdout: BinaryIO) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes through to stdout or to `output`. It raises OutputError if the write fails."""
    from alexdeploy.core.files import output_error

    def error(exc: OSError) -> OutputError:
        return out.stdout_error(exc) if output is None else output_error(output, exc)

    def write(data: bytes) -> None:
        try:
            sink.write(data)
            sink.flush()
        except OSError as exc:
            raise error(exc) from exc

    try:
        sink = stdout if output is None else output.open("wb")
    except OSError as exc:
        raise error(exc) from exc
    try:
        yield write
    finally:
        if output is not None:
            with suppress(OSError):
                sink.close()
