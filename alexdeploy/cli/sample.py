"""`alexdeploy sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, QuietOption, VerboseOption
from alexdeploy.core.shipped import SAMPLE_NUM_TRAIN, SAMPLE_NUM_VAL

EXAMPLES = (
    "alexdeploy sample data/shapes",
    "alexdeploy sample data/small --num-train 20 --num-val 5",
    "alexdeploy sample data/other --seed 7",
)


def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder, new or empty.")],
    num_train: Annotated[int, typer.Option(min=1, metavar="N", help="Training images per class.")] = SAMPLE_NUM_TRAIN,
    num_val: Annotated[int, typer.Option(min=1, metavar="N", help="Validation images per class.")] = SAMPLE_NUM_VAL,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed renders the same images.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Render the built-in data set, ten classes of shapes, to DIR/train and DIR/val.

    An interrupted rendering is completed, a finished one is left unchanged.
    """
    from alexdeploy.images.sample import write_sample

    with output.progress("images") as bar:
        task = bar.add_task(f"rendering {folder}", total=None)
        write_sample(
            folder,
            num_train=num_train,
            num_val=num_val,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        output.print_json({"folder": folder.as_posix(), "num_train": num_train, "num_val": num_val, "seed": seed})
    output.note(f"{folder}: ten classes, {num_train} training and {num_val} validation images of each")
    output.next_step("train", folder, "--recipe", "alexnet-quarter")
