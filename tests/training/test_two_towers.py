from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE
from safetensors.torch import load_file
from torch import Tensor
from training_helpers import forks_of_torch, tiny_recipe

from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe
from alexdeploy.images.folder import read_image_folder
from alexdeploy.training.checkpoint import read_checkpoint
from alexdeploy.training.events import Event
from alexdeploy.training.learner import Learner
from alexdeploy.training.parallel import ProcessGroup, held_interrupts
from alexdeploy.training.torchrun import Launch
from alexdeploy.training.towers import TowerLearner, check_towers
from alexdeploy.training.trainer import RunOptions, train

CPU = torch.device("cpu")
RECIPE = tiny_recipe("architecture.dropout=0.5")
RATE = 0.01

Pair = Callable[..., list[Any]]
AnyLearner = Learner | TowerLearner


def _join_group(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE)
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Calls a function of this module in two processes that are a gloo group; gives back both results."""
    store = str(tmp_path_factory.mktemp("group") / "store")
    context = forks_of_torch()
    with ExitStack() as stack:
        towers = [
            stack.enter_context(
                ProcessPoolExecutor(1, mp_context=context, initializer=_join_group, initargs=(rank, store))
            )
            for rank in range(2)
        ]

        def call(function: Callable[..., Any], *args: Any) -> list[Any]:
            futures: list[Future[Any]] = [tower.submit(function, *args) for tower in towers]
            return [future.result(timeout=PATIENCE) for future in futures]

        yield call
        for leaving in [tower.submit(dist.destroy_process_group) for tower in towers]:
            leaving.result(timeout=PATIENCE)


def _batch(recipe: Recipe, step: int, num_classes: int, num: int = 6) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(step)
    side = recipe.architecture.input
    views = rng.normal(0, 1, (num, 3, side, side)).astype(np.float32)
    return torch.from_numpy(views), torch.from_numpy(rng.integers(0, num_classes, num))


def _learner(form: str, recipe: Recipe, num_classes: int) -> AnyLearner:
    if form == "one":
        return Learner(recipe, num_classes, CPU)
    return TowerLearner(recipe, num_classes, CPU, _group())


def _group() -> ProcessGroup:
    rank = dist.get_rank()
    return ProcessGroup(Launch(rank=rank, size=2, local_rank=rank, local_size=2, host="", port=0))


def _take_steps(learner: AnyLearner, recipe: Recipe, steps: range, num_classes: int) -> list[float]:
    losses = []
    learner.begin_epoch(1)
    for step in steps:
        views, labels = _batch(recipe, step, num_classes)
        loss = learner.compute_gradients(views, labels, dropout_seed=step).loss / len(labels)
        learner.update(RATE)
        losses.append(float(loss))
    return losses


def _train(
    form: str, recipe: Recipe, num_steps: int, num_classes: int, state: dict[str, Any] | None = None, first: int = 0
) -> dict[str, Any]:
    """The state after `num_steps`, from the first weights or from `state`, which has taken `first` steps."""
    torch.set_num_threads(1)
    learner = _learner(form, recipe, num_classes)
    if state is not None:
        learner.load_state(state)
    losses = _take_steps(learner, recipe, range(first, first + num_steps), num_classes)
    views, _ = _batch(recipe, 1000, num_classes)
    return {"losses": losses, "state": learner.state(), "logits": learner.evaluate(views).clone()}


def _largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the largest number of each tensor."""
    assert list(found) == list(expected)
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., dict[str, Any]]]:
    """What a Learner does on one thread."""
    num_threads = torch.get_num_threads()

    def train(*args: Any) -> dict[str, Any]:
        return _train("one", *args)

    yield train
    torch.set_num_threads(num_threads)


def test_gradients_are_those_of_the_network_in_one_process(pair: Pair, one_process: Callable[..., Any]) -> None:
    # After one step from rest and without weight decay, a velocity is the gradient times the rate.
    recipe = tiny_recipe("architecture.dropout=0.5", "training.weight_decay=0")
    expected = one_process(recipe, 1, 5)
    for found in pair(_train, "towers", recipe, 1, 5):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
        assert _largest_difference(found["state"]["velocities"], expected["state"]["velocities"]) < 1e-5


def test_after_twenty_steps_the_weights_are_those_of_one_process(pair: Pair, one_process: Callable[..., Any]) -> None:
    expected = one_process(RECIPE, 20, 5)
    found, other = pair(_train, "towers", RECIPE, 20, 5)
    assert _largest_difference(found["state"]["weights"], expected["state"]["weights"]) < 1e-5
    assert _largest_difference(found["state"]["velocities"], expected["state"]["velocities"]) < 1e-4
    assert torch.allclose(found["logits"], expected["logits"], atol=1e-5)
    assert found["losses"] == other["losses"]
    assert _is_same(found["state"]["weights"], other["state"]["weights"])


_SMALL_CONVS = (
    "architecture.convs=["
    "{channels=8,kernel=11,stride=4,lrn=true,pool=true},"
    "{channels=12,kernel=5,padding=2,lrn=true,pool=true},"
    "{channels=7,kernel=3,padding=1,crossing=true}]"
)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("architecture.remove=['conv3']",), id="no conv3"),
        pytest.param(("architecture.remove=['conv2']",), id="no conv2"),
        pytest.param(("architecture.remove=['conv5']",), id="no conv5"),
        pytest.param(("architecture.lrn=none", "architecture.activation=tanh"), id="no lrn, tanh"),
        pytest.param(("architecture.order=pool-lrn", "architecture.dropout=0"), id="pool-lrn, no dropout"),
        pytest.param(("architecture.width=1", "architecture.hidden=[9]", _SMALL_CONVS), id="odd widths"),
    ],
)
def test_every_variant_of_two_towers_trains_as_in_one_process(
    pair: Pair, one_process: Callable[..., Any], overrides: tuple[str, ...]
) -> None:
    recipe = tiny_recipe("architecture.dropout=0.5", *overrides)
    expected = one_process(recipe, 3, 7)
    for found in pair(_train, "towers", recipe, 3, 7):
        assert _largest_difference(found["state"]["weights"], expected["state"]["weights"]) < 1e-5


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("training.clip_norm=0.5",), id="clipping"),
        pytest.param(("training.clip_norm=0.5", "training.freeze=['conv1', 'conv2']"), id="frozen, clipping"),
        pytest.param(("training.freeze=['conv1','conv2','conv3','conv4','conv5']",), id="no gradient before fc6"),
        pytest.param(
            ("training.bias_rate_factor=2", "training.decay_biases=false", "training.last_layer_factor=3"), id="rates"
        ),
        pytest.param(("training.label_smoothing=0.1",), id="label smoothing"),
    ],
)
def test_options_of_training_do_the_same_as_in_one_process(
    pair: Pair, one_process: Callable[..., Any], overrides: tuple[str, ...]
) -> None:
    recipe = tiny_recipe("architecture.dropout=0.5", *overrides)
    expected = one_process(recipe, 3, 5)
    assert not _is_same(expected["state"]["weights"], one_process(RECIPE, 3, 5)["state"]["weights"])
    for found in pair(_train, "towers", recipe, 3, 5):
        assert _largest_difference(found["state"]["weights"], expected["state"]["weights"]) < 1e-5


def test_a_run_goes_on_in_the_other_form(pair: Pair, one_process: Callable[..., Any]) -> None:
    expected = one_process(RECIPE, 6, 5)["state"]["weights"]
    half_way = one_process(RECIPE, 3, 5)["state"]
    begun_in_two, _ = pair(_train, "towers", RECIPE, 3, 5)
    then_in_one = one_process(RECIPE, 3, 5, begun_in_two["state"], 3)
    then_in_two, _ = pair(_train, "towers", RECIPE, 3, 5, half_way, 3)
    assert _largest_difference(then_in_one["state"]["weights"], expected) < 1e-5
    assert _largest_difference(then_in_two["state"]["weights"], expected) < 1e-5


def test_a_state_comes_back_bit_for_bit(pair: Pair, one_process: Callable[..., Any]) -> None:
    state = one_process(RECIPE, 2, 5)["state"]
    for found in pair(_train, "towers", RECIPE, 0, 5, state):
        assert found["state"].keys() == state.keys()
        assert _is_same(found["state"]["weights"], state["weights"])
        assert _is_same(found["state"]["velocities"], state["velocities"])


def test_the_first_weights_are_those_of_one_process(pair: Pair) -> None:
    expected = Learner(RECIPE, 5, CPU).weights()
    for found in pair(_train, "towers", RECIPE, 0, 5):
        assert _is_same(found["state"]["weights"], expected)


def test_the_towers_meet_before_conv3_and_the_fully_connected_layers_only(pair: Pair) -> None:
    # 67 pixels make 3x3 maps before conv3 and 1x1 after conv5; 16 maps or units a layer, 6 images, 5 classes.
    maps, units = (6, 3, 3, 8), (6, 8)
    conv3, fc6, fc7, fc8 = (maps, maps), (units, units), (units, units), (units, units)
    for tower, found in enumerate(pair(_exchanges, RECIPE, 5)):
        logits = ((6, 3), (6, 2)) if tower == 0 else ((6, 2), (6, 3))
        forward, backward = [conv3, fc6, fc7, fc8, logits], [fc8, fc7, fc6, conv3]
        assert found == [
            (f"gloo:{way}", shape)
            for sent, received in forward + backward
            for way, shape in (("send", sent), ("recv", received))
        ]


def _exchanges(recipe: Recipe, num_classes: int) -> list[tuple[str, tuple[int, ...]]]:
    """What gloo was asked for in one training step, whatever function asked."""
    learner = _learner("towers", recipe, num_classes)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        _take_steps(learner, recipe, range(1), num_classes)
    return [(event.name, tuple(event.input_shapes[0])) for event in profile.events() if "gloo" in event.name]


def test_without_conv3_the_convolutions_never_meet(pair: Pair) -> None:
    recipe = tiny_recipe("architecture.remove=['conv3']")
    found, _ = pair(_exchanges, recipe, 5)
    assert all(len(shape) == 2 for _, shape in found)
    assert len(found) == 2 * (4 + 3)


def test_both_towers_know_when_one_holds_no_numbers(pair: Pair) -> None:
    weights = Learner(RECIPE, 5, CPU).weights()
    assert pair(_is_finite, RECIPE, 5, weights) == [True, True]
    weights["conv2.weight"][-1] = torch.nan
    assert pair(_is_finite, RECIPE, 5, weights) == [False, False]


def _is_finite(recipe: Recipe, num_classes: int, weights: dict[str, Tensor]) -> bool:
    learner = _learner("towers", recipe, num_classes)
    learner.load_weights(weights)
    return learner.is_finite()


_BF16_ROUNDING = 2.0**-9
"""How far rounding to the 8 significant bits of bfloat16 moves a number at most, relative to it."""

_NUM_BF16_ROUNDINGS = 2 * 3 * 8
"""Forwards and backwards, the inputs, the weights and the results of eight layers are rounded."""


def test_sixteen_bits_train_as_in_one_process(pair: Pair, one_process: Callable[..., Any]) -> None:
    recipe = tiny_recipe("training.precision=bf16")
    expected = one_process(recipe, 5, 5)
    for found in pair(_train, "towers", recipe, 5, 5):
        # In which order a kernel adds up decides which way each result is rounded. Roundings that have nothing to do
        # with each other add up as squares: sqrt(48) / 512 = 1.4 % in either run, 1.9 % between the two. If all went
        # the same way it would be 48 / 512 = 9.4 %: five times as much.
        assert found["losses"] == pytest.approx(expected["losses"], rel=_NUM_BF16_ROUNDINGS * _BF16_ROUNDING)


def test_a_step_in_which_one_tower_overflowed_is_left_out_by_both(pair: Pair, one_process: Callable[..., Any]) -> None:
    recipe = tiny_recipe("training.precision=fp16", "architecture.lrn=none")
    state = one_process(recipe, 0, 5)["state"]
    state["scaler"]["scale"] = 1024.0
    found, _ = pair(_train, "towers", recipe, 1, 5, state)
    assert found["state"]["scaler"]["scale"] == 1024.0
    assert not _is_same(found["state"]["weights"], state["weights"])
    # Small maps and large weights after them: all as before but the gradients of these maps, in tower 1 alone.
    for name, factor in (("conv1.weight", 2.0**-12), ("conv1.bias", 2.0**-12), ("conv2.weight", 2.0**12)):
        half = state["weights"][name].tensor_split(2)[1]
        half *= factor
    for found in pair(_train, "towers", recipe, 1, 5, state):
        assert found["state"]["scaler"]["scale"] == 512.0
        assert _is_same(found["state"]["weights"], state["weights"])


_TWO_EPOCHS = tiny_recipe("architecture.dropout=0.5", "training.epochs=2")
_OPTIONS = RunOptions(device="cpu", threads=1, parallel="towers")


def test_the_published_model_is_that_of_one_process(pair: Pair, tiny_folder: Path, tmp_path: Path) -> None:
    one, two = ModelFolder(tmp_path / "one"), ModelFolder(tmp_path / "two")
    train(read_image_folder(tiny_folder), _TWO_EPOCHS, one, dataclasses.replace(_OPTIONS, parallel="batches"), _ignore)
    assert pair(_publish, tiny_folder, two) == ["finished", "finished"]
    expected, found = load_file(one.weights_path), load_file(two.weights_path)
    assert _largest_difference(found, expected) < 1e-5
    assert two.spec().contract_sha256 == one.spec().contract_sha256
    for error in ("val_top1_error", "val_top1_error_10_views"):
        assert two.spec().provenance[error] == one.spec().provenance[error]


def test_one_tower_interrupted_in_validation_stops_both(pair: Pair, tiny_folder: Path, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "model")
    assert pair(_publish_with_interrupt, tiny_folder, folder) == ["stopped", "stopped"]
    assert read_checkpoint(folder.checkpoint_path).progress.step == 5
    assert pair(_publish, tiny_folder, folder, True) == ["finished", "finished"]


def _publish(images: Path, folder: ModelFolder, resume: bool = False) -> str:
    options, group = dataclasses.replace(_OPTIONS, resume=resume), _group()
    try:
        with held_interrupts(group.interrupts):
            train(read_image_folder(images), _TWO_EPOCHS, folder, options, _ignore, group)
    except KeyboardInterrupt:
        return "stopped"
    return "finished"


def _publish_with_interrupt(images: Path, folder: ModelFolder) -> str:
    evaluate = TowerLearner.evaluate

    def evaluate_interrupted(self: TowerLearner, views: Tensor) -> Tensor:
        logits = evaluate(self, views)
        if dist.get_rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TowerLearner, "evaluate", evaluate_interrupted)
        return _publish(images, folder)


def _ignore(event: Event) -> None:
    pass


@pytest.mark.parametrize(
    ("overrides", "num_processes", "reason"),
    [
        (("architecture.towers=1",), 2, "has one tower"),
        (("architecture.lrn.per_tower=false",), 2, r"norm1 normalizes(.|\n)*architecture.lrn.per_tower=true"),
        ((), 3, r"found 3(.|\n)*--nproc-per-node 2"),
    ],
)
def test_what_is_not_two_towers_on_two_processes_is_refused(
    overrides: tuple[str, ...], num_processes: int, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        check_towers(tiny_recipe(*overrides).architecture, num_processes)


def _is_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
