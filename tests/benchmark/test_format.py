"""What `bench` says of its figures, in the terminal and on the page."""

from __future__ import annotations

from typing import Any

import pytest

from alexdeploy.benchmark.format import confidence_note, errors_of, rate, spread
from alexdeploy.benchmark.plan import BenchOptions, few_rounds_note, length_note
from alexdeploy.benchmark.results import CloseSecond, Picked, Row
from alexdeploy.benchmark.statistics import BatchConfiguration
from alexdeploy.core.errors import DeviceMemoryError, ModelError


def configuration(**changes: Any) -> BatchConfiguration:
    return BatchConfiguration(
        **({"backend": "openvino", "precision": "fp32", "num_views": 1, "batch_size": 1} | changes)
    )


def picked_of(rates: tuple[float, ...], *close_seconds: tuple[BatchConfiguration, float]) -> Picked:
    return Picked(
        configuration=configuration(),
        files_per_second=200.0,
        file_rates=rates,
        p95_ms=1.0,
        command="",
        close_seconds=tuple(CloseSecond(configuration=each, files_per_second=speed) for each, speed in close_seconds),
    )


def test_a_pick_that_was_faster_in_every_round_is_beyond_doubt() -> None:
    assert confidence_note(picked_of((190.0, 200.0, 210.0))) is None


def test_of_one_round_no_pick_is_beyond_doubt() -> None:
    assert confidence_note(picked_of((200.0,))) == (
        "measured in one round alone: how far its rate varies is not known, and another run may pick another"
    )


def test_what_could_have_been_picked_as_well_is_named_with_how_near_it_is() -> None:
    near = (configuration(precision="int8", batch_size=2), 199.0), (configuration(backend="torch"), 170.2)
    assert confidence_note(picked_of((100.0, 200.0, 210.0), *near)) == (
        "within 15 % of it, in rounds that overlap its own: openvino int8 batch 2, torch fp32 batch 1"
    )
    many = [(configuration(batch_size=size), 200.0) for size in range(2, 8)]
    assert confidence_note(picked_of((100.0, 200.0, 210.0), *many)) == (
        "within 1 % of it, in rounds that overlap its own: openvino fp32 batch 2, openvino fp32 batch 3, "
        "openvino fp32 batch 4, openvino fp32 batch 5 and 2 more"
    )


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((), ""),
        ((94.0,), ""),
        ((169.2, 94.04, 243.0), "94.0-243"),
        ((3.14, 2.2), "2.2-3.1"),
        ((99.96, 1433.4), "100-1433"),
    ],
)
def test_a_spread_is_from_the_slowest_to_the_fastest_round(rates: tuple[float, ...], expected: str) -> None:
    assert spread(rates) == expected


def test_a_rate_has_no_more_digits_than_it_takes() -> None:
    assert [rate(each) for each in (None, 3.14, 999.94, 999.96, 12345.6)] == ["", "3.1", "999.9", "1,000", "12,346"]


def test_errors_of_a_group_are_one_line_where_they_are_one() -> None:
    def failed(error: ModelError | DeviceMemoryError | None, **changes: Any) -> Row:
        return Row(configuration=configuration(**changes), error=None if error is None else error.message)

    same = [failed(ModelError("no graph"), batch_size=size) for size in (1, 2)]
    other = [failed(None, precision="fp16"), failed(DeviceMemoryError("no memory"), precision="fp16", batch_size=2)]
    not_measured = [failed(None, precision="int8")]
    assert errors_of([*same, *other, *not_measured]) == [
        "openvino fp32 1 view: no graph",
        "openvino fp16 1 view, batch 2: no memory",
    ]


def test_fewer_than_three_rounds_are_told_also_of_a_run_that_was_stopped() -> None:
    options = BenchOptions(seconds=10)
    after = ": a median of so few is doubtful. More --seconds, or fewer configurations, give more."
    assert few_rounds_note(options, 1, interrupted=False) == (f"10 s were enough for 1 whole round{after}",)
    assert few_rounds_note(options, 2, interrupted=False) == (f"10 s were enough for 2 whole rounds{after}",)
    assert few_rounds_note(options, 0, interrupted=True) == (f"stopped after 0 whole rounds{after}",)
    assert few_rounds_note(options, 3, interrupted=True) == ()


def test_a_round_that_takes_longer_than_what_opening_has_left_is_told() -> None:
    options = BenchOptions(seconds=40)
    assert length_note(options, 5.5, 5.0) == ()
    assert length_note(options, -70.4, 54.2) == (
        "a round takes about 55 s, and to open everything took 110 s: together more than --seconds 40. Name fewer "
        "--backend, --precision, --views or --batch-size for a shorter run",
    )
