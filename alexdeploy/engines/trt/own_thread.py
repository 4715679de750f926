"""Work of a library in a thread of its own, so that an interrupt can end it; its exceptions are converted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, first_line

_Result = TypeVar("_Result")


def translated(exc: BaseException) -> AlexDeployError:
    """Convert an exception of a library that used no GPU."""
    if isinstance(exc, AlexDeployError):
        return exc
    if isinstance(exc, MemoryError):
        return DeviceMemoryError(f"memory ran out: {first_line(exc)}", hint="Use a smaller --max-batch.")
    return DeviceError(f"{type(exc).__name__}: {first_line(exc)}")


def in_own_thread(
    work: Callable[[], _Result],
    *,
    cancel: Callable[[], None] = lambda: None,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
    translated: Callable[[BaseException], AlexDeployError] = translated,
) -> _Result:
    """Call `work` in a new thread, inside `context`. Raises its exceptions, translated.

    An interrupt calls `cancel` and then waits until the work has ended.
    """
    found: list[_Result] = []
    errors: list[AlexDeployError] = []
    # Before Python 3.13, a thread whose join() was interrupted counts as ended, and another join() does not wait.
    ended = threading.Event()

    def run() -> None:
        try:
            with context():
                # Catch inside the context: a traceback keeps objects alive, which must be freed before the context.
                try:
                    found.append(work())
                except Exception as exc:
                    errors.append(translated(exc).with_traceback(None))
        except Exception as exc:
            errors.append(translated(exc))
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="alexdeploy-library")
    thread.start()
    try:
        ended.wait()
    except BaseException:
        cancel()
        ended.wait()
        raise
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return found[0]
