"""The simulation of a cluster, against cases that are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.cluster_scenario import Costs, Scenario
from benchmarks.cluster_simulation import simulate

IMAGE = Costs(image_seconds=0.01)
EVERYTHING = Costs(
    image_seconds=0.01,
    chunk_seconds=0.1,
    chunk_spread=0.2,
    start_seconds=5.0,
    start_spread=0.1,
    restart_seconds=3.0,
    begin_seconds=1.0,
    name_seconds=1e-5,
    part_seconds=0.002,
    wait_seconds=1e-5,
    manifest_seconds=1e-6,
)


def seconds(scenario: Scenario, costs: Costs = IMAGE) -> float:
    outcome = simulate(scenario, costs)
    assert outcome.is_complete
    assert outcome.num_images == scenario.num_images
    return outcome.seconds


def test_one_node_takes_what_all_images_and_chunks_take_after_its_start() -> None:
    costs = replace(IMAGE, chunk_seconds=0.5, begin_seconds=2.0, start_seconds=3.0)
    scenario = Scenario(num_images=1000, rows_per_part=100)
    # 2 + 3 s, ten chunks of 0.5 s, 1,000 images of 0.01 s.
    assert seconds(scenario, costs) == pytest.approx(2 + 3 + 10 * 0.5 + 1000 * 0.01)
    assert seconds(replace(scenario, cores=4), costs) == pytest.approx(2 + 3 + (10 * 0.5 + 1000 * 0.01) / 4)


def test_two_chunks_of_an_actor_share_its_core() -> None:
    outcome = simulate(Scenario(num_images=200, rows_per_part=100), IMAGE)
    # Alone, each takes one second.
    assert outcome.arrivals == pytest.approx([2.0, 2.0])
    assert outcome.node_share == pytest.approx(1.0)


def test_nodes_of_ones_own_halve_the_time_and_those_of_one_machine_do_not() -> None:
    scenario = Scenario(num_images=128_000, rows_per_part=100, num_nodes=1)
    one = seconds(scenario)
    assert one == pytest.approx(1280.0)
    for num_nodes in (2, 8, 64):
        assert seconds(replace(scenario, num_nodes=num_nodes)) == pytest.approx(one / num_nodes)
    assert seconds(replace(scenario, num_nodes=2, hosts=(0, 0))) == pytest.approx(one)


def test_chunks_grow_by_a_64th_of_what_was_before() -> None:
    # The first chunk after 128 * 64 images is the first of more than 128 images.
    arrivals = simulate(Scenario(num_images=8192 + 128, rows_per_part=1024), IMAGE).arrivals
    assert len(arrivals) == 65
    arrivals = simulate(Scenario(num_images=1024 * 64 * 2, rows_per_part=1024), IMAGE).arrivals
    assert 64 + 64 < len(arrivals) < 65_536 // 128 + 64 + 1


@pytest.mark.parametrize(
    ("costs", "least"),
    [(Costs(image_seconds=1e-4, part_seconds=0.02), 20.0), (Costs(image_seconds=1e-4, name_seconds=2e-4), 20.0)],
    ids=["parts", "names"],
)
def test_the_driver_bounds_many_nodes(costs: Costs, least: float) -> None:
    outcome = simulate(Scenario(num_images=100_000, rows_per_part=100, num_nodes=100), costs)
    # 1,000 parts of 20 ms or of 100 names of 0.2 ms, and a chunk of 10 ms, two of which share a core, at either end.
    assert least <= outcome.seconds <= least + 0.05
    assert outcome.driver_share == pytest.approx(1.0, abs=0.01)


def test_the_driver_waits_longer_for_more_chunks_and_writes_ever_longer_manifests() -> None:
    scenario = Scenario(num_images=10_000, rows_per_part=100)
    # 100 parts, with two chunks under way as each of them but the last comes.
    costs = Costs(image_seconds=0.0, wait_seconds=0.01)
    assert seconds(scenario, costs) == pytest.approx(99 * 2 * 0.01 + 0.01)
    # A part of 100 images every second, of which two are complete every two: the manifest has n parts of 1 ms.
    written = simulate(scenario, replace(IMAGE, manifest_seconds=1e-3))
    assert 0.1 < written.driver_share * written.seconds < 2.0


def test_the_driver_waits_for_a_store_that_lists_and_has_parts() -> None:
    scenario = Scenario(num_images=10_000, rows_per_part=100, num_nodes=100, page_seconds=0.5, check_seconds=0.07)
    # Ten pages of 0.5 s and 100 parts of 0.07 s; images take no time.
    assert seconds(scenario, Costs(image_seconds=0.0)) == pytest.approx(10 * 0.5 + 100 * 0.07)


def test_the_store_bounds_how_many_images_a_second_come() -> None:
    scenario = Scenario(num_images=100_000, rows_per_part=100, num_nodes=100, requests_per_second=500)
    outcome = simulate(scenario, IMAGE)
    assert outcome.seconds == pytest.approx(200.0, rel=0.01)
    assert outcome.store_share == pytest.approx(1.0, abs=0.01)
    # One node alone takes 1,000 s, and asks for 100 images a second.
    assert seconds(replace(scenario, num_nodes=1)) == pytest.approx(1000.0, rel=0.01)


def test_latency_hides_behind_the_other_chunk() -> None:
    scenario = Scenario(num_images=10_000, rows_per_part=100, latency_seconds=0.05)
    # Each of 100 chunks takes one second of the core and waits 0.1 s: to begin, and to be written. Unless both chunks
    # wait at once, the core is busy.
    assert 100.0 <= seconds(scenario) < 100.0 + 50 * 0.1 + 0.01
    varying = replace(IMAGE, chunk_spread=0.2)
    assert seconds(scenario, varying) == pytest.approx(seconds(replace(scenario, latency_seconds=0), varying), rel=0.03)


def test_a_slow_node_is_given_less() -> None:
    scenario = Scenario(num_images=100_000, rows_per_part=10, num_nodes=2, slow_share=1.0, slow_factor=2.0)
    assert seconds(scenario) == pytest.approx(2 * 500.0, rel=0.01)
    half = replace(scenario, num_nodes=100, slow_share=0.5)
    speed = 100_000 * 0.01 / seconds(half)
    # About half of the nodes have half of the speed: 75, give or take 2.5 for each standard deviation.
    assert 60 < speed < 90


def test_a_node_that_dies_costs_its_two_chunks_and_its_share_of_the_rest() -> None:
    scenario = Scenario(num_images=40_000, rows_per_part=100, num_nodes=4)
    whole = seconds(scenario)
    lost = simulate(replace(scenario, kills=((200, "node", 2),)), IMAGE)
    assert lost.is_complete
    assert lost.num_failures == 1
    assert 0 <= lost.lost_core_seconds <= 2 * 100 * 0.01
    # Half of the work is left for three nodes, and at the end some wait for one or two chunks.
    assert whole / 2 + whole / 2 * 4 / 3 - 1 <= lost.seconds <= whole / 2 + whole / 2 * 4 / 3 + 4


def test_an_actor_that_dies_costs_its_restart_on_one_node() -> None:
    scenario = Scenario(num_images=10_000, rows_per_part=100, kills=((50, "actor", 0),))
    outcome = simulate(scenario, replace(IMAGE, restart_seconds=7.0))
    assert outcome.seconds == pytest.approx(100 + 7 + outcome.lost_core_seconds)
    assert outcome.lost_core_seconds <= 2.0


def test_nodes_that_fail_and_return_cost_their_absence() -> None:
    scenario = Scenario(num_images=2_000_000, rows_per_part=100, num_nodes=20, failure_seconds=300, replace_seconds=100)
    outcome = simulate(scenario, IMAGE, seed=3)
    assert outcome.is_complete
    assert outcome.num_failures > 40
    # Present for 300 s of 400 on the average, after a beginning with all.
    assert outcome.seconds == pytest.approx(1000 * 400 / 300, rel=0.15)


def test_a_run_whose_nodes_are_all_gone_ends() -> None:
    outcome = simulate(Scenario(num_images=100_000, rows_per_part=100, num_nodes=3, failure_seconds=50), IMAGE)
    assert not outcome.is_complete
    assert outcome.num_failures == 3
    assert outcome.num_images == 100 * len(outcome.arrivals) < 100_000


def test_the_same_seed_gives_the_same_run() -> None:
    scenario = Scenario(
        num_images=50_000, rows_per_part=100, num_nodes=10, failure_seconds=60, replace_seconds=20, slow_share=0.2
    )
    first, again, other = (simulate(scenario, EVERYTHING, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.seconds != other.seconds
    assert sum(map(math.isfinite, first.arrivals)) == len(first.arrivals) == 500
    assert first.arrivals == sorted(first.arrivals)
