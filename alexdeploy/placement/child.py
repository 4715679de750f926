"""A worker process of this package that may fail alone: code shared by both sides, independent of their messages.

`Child` is for the one that starts it; `adopt_stdio` and `failure_of` are for the one that is started.
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
"""How long stderr may stay open when the process has ended: another that it started may hold it."""

_SLICE_SECONDS = 1.0
"""Time is counted in slices of this, so that those in which this process stood still can be left out."""

_PR_SET_PDEATHSIG = 1


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An exception of `core.errors` by its name. `number` is that of a batch, None where there is no such thing."""

    kind: str
    message: str
    hint: str | None
    number: int | None = None

    def error(self) -> AlexDeployError:
        return by_name(self.kind)(self.message, hint=self.hint)


class Child:
    """`python -m MODULE PID-OF-THIS`, started when this is made; `requests` and `answers` are its stdin and stdout.

    `variables` are added to its environment. `shown_as` is what its stderr is shown under, with ALEXDEPLOY_DEBUG.
    """

    def __init__(self, module: str, variables: Mapping[str, str], shown_as: str | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **variables},
            # Ctrl-C is for this process, which then ends that one.
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
        """Call `end` unless the block ends within `seconds`, from another thread.

        Time in which this process stood still, as after Ctrl-Z, does not count: the answer may lie in the pipe.
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
        """Wait for its end, kill it after `seconds`, and close the pipes; how it ended. May be called again."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            # It has said its last word and does not go, as CUDA may do when it is torn down.
            self._process.kill()
            code = self._process.wait()
        self._listener.join(_WORDS_SECONDS)
        for pipe in (self.requests, self.answers):
            with suppress(OSError, ValueError):
                pipe.close()
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def with_last_words(self, text: str) -> str:
        """`text`, and the last line that it printed on stderr."""
        return f"{text}: {self._last_words}" if self._last_words else text

    def _listen(self, stderr: IO[bytes], shown_as: str | None) -> None:
        with stderr:
            for line in stderr:
                text = line.decode("utf-8", "replace").rstrip()
                self._last_words = text or self._last_words
                if shown_as is not None and "ALEXDEPLOY_DEBUG" in os.environ:
                    print(f"{shown_as}: {text}", file=sys.stderr)


def adopt_stdio() -> tuple[IO[bytes], IO[bytes]]:
    """In a child, first of all: requests and answers. It ends with its parent, and signals are not for it."""
    _end_with_parent(int(sys.argv[1]))
    # They may reach the whole group; the parent says when it is over, by closing the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return sys.stdin.buffer, take_over_stdout()


def take_over_stdout() -> IO[bytes]:
    """What stdout was. Libraries print there as well: from here on, theirs is stderr."""
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stdout


def failure_of(exc: Exception, number: int | None = None) -> Failure:
    """Also of any exception of a runtime, which is a DeviceError."""
    if not isinstance(exc, AlexDeployError):
        exc = DeviceError(f"{type(exc).__name__}: {first_line(exc)}")
    return Failure(kind=type(exc).__name__, message=exc.message, hint=exc.hint, number=number)


def _end_with_parent(pid: int) -> None:
    """Have the system end this process with the one that started it, also where it hangs or stands still.

    Other systems than Linux do not: there it ends when the pipe does.
    """
    if sys.platform != "linux":
        return
    import ctypes

    # What counts is the thread that started it, as a replica's own, which waits until this process has ended.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    # It may have been gone before that.
    if os.getppid() != pid:
        os._exit(1)
