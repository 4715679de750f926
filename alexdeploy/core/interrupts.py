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
"""How long the main thread may take to hear a signal: it hears none inside a call of another library."""

_CLEANUP_SECONDS = 1.8
"""How long after a signal the process may take to end."""

_AGAIN_SECONDS = 0.25
"""Two signals within this time are one: `timeout` and some supervisors send each to the process and to its group."""

_POLL_SECONDS = 0.05
_LOST = 0xFF
_END = 0

_is_patient = False
_last_words: Callable[[], None] | None = None


def be_patient() -> None:
    """From here on the command has something to save, however long it takes: only a second signal ends it at once."""
    global _is_patient
    _is_patient = True


def set_last_words(say: Callable[[], None]) -> None:
    """Have `say` called, in another thread, before the process is ended because it did not end in time by itself."""
    global _last_words
    _last_words = say


class InterruptGuard:
    """Raises KeyboardInterrupt in the main thread on SIGINT and SIGTERM, and makes sure that the process ends.

    Python runs signal handlers between two instructions of its main thread, so that one that waits for a library hears
    nothing. The signal's number also arrives at a socket, where a thread waits for it. The thread ends the process,
    with exit code 130 or 143, if it has not ended in time by itself, and on a second signal at once.

    A context manager, of the main thread. A signal that the process was started to ignore stays ignored. Where other
    handlers are installed meanwhile, as by `deferred_interrupts`, they decide.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        """130 or 143, once a signal was heard."""
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
        # If a KeyboardInterrupt has left an exec(), as dataclasses use it, Python ends itself by SIGINT as it exits, no
        # matter who caught it and what the exit code is. The next exec() makes it forget.
        exec("")
        self._writer.send(bytes([_END]))
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        # A second one would tear up what cleans up after the first; the thread counts them.
        if self._heard:
            return
        self._heard = True
        self.exit_code = 128 + number
        raise KeyboardInterrupt

    def _rescue(self, lost: sys.UnraisableHookArgs) -> None:
        """Have a KeyboardInterrupt raised once more that came in a callback or finalizer, where Python drops it."""
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
                # Not before the callback that dropped it is over.
                time.sleep(0.01)
                self._heard = False
                self._nudge()
            elif self._num_nudges:
                self._num_nudges -= 1
            else:
                self._count(received)

    def _nudge(self) -> None:
        """Send the signal to the main thread itself, which interrupts the system call that it waits in."""
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
        elif now - self._arrived >= _AGAIN_SECONDS:
            _quit(number)

    def _end_if_late(self) -> None:
        if self._is_over:
            return
        now = time.monotonic()
        is_deferred = signal.getsignal(self._number) != self._hear
        if not self._heard and not self._is_nudged and not is_deferred:
            # The system may have given the signal to any thread.
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
            _quit(self._number)


def _quit(number: int) -> None:
    # A progress bar hides the cursor of its terminal.
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")
    os._exit(128 + number)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM while the block runs, so that what belongs together changes together.

    They are raised again, with the handlers that were there, when the block ends. Python runs handlers in its
    main thread alone: in another there is nothing to hold back.
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
            # None: set by something that is not Python, which alone could set it back.
            if handler is not None:
                previous[number] = handler
                signal.signal(number, hold)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for held in arrived:
            signal.raise_signal(held)
