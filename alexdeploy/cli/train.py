"""`alexdeploy train`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import model_names, recipe_names
from alexdeploy.cli.options import (
    ExcludeOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    SetOption,
    ThreadsOption,
    VerboseOption,
    device_option,
    one_device,
)
from alexdeploy.cli.rank_output import one_voice
from alexdeploy.cli.train_progress import summary, watch

EXAMPLES = (
    "alexdeploy train",
    "alexdeploy train photographs/ --recipe alexnet --epochs 30",
    "alexdeploy train photographs/ --pretrained alexnet --freeze conv1,conv2",
)


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images for each class, or with train/ and val/ of such, or a set that "
            "`alexdeploy prepare` packed; also as a URL. Default: ten classes of shapes, rendered to data/sample/.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=recipe_names,
            help="Recipe to train; alexnet if left out, alexnet-quarter for the rendered images.",
        ),
    ] = None,
    overrides: SetOption = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            autocompletion=model_names,
            help="Start from the weights of this model; its architecture and preprocessing are kept, the last layer "
            "is new unless the classes are the same.",
        ),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Layers of --pretrained that are not trained: conv1,conv2")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model goes to models/NAME/; if left out, the recipe's name, or MODEL-tuned."
        ),
    ] = None,
    val: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Validation images, with the same class folders.")
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of each class to validate on, if there are no validation images. Default: 0.1.",
        ),
    ] = None,
    exclude: ExcludeOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images per step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate of the first epoch.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of every random draw.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="PRECISION", help="fp32, bf16, or on a GPU tf32, fp16; weights stay fp32.")
    ] = None,
    devices: Annotated[str | None, device_option("cpu, 0 or cuda:0", "the GPU if there is one")] = None,
    threads: ThreadsOption = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network with torch.compile; needs a compiler.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    parallel: Annotated[
        Literal["batches", "towers"],
        typer.Option(
            metavar="batches|towers",
            help="What torchrun's processes divide: each batch, or the two towers.",
        ),
    ] = "batches",
    logger: Annotated[
        Literal["mlflow"] | None,
        typer.Option(metavar="mlflow", help="Also log to MLflow, at MLFLOW_TRACKING_URI; needs alexdeploy[mlflow]."),
    ] = None,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(min=0, metavar="MINUTES", help="Time between checkpoints; there is one after each epoch too."),
    ] = 1.0,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Skip images that cannot be decoded, and name them.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a network; its best epoch goes to models/NAME/.

    Without DATA, it trains on the built-in rendered set, in minutes on two cores. A run that was stopped, even by
    a power cut, continues with the same command and --resume. With --threads 1, runs repeat to the bit.
    """
    # OpenMP threads wait for each other by spinning for about a millisecond: with one other busy process on two cores
    # that made training 5 to 10 times slower. A thousandth of that time costs little. Read when PyTorch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from alexdeploy.graphs.freshness import export_command, newer_weights
    from alexdeploy.training.report import can_write_report
    from alexdeploy.training.train import TrainOptions, frozen_overrides, train_in_group

    device = one_device(
        devices, "On several, start one process for each: torchrun --nproc-per-node N -m alexdeploy train"
    )
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
    }
    named = [f"training.{key}={value}" for key, value in given.items() if value is not None]
    layers = None if freeze is None else tuple(name.strip() for name in freeze.split(","))
    _refuse_said_twice(overrides or (), named, frozen_overrides(layers))
    options = TrainOptions(
        recipe=recipe,
        overrides=(*(overrides or ()), *named),
        pretrained=pretrained,
        freeze=layers,
        name=name,
        val=val,
        val_fraction=val_fraction,
        exclude=tuple(exclude or ()),
        device=device,
        num_threads=threads,
        resume=resume,
        overwrite=overwrite,
        skip_broken=skip_broken,
        checkpoint_seconds=checkpoint_minutes * 60,
        parallel=parallel,
        compile=compile_,
        logger=logger,
    )
    with one_voice(device) as group:
        with watch() as watcher:
            try:
                trained = train_in_group(data, options, watcher.show, group)
            except KeyboardInterrupt:
                if watcher.folder is not None and watcher.folder.checkpoint_path.is_file():
                    output.note("stopped; resume with the same command and --resume")
                raise
        folder, spec = trained.folder, trained.spec
        if json:
            output.print_json(
                {
                    "model": folder.path.as_posix(),
                    "classes": spec.classes,
                    **spec.provenance,
                    "skipped": watcher.skipped,
                    **watcher.speeds(),
                }
            )
        note = newer_weights(folder)
        output.note(summary(folder.path if note is None else folder.candidate.path, spec))
        if can_write_report() and (page := folder.checkpoints / "report.html").is_file():
            output.note(f"wrote {page.as_posix()} and curves.png")
        if note is not None:
            output.note(note)
        elif folder.has_graphs:
            output.note(f"next: {export_command(folder)}")
        else:
            output.next_step("export", "--fp16", *([] if name is None else [folder.path.as_posix()]))


def _refuse_said_twice(overrides: Iterable[str], named: Iterable[str], frozen: Iterable[str]) -> None:
    """Raise UsageError where --set has a key that a dedicated option or --freeze has set too."""
    from alexdeploy.core.errors import UsageError

    options = {key: f"--{key.rpartition('.')[2].replace('_', '-')}" for key in map(_key, named)}
    options |= dict.fromkeys(map(_key, frozen), "--freeze")
    for key in map(_key, overrides):
        if key in options:
            raise UsageError(f"--set {key} and {options[key]} are for the same thing", hint="Give one of them.")


def _key(override: str) -> str:
    return override.partition("=")[0].strip()
