"""The recipe of the tests: the smallest network that has every kind of layer."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from patience import PATIENCE

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.images.folder import read_image_folder
from alexdeploy.training.events import Event, Step
from alexdeploy.training.trainer import RunOptions, train

TINY = (
    "architecture.input=67",
    "architecture.width=0.0625",
    "architecture.hidden=[256, 256]",
    "architecture.dropout=0.2",
    "preprocessing.std=[64, 64, 64]",
    "training.init.scheme=he",
    "training.init.layer_std={}",
    "training.init.bias=0",
    "training.batch_size=8",
    "training.learning_rate=0.01",
    "training.schedule=plateau",
    "training.drop_epochs=[]",
    "training.epochs=3",
)


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe("alexnet-quarter", (*TINY, *overrides))


def forks_of_torch() -> ForkServerContext:
    """Processes of a server that has imported PyTorch and the trainer once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "alexdeploy.training.trainer", "alexdeploy.training.towers"])
    return context


def train_and_tell(data: Path, folder: Path, steps: Connection) -> None:
    """Train in a process of its own, or go on: each step is told, and Ctrl-C is exit code 130.

    After the first step it waits for word from the other side, or until that is closed.
    """
    steps_taken = itertools.count()

    def tell(event: Event) -> None:
        if isinstance(event, Step):
            steps.send(event.step)
            if next(steps_taken) == 0:
                steps.poll(PATIENCE)

    options = RunOptions(device="cpu", threads=1, resume=True, checkpoint_seconds=0.05)
    try:
        train(
            read_image_folder(data),
            tiny_recipe(),
            ModelFolder(folder),
            options,
            tell,
        )
    except KeyboardInterrupt:
        sys.exit(130)
