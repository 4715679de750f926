"""The processes that are measured, from outside, and the turns that they take."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from alexdeploy.benchmark.statistics import PAUSE_SECONDS as _PAUSE_SECONDS
from alexdeploy.benchmark.statistics import interleaved
from benchmarks.subjects import Ask, Reply, Setup

ROOT = Path(__file__).parents[1]
_END_SECONDS = 10.0

WITHOUT_TELEMETRY = {"CI": "true"}
"""For the environment of what imports openvino as it is: its converter's telemetry is then silent, and else has the
program wait for a thread that sends as it ends."""


class Process:
    """One side in a process of its own, from its start to its end; a context manager, open when it is made.

    Not the one of `alexdeploy bench`, which goes on when a configuration fails, hangs or has no memory: here everything
    has to work. What a side prints on stderr is seen, there is no time limit, and a side ends by itself, with workers
    that are its own.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subjects"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            # Ctrl-C is for this process, which then ends that one.
            start_new_session=True,
        )
        try:
            self.opened = self._exchange(setup)
        except BaseException:
            self._process.kill()
            raise
        self.peak_bytes = self.opened.peak_bytes

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if error is not None:
            self._process.kill()
        self._process.stdin.close()
        try:
            # Its workers end with it if it may end by itself.
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, ask: Ask) -> Reply:
        reply = self._exchange(ask)
        self.peak_bytes = reply.peak_bytes
        return reply

    def rate(self, ask: Ask) -> float:
        """Images per second of one run."""
        return self.ask(ask).images_per_second

    def _exchange(self, frame: Setup | Ask) -> Reply:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(frame) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.setup.side} {self.setup.precision} ended with exit code {self._process.wait()}")
        return msgspec.json.decode(line, type=Reply)


Turns = Mapping[str, Callable[[], float]]


def take_turns(
    turns: Turns, num_rounds: int, seed: int, on_turn: Callable[[str], None] = lambda text: None
) -> dict[str, list[float]]:
    """Do each once in each round, in an order drawn for the round: what each gave, by its name, a number a round.

    So nothing always follows the same neighbour, and all of them see the same good and bad minutes of the machine.
    """
    found: dict[str, list[float]] = {name: [] for name in turns}
    order = interleaved([[name] for name in turns], seed)
    for number, name in itertools.islice(order, num_rounds * len(turns)):
        on_turn(f"round {number + 1} of {num_rounds}: {name}")
        time.sleep(_PAUSE_SECONDS)
        found[name].append(turns[name]())
    return found


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of the ratio within a round, which a machine that changes its speed moves least."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
