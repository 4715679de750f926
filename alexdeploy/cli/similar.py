"""`alexdeploy similar`: the nearest photographs in a file of features."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import JsonOption, ModelOption, OverwriteOption, QuietOption, VerboseOption, check_not_there
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alexdeploy.inference.similar import Match

EXAMPLES = (
    "alexdeploy similar photo.jpg",
    "alexdeploy similar rose.jpg --in features.npy -k 20 --metric cosine",
    "alexdeploy similar queries/ --sheet similar.html",
)

_FIELDS = ("query", "rank", "source", "distance", "index", "error")


def similar(
    queries: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY", help="A source in the file, whose features are taken from it; or as INPUT of embed."
        ),
    ],
    features: Annotated[
        Path, typer.Option("--in", metavar="FILE", help="The features, from embed: .parquet or .npy.")
    ] = Path("features.parquet"),
    model: ModelOption = None,
    k: Annotated[int, typer.Option("--neighbours", "-k", min=1, metavar="N", help="Neighbours of each query.")] = 6,
    metric: Annotated[
        Literal["euclidean", "cosine"], typer.Option(metavar="euclidean|cosine", help="Distance of features.")
    ] = "euclidean",
    index: Annotated[
        bool,
        typer.Option(
            "--index",
            help="Search in an index beside FILE, made at the first search: for many searches in millions of rows. It "
            "may miss a neighbour. Without it, the search is exact and reads all of FILE.",
        ),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page of thumbnails: each query and its neighbours."),
    ] = None,
    kind: Annotated[
        Literal["table", "jsonl", "csv"] | None,
        typer.Option(
            "--format", metavar="FORMAT", help="table, jsonl or csv. Default: table on a terminal, else jsonl."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find the photographs whose features are nearest to those of a query.

    Ends with exit code 3 if a query cannot be read.
    """
    from alexdeploy.core.files import check_output
    from alexdeploy.inference.similar import SimilarOptions
    from alexdeploy.inference.similar import similar as find

    if json and kind is not None:
        raise UsageError(f"--json is one document, --format {kind} is lines", hint="Give one of them.")
    if features.is_dir():
        raise UsageError(f"--in {features} is a folder; expected a file of features")
    if not features.is_file():
        raise UsageError(
            f"{features} does not exist", hint=f"Make it: alexdeploy embed IMAGES -o {features}, or name another: --in"
        )
    if sheet is not None:
        check_output(sheet)
        if sheet.is_dir():
            raise UsageError(f"--sheet {sheet} is a folder; expected a file")
        check_not_there(sheet, "--sheet", overwrite=overwrite)
    options = SimilarOptions(k=k, metric=metric, index=index)
    matches = find(queries, features, model, options, on_warning=out.note)
    if json:
        out.print_json([dataclasses.asdict(match) for match in matches])
    else:
        for line in _lines(matches, kind or ("table" if sys.stdout.isatty() else "jsonl")):
            out.write(line)
    if sheet is not None:
        from alexdeploy.inference.similar_sheet import write_sheet

        words = f"Left: the query. Right of it: the {k} nearest of {features}, with their {metric} distance."
        write_sheet(sheet, matches, "Similar photographs", words)
        out.note(f"wrote {sheet}")
    if any(match.error is not None for match in matches):
        raise typer.Exit(3)


def _lines(matches: Sequence[Match], kind: str) -> Iterator[str]:
    import msgspec

    from alexdeploy.core.csv_text import csv_line
    from alexdeploy.core.printable import escape

    def line(*row: object) -> str:
        if kind == "csv":
            return csv_line(row)
        return msgspec.json.encode(dict(zip(_FIELDS, row, strict=True))).decode() + "\n"

    if kind == "csv":
        yield csv_line(_FIELDS)
    for match in matches:
        if kind == "table":
            yield f"{escape(match.query)}{'' if match.error is None else f'  {escape(match.error)}'}\n"
            yield from (f"{each.rank:4}  {each.distance:#10.4g}  {escape(each.source)}\n" for each in match.neighbours)
            continue
        if match.error is not None:
            yield line(match.query, None, None, None, None, match.error)
        for each in match.neighbours:
            yield line(match.query, each.rank, each.source, each.distance, each.index, None)
