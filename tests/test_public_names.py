"""What `from alexdeploy import ...` gives."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import alexdeploy
from alexdeploy import ModelFolder

STEPS = ("benchmark", "calibrate", "evaluate", "export_model", "verify")


def test_every_public_name_can_be_imported() -> None:
    assert {name for name in alexdeploy.__all__ if getattr(alexdeploy, name).__name__ != name} == set()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_a_model_folder_first_and_only_what_is_public(name: str) -> None:
    step = getattr(alexdeploy, name)
    hints = typing.get_type_hints(step)
    first, *_ = inspect.signature(step).parameters
    assert ModelFolder in (hints[first], *typing.get_args(hints[first]))
    del hints["return"]
    taken = {kind for hint in hints.values() for kind in made_by_the_caller(hint)}
    assert taken == {kind for kind in taken if getattr(alexdeploy, kind.__name__, None) is kind}


def made_by_the_caller(hint: Any) -> Iterator[type]:
    """The dataclasses in a parameter and in their fields; not those that a callback is called with."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
        inner = typing.get_type_hints(hint).values()
    else:
        inner = () if callable(hint) else typing.get_args(hint)
    for each in inner:
        yield from made_by_the_caller(each)
