"""Learning-rate schedules: drops at given epochs or when the validation error stops improving, or a cosine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from alexdeploy.core.recipe import Training


@dataclass(frozen=True, kw_only=True)
class ScheduleState:
    """State of a schedule: epochs finished, drops taken, the lowest error, and epochs since it."""

    num_epochs: int = 0
    num_drops: int = 0
    best_error: float | None = None
    num_waited: int = 0


def learning_rate(state: ScheduleState, training: Training) -> float:
    """The rate for the next epoch. "cosine": half a cosine wave over all epochs, from the first rate towards 0."""
    if training.schedule == "cosine":
        return training.learning_rate * (1 + math.cos(math.pi * state.num_epochs / training.epochs)) / 2
    return training.learning_rate * training.drop_factor**state.num_drops


def advance(state: ScheduleState, training: Training, val_error: float) -> ScheduleState:
    """Advance the schedule by one epoch with its validation error.

    "epochs": drop when the number of finished epochs is in `drop_epochs`. "plateau": drop when the error has not fallen
    below its lowest for `patience` epochs, at most `max_drops` times; each drop restarts the wait.
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
