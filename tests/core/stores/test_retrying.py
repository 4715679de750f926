"""Retries: how often, after which pauses, and when they end; on a clock of the test's own."""

from __future__ import annotations

import pytest

from alexdeploy.core.stores.retrying import Deadline, PassingError, RetryPolicy


class _Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def _failing(num_failures: int, error: Exception, time: _Time, call_seconds: float = 0.0):
    calls: list[int] = []

    def call(_: Deadline) -> str:
        calls.append(1)
        time.now += call_seconds
        if len(calls) <= num_failures:
            raise error
        return f"call {len(calls)}"

    return call


def test_pauses_double_and_are_random_by_a_half() -> None:
    time = _Time()
    policy = RetryPolicy(num_attempts=5, first_wait_seconds=1.0, longest_wait_seconds=3.0)
    assert policy.run(_failing(4, PassingError("busy"), time), clock=time.clock, sleep=time.sleep) == "call 5"
    assert all(most / 2 <= pause <= most for pause, most in zip(time.pauses, (1.0, 2.0, 3.0, 3.0), strict=True))


def test_the_last_failure_is_raised() -> None:
    time = _Time()
    with pytest.raises(PassingError, match="busy"):
        RetryPolicy(num_attempts=3).run(_failing(9, PassingError("busy"), time), clock=time.clock, sleep=time.sleep)
    assert len(time.pauses) == 2


def test_other_failures_are_raised_at_once() -> None:
    time = _Time()
    with pytest.raises(FileNotFoundError):
        RetryPolicy().run(_failing(9, FileNotFoundError(), time), clock=time.clock, sleep=time.sleep)
    assert not time.pauses


def test_a_pause_that_the_store_asks_for_is_kept() -> None:
    time = _Time()
    RetryPolicy().run(_failing(1, PassingError("busy", 7.0), time), clock=time.clock, sleep=time.sleep)
    assert time.pauses == [7.0]


def test_all_together_ends_in_time() -> None:
    time = _Time()
    policy = RetryPolicy(num_attempts=1000, total_seconds=100.0)
    with pytest.raises(PassingError):
        policy.run(_failing(1000, PassingError("slow"), time, call_seconds=30.0), clock=time.clock, sleep=time.sleep)
    assert time.now <= 130.0


def test_a_deadline_that_is_over_ends_a_call() -> None:
    time = _Time()
    deadline = Deadline(1.0, time.clock)
    deadline.check()
    time.now = 1.0
    with pytest.raises(PassingError, match="too slow"):
        deadline.check()
