"""`alexdeploy explain`: where in a photograph the evidence for a class is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsOption,
    check_not_there,
    view_count,
)

if TYPE_CHECKING:
    from rich.table import Table

    from alexdeploy.explaining.explain import Explanation

EXAMPLES = (
    "alexdeploy explain photo.jpg",
    "alexdeploy explain photo.jpg --class daisy --method both --html page.html",
    "alexdeploy explain images/ --precision int8 --size 32 --stride 8 -o explained/",
)


def explain(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files, folders, archives, globs, @list.txt, URLs."),
    ],
    model: ModelOption = None,
    label: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Class to explain, by name or index. Default: each answer."),
    ] = None,
    method: Annotated[
        Literal["occlusion", "grad-cam", "both"],
        typer.Option(
            metavar="occlusion|grad-cam|both",
            help="Cover parts of the image, in the engine that predicts; or gradients of the FP32 weights, in PyTorch.",
        ),
    ] = "occlusion",
    size: Annotated[
        int, typer.Option(min=1, max=256, metavar="PIXELS", help="Side of the square that covers, of 256.")
    ] = 48,
    stride: Annotated[
        int, typer.Option(min=1, max=256, metavar="PIXELS", help="How far apart the places of the square are.")
    ] = 16,
    precision: PrecisionOption = "fp32",
    views: ViewsOption = None,
    tencrop: TencropOption = False,
    backend: BackendOption = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a page of the first 100 images with their pictures; it loads nothing."
        ),
    ] = None,
    output_name: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of pictures, values (.npy) and explanations.json."),
    ] = Path("explained"),
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show where in a photograph the evidence for a class is: by covering parts of it, or by gradients.

    Occlusion runs the engine that `predict` runs, once for each place of the square: 197 times an image unless --stride
    or --size are given. Ends with exit code 3 if some of the images cannot be read.
    """
    from alexdeploy.explaining import files
    from alexdeploy.explaining.explain import Explainer, ExplainOptions
    from alexdeploy.images.named import check_named
    from alexdeploy.images.sources import read_inputs
    from alexdeploy.inference.annotate import check_beside
    from alexdeploy.placement.options import PredictOptions
    from alexdeploy.reports.page import check_page_path

    options = ExplainOptions(
        predict=PredictOptions(
            backend=backend,
            precision=precision,
            num_views=view_count(views, tencrop=tencrop),
            batch_size=batch_size,
            devices=devices,
            replicas=replicas,
            num_threads=threads,
        ),
        label=label,
        method=method,
        size=size,
        stride=stride,
    )
    if html is not None:
        check_page_path(html, has_figures=False)
        check_not_there(html, "--html", overwrite=overwrite)
    files.check_folder(output_name, overwrite=overwrite)
    check_beside(output_name, inputs, "--output")
    check_named(inputs)
    explainer = Explainer(model, options)
    for note in explainer.notes:
        out.note(note)
    given = read_inputs(inputs)
    page, rows, written = files.Page(), _rows_table(), []
    with out.progress("images") as bar, explainer:
        files.remove_document(output_name)
        task = bar.add_task("explain", total=given.count(), kept=0)
        for explanation in explainer.explain(iter(given)):
            written.append(files.write_files(explanation, output_name))
            page.add(explanation)
            _add(rows, explanation)
            bar.advance(task)
        found = files.document(explainer.model_name, explainer.info, options, written)
        files.write_document(found, output_name)
        if html is not None:
            page.write(html, explainer.model_name, explainer.info, options)
    if json:
        out.print_json(found)
    else:
        with out.page() as console:
            console.print(rows)
    out.note(f"wrote {output_name}: {out.count(len(written), 'image')}")
    if html is not None:
        out.note(f"wrote {html}")
    if any(each["error"] for each in written):
        raise typer.Exit(3)


def _rows_table() -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("image", "class"):
        table.add_column(name, overflow="fold")
    table.add_column("prob", justify="right")
    table.add_column("method", no_wrap=True)
    table.add_column("covered", justify="right")
    table.add_column("box: left, top, right, bottom", no_wrap=True)
    return table


def _add(table: Table, explanation: Explanation) -> None:
    from rich.text import Text

    from alexdeploy.core.printable import escape

    source = Text(escape(explanation.source))
    if explanation.error is not None:
        table.add_row(source, Text(escape(f"error: {explanation.error}")))
        return
    for heatmap in explanation.heatmaps:
        covered = "" if heatmap.covered_probability is None else f"{heatmap.covered_probability:.4f}"
        box = ", ".join(map(str, heatmap.box))
        label = Text(escape(explanation.label or ""))
        table.add_row(source, label, f"{explanation.probability:.4f}", heatmap.method, covered, box)
