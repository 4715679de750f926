"""`alexdeploy train`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, SetOption, model_folder
from alexdeploy.cli.sample import render

if TYPE_CHECKING:
    from rich.progress import Progress

    from alexdeploy.core.recipe import Recipe
    from alexdeploy.core.spec import ModelSpec
    from alexdeploy.training.events import Event

_SAMPLE_FOLDER = Path("data/sample")
_PHOTOGRAPHS_FOLDER = Path("images")
_NUM_PHOTOGRAPHS = 24


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images for each class, or with train/ and val/ of such. "
            "Left out: ten classes of shapes are rendered to data/sample/.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe to train; alexnet if left out, alexnet-quarter for the rendered images.",
        ),
    ] = None,
    overrides: SetOption = None,
    name: Annotated[
        str | None, typer.Option(help="The model goes to models/NAME/; the recipe's name if left out.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Validation images, with the same class folders.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of each class to validate on, where there are no validation images.")
    ] = 0.1,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the first epoch.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random draw.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, or on a GPU fp16; weights stay fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU if left out and there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; with 1, runs repeat to the bit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images that cannot be decoded, and say which.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a network; its best epoch goes to models/NAME/.

    With no DATA, the built-in rendered set is learned in minutes on two cores. A run that was stopped, even by
    a power cut, goes on with the same command and --resume.
    """
    # OpenMP's threads wait for each other by spinning, a millisecond or so: with one other busy process on two cores
    # that made training 5 to 10 times slower. A thousandth of it costs little. Read when PyTorch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from alexdeploy.core.errors import UsageError
    from alexdeploy.core.recipe import DEFAULT_RECIPE, SAMPLE_RECIPE, load_recipe
    from alexdeploy.images.folder import read_image_folder

    if resume and overwrite:
        raise UsageError("--resume goes on with a model and --overwrite removes it", cure="Give one of them.")
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
    }
    given = [f"training.{key}={value}" for key, value in options.items() if value is not None]
    chosen = load_recipe(recipe or (SAMPLE_RECIPE if data is None else DEFAULT_RECIPE), [*(overrides or ()), *given])
    folder = model_folder(chosen.name if name is None else name)
    _refuse_used_folder(folder.path, (resume, overwrite))
    if importlib.util.find_spec("torch") is None:
        raise UsageError("training needs the package torch", cure="Install it: pip install 'alexdeploy[train]'")
    if data is None:
        if val is not None:
            raise UsageError("--val has no meaning for the rendered images", cure="Name the training images too.")
        data = _SAMPLE_FOLDER
        _render_what_is_missing()
    images = read_image_folder(data, val_fraction=val_fraction, seed=chosen.training.seed, val_folder=val)
    output.note(
        f"recipe {chosen.name}, {len(images.classes)} classes, {len(images.train):,} training and "
        f"{len(images.val):,} validation images from {data}"
    )
    from alexdeploy.training.trainer import TrainOptions
    from alexdeploy.training.trainer import train as run_training

    train_options = TrainOptions(
        device=device,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
        skip_broken=skip_broken,
        data_path=data.as_posix(),
    )
    try:
        with _watch(chosen) as watcher:
            spec = run_training(images, chosen, folder, train_options, watcher.show)
    except KeyboardInterrupt:
        if (folder.checkpoints / "last.pt").is_file():
            output.note("stopped; the same command with --resume goes on")
        raise
    if json:
        output.print_json({"model": folder.path.as_posix(), "classes": spec.classes, **spec.provenance})
    output.note(_summary(folder.path, spec))
    output.note(f"next: alexdeploy export --fp16{'' if name is None else f' {folder.path.as_posix()}'}")


def _refuse_used_folder(path: Path, allowed: tuple[bool, bool]) -> None:
    """Say it before anything is rendered or decoded; training itself checks again."""
    from alexdeploy.core.errors import UsageError

    if not any(allowed) and ((path / "spec.json").is_file() or (path / "checkpoints" / "last.pt").is_file()):
        raise UsageError(
            f"{path} already holds a model",
            cure="Go on with it: --resume; train beside it: --name NAME; replace it: --overwrite",
        )


def _render_what_is_missing() -> None:
    """The rendered data set, and photographs to predict where there is no folder of them."""
    from alexdeploy.images.sample import write_photographs

    render(_SAMPLE_FOLDER)
    if not _PHOTOGRAPHS_FOLDER.exists():
        write_photographs(_PHOTOGRAPHS_FOLDER, num=_NUM_PHOTOGRAPHS)
        output.note(f"wrote {_NUM_PHOTOGRAPHS} more images, not in the data set, to {_PHOTOGRAPHS_FOLDER}/ for predict")


class _Watcher:
    """Turns events into a moving bar on a terminal, and one plain line for each epoch everywhere."""

    def __init__(self, bar: Progress, recipe: Recipe) -> None:
        self._bar = bar
        self._num_epochs = recipe.training.epochs
        self._task = bar.add_task("decoding", total=None, detail="")

    def show(self, event: Event) -> None:
        from alexdeploy.training import events

        if isinstance(event, events.Decoded):
            self._bar.update(self._task, completed=event.num_done, total=event.num_total)
        elif isinstance(event, events.Started):
            self._start(event.device, event.num_skipped, event.num_epochs, event.num_steps)
        elif isinstance(event, events.Step):
            detail = f"{event.images_per_second:,.0f} images/s, loss {event.loss:.3f}"
            done = (event.epoch - 1) * event.num_steps + event.step
            self._bar.update(
                self._task,
                description=f"epoch {event.epoch}/{self._num_epochs}",
                completed=done,
                total=self._num_epochs * event.num_steps,
                detail=detail,
            )
        elif isinstance(event, events.EpochFinished):
            self._say(_epoch_line(event.record, self._num_epochs, event.is_best))
        elif isinstance(event, events.AlreadyFinished):
            self._say(f"all {event.num_epochs} epochs are done; more: --resume --epochs {event.num_epochs + 10}")
        elif isinstance(event, events.Notice):
            self._say(event.message)

    def _start(self, device: str, num_skipped: int, num_epochs: int, num_steps: int) -> None:
        # A new task: the rate at which images are decoded says nothing about the time that training takes.
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task("training", total=None, detail="")
        self._say(f"training on {device}")
        if num_skipped:
            self._say(f"warning: {num_skipped} images cannot be decoded and are left out")
        if num_epochs or num_steps:
            self._say(f"going on after {num_epochs} epochs and {num_steps} steps")

    def _say(self, line: str) -> None:
        # Through the bar: another console would write into the middle of it.
        self._bar.console.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _watch(recipe: Recipe) -> Iterator[_Watcher]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = output.stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield _Watcher(bar, recipe)


def _epoch_line(record: Any, num_epochs: int, is_best: bool) -> str:
    return (
        f"epoch {record.epoch:>{len(str(num_epochs))}}/{num_epochs}  loss {record.loss:.4f}  "
        f"val top-1 error {record.val_top1_error:6.2%}  top-5 {record.val_top5_error:6.2%}  "
        f"lr {record.learning_rate:g}  {record.images_per_second:,.0f} images/s{'  best' if is_best else ''}"
    )


def _summary(path: Path, spec: ModelSpec) -> str:
    facts: dict[str, Any] = dict(spec.provenance)
    ten_views = f"{facts['val_top1_error_10_views']:6.2%}, top-5 {facts['val_top5_error_10_views']:6.2%}"
    return (
        f"wrote {path} (epoch {facts['best_epoch']} of {facts['num_epochs']}, "
        f"{facts['num_val']:,} validation images)\n"
        f"  one view:  top-1 error {facts['val_top1_error']:6.2%}, top-5 {facts['val_top5_error']:6.2%}\n"
        f"  ten views: top-1 error {ten_views}"
    )
