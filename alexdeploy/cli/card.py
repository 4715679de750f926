"""`alexdeploy card`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import (
    BatchSizeOption,
    DevicesOption,
    JsonOption,
    LabelsOption,
    ModelArgument,
    ModelOption,
    OverwriteOption,
    QuietOption,
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsListOption,
    backends_option,
    find_one_model,
    pick,
    precisions_option,
    view_counts,
)
from alexdeploy.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.spec import Precision
    from alexdeploy.engines.base import Backend
    from alexdeploy.evaluation.evaluate import EvaluateOptions
    from alexdeploy.evaluation.results import Evaluation, ImageResult, Plan

EXAMPLES = (
    "alexdeploy card flowers --license apache-2.0",
    "alexdeploy card flowers --images photographs/ --dataset owner/flowers",
    "alexdeploy card flowers --evaluation result.json --about about.md --overwrite",
)


def card(
    model: ModelArgument = None,
    model_option: ModelOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write. Default: hub/ and the model's name."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Evaluate on these labelled images, as `evaluate` does, for the card."),
    ] = None,
    labels: LabelsOption = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The result of `evaluate --json`, in place of --images."),
    ] = None,
    precision: Annotated[str | None, precisions_option("those of the graphs that are there")] = None,
    views: ViewsListOption = None,
    tencrop: TencropOption = False,
    backend: Annotated[str | None, backends_option("openvino and onnxruntime, as far as installed")] = None,
    devices: DevicesOption = None,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the model, e.g. apache-2.0.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TITLE", help="Title of the card. Default: the model's name.")
    ] = None,
    author: Annotated[str | None, typer.Option("--author", metavar="NAME", help="Who made the model.")] = None,
    about: Annotated[
        Path | None,
        typer.Option(
            "--about",
            metavar="FILE",
            help="Markdown by the author, such as the intended use; part of the card as it is.",
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Language of the class names, e.g. en.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="ID", help="Name of the training data, as on the Hub if it is there."),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a model with its model card and its bill of materials, as a repository of the Hugging Face Hub.

    The card has what is recorded of the model, and errors with their 95 % intervals: of --images or --evaluation, or
    what training recorded. `alexdeploy import DIR` reads such a folder. Nothing is uploaded. An image that cannot be
    read counts as wrong, and the command then ends with exit code 3.
    """
    from alexdeploy.cards.card import CardOptions, check_directory, write_card
    from alexdeploy.evaluation.evaluate import EvaluateOptions

    options = CardOptions(
        license=license,
        title=title,
        author=author,
        language=language,
        dataset=dataset,
        about=about,
        overwrite=overwrite,
    )
    if images is None:
        told: dict[str, object] = {"--labels": labels, "--precision": precision, "--views": views}
        told |= {"--backend": backend, "--devices": devices, "--tencrop": tencrop or None}
        if given := [name for name, value in told.items() if value is not None]:
            raise UsageError(f"{given[0]} is for an evaluation", hint="Name labelled images: --images DATA")
    elif evaluation is not None:
        raise UsageError("--images and --evaluation are both given", hint="Leave one of them out.")
    folder = find_one_model(model, model_option)
    directory = check_directory(folder, output, overwrite=overwrite).path
    found: Evaluation | Path | None = evaluation
    if images is not None:
        ways = EvaluateOptions(
            precisions=_precisions(folder, precision),
            num_views=view_counts(views, tencrop=tencrop),
            backends=_backends(backend),
            labels=labels,
            batch_size=batch_size,
            num_threads=threads,
            devices=devices,
        )
        found = _evaluate(folder, images, ways)
    written = write_card(folder, directory, options, evaluation=found)
    if json:
        out.print_json({**dataclasses.asdict(written), "path": written.path.as_posix()})
    for note in written.notes:
        out.note(f"  {note}")
    origin = {"evaluation": "of the evaluation", "training": "that training recorded"}
    errors = origin.get(written.measured_on or "", "are not recorded; measure them: --images DATA")
    out.note(f"wrote {written.path}: {out.count(len(written.files), 'file')}; errors {errors}")
    if found is not None and not isinstance(found, Path) and found.num_broken:
        raise typer.Exit(InputError.exit_code)


def _precisions(folder: ModelFolder, text: str | None) -> tuple[Precision, ...]:
    from alexdeploy.core.spec import Precision

    known = cast("tuple[Precision, ...]", get_args(Precision))
    if text is not None:
        return pick("--precision", text, known)
    return tuple(each for each in known if folder.onnx_path(each).is_file()) or ("fp32",)


def _backends(text: str | None) -> tuple[Backend, ...] | None:
    from alexdeploy.engines.base import Backend, is_installed

    known = cast("tuple[Backend, ...]", get_args(Backend))
    if text is not None:
        return pick("--backend", text, known)
    return tuple(each for each in known if each in ("openvino", "onnxruntime") and is_installed(each)) or None


def _evaluate(folder: ModelFolder, images: str, options: EvaluateOptions) -> Evaluation:
    """The whole evaluation, with progress on stderr. Raises KeyboardInterrupt if it was stopped."""
    from alexdeploy.evaluation.evaluate import evaluate
    from alexdeploy.evaluation.results import Plan

    with out.progress("images") as bar:
        task = bar.add_task("evaluate", total=None)

        def show(event: Plan | ImageResult) -> None:
            if isinstance(event, Plan):
                for note in event.notes:
                    out.note(note)
                bar.update(task, total=event.num_images)
            else:
                bar.advance(task)

        found = evaluate(folder, images, options, on_event=show)
    if found.interrupted:
        raise KeyboardInterrupt
    return found
