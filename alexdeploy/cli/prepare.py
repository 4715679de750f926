"""`alexdeploy prepare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import (
    ExcludeOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
)
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.training.events import PrepareEvent
    from alexdeploy.training.pack import Prepared

EXAMPLES = (
    "alexdeploy prepare photographs/ packed/photographs",
    "alexdeploy prepare photographs/ packed/small --jpeg 90 --exclude drafts",
    "alexdeploy prepare data/ packed/listed --train-list train.txt",
)


def prepare(
    data_name: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images for each class, or with train/ and val/ of such; or one with "
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz. Class folders also as "
            "a URL.",
        ),
    ],
    out_name: Annotated[str, typer.Argument(metavar="OUT", help="The packed set: a new or an empty folder.")],
    val: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Validation images, with the same class folders.")
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of each class to validate on, if there are no validation images."),
    ] = 0.1,
    exclude: ExcludeOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of that split; `train` uses its own --seed.")] = 0,
    train_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Lines of `name label`, or CSV, in place of folders; names relative to DATA."
        ),
    ] = None,
    val_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same for validation, and for ILSVRC without its devkit.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes of the lists, one in each line.")
    ] = None,
    resize: Annotated[
        Literal["crop", "warp"],
        typer.Option(
            metavar="crop|warp",
            help="Shorter side to 256 and the centre cut, or both sides to 256; as in the recipe.",
        ),
    ] = "crop",
    jpeg: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="QUALITY",
            help="Store JPEGs of this quality: a fifth of the space, decoded during training.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the hashes of all shards; pack damaged ones again.")
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Decode every image once and pack them for training, with their statistics.

    `train OUT` takes a packed set in place of a folder and gives the same weights (with
    --jpeg, nearly). A run that was stopped is resumed by the same command, also with --overwrite. Broken images
    are left out, listed in OUT/broken.json, and make the exit code 3.
    """
    from alexdeploy.core.stores.urls import is_url, printable_url
    from alexdeploy.training.prepare import PrepareOptions
    from alexdeploy.training.prepare import prepare as run

    if is_url(out_name):
        raise UsageError(f"OUT {printable_url(out_name)} is a URL; expected a local folder", hint="Copy it from there.")
    out = Path(out_name)
    options = PrepareOptions(
        val=val,
        val_fraction=val_fraction,
        exclude=tuple(exclude or ()),
        seed=seed,
        train_list=train_list,
        val_list=val_list,
        classes=classes,
        resize=resize,
        jpeg_quality=jpeg,
        num_threads=threads,
        check=check,
        overwrite=overwrite,
    )
    try:
        with _watching() as show:
            prepared = run(data_name, out, options, show)
    except KeyboardInterrupt:
        output.note("stopped; finished shards are kept, resume with the same command")
        raise
    if json:
        output.print_json(_document(out, prepared))
    _tell(out, prepared)
    if prepared.broken:
        raise typer.Exit(3)


@contextmanager
def _watching() -> Iterator[Callable[[PrepareEvent], None]]:
    """Yield a function that shows events while the block runs: lines on stderr, and a bar on a terminal."""
    from alexdeploy.core.events import Notice, Status
    from alexdeploy.training.events import Listed, Packed

    with output.progress("images") as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(event: PrepareEvent) -> None:
            if isinstance(event, Status | Notice):
                output.note(event.message)
            elif isinstance(event, Listed):
                bar.update(task, description="reading the archives' headers", completed=event.num_found, visible=True)
            elif isinstance(event, Packed):
                total, done = event.num_total, event.num_done
                bar.update(task, description=f"packing {event.folder}", completed=done, total=total, visible=True)

        yield show


def _tell(out: Path, prepared: Prepared) -> None:
    from alexdeploy.training.pack import size_text

    index = prepared.index
    if prepared.num_made < prepared.num_shards:
        num_kept = prepared.num_shards - prepared.num_made
        output.note(f"{output.count(num_kept, 'shard')} of {prepared.num_shards:,} were there already")
    output.note(
        f"wrote {out}: {index.train.num_images:,} training and {index.val.num_images:,} validation images, "
        f"{size_text(prepared.num_bytes)} in {output.count(prepared.num_shards, 'shard')}"
    )
    if prepared.broken:
        for line in output.first_few([f"{item.name} was left out: {item.reason}" for item in prepared.broken]):
            output.warn(line)
        output.warn(f"{output.count(len(prepared.broken), 'image')} left out in all: {out / 'broken.json'}")
    output.next_step("train", out)


def _document(out: Path, prepared: Prepared) -> dict[str, Any]:
    from alexdeploy.images.sources import printable_path

    index = prepared.index
    return {
        "set": printable_path(out.as_posix()),
        "classes": index.classes,
        "num_train": index.train.num_images,
        "num_val": index.val.num_images,
        "resize": index.plan.resize,
        "jpeg_quality": index.plan.jpeg_quality,
        "num_bytes": prepared.num_bytes,
        "num_shards": prepared.num_shards,
        "num_shards_made": prepared.num_made,
        "sources_sha256": index.plan.sources_sha256,
        "mean": index.statistics.mean,
        "std_along_axes": index.statistics.std,
        "broken": [dataclasses.asdict(item) for item in prepared.broken],
    }
