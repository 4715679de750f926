from __future__ import annotations

import pytest

from alexdeploy.core.recipe import Training
from alexdeploy.training.schedule import ScheduleState, advance, learning_rate


def rates(training: Training, errors: list[float]) -> list[float]:
    """The learning rate of each epoch, and of the one that would follow."""
    state = ScheduleState()
    found = [learning_rate(state, training)]
    for error in errors:
        state = advance(state, training, error)
        found.append(learning_rate(state, training))
    return found


def test_a_plateau_of_patience_epochs_drops_the_rate():
    training = Training(learning_rate=1.0, patience=2, max_drops=3)
    assert rates(training, [0.5, 0.4, 0.4, 0.41]) == pytest.approx([1, 1, 1, 1, 0.1])


def test_an_improvement_begins_the_wait_again():
    training = Training(learning_rate=1.0, patience=2)
    assert rates(training, [0.5, 0.5, 0.4, 0.4, 0.3]) == pytest.approx([1] * 6)


def test_the_rate_drops_max_drops_times_and_no_more():
    training = Training(learning_rate=1.0, patience=1, max_drops=2)
    assert rates(training, [0.5] * 6) == pytest.approx([1, 1, 0.1, 0.01, 0.01, 0.01, 0.01])


def test_epochs_drop_the_rate_whatever_the_error():
    training = Training(learning_rate=1.0, schedule="epochs", drop_epochs=(2, 3), drop_factor=0.5)
    assert rates(training, [0.5, 0.4, 0.3, 0.2]) == pytest.approx([1, 1, 0.5, 0.25, 0.25])


def test_a_cosine_falls_from_the_first_rate_towards_zero_whatever_the_error():
    training = Training(learning_rate=2.0, schedule="cosine", epochs=4)
    # 1 + cos of 0, 45, 90, 135 and 180 degrees.
    half = 2**-0.5
    assert rates(training, [0.5, 0.5, 0.6, 0.4]) == pytest.approx([2, 1 + half, 1, 1 - half, 0])
