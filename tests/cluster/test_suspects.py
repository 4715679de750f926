"""Suspects: which images are at fault, found by trials of actors that end where one of them is."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

pytest.importorskip("ray", reason="needs the extra ray: pip install 'alexdeploy[ray]'")

from alexdeploy.cluster.chunks import Chunk
from alexdeploy.cluster.suspects import MOST_LOSSES, Suspects
from alexdeploy.core.errors import DeviceError
from alexdeploy.images.sources import Source

REASON = "its process ended"


def chunk_of(names: str, first_index: int = 100) -> Chunk:
    return Chunk(number=7, first_index=first_index, sources=tuple(Source(name=name, path=name) for name in names))


def run(suspects: Suspects, chunk: Chunk, ends_actor: Callable[[Chunk], bool]) -> tuple[Chunk, int]:
    """Run what Suspects says until the chunk itself passes; that chunk, and the number of actors that ended."""
    waiting, num_ended = deque([chunk]), 0
    while True:
        given = waiting.popleft()
        if ends_actor(given):
            num_ended += 1
            waiting += suspects.lost(given, REASON)
        else:
            waiting += suspects.passed(given)
            if not given.is_trial:
                assert not waiting
                return given, num_ended


def having(fatal: set[str]) -> Callable[[Chunk], bool]:
    return lambda chunk: any(source.name in fatal for source in chunk.sources if source.problem is None)


@pytest.mark.parametrize("num_images", [1, 2, 3, 13, 64])
def test_exactly_the_images_at_fault_become_errors(num_images: int) -> None:
    names = "".join(chr(0x4E00 + number) for number in range(num_images))
    generator = random.Random(num_images)
    for _ in range(20):
        suspects = Suspects()
        suspects.passed(chunk_of("before"))
        fatal = set(generator.sample(names, generator.randint(0, num_images)))
        chunk = chunk_of(names)
        found, _ = run(suspects, chunk, having(fatal))
        problems = {source.name: source.problem for source in found.sources if source.problem is not None}
        assert set(problems) == fatal
        assert all(REASON in problem for problem in problems.values())
        assert (found.number, found.first_index, found.digest) == (chunk.number, chunk.first_index, chunk.digest)


def test_one_image_ends_few_actors() -> None:
    suspects = Suspects()
    suspects.passed(chunk_of("before"))
    names = "".join(chr(0x4E00 + number) for number in range(1024))
    _, num_ended = run(suspects, chunk_of(names), having({names[77]}))
    # The chunk, its nine halvings down to two images, and the image alone.
    assert num_ended == MOST_LOSSES + 9 + MOST_LOSSES


def test_a_chunk_that_lost_an_actor_by_chance_is_run_again_alone() -> None:
    suspects = Suspects()
    [again] = suspects.lost(chunk_of("abc"), REASON)
    assert again.is_suspect
    assert not again.is_trial
    assert suspects.passed(again) == []


def test_images_are_not_blamed_for_actors_that_classify_nothing() -> None:
    with pytest.raises(DeviceError, match=r"the image 100, from 'a' on, and no image was classified before.*process"):
        run(Suspects(), chunk_of("abcd"), having(set("abcd")))


def test_a_chunk_that_ends_actors_though_its_halves_do_not_is_an_error() -> None:
    suspects = Suspects()
    suspects.passed(chunk_of("before"))
    with pytest.raises(DeviceError, match=r"the images 100 to 103, .*none of these images ends an actor by itself"):
        run(suspects, chunk_of("abcd"), lambda chunk: len(chunk.sources) > 2)
