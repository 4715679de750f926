"""Ctrl-C and SIGTERM: end the process within two seconds in any state, or after its work is saved."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_DEAF_SECONDS = 1.0
"""How long the main thread may take to handle a signal: inside a call of another library it handles none."""

_CLEANUP_SECONDS = 1.8
"""How long the process may take to end after a signal."""

AGAIN_SECONDS = 0.25
"""Two signals within this time count as one: `timeout` and some supervisors signal both the process and its group."""

_POLL_SECONDS = 0.05
_LOST = 0xFF
_END = 0

_is_patient = False
_last_words: Callable[[], None] | None = None


def be_patient() -> None:
    """From here on the command has work to save, for however long that takes: only a second signal ends it at once."""
    global _is_patient
    _is_patient = True


def set_last_words(say: Callable[[], None]) -> None:
    """Call `say`, in another thread, before a process that did not end in time is terminated."""
    global _last_words
    _last_words = say


class InterruptGuard:
    """Raises KeyboardInterrupt in the main thread on SIGINT and SIGTERM, and makes sure that the process ends.

    Python runs signal handlers between two instructions of its main thread, so a main thread inside a library call
    does not handle signals. The signal's number is also written to a socket, on which another thread waits. That thread
    ends the process with exit code 130 or 143 if it does not end in time, or at once on a second signal.

    Use as a context manager in the main thread. A signal that was ignored when the process started stays ignored.
    Handlers installed meanwhile, as by `deferred_interrupts`, take precedence.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        """130 or 143 after a signal."""
        self._heard = False
        self._arrived: float | None = None
        self._since = 0.0
        self._number = signal.SIGINT
        self._has_told = False
        self._num_nudges = 0
        self._is_nudged = False
        self._is_over = False

    def __enter__(self) -> InterruptGuard:
        global _is_patient, _last_words
        _is_patient, _last_words = False, None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="alexdeploy-interrupts", daemon=True)
        self._thread.start()
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._rescue
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous: dict[int, Any] = {}
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                self._previous[number] = handler
                signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        sys.unraisablehook = self._hook
        # If a KeyboardInterrupt propagates out of an exec(), as used by dataclasses, Python kills itself with SIGINT at
        # exit even if it was caught, whatever the exit code. The next exec() resets this.
        exec("")
        self._writer.send(bytes([_END]))
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        # A second interrupt would break the cleanup after the first; the thread counts signals.
        if self._heard:
            return
        self._heard = True
        self.exit_code = 128 + number
        raise KeyboardInterrupt

    def _rescue(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise a KeyboardInterrupt again if it came in a callback or finalizer, where Python drops it."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            self._hook(lost)
            return
        with contextlib.suppress(OSError):
            self._writer.send(bytes([_LOST]))

    def _watch(self) -> None:
        while True:
            self._reader.settimeout(None if self._arrived is None else _POLL_SECONDS)
            try:
                received = self._reader.recv(1)[0]
            except TimeoutError:
                self._end_if_late()
                continue
            if received == _END:
                return
            if received == _LOST:
                # Wait until the callback that dropped it has ended.
                time.sleep(0.01)
                self._heard = False
                self._nudge()
            elif self._num_nudges:
                self._num_nudges -= 1
            else:
                self._count(received)

    def _nudge(self) -> None:
        """Send the signal to the main thread itself, to interrupt a blocking system call."""
        self._num_nudges += 1
        if sys.platform == "win32":
            _thread.interrupt_main(self._number)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, self._number)

    def _count(self, number: int) -> None:
        now = time.monotonic()
        if self._arrived is None:
            if signal.getsignal(number) != self._hear:
                return
            self._arrived = self._since = now
            self._number = signal.Signals(number)
        elif now - self._arrived >= AGAIN_SECONDS:
            end_now(number)

    def _end_if_late(self) -> None:
        if self._is_over:
            return
        now = time.monotonic()
        is_deferred = signal.getsignal(self._number) != self._hear
        if not self._heard and not self._is_nudged and not is_deferred:
            # The system may have delivered the signal to another thread.
            self._is_nudged = True
            self._nudge()
        if _is_patient or is_deferred:
            self._since = now
            if self._arrived is not None and now - self._arrived >= _DEAF_SECONDS and not self._has_told:
                self._has_told = True
                with contextlib.suppress(OSError):
                    print("Saving the work, then stopping. A second signal stops immediately.", file=sys.stderr)
        elif now - self._since >= (_CLEANUP_SECONDS if self._heard else _DEAF_SECONDS):
            if _last_words is not None:
                with contextlib.suppress(OSError):
                    _last_words()
            end_now(self._number)


def end_now(number: int) -> None:
    """End the process at once, as a second signal does, with the exit code of the signal."""
    leave_now(128 + number)


def leave_now(code: int) -> None:
    """End the process at once, without waiting for any thread."""
    # Show the cursor again: a progress bar hides it.
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")
    os._exit(code)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defer SIGINT and SIGTERM while the block runs, so that related changes are made together.

    They are raised again when the block ends, with the previous handlers. Python runs handlers only in the main
    thread; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    previous: dict[signal.Signals, Any] = {}
    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # None: installed by non-Python code, and cannot be restored from Python.
            if handler is not None:
                previous[number] = handler
                signal.signal(number, hold)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for held in arrived:
            signal.raise_signal(held)
