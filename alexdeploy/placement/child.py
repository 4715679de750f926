"""A worker process whose failure does not affect its parent: code shared by both sides, for any message types.

The parent uses `Child`; the child uses `adopt_stdio` and `failure_of`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from alexdeploy.core.errors import AlexDeployError, DeviceError, by_name, first_line

_WORDS_SECONDS = 1.0
"""How long stderr may stay open after the process has ended: a process that it started may have it open."""

_SLICE_SECONDS = 1.0
"""Time is measured in intervals of this length, so that time in which this process was stopped is not counted."""

_PR_SET_PDEATHSIG = 1


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An exception of `core.errors` by class name. `number` is that of the batch, None outside of a batch."""

    kind: str
    message: str
    hint: str | None
    number: int | None = None

    def error(self) -> AlexDeployError:
        return by_name(self.kind)(self.message, hint=self.hint)


class Child:
    """The process `python -m MODULE PARENT-PID`, started at once; `requests` and `answers` are its stdin and stdout.

    `variables` are added to its environment. `shown_as` is the prefix of its stderr with ALEXDEPLOY_DEBUG.
    """

    def __init__(self, module: str, variables: Mapping[str, str], shown_as: str | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **variables},
            # Ctrl-C goes only to this process, which then ends the child.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.requests, self.answers = self._process.stdin, self._process.stdout
        self._last_words = ""
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr, shown_as), daemon=True)
        self._listener.start()

    def kill(self) -> None:
        self._process.kill()

    @contextmanager
    def time_limit(self, seconds: float, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` from another thread unless the block ends within `seconds`.

        Time in which this process is stopped, as after Ctrl-Z, does not count: the answer may already be in the pipe.
        """
        done = threading.Event()

        def watch() -> None:
            left = seconds
            while left > 0:
                step = min(left, _SLICE_SECONDS)
                began = time.monotonic()
                if done.wait(step):
                    return
                if time.monotonic() - began < step + _SLICE_SECONDS:
                    left -= step
            end()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def close(self, seconds: float) -> str:
        """Wait for the process, kill it after `seconds`, and close the pipes; return how it ended. Idempotent."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            # It has finished its work but does not exit, which happens when CUDA is torn down.
            self._process.kill()
            code = self._process.wait()
        self._listener.join(_WORDS_SECONDS)
        for pipe in (self.requests, self.answers):
            with suppress(OSError, ValueError):
                pipe.close()
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def with_last_words(self, text: str) -> str:
        """`text` and the last line that the process printed on stderr."""
        return f"{text}: {self._last_words}" if self._last_words else text

    def _listen(self, stderr: IO[bytes], shown_as: str | None) -> None:
        with stderr:
            for line in stderr:
                text = line.decode("utf-8", "replace").rstrip()
                self._last_words = text or self._last_words
                if shown_as is not None and "ALEXDEPLOY_DEBUG" in os.environ:
                    print(f"{shown_as}: {text}", file=sys.stderr)


def adopt_stdio() -> tuple[IO[bytes], IO[bytes]]:
    """Call it first in a child: returns requests and answers, ignores signals, and ties the child to its parent."""
    _end_with_parent(int(sys.argv[1]))
    # Signals may reach the whole process group; the parent ends the child by closing the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return sys.stdin.buffer, take_over_stdout()


def take_over_stdout() -> IO[bytes]:
    """Return the original stdout, and redirect stdout to stderr, because libraries print there."""
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stdout


def failure_of(exc: Exception, number: int | None = None) -> Failure:
    """Convert any exception; one of a runtime becomes a DeviceError."""
    if not isinstance(exc, AlexDeployError):
        exc = DeviceError(f"{type(exc).__name__}: {first_line(exc)}")
    return Failure(kind=type(exc).__name__, message=exc.message, hint=exc.hint, number=number)


def _end_with_parent(pid: int) -> None:
    """Have the system kill this process when its parent ends, even if it hangs or is stopped.

    Only on Linux. On other systems the process ends when the pipe is closed.
    """
    if sys.platform != "linux":
        return
    import ctypes

    # The signal is sent when the parent *thread* ends: a replica's own thread, which waits for this process.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    # The parent may have ended before the call.
    if os.getppid() != pid:
        os._exit(1)
