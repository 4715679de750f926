"""Raise libtiff's errors, which it prints to stderr without a file name, in the decoding thread.

libtiff has one error handler per process. The one set here collects the messages of threads inside `errors_raised`, and
passes all others to the previous handler.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import _imaging

_MAX_BYTES = 512
_MAX_MESSAGES = 16

# void (*TIFFErrorHandler)(const char *module, const char *format, va_list). Passed as an argument, a va_list is one
# pointer, or a struct that is passed by reference, on every platform that CPython supports.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Thread(threading.local):
    messages: list[str] | None = None


_THREAD = _Thread()
_LOCK = threading.Lock()
"""Prevents installing two handlers, which would call each other while only one is kept alive."""


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise ValueError with libtiff's first error, whether Pillow failed with an error number or continued.

    libtiff only warns about problems that it can repair; after an error, pixels are missing. If the handler cannot be
    set, as in a static build of Pillow's library, libtiff prints as before.
    """
    with _LOCK:
        _set_handler()
    messages: list[str] = []
    _THREAD.messages = messages
    try:
        yield
    except MemoryError:
        raise
    except Exception as exc:
        if messages:
            raise ValueError(messages[0]) from exc
        raise
    finally:
        _THREAD.messages = None
    if messages:
        raise ValueError(messages[0])


@cache
def _set_handler() -> object:
    """Set the handler once; returns it, since it must live as long as libtiff may call it."""
    try:
        # Symbol lookup in Pillow's extension module finds the libtiff that it is linked with, bundled or the system's.
        set_handler: Any = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        format_message: Any = ctypes.CDLL("msvcrt")._vsnprintf if os.name == "nt" else ctypes.CDLL(None).vsnprintf
    except (AttributeError, OSError):
        return None
    format_message.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
    set_handler.argtypes, set_handler.restype = (ctypes.c_void_p,), ctypes.c_void_p
    previous: Any = None

    def on_error(module: bytes | None, text: bytes, arguments: int | None) -> None:
        messages = _THREAD.messages
        if messages is None:
            if previous is not None:
                previous(module, text, arguments)
        elif len(messages) < _MAX_MESSAGES:
            buffer = ctypes.create_string_buffer(_MAX_BYTES)
            format_message(buffer, _MAX_BYTES - 1, text, arguments)
            messages.append(buffer.value.decode("utf-8", "replace"))

    handler = _HANDLER(on_error)
    address = set_handler(ctypes.cast(handler, ctypes.c_void_p))
    previous = _HANDLER(address) if address else None
    return handler
