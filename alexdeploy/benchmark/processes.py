"""The processes in which configurations are measured, seen from the parent: as many as memory allows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from alexdeploy.benchmark.worker import Done, Job, Opened, Reply, Task
from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError
from alexdeploy.engines.base import EngineInfo
from alexdeploy.placement.child import Child, Failure
from alexdeploy.placement.frames import read_frame, write_frame

OPEN_SECONDS = 300.0
"""How long an engine may take to open: a full network, compiled on a busy machine."""

_TASK_SECONDS = 120.0
_IMAGE_SECONDS = 2.0
"""Additional time per image of a task: ten views through the 2012 network on a slow core."""

_END_SECONDS = 5.0

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Seconds from the start of a process until its engine is open, and until the first row of a file is ready.

    `load_seconds` is the part of the former in which the backend was imported and the engine opened. Compiled models
    come from this machine's cache; an earlier process fills it if necessary. Files are read through the system's page
    cache, in the state it had.
    """

    open_seconds: float
    load_seconds: float
    first_row_seconds: float


def _environment() -> dict[str, str]:
    # A whole bench compiles more models than the cache holds, and would evict those that the user runs every day.
    cache = cache_folder("bench")
    return {} if cache is None else {"ALEXDEPLOY_CACHE": str(cache.absolute())}


class Process:
    """One process, started by the constructor. Raises the errors of the process."""

    def __init__(self, job: Job) -> None:
        began = time.monotonic()
        self.peak_bytes = 0
        self._process = Child("alexdeploy.benchmark.worker", _environment())
        try:
            opened = self._exchange(job, OPEN_SECONDS)
            assert isinstance(opened, Opened)
            open_seconds = time.monotonic() - began
            self._exchange(None, _TASK_SECONDS)
        except BaseException:
            self.end()
            raise
        self.info: EngineInfo = opened.info
        self.was_compiled: bool = opened.was_compiled
        self.start = Start(
            open_seconds=open_seconds,
            load_seconds=opened.load_seconds,
            first_row_seconds=time.monotonic() - began,
        )

    def ask(self, task: Task) -> Done:
        """Run a task. Raises AlexDeployError, after which the process has ended."""
        try:
            done = self._exchange(task, _TASK_SECONDS + 10 * task.seconds + _IMAGE_SECONDS * task.num_images)
        except BaseException:
            # The answer to this task may still arrive, and must not be taken for the next one's.
            self.end()
            raise
        assert isinstance(done, Done)
        self.peak_bytes = max(self.peak_bytes, done.peak_bytes or 0)
        return done

    def end(self) -> None:
        """Kill the process; may be called again."""
        self._process.kill()
        self._process.close(_END_SECONDS)

    def _exchange(self, frame: Job | Task | None, seconds: float) -> Reply:
        """The reply to `frame`; for None, the one further reply that comes without a request."""
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self._process.kill()

        with self._process.time_limit(seconds, give_up):
            if frame is not None:
                # If the process has ended, reading tells why. A hanging process does not empty the pipe either.
                with contextlib.suppress(OSError):
                    write_frame(self._process.requests, frame)
            answered = read_frame(self._process.answers, Reply)
        if answered is None:
            ended = self._process.close(_END_SECONDS)
            what = f"no answer in {seconds:.0f} s" if is_late.is_set() else f"its process {ended}"
            raise DeviceError(self._process.with_last_words(what), hint="Look at: alexdeploy doctor")
        reply: Reply = answered[0]
        if isinstance(reply, Failure):
            raise reply.error()
        return reply


class Processes:
    """One process per named job, opened on demand; a context manager that ends them all.

    When they use more than `limit_bytes` together, the least recently used one ends, and is started again when its turn
    comes. None: no limit. When a device runs out of memory, all other processes end. `num_restarts` counts restarts of
    processes that had made room. `was_compiled`: some had to compile a model even on such a restart, as when the
    cache cannot be written.
    """

    def __init__(self, jobs: Mapping[str, Job], limit_bytes: int | None) -> None:
        self._jobs = dict(jobs)
        self._limit = limit_bytes
        self._open: dict[str, Process] = {}
        self.starts: dict[str, Start] = {}
        self.infos: dict[str, EngineInfo] = {}
        self.num_restarts = 0
        self.was_compiled = False
        self._made_room: set[str] = set()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._open.values():
            process.end()
        self._open.clear()

    def is_open(self, name: str) -> bool:
        return name in self._open

    def knows(self, name: str) -> bool:
        return name in self._jobs

    def set_job(self, name: str, job: Job) -> None:
        """Replace the job to be opened from now on."""
        self.end(name)
        self._jobs[name] = job

    def end(self, name: str) -> None:
        process = self._open.pop(name, None)
        if process is not None:
            process.end()

    def ask(self, name: str, task: Task, warm_up: Task | None = None) -> Done:
        """Run a task in its process, after `warm_up` if the process had to be started. Raises AlexDeployError."""

        def ask() -> Done:
            is_new = name not in self._open
            process = self._opened(name)
            try:
                if is_new and warm_up is not None:
                    process.ask(warm_up)
                return process.ask(task)
            except AlexDeployError:
                self.end(name)
                raise

        return self._else_alone(name, ask)

    def open(self, name: str) -> Process:
        return self._else_alone(name, lambda: self._opened(name))

    def _opened(self, name: str) -> Process:
        process = self._open.pop(name, None)
        if process is None:
            self._make_room()
            process = Process(self._jobs[name])
            if process.was_compiled and not self.was_compiled:
                # Compiling takes time and memory, once. All processes are measured with the model in the cache.
                process.end()
                process = Process(self._jobs[name])
            self.was_compiled |= process.was_compiled
            self.num_restarts += name in self._made_room
            self._made_room.discard(name)
            # The first start only: later ones find their files in memory.
            self.starts.setdefault(name, process.start)
            self.infos.setdefault(name, process.info)
        # The dictionary is ordered by last use.
        self._open[name] = process
        return process

    def _else_alone(self, name: str, do: Callable[[], _Found]) -> _Found:
        """Call `do`; if a device runs out of memory, call it again with all other processes ended."""
        try:
            return do()
        except DeviceMemoryError:
            others = [each for each in self._open if each != name]
            if not others:
                raise
            for each in others:
                self._evict(each)
        return do()

    def _make_room(self) -> None:
        """Make room for one more process, which may be as large as the largest so far."""
        if self._limit is None:
            return
        peaks = [process.peak_bytes for process in self._open.values()]
        while peaks and sum(peaks) + max(peaks) > self._limit:
            self._evict(next(iter(self._open)))
            peaks.pop(0)

    def _evict(self, name: str) -> None:
        self.end(name)
        self._made_room.add(name)
