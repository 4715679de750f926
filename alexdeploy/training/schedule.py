"""How the learning rate falls: after given epochs, when the validation error stops improving, or along a cosine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from alexdeploy.core.recipe import Training


@dataclass(frozen=True, kw_only=True)
class ScheduleState:
    """Where a schedule is: epochs finished, drops taken, the lowest error, and epochs waited since it."""

    num_epochs: int = 0
    num_drops: int = 0
    best_error: float | None = None
    num_waited: int = 0


def learning_rate(state: ScheduleState, training: Training) -> float:
    """The rate for the epoch that comes next. "cosine": half a wave from the first rate towards 0, by the epoch."""
    if training.schedule == "cosine":
        return training.learning_rate * (1 + math.cos(math.pi * state.num_epochs / training.epochs)) / 2
    return training.learning_rate * training.drop_factor**state.num_drops


def advance(state: ScheduleState, training: Training, val_error: float) -> ScheduleState:
    """Take note of one more epoch and its validation error.

    "epochs": a drop when as many epochs as `drop_epochs` says are finished. "plateau": a drop when the error has not
    been below its lowest for `patience` epochs, `max_drops` times at most; then the wait starts again.
    """
    num_epochs = state.num_epochs + 1
    if training.schedule == "cosine":
        return dataclasses.replace(state, num_epochs=num_epochs)
    if training.schedule == "epochs":
        num_drops = sum(epoch <= num_epochs for epoch in training.drop_epochs)
        return dataclasses.replace(state, num_epochs=num_epochs, num_drops=num_drops)
    if state.best_error is None or val_error < state.best_error:
        return dataclasses.replace(state, num_epochs=num_epochs, best_error=val_error, num_waited=0)
    waited = state.num_waited + 1
    if waited >= training.patience and state.num_drops < training.max_drops:
        return dataclasses.replace(state, num_epochs=num_epochs, num_drops=state.num_drops + 1, num_waited=0)
    return dataclasses.replace(state, num_epochs=num_epochs, num_waited=waited)
