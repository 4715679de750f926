"""The exception tree. Each class carries the exit code of the command line; docs/exit-codes.md has the table."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from alexdeploy.core.python_words import in_python


class AlexDeployError(Exception):
    """Base of every error that alexdeploy raises on purpose.

    `message` says what is wrong, found against expected; `hint` is the command or the change that fixes it. Both name
    options as on the command line; str() of the error names them as in Python.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def text(self) -> str:
        """Message and hint as the command line prints them."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"

    def __str__(self) -> str:
        return in_python(self.text)


class UsageError(AlexDeployError):
    """An argument, option or combination is invalid, refers to something that does not exist, or needs an extra."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe cannot be read, or one of its keys or values is wrong."""


class InputError(AlexDeployError):
    """An input (image, folder, archive, data set) cannot be used."""

    exit_code = 3


class ImageError(InputError):
    """One image cannot be read or decoded; the message is in its row of the results."""


class DataError(InputError):
    """A labelled data set cannot be used as a whole."""


class ModelError(AlexDeployError):
    """A model folder, graph, weight file or engine is incomplete, damaged or not what it claims to be."""

    exit_code = 4


class StaleArtifactError(ModelError):
    """The source of a derived file has changed since it was made."""


class ParityError(ModelError):
    """A converted model does not give the same answers as the original."""


class DivergedError(ModelError):
    """Training produced a loss that is not finite."""


class DeviceError(AlexDeployError):
    """A device is missing, or it or its backend failed."""

    exit_code = 5


class DeviceMemoryError(DeviceError):
    """A device ran out of memory."""


class QueueFullError(DeviceError):
    """Too many images wait for the engine; try again later."""


class DeadlineError(DeviceError, TimeoutError):
    """An answer was not there in time, and is not computed any more. A TimeoutError of Python as well."""


class OutputError(AlexDeployError):
    """Results or artifacts could not be written."""

    exit_code = 6


class AlexDeployWarning(UserWarning):
    """A warning of a running step; passed to `on_warning` instead, if given."""


def warn(message: str) -> None:
    """The default `on_warning`: issue an AlexDeployWarning, attributed to the first caller outside of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "alexdeploy":
        level, frame = level + 1, frame.f_back
    warnings.warn(in_python(message), AlexDeployWarning, stacklevel=level)


def by_name(name: str) -> type[AlexDeployError]:
    """The class with that name in this module, else DeviceError."""
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, AlexDeployError) else DeviceError


@contextmanager
def default_hint(hint: str) -> Iterator[None]:
    """Set this hint on an error without one, because the caller may know more than the code that raises."""
    try:
        yield
    except AlexDeployError as exc:
        exc.hint = exc.hint or hint
        raise


def first_line(exc: BaseException) -> str:
    """The first line of another library's exception message, or its class name if the message is empty."""
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
