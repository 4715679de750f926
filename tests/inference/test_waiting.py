"""Who is decoded and run next, who must leave, and when: without threads, and at times that the test chooses."""

from __future__ import annotations

import gc
import math
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from alexdeploy.core.errors import DeadlineError, DeviceError, QueueFullError
from alexdeploy.engines.base import Predictions
from alexdeploy.inference.fair_queue import FairQueue
from alexdeploy.inference.job import Item, Task
from alexdeploy.inference.timing import BatchTiming, Deadlines
from alexdeploy.inference.waiting import Waiting

SQUARE = np.zeros((256, 256, 3), np.uint8)
SECOND = 1_000_000_000


def task(client: str = "", num_images: int = 1, *, deadline: float | None = None, now: float = 0.0) -> Task:
    """Images that must be decoded, submitted at `now`."""
    return Task([b"picture"] * num_images, client, deadline, int(now * SECOND))


def ready_task(client: str = "", num_images: int = 1, *, deadline: float | None = None, now: float = 0.0) -> Task:
    """Images that need no decoding."""
    return Task([SQUARE] * num_images, client, deadline, int(now * SECOND))


def make_waiting(*, max_images: int | None = None, batch_size: int = 4, window: int = 100) -> Waiting:
    return Waiting(batch_size=batch_size, window=window, max_delay=0.0, max_images=max_images)


def predictions(num_images: int, errors: dict[int, str] | None = None) -> Predictions:
    return Predictions(np.ones((num_images, 2), np.float32), np.zeros((num_images, 1), np.int32), errors or {})


def clients(items: list[Item]) -> str:
    return "".join(item.task.client for item in items)


def error_of(of: Task) -> BaseException | None:
    of.complete()
    return of.future.exception(0)


def test_a_queue_gives_each_client_its_turn_and_each_client_its_oldest_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for client, job, items in (("a", 1, "pqr"), ("b", 2, "s"), ("a", 3, "t"), ("c", 4, "uv"), ("b", 5, "w")):
        queue.add(client, job, items)
    assert len(queue) == 8
    assert "".join(queue.pop() for _ in range(8)) == "psuqwvrt"
    with pytest.raises(IndexError):
        queue.pop()


def test_what_is_removed_from_a_queue_gives_its_turn_to_others() -> None:
    queue: FairQueue[str] = FairQueue()
    for client, job, items in (("a", 1, "pq"), ("a", 2, "r"), ("b", 3, "st")):
        queue.add(client, job, items)
    assert queue.remove("a", 1) == ["p", "q"]
    assert queue.remove("a", 1) == queue.remove("nobody", 1) == []
    queue.add("a", 1, "")
    assert len(queue) == 3
    assert "".join(queue.pop() for _ in range(3)) == "rst"


def test_one_client_of_many_images_does_not_hold_up_the_others() -> None:
    waiting = make_waiting()
    waiting.add(task("a", 6), 0.0)
    waiting.add(task("b", 2), 0.0)
    waiting.add(task("c", 1), 0.0)
    assert clients([waiting.take_undecoded() for _ in range(9)]) == "abcabaaaa"
    waiting = make_waiting()
    waiting.add(ready_task("a", 9), 0.0)
    waiting.add(ready_task("b", 2), 0.0)
    assert clients(waiting.take_batch(1, 0.0)) == "abab"
    assert clients(waiting.take_batch(1, 0.0)) == "aaaa"


def test_free_streams_share_what_waits() -> None:
    for num_images, num_free, taken in ((1, 2, 1), (4, 2, 2), (5, 2, 3), (8, 2, 4), (20, 3, 4), (3, 1, 3)):
        waiting = make_waiting()
        waiting.add(ready_task(num_images=num_images), 0.0)
        assert len(waiting.take_batch(num_free, 0.0)) == taken
        assert (waiting.num_running, waiting.num_images) == (taken, num_images - taken)


def test_a_stream_whose_processor_decodes_is_not_counted_as_free() -> None:
    # Eight images that are ready, and more that are being decoded: parts of a batch beside each other gain nothing.
    for num_decoding, num_free, taken in ((0, 2, 4), (1, 3, 5), (2, 2, 8), (3, 2, 8)):
        waiting = make_waiting(batch_size=8)
        waiting.add(task(num_images=num_decoding), 0.0)
        for _ in range(num_decoding):
            waiting.take_undecoded()
        waiting.add(ready_task("b", num_images=8), 0.0)
        assert len(waiting.take_batch(num_free, 0.0)) == taken


def test_images_are_decoded_ahead_as_far_as_the_window() -> None:
    waiting = make_waiting(window=3)
    waiting.add(task(num_images=9), 0.0)
    items = [waiting.take_undecoded() for _ in range(waiting.num_decodable)]
    assert (len(items), waiting.num_decodable) == (3, 0)
    waiting.add_broken(items[0], "broken")
    assert waiting.num_decodable == 1
    for item in items[1:]:
        waiting.add_decoded(item, SQUARE, 0.0)
    assert waiting.num_decodable == 1
    batch = waiting.take_batch(1, 0.0)
    # They are in memory as long as they run.
    assert (len(batch), waiting.num_decodable) == (2, 1)
    waiting.add_answers(batch, predictions(2), 0, 1)
    assert waiting.num_decodable == 3


def test_images_that_need_no_decoding_take_no_place_in_the_window() -> None:
    waiting = make_waiting(window=1)
    waiting.add(ready_task(num_images=5), 0.0)
    waiting.add(task(), 0.0)
    assert waiting.num_decodable == 1


def test_a_full_queue_makes_room_until_shares_are_equal() -> None:
    waiting = make_waiting(max_images=4)
    flood = [task("a") for _ in range(4)]
    for each in flood:
        waiting.add(each, 0.0)
    with pytest.raises(QueueFullError, match="4 images wait, the limit is 4, 1 more"):
        waiting.add(task("a"), 0.0)
    waiting.add(task("b"), 0.0)
    waiting.add(task("b"), 0.0)
    assert list(waiting.done) == [flood[3], flood[2]]
    assert isinstance(error_of(flood[3]), QueueFullError)
    assert waiting.num_images == 4
    for client in ("a", "b"):
        with pytest.raises(QueueFullError):
            waiting.add(task(client), 0.0)
    # A third has less than both.
    waiting.add(task("c"), 0.0)
    assert list(waiting.done)[2:] == [flood[1]]
    assert waiting.num_images == 4


def test_a_job_that_has_begun_or_does_not_make_enough_room_does_not_have_to_leave() -> None:
    waiting = make_waiting(max_images=6, batch_size=1)
    begun, rest = ready_task("a", 3), ready_task("a", 4)
    waiting.add(begun, 0.0)
    assert waiting.take_batch(1, 0.0)[0].task is begun
    waiting.add(rest, 0.0)
    # Six wait. The one that has begun stays, and then "a" has less than "b" would have.
    with pytest.raises(QueueFullError):
        waiting.add(task("b", 6), 0.0)
    assert (list(waiting.done), waiting.num_images) == ([], 6)
    waiting.add(task("b", 2), 0.0)
    assert list(waiting.done) == [rest]
    assert waiting.num_images == 4


def test_more_images_than_the_queue_takes_are_refused() -> None:
    waiting = make_waiting(max_images=3)
    with pytest.raises(QueueFullError, match="0 images wait, the limit is 3, 4 more"):
        waiting.add(task(num_images=4), 0.0)
    assert (waiting.num_images, waiting.tasks) == (0, set())


def test_late_jobs_leave_and_make_room() -> None:
    waiting = make_waiting(max_images=2)
    late, other = task("a", deadline=5.0), task("a", deadline=9.0)
    waiting.add(late, 0.0)
    waiting.add(other, 0.0)
    assert waiting.next_deadline == 5.0
    waiting.end_late(4.9)
    assert not waiting.done
    waiting.add(task("a"), 5.0)
    assert list(waiting.done) == [late]
    assert isinstance(error_of(late), DeadlineError)
    assert waiting.next_deadline == 9.0


def test_a_job_of_which_every_image_runs_is_not_late() -> None:
    waiting = make_waiting()
    running, half = ready_task(deadline=1.0), ready_task(num_images=5, deadline=1.0)
    waiting.add(running, 0.0)
    waiting.add(half, 0.0)
    batch = waiting.take_batch(1, 0.0)
    waiting.end_late(2.0)
    assert list(waiting.done) == [half]
    assert (waiting.num_images, waiting.num_running) == (0, 4)
    waiting.add_answers(batch, predictions(4), 0, 1)
    assert list(waiting.done) == [half, running]
    assert error_of(running) is None


def test_tasks_that_are_gone_do_not_stay_in_memory_until_their_deadline() -> None:
    deadlines = Deadlines()
    one, kept = task(deadline=5.0), task(deadline=6.0)
    gone = weakref.ref(one)
    deadlines.add(one)
    deadlines.add(kept)
    del one
    gc.collect()
    assert gone() is None
    assert deadlines.pop_late(0.0) == []
    assert deadlines.next == 6.0
    assert deadlines.pop_late(6.0) == [kept]
    assert deadlines.next == math.inf


def test_far_deadlines_of_tasks_that_are_gone_do_not_pile_up_behind_a_near_one() -> None:
    deadlines = Deadlines()
    near = task(deadline=5.0)
    deadlines.add(near)
    for _ in range(10_000):
        deadlines.add(task(deadline=1e9))
        assert deadlines.pop_late(0.0) == []
    assert len(deadlines) < 200
    assert deadlines.pop_late(5.0) == [near]


def test_a_job_without_images_leaves_nothing_behind() -> None:
    waiting = make_waiting()
    empty = task(num_images=0)
    gone = weakref.ref(empty)
    waiting.add(empty, 0.0)
    assert waiting.done.popleft() is empty
    del empty
    gc.collect()
    assert gone() is None


def test_a_job_that_leaves_takes_its_images_along() -> None:
    waiting = make_waiting(window=2, batch_size=1)
    leaves, stays = task("a", 4), task("b")
    waiting.add(leaves, 0.0)
    decoded, decoding = waiting.take_undecoded(), waiting.take_undecoded()
    waiting.add(stays, 0.0)
    waiting.add_decoded(decoded, SQUARE, 0.0)
    assert leaves.future.cancel()
    waiting.leave(leaves, None)
    assert (waiting.num_images, waiting.num_undecoded, waiting.num_decodable) == (1, 2, 1)
    # Its last image comes from a decoder, for nobody.
    waiting.add_decoded(decoding, SQUARE, 0.0)
    assert (waiting.due(1), waiting.num_undecoded) == (math.inf, 1)
    assert waiting.take_undecoded().task is stays
    leaves.complete()
    with pytest.raises(CancelledError):
        leaves.future.result(0)


def test_errors_end_only_the_jobs_they_are_of() -> None:
    waiting = make_waiting()
    failing, other = ready_task("a", 3), ready_task("b", 1)
    waiting.add(failing, 0.0)
    first = waiting.take_batch(2, 0.0)
    assert clients(first) == "aa"
    waiting.add(other, 0.0)
    error = DeviceError("fell over", hint="Stand up.")
    waiting.add_answers(first, error, 0, 1)
    found = error_of(failing)
    assert isinstance(found, DeviceError)
    # Its own: several threads may raise it.
    assert found is not error
    assert (found.message, found.hint, found.__cause__) == ("fell over", "Stand up.", error)
    assert clients(waiting.take_batch(1, 0.0)) == "b"


def test_an_image_on_which_all_replicas_fail_is_an_outcome_with_the_error() -> None:
    waiting = make_waiting()
    job = ready_task(num_images=2)
    waiting.add(job, 0.0)
    waiting.add_answers(waiting.take_batch(1, 0.0), predictions(2, {0: "bad kernel"}), 0, 1)
    job.complete()
    bad, good = job.future.result(0)
    assert (bad.error, bad.probabilities) == ("no answer: bad kernel", None)
    assert good.error is None


def test_each_moment_of_a_job_counts_once() -> None:
    waiting = make_waiting(batch_size=1)
    job = task(num_images=2)
    waiting.add(job, 0.0)
    items = [waiting.take_undecoded() for _ in range(2)]
    # Two threads decode at once, and two streams run at once.
    for item, times in zip(items, ((10, 30), (20, 50)), strict=True):
        item.decoding = times
        waiting.add_decoded(item, SQUARE, 0.0)
    for began, took in ((40, 25), (60, 40)):
        waiting.add_answers(waiting.take_batch(1, 0.0), predictions(1), began, took)
    # 0 waits 10 decodes 40 computes 100.
    assert (job.times.queue_ns, job.times.decode_ns, job.times.compute_ns) == (10, 30, 60)


def test_a_shared_batch_counts_for_each_job_from_when_it_was_submitted() -> None:
    waiting = make_waiting()
    jobs = [ready_task(num_images=2), ready_task("b", now=4e-9)]
    for job in jobs:
        waiting.add(job, 0.0)
    waiting.add_answers(waiting.take_batch(1, 0.0), predictions(3), 10, 7)
    assert [(job.times.queue_ns, job.times.decode_ns, job.times.compute_ns) for job in jobs] == [(10, 0, 7), (6, 0, 7)]


def test_a_job_without_good_images_has_only_decoded() -> None:
    waiting = make_waiting()
    job = task(now=3e-9)
    waiting.add(job, 0.0)
    item = waiting.take_undecoded()
    item.decoding = (8, 12)
    waiting.add_broken(item, "no picture")
    assert (job.times.queue_ns, job.times.decode_ns, job.times.compute_ns) == (5, 4, 0)


def test_an_image_that_comes_alone_does_not_wait_for_others() -> None:
    timing = BatchTiming(8, max_delay=2.0)
    for now in (100.0, 103.0):
        timing.submitted(now)
        timing.first_ready(now, now)
        assert timing.due(1, 0, 2) == now


def test_while_images_come_one_waits_for_others() -> None:
    timing = BatchTiming(8, max_delay=2.0)
    timing.submitted(100.0)
    timing.submitted(101.0)
    timing.first_ready(101.0, 101.0)
    assert timing.due(1, 0, 2) == 103.0
    # Not for a place that is taken.
    assert timing.due(8, 0, 2) == -math.inf


def test_for_images_that_are_being_decoded_it_waits_as_long_as_a_batch_takes() -> None:
    timing = BatchTiming(8, max_delay=2.0)
    timing.submitted(100.0)
    # It has waited long for a decoder, as the others do.
    timing.first_ready(100.0, 130.0)
    timing.finished(0.5, 1)
    assert timing.due(1, 7, 1) == 130.0 + 8 * 0.5
    # With two free streams, four of eight images are the share of each.
    assert timing.due(3, 5, 2) == 130.0 + 8 * 0.5
    assert timing.due(4, 4, 2) == 100.0
    # What is left of a batch waits for the next.
    timing.taken(131.0)
    assert timing.due(1, 7, 1) == 131.0 + 8 * 0.5
    # The time of an image is a mean that follows.
    timing.finished(2.0, 8)
    assert timing.due(1, 1, 1) == 131.0 + 8 * (0.5 + 0.25 * (0.25 - 0.5))
