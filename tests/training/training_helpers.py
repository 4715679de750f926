"""The recipe of the tests: the smallest network that has every kind of layer."""

from __future__ import annotations

from alexdeploy.core.recipe import Recipe, load_recipe

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
