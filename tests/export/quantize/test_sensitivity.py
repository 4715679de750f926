from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection

import numpy as np
import onnx
import pytest
from helpers import smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ParityError
from alexdeploy.core.metrics import paired_difference, wilson_interval
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.export.drop import Drop, describe
from alexdeploy.export.events import MixtureMeasured
from alexdeploy.export.quantize.sensitivity import Evaluator, Trials, layer_macs, rank_layers, search
from alexdeploy.network.layers import plan_layers

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
MACS = dict(zip(LAYERS, (105, 224, 150, 112, 75, 38, 17, 4), strict=True))


def _drop(points: float, error: float, num_images: int = 1000) -> Drop:
    interval = wilson_interval(min(round(num_images * points / 100), num_images), num_images)
    return Drop(
        num_images=num_images,
        num_flips=round(num_images * points / 100),
        has_labels=False,
        points=points,
        low_points=100 * interval.low,
        high_points=100 * interval.high,
        logit_error=error,
    )


def _additive(errors: dict[str, float], factor: Callable[[frozenset[str]], float] = lambda keep: 1.0):
    """A network whose drop is the sum of squared errors of the layers in INT8, times what `factor` says."""

    def measure(keep: Collection[str]) -> Drop:
        square = sum(error**2 for name, error in errors.items() if name not in keep)
        return _drop(square * factor(frozenset(keep)), square**0.5)

    return measure


def _search(measure, budget: float):
    ranking = rank_layers(LAYERS, MACS, measure)
    return ranking, search(ranking, measure(()), budget, measure)


def _best_cost(measure, budget: float) -> int:
    """The fewest multiply-accumulates in FP32 of all 254 mixtures that hold the budget."""
    keeps = itertools.chain.from_iterable(itertools.combinations(LAYERS, size) for size in range(8))
    return min(sum(MACS[name] for name in keep) for keep in keeps if measure(keep).points <= budget)


errors_of_layers = st.lists(st.floats(0.01, 3.0), min_size=8, max_size=8).map(
    lambda v: dict(zip(LAYERS, v, strict=True))
)


@settings(max_examples=60)
@given(errors_of_layers, st.floats(0.05, 0.95))
def test_where_errors_add_up_the_fastest_mixture_of_all_is_found(errors: dict[str, float], share: float) -> None:
    measure = _additive(errors)
    budget = max(share * measure(()).points, 1.001 * min(errors.values()) ** 2)
    _, choice = _search(measure, budget)
    assert choice.drop.points <= budget
    assert sum(MACS[name] for name in choice.keep) == _best_cost(measure, budget)


@settings(max_examples=40)
@given(errors_of_layers, st.floats(0.05, 0.95))
def test_each_measurement_is_reported_and_the_number_expected_ends_as_what_there_were(
    errors: dict[str, float], share: float
) -> None:
    """With a clock on which each measurement takes two seconds."""
    events: list[MixtureMeasured] = []
    seconds = itertools.count(step=2)
    trials = Trials(_additive(errors), events.append, clock=lambda: next(seconds))
    trials.expect(1 + len(LAYERS))
    whole = trials(())
    budget = max(share * whole.points, 1.001 * min(errors.values()) ** 2)
    ranking = rank_layers(LAYERS, MACS, trials)
    choice = search(ranking, whole, budget, trials, trials.expect)
    assert [event.num_done for event in events] == list(range(1, choice.num_trials + 1))
    assert [event.num_expected for event in events[:9]] == [9] * 9
    for event in events:
        assert event.num_done <= event.num_expected <= 1 + 8 + 24
        assert event.seconds_left == pytest.approx(2 * (event.num_expected - event.num_done))
    assert events[0].fp32 == ()
    assert events[1].fp32 == tuple(sorted(set(LAYERS) - {LAYERS[0]}))
    assert events[-1].drop == trials(events[-1].fp32)


@settings(max_examples=40)
@given(errors_of_layers, st.floats(0.1, 0.9), st.integers(0, 1000))
def test_where_they_do_not_what_is_found_holds_the_budget_with_few_measurements(
    errors: dict[str, float], share: float, seed: int
) -> None:
    def noise(keep: frozenset[str]) -> float:
        return float(np.random.default_rng([seed, *sorted(map(LAYERS.index, keep))]).uniform(0.7, 1.3))

    measure = _additive(errors, noise)
    budget = max(share * measure(()).points, min(measure([o for o in LAYERS if o != name]).points for name in LAYERS))
    _, choice = _search(measure, budget)
    assert choice.drop.points <= budget
    assert measure(choice.keep).points == choice.drop.points
    assert choice.num_trials <= 1 + 8 + 24


def test_one_bad_layer_is_named_first_and_alone_kept() -> None:
    ranking, choice = _search(_additive({**dict.fromkeys(LAYERS, 0.1), "conv4": 5.0}), 1.0)
    assert ranking[0].layer == "conv4"
    assert choice.keep == ("conv4",)


def test_a_pair_that_is_cheaper_than_the_worst_layer_is_preferred() -> None:
    """Greedily, the worst layer (conv2, most of the work) would be kept; two small ones are enough."""
    errors = {**dict.fromkeys(LAYERS, 0.01), "conv2": 1.0, "fc7": 0.9, "fc8": 0.9}
    _, choice = _search(_additive(errors), 1.1)
    assert set(choice.keep) == {"fc7", "fc8"}


def test_nothing_is_kept_where_all_of_it_holds() -> None:
    _, choice = _search(_additive(dict.fromkeys(LAYERS, 0.1)), 1.0)
    assert (choice.keep, choice.num_trials) == ((), 9)


def test_if_no_layer_may_be_int8_it_says_which_came_nearest() -> None:
    measure = _additive({**dict.fromkeys(LAYERS, 2.0), "fc7": 1.5})
    with pytest.raises(ParityError, match=r"even with fc7 alone in INT8 it is 2\.25") as error:
        _search(measure, 1.0)
    assert "No INT8 file was written" in str(error.value)


def test_a_drop_is_stated_with_its_interval() -> None:
    # Wilson 1927 for none of n: z^2 / (n + z^2), with z^2 = 3.8415.
    assert describe(_drop(0, 0.1, num_images=40)) == "0 of 40 answers changed (95 % interval: 0 to 8.8 %)"
    assert describe(_drop(100, 0.1, num_images=40)) == "40 of 40 answers changed (95 % interval: 91 to 100 %)"
    labelled = dataclasses.replace(_drop(0.5, 0.1), has_labels=True, low_points=-0.25, high_points=1.5)
    assert describe(labelled) == ("top-1 error +0.5 points (95 % interval: -0.25 to +1.5), 5 of 1000 answers changed")


def test_of_many_layers_the_worst_are_kept_together() -> None:
    """Of 53 layers twenty break the budget two by two: neither ten that stay nor one in INT8 is the answer."""
    layers = tuple(f"layer{index:02}" for index in range(53))
    errors = {name: 1.0 if index < 20 else 0.01 for index, name in enumerate(layers)}
    measure = _additive(errors)
    ranking = rank_layers(layers, dict.fromkeys(layers, 100), measure)
    choice = search(ranking, measure(()), 1.5, measure)
    assert len(choice.keep) == 19
    assert choice.drop.points <= 1.5


def test_a_layer_whose_logits_are_not_finite_is_the_worst_and_kept() -> None:
    def measure(keep: Collection[str]) -> Drop:
        return _drop(0.1, 0.1) if "fc6" in keep else _drop(100.0, float("inf"))

    ranking, choice = _search(measure, 1.0)
    assert ranking[0].layer == "fc6"
    assert choice.keep == ("fc6",)


def test_multiply_accumulates_of_the_graph_are_those_of_the_plan(tiny_model: ModelFolder) -> None:
    spec = tiny_model.spec()
    assert spec.architecture is not None
    expected = {layer.name: layer.macs for layer in plan_layers(spec.architecture, spec.num_classes) if layer.macs}
    assert layer_macs(onnx.load(tiny_model.onnx_path())) == expected


def test_a_product_of_several_rows_is_counted_for_each_of_them() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 7, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 7, 3])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="rows")]
    graph = helper.make_graph(nodes, "rows", [x], [y], [numpy_helper.from_array(np.ones((5, 3), np.float32), "w")])
    assert layer_macs(helper.make_model(graph)) == {"rows": 7 * 5 * 3}


@pytest.mark.parametrize("num_views", [1, 10])
def test_changed_answers_and_errors_are_those_that_the_engines_give(int8_model: ModelFolder, num_views: int) -> None:
    num_images = 24 if num_views == 1 else 8
    spec, images = int8_model.spec(), smooth_images(num_images, seed=9)
    labels = np.arange(num_images) % spec.num_classes
    answers = []
    for precision in ("fp32", "int8"):
        options = EngineOptions(precision=precision, num_views=num_views, batch_size=8)  # type: ignore[arg-type]
        with open_engine(int8_model, "onnxruntime", options) as engine:
            rows = np.concatenate(
                [engine.run(images[start : start + 8]).probabilities for start in range(0, num_images, 8)]
            )
        answers.append(rows.argmax(axis=1))
    fp32, int8 = (onnx.load(int8_model.onnx_path(precision)) for precision in ("fp32", "int8"))
    arguments = (fp32, spec, int8_model.mean_image(spec), num_views, images)
    drop = Evaluator(*arguments).measure(int8)
    assert (drop.num_images, drop.num_flips) == (num_images, int((answers[0] != answers[1]).sum()))
    assert drop.points == pytest.approx(100 * drop.num_flips / num_images)
    assert 1e-4 < drop.logit_error < 0.3
    labelled = Evaluator(*arguments, labels).measure(int8)
    wrong = [float((answer != labels).mean()) for answer in answers]
    assert labelled.points == pytest.approx(100 * (wrong[1] - wrong[0]))
    wrong_rows = [answer != labels for answer in answers]
    both, lost = int((wrong_rows[0] & wrong_rows[1]).sum()), int((~wrong_rows[0] & wrong_rows[1]).sum())
    won = int((wrong_rows[0] & ~wrong_rows[1]).sum())
    growth = paired_difference(both, won, lost, num_images - both - won - lost)[1]
    assert (labelled.low_points, labelled.high_points) == pytest.approx((100 * growth.low, 100 * growth.high))
    same = Evaluator(*arguments).measure(fp32)
    assert (same.num_flips, same.logit_error) == (0, 0.0)
    # z^2 / (n + z^2)
    assert (same.low_points, same.high_points) == (0.0, pytest.approx({24: 13.80, 8: 32.44}[num_images], abs=0.005))
    assert Evaluator(*arguments).least_bound() == same.high_points
    assert Evaluator(*arguments, labels).least_bound() == Evaluator(*arguments, labels).measure(fp32).high_points
