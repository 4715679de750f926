"""`alexdeploy train`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    model_folder,
    one_device,
)
from alexdeploy.cli.rank_output import one_voice
from alexdeploy.cli.sample import render
from alexdeploy.cli.train_progress import summary, watch

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.recipe import Recipe
    from alexdeploy.images.folder import LabelledImages
    from alexdeploy.images.packed import PackedSet
    from alexdeploy.training.pretrained import Parent

_SAMPLE_FOLDER = Path("data/sample")
_NUM_PHOTOGRAPHS = 24
_NUM_CLASSES_SHOWN = 10

EXAMPLES = (
    "alexdeploy train",
    "alexdeploy train photographs/ --recipe alexnet --epochs 30",
    "alexdeploy train photographs/ --pretrained alexnet --freeze conv1,conv2",
)


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images for each class, or with train/ and val/ of such, or a set that "
            "`alexdeploy prepare` packed. Left out: ten classes of shapes are rendered to data/sample/.",
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
            help="Go on from the weights of this model; its architecture and preprocessing are kept, the last layer "
            "is new unless the classes are the same.",
        ),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Layers of --pretrained that stay as they are: conv1,conv2")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model goes to models/NAME/; if left out, the recipe's name, or MODEL-tuned."
        ),
    ] = None,
    val: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Validation images, with the same class folders.")
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of each class to validate on, where there are no validation images. Default: 0.1.",
        ),
    ] = None,
    exclude: ExcludeOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images in a step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate of the first epoch.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of every random draw.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="PRECISION", help="fp32, bf16, or on a GPU fp16; weights stay fp32.")
    ] = None,
    devices: Annotated[str | None, device_option("the GPU if there is one")] = None,
    threads: ThreadsOption = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Have torch.compile make kernels for the network; needs a compiler.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: OverwriteOption = False,
    parallel: Annotated[
        Literal["batches", "towers"],
        typer.Option(
            metavar="batches|towers",
            help="What the processes of torchrun share out: each batch, or the two towers.",
        ),
    ] = "batches",
    checkpoint_minutes: Annotated[
        float,
        typer.Option(min=0, metavar="MINUTES", help="Time between checkpoints; there is one after each epoch too."),
    ] = 1.0,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images that cannot be decoded, and say which.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a network; its best epoch goes to models/NAME/.

    With no DATA, the built-in rendered set is learned in minutes on two cores. A run that was stopped, even by
    a power cut, continues with the same command and --resume. With --threads 1, runs repeat to the bit.
    """
    # OpenMP's threads wait for each other by spinning, a millisecond or so: with one other busy process on two cores
    # that made training 5 to 10 times slower. A thousandth of it costs little. Read when PyTorch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from alexdeploy.core.errors import UsageError

    if resume and overwrite:
        raise UsageError("--resume goes on with a model and --overwrite removes it", hint="Give one of them.")
    device = one_device(
        devices, "On several, start one process for each: torchrun --nproc-per-node N -m alexdeploy train"
    )
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
    }
    named = [f"training.{key}={value}" for key, value in options.items() if value is not None]
    _refuse_said_twice(overrides or (), named, _frozen(freeze))
    given = [*(overrides or ()), *named]
    with one_voice(device) as group:
        chosen, folder, parent = _choose(recipe, given, pretrained, freeze, name, is_sample=data is None)
        begins = group is None or (group.is_main and not group.has_begun)
        if begins and not (resume or overwrite):
            # Before anything is rendered or decoded; training itself checks again.
            folder.check_unused(can_resume=True)
        _need_torch()
        is_sample = data is None
        if data is None:
            if val is not None:
                raise UsageError("--val has no meaning for the rendered images", hint="Name the training images too.")
            data = _SAMPLE_FOLDER
            if group is None:
                _render_what_is_missing()
        if group is not None:
            # By all: another machine may have been given images, or none. What differs is found out later.
            group.once_here(lambda: _render_what_is_missing() if is_sample else None)
        images = _open_images(data, val, val_fraction, chosen.training.seed, exclude or ())
        output.note(_describe_classes(images.classes))
        output.note(
            f"recipe {chosen.name}, {len(images.classes)} classes, {len(images.train):,} training and "
            f"{len(images.val):,} validation images from {data}"
        )
        if chosen.training.freeze:
            since = f" from epoch {chosen.training.freeze_epoch} on" if chosen.training.freeze_epoch > 1 else ""
            output.note(f"frozen{since}: {', '.join(chosen.training.freeze)}")
        from alexdeploy.graphs.freshness import export_command, newer_weights
        from alexdeploy.images.packed import is_packed
        from alexdeploy.training.parallel import ALONE
        from alexdeploy.training.trainer import TrainOptions
        from alexdeploy.training.trainer import train as run_training

        train_options = TrainOptions(
            device=device,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            skip_broken=skip_broken,
            checkpoint_seconds=checkpoint_minutes * 60,
            parallel=parallel,
            data_path=data.as_posix(),
            parent=parent,
            compile=compile_,
        )
        try:
            with watch(chosen, num_classes=len(images.classes), is_packed=is_packed(data)) as watcher:
                spec = run_training(images, chosen, folder, train_options, watcher.show, group or ALONE)
        except KeyboardInterrupt:
            if folder.checkpoint_path.is_file():
                output.note("stopped; the same command with --resume goes on")
            raise
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
        if note is not None:
            output.note(note)
        elif folder.has_graphs:
            output.note(f"next: {export_command(folder)}")
        else:
            output.next_step("export", "--fp16", *([] if name is None else [folder.path.as_posix()]))


def _choose(
    recipe: str | None,
    overrides: list[str],
    pretrained: str | None,
    freeze: str | None,
    name: str | None,
    *,
    is_sample: bool,
) -> tuple[Recipe, ModelFolder, Parent | None]:
    """What to train by, where the model goes, and the one whose weights are the first."""
    from alexdeploy.core.arguments import check_layer_names
    from alexdeploy.core.errors import UsageError
    from alexdeploy.core.model_folder import find_model
    from alexdeploy.core.recipe import DEFAULT_RECIPE, SAMPLE_RECIPE, fine_tuning_recipe, load_recipe

    if pretrained is None:
        if freeze is not None:
            raise UsageError("--freeze keeps layers of a trained model", hint="Name one: --pretrained MODEL")
        chosen = load_recipe(recipe or (SAMPLE_RECIPE if is_sample else DEFAULT_RECIPE), overrides)
        return chosen, model_folder(chosen.name if name is None else name), None
    parent_folder = find_model(pretrained)
    if freeze is not None and (architecture := parent_folder.spec().architecture) is not None:
        check_layer_names(_layer_names(freeze), architecture.trained_layers)
    folder = model_folder(f"{parent_folder.path.resolve().name}-tuned" if name is None else name)
    if folder.path.resolve() == parent_folder.path.resolve():
        raise UsageError(
            f"--pretrained {parent_folder.path}: the new model would take the place of that one",
            hint="Give it another name: --name NAME",
        )
    _need_torch()
    from alexdeploy.training.pretrained import read_parent

    parent = read_parent(parent_folder)
    return (
        fine_tuning_recipe(parent.spec, parent.weights_sha256, recipe, [*overrides, *_frozen(freeze)]),
        folder,
        parent,
    )


def _describe_classes(classes: Sequence[str]) -> str:
    from alexdeploy.images.sources import printable_path

    shown = ", ".join(map(printable_path, classes[:_NUM_CLASSES_SHOWN]))
    rest = len(classes) - _NUM_CLASSES_SHOWN
    return f"classes: {shown}" + (f" and {rest:,} more" if rest > 0 else "")


def _open_images(
    data: Path, val: Path | None, val_fraction: float | None, seed: int, exclude: Sequence[str]
) -> LabelledImages | PackedSet:
    """The images of a packed set, or of folders; tells what of the folders is ignored."""
    from alexdeploy.core.errors import UsageError
    from alexdeploy.images.folder import read_image_folder
    from alexdeploy.images.packed import is_packed, open_packed

    if not is_packed(data):
        fraction = 0.1 if val_fraction is None else val_fraction
        found = read_image_folder(data, val_fraction=fraction, seed=seed, val_folder=val, exclude=exclude)
        for note in found.notes:
            output.note(note)
        return found
    if val is not None or val_fraction is not None or exclude:
        raise UsageError(
            f"{data} is a packed set: its validation images were chosen when it was packed",
            hint="Leave out --val, --val-fraction and --exclude, or give them to alexdeploy prepare.",
        )
    return open_packed(data)


def _need_torch() -> None:
    from alexdeploy.core.packages import missing_package

    if importlib.util.find_spec("torch") is None:
        raise missing_package("torch", "training", "train")


def _frozen(layers: str | None) -> list[str]:
    """Recipe overrides for --freeze, which is from the first epoch on whatever the recipe says."""
    if layers is None:
        return []
    return [f"training.freeze={list(_layer_names(layers))}", "training.freeze_epoch=1"]


def _layer_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _refuse_said_twice(overrides: Iterable[str], named: Iterable[str], frozen: Iterable[str]) -> None:
    """Raise UsageError where --set has a key that an option of its own has set, or --freeze."""
    from alexdeploy.core.errors import UsageError

    options = {key: f"--{key.rpartition('.')[2].replace('_', '-')}" for key in map(_key, named)}
    options |= dict.fromkeys(map(_key, frozen), "--freeze")
    for key in map(_key, overrides):
        if key in options:
            raise UsageError(f"--set {key} and {options[key]} are for the same thing", hint="Give one of them.")


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _render_what_is_missing() -> None:
    """The rendered data set, and photographs to predict where there is no folder of them."""
    from alexdeploy.images.sample import write_photographs

    render(_SAMPLE_FOLDER)
    if not output.PHOTOGRAPHS_FOLDER.exists():
        write_photographs(output.PHOTOGRAPHS_FOLDER, num=_NUM_PHOTOGRAPHS)
        output.note(
            f"wrote {_NUM_PHOTOGRAPHS} more images, not in the data set, to {output.PHOTOGRAPHS_FOLDER}/ for predict"
        )
