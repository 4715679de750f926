"""The accuracy loss of INT8: of each layer alone, and the fastest mixture of INT8 and FP32 within a budget."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.errors import ParityError
from alexdeploy.core.metrics import Interval, paired_difference, wilson_interval
from alexdeploy.core.spec import ModelSpec
from alexdeploy.export.drop import Drop, describe
from alexdeploy.export.events import MixtureMeasured
from alexdeploy.graphs.deployment import LOGITS, deployment_graph
from alexdeploy.graphs.edit import WEIGHTED_OPS, node_macs
from alexdeploy.graphs.files import tensor_shapes
from alexdeploy.graphs.runner import GraphRunner

_BATCH = 8
_MOST_SEARCHED = 10
"""Layers, worst first, of which all combinations are searched. An AlexNet has 8, other graphs may have more."""
_CHANCE = 1.5
"""A faster mixture is also measured if its predicted loss is at most this many times that of one within the budget."""

_MOST_TRIALS = 24
"""Most mixtures measured, not counting all layers in INT8 and the single layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """The drop from quantizing this layer alone; `macs` are of one view."""

    layer: str
    macs: int
    drop: Drop


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The layers that stay float32, the graph's drop, and how many graphs were measured to find it."""

    keep: tuple[str, ...]
    drop: Drop
    num_trials: int


class Evaluator:
    """Compares graphs, as deployed, with the answers of the FP32 network on some images.

    `images` is uint8 [N, 256, 256, 3]; `labels` int [N] or None.
    """

    def __init__(
        self,
        network: onnx.ModelProto,
        spec: ModelSpec,
        mean_image: NDArray[np.float32] | None,
        num_views: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self._spec, self._mean_image, self._num_views = spec, mean_image, num_views
        self._images, self._labels = images, labels
        self._logits, self._answers = self._run(network)

    @property
    def num_images(self) -> int:
        return len(self._images)

    def measure(self, network: onnx.ModelProto) -> Drop:
        logits, answers = self._run(network)
        num_flips = int((answers != self._answers).sum())
        share, interval = num_flips / self.num_images, wilson_interval(num_flips, self.num_images)
        if self._labels is not None:
            share, interval = self._error_growth(answers != self._labels)
        error = math.inf
        if np.isfinite(logits).all():
            error = float(np.sqrt(np.mean((logits - self._logits) ** 2) / max(np.mean(self._logits**2), 1e-30)))
        return Drop(
            num_images=self.num_images,
            num_flips=num_flips,
            has_labels=self._labels is not None,
            points=100 * share if math.isfinite(error) else 100.0,
            low_points=100 * interval.low,
            high_points=100 * interval.high if math.isfinite(error) else 100.0,
            logit_error=error,
        )

    def least_bound(self, num_images: int | None = None) -> float:
        """Upper end of the interval of a graph that changes nothing, in points: the smallest limit that can be shown.

        `num_images` None means this evaluator's images. With labels, further images are assumed to have the same error.
        """
        count = num_images or self.num_images
        if self._labels is None:
            return 100 * wilson_interval(0, count).high
        num_wrong = round(count * float((self._answers != self._labels).mean()))
        return 100 * paired_difference(num_wrong, 0, 0, count - num_wrong)[1].high

    def _error_growth(self, wrong: NDArray[np.bool_]) -> tuple[float, Interval]:
        before = self._answers != self._labels
        counts = (before & wrong, before & ~wrong, ~before & wrong, ~before & ~wrong)
        return paired_difference(*(int(each.sum()) for each in counts))

    def _run(self, network: onnx.ModelProto) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Logits of every view minus their mean, which does not affect the answer; and each image's answer."""
        graph = deployment_graph(network, self._spec, self._num_views, self._mean_image)
        runner = GraphRunner(graph, ["probabilities", LOGITS], optimize=True)
        logits, answers = [], []
        for start in range(0, self.num_images, _BATCH):
            found = runner.run(self._images[start : start + _BATCH])
            logits.append(found[LOGITS] - found[LOGITS].mean(axis=1, keepdims=True))
            answers.append(found["probabilities"].argmax(axis=1))
        return np.concatenate(logits), np.concatenate(answers)


class Trials:
    """Calls `measure` with the layers that stay float32, and reports each call.

    `expect` sets how many calls remain. `clock` returns seconds.
    """

    def __init__(
        self,
        measure: Callable[[Collection[str]], Drop],
        on_measured: Callable[[MixtureMeasured], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._measure, self._on_measured, self._clock = measure, on_measured, clock
        self._began = clock()
        self._num_done = self._num_expected = 0

    def expect(self, num_more: int) -> None:
        self._num_expected = self._num_done + num_more

    def __call__(self, keep: Collection[str]) -> Drop:
        drop = self._measure(keep)
        self._num_done += 1
        self._num_expected = max(self._num_expected, self._num_done)
        seconds_each = (self._clock() - self._began) / self._num_done
        self._on_measured(
            MixtureMeasured(
                num_done=self._num_done,
                num_expected=self._num_expected,
                seconds_left=seconds_each * (self._num_expected - self._num_done),
                fp32=tuple(sorted(keep)),
                drop=drop,
            )
        )
        return drop


def rank_layers(
    layers: Collection[str], macs: Mapping[str, int], measure: Callable[[Collection[str]], Drop]
) -> tuple[LayerCost, ...]:
    """Quantize each layer alone; worst first. `measure` takes the layers that stay float32."""
    costs = []
    for layer in layers:
        drop = measure([other for other in layers if other != layer])
        costs.append(LayerCost(layer=layer, macs=macs[layer], drop=drop))
    return tuple(sorted(costs, key=lambda cost: (-cost.drop.logit_error, cost.layer)))


def search(
    ranking: tuple[LayerCost, ...],
    whole: Drop,
    budget: float,
    measure: Callable[[Collection[str]], Drop],
    expect: Callable[[int], None] = lambda num_more: None,
) -> Choice:
    """The mixture with the most multiply-accumulates in INT8 whose drop is at most `budget` points.

    `whole` is the drop of all layers in INT8. Quantization errors of different layers are nearly uncorrelated, so the
    squared drops of the single layers add up to a prediction. Bisection finds the fastest mixture within the budget on
    the Pareto front of speed and prediction; then faster mixtures are measured, most promising first. `expect` gets the
    maximum number of measurements that remain. Raises ParityError if not even a single layer can be INT8.
    """
    tried: dict[frozenset[str], Drop] = {frozenset(): whole}
    names = [cost.layer for cost in ranking]
    for cost in ranking:
        tried[frozenset(names) - {cost.layer}] = cost.drop
    if whole.points <= budget:
        return Choice(keep=(), drop=whole, num_trials=len(tried))
    if all(cost.drop.points > budget for cost in ranking):
        best = min(ranking, key=lambda cost: cost.drop.points)
        raise ParityError(
            f"INT8 cannot hold a drop of {budget:g} points: even with {best.layer} alone in INT8 it is "
            f"{best.drop.points:.2f}: {describe(best.drop)}",
            hint="No INT8 file was written. Use FP16 (alexdeploy export --fp16), calibrate on other images, "
            "or allow more with --max-drop.",
        )
    mixtures = _Mixtures(ranking)
    num_measured = len(tried)

    def drop_of(keep: frozenset[str]) -> Drop:
        if keep not in tried:
            tried[keep] = measure(keep)
        return tried[keep]

    # Along the front the prediction falls as the cost rises: bisect for the first mixture within the budget.
    front = mixtures.front()
    low, high = 0, len(front)
    while low < high:
        expect((high - low).bit_length())
        middle = (low + high) // 2
        if drop_of(front[middle]).points <= budget:
            high = middle
        else:
            low = middle + 1
    # At least one single layer is within the budget, whatever was predicted.
    best_keep = min((keep for keep, drop in tried.items() if drop.points <= budget), key=mixtures.cost)
    promising = mixtures.most_promising_first()
    for position, keep in enumerate(promising):
        num_left = _MOST_TRIALS - (len(tried) - num_measured)
        if num_left <= 0 or mixtures.predicted(keep) > _CHANCE * mixtures.predicted(best_keep):
            break
        if mixtures.cost(keep) < mixtures.cost(best_keep):
            if keep not in tried:
                faster = mixtures.worth_a_trial(promising[position:], best_keep)
                expect(min(num_left, sum(each not in tried for each in faster)))
            if drop_of(keep).points <= budget:
                best_keep = keep
    keep_in_order = tuple(name for name in names if name in best_keep)
    return Choice(keep=keep_in_order, drop=tried[best_keep], num_trials=len(tried))


class _Mixtures:
    """All sets of layers that may stay float32, with their cost in speed and their predicted loss."""

    def __init__(self, ranking: tuple[LayerCost, ...]) -> None:
        self._macs = {cost.layer: cost.macs for cost in ranking}
        # An infinite error must still be comparable.
        self._squares = {cost.layer: min(cost.drop.logit_error, 1e6) ** 2 for cost in ranking}
        worst = [cost.layer for cost in ranking[:_MOST_SEARCHED]]
        self._sets = [
            frozenset(keep)
            for size in range(1, len(worst) + 1)
            for keep in itertools.combinations(worst, size)
            if size < len(ranking)
        ]
        # In a graph with more layers than are searched, the worst of all stay float32 together.
        names = [cost.layer for cost in ranking]
        self._sets += [frozenset(names[:size]) for size in range(_MOST_SEARCHED + 1, len(names))]

    def cost(self, keep: frozenset[str]) -> tuple[int, int, list[str]]:
        """Sort key: multiply-accumulates left in FP32, then the number of layers."""
        return sum(self._macs[name] for name in keep), len(keep), sorted(keep)

    def predicted(self, keep: frozenset[str]) -> float:
        return sum(square for name, square in self._squares.items() if name not in keep)

    def worth_a_trial(self, keeps: Collection[frozenset[str]], best: frozenset[str]) -> list[frozenset[str]]:
        """The sets in `keeps` that are faster than `best` and whose predicted loss is small enough."""
        limit = _CHANCE * self.predicted(best)
        return [keep for keep in keeps if self.predicted(keep) <= limit and self.cost(keep) < self.cost(best)]

    def front(self) -> list[frozenset[str]]:
        """The Pareto front, fastest first: each mixture has a smaller predicted loss than all faster ones."""
        front: list[frozenset[str]] = []
        for keep in sorted(self._sets, key=lambda keep: (self.cost(keep)[0], self.predicted(keep))):
            if not front or self.predicted(keep) < self.predicted(front[-1]):
                front.append(keep)
        return front

    def most_promising_first(self) -> list[frozenset[str]]:
        return sorted(self._sets, key=lambda keep: (self.predicted(keep), self.cost(keep)))


def layer_macs(network: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates per view of each node that has a weight."""
    shapes = tensor_shapes(network)
    weights = {tensor.name: tuple(tensor.dims) for tensor in network.graph.initializer}
    return {
        node.name: node_macs(node, weights[node.input[1]], shapes.get(node.output[0], []))
        for node in network.graph.node
        if node.op_type in WEIGHTED_OPS and node.input[1] in weights
    }
