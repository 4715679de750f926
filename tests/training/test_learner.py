"""One step of the learner under each option of the recipe, against numbers from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_helpers import tiny_recipe

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.training.learner import Learner, choose_device, float32_arithmetic

NUM_CLASSES = 3


def make_learner(*overrides: str) -> Learner:
    return Learner(tiny_recipe("architecture.dropout=0", *overrides), NUM_CLASSES, torch.device("cpu"))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 67, 67, generator=generator), torch.tensor([0, 2, 1, 2])


def take_step(learner: Learner, batch: tuple[Tensor, Tensor], rate: float = 0.01) -> dict[str, Tensor]:
    """The change of each weight."""
    before = learner.weights()
    learner.compute_gradients(*batch, dropout_seed=0)
    learner.update(rate)
    return {name: weight - before[name] for name, weight in learner.weights().items()}


def test_label_smoothing_is_the_cross_entropy_with_softened_labels(batch):
    learner = make_learner("training.label_smoothing=0.3")
    views, labels = batch
    soft = np.full((4, NUM_CLASSES), 0.3 / NUM_CLASSES)
    soft[np.arange(4), labels] += 0.7
    logits = learner.evaluate(views).double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(soft * log_probabilities).sum(axis=1).mean()
    assert float(learner.compute_gradients(views, labels, dropout_seed=0).loss) / 4 == pytest.approx(expected, rel=1e-5)


def test_clipping_scales_all_gradients_by_their_common_norm(batch):
    free = take_step(make_learner("training.weight_decay=0"), batch)
    norm = float(torch.cat([change.flatten() for change in free.values()]).norm()) / 0.01
    clipped = take_step(make_learner("training.weight_decay=0", f"training.clip_norm={norm / 4}"), batch)
    for name, change in free.items():
        torch.testing.assert_close(clipped[name], change / 4, rtol=1e-2, atol=1e-7)
    unchanged = take_step(make_learner("training.weight_decay=0", f"training.clip_norm={norm * 4}"), batch)
    assert all(torch.equal(unchanged[name], change) for name, change in free.items())


def test_a_layer_is_frozen_from_its_epoch_on_and_the_others_learn(batch):
    learner = make_learner("training.freeze=['conv1','fc6']", "training.freeze_epoch=2")
    learner.begin_epoch(1)
    assert all(change.any() for change in take_step(learner, batch).values())
    learner.begin_epoch(2)
    changed = {name for name, change in take_step(learner, batch).items() if change.any()}
    assert set(learner.weights()) - changed == {"conv1.weight", "conv1.bias", "fc6.weight", "fc6.bias"}


def test_biases_and_the_last_layer_learn_at_rates_of_their_own(batch):
    plain = take_step(make_learner("training.weight_decay=0"), batch)
    factors = ("training.bias_rate_factor=2", "training.last_layer_factor=5")
    faster = take_step(make_learner("training.weight_decay=0", *factors), batch)
    for name, change in plain.items():
        factor = (2 if name.endswith("bias") else 1) * (5 if name.startswith("fc8") else 1)
        torch.testing.assert_close(faster[name], change * factor, rtol=1e-3, atol=1e-7)


def test_a_state_goes_back_to_a_learner_whose_parameters_are_in_groups(batch):
    overrides = ("training.bias_rate_factor=2", "training.last_layer_factor=5", "training.decay_biases=false")
    first, second = make_learner(*overrides), make_learner(*overrides, "training.seed=7")
    take_step(first, batch)
    second.load_state(first.state())
    for learner in (first, second):
        take_step(learner, batch)
    for part in ("weights", "velocities"):
        assert all(torch.equal(value, second.state()[part][name]) for name, value in first.state()[part].items())


def test_the_loss_is_pytorchs_own_without_options(batch):
    learner = make_learner()
    views, labels = batch
    expected = F.cross_entropy(learner.evaluate(views), labels)
    answers = learner.evaluate(views).argmax(dim=1)
    sums = learner.compute_gradients(views, labels, dropout_seed=0)
    assert torch.equal(sums.loss, expected.double() * len(labels))
    assert int(sums.num_right) == int((answers == labels).sum())


def test_the_average_is_that_of_the_weights_after_each_step(batch):
    plain, averaged = make_learner(), make_learner("training.average=0.75")
    expected: dict[str, np.ndarray] = {}
    for number in range(4):
        for learner in (plain, averaged):
            take_step(learner, batch)
        for name, weight in plain.weights().items():
            now = weight.double().numpy()
            # The average begins with the weights after the first step.
            expected[name] = now if number == 0 else 0.75 * expected[name] + 0.25 * now
    for name, average in averaged.weights().items():
        # Three float32 interpolations, each with at most two roundings of the largest number.
        bound = 6 * 2**-24 * np.abs(expected[name]).max()
        np.testing.assert_allclose(average.numpy(), expected[name], rtol=0, atol=bound)
    again = make_learner("training.average=0.75", "training.seed=7")
    again.load_state(averaged.state())
    for learner in (again, averaged):
        take_step(learner, batch)
    assert all(torch.equal(again.weights()[name], weight) for name, weight in averaged.weights().items())


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("others", ["highest", "high"])
def test_tf32_is_used_where_it_is_asked_for_and_the_process_is_as_before(batch, precision, others):
    def settings() -> tuple[object, ...]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.allow_tf32, cudnn.conv.fp32_precision, matmul.allow_tf32, matmul.fp32_precision

    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(others)
    try:
        before, seen = settings(), set()
        learner = make_learner(f"training.precision={precision}")
        for module in learner._network.modules():
            module.register_forward_pre_hook(lambda *given: seen.add(settings()))
        for parameter in learner._network.parameters():
            parameter.register_hook(lambda gradient: seen.add(settings()))
        take_step(learner, batch)
        learner.evaluate(batch[0])
        after = settings()
    finally:
        torch.set_float32_matmul_precision(earlier)
    # cuDNN's default, which is what has to be turned off.
    assert before[:2] == (True, "tf32")
    assert seen == {(True, "tf32", True, "tf32") if precision == "tf32" else (False, "ieee", False, "ieee")}
    assert after == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
def test_fp32_on_a_gpu_has_the_error_of_fp32_and_tf32_that_of_tf32():
    views, kernels = torch.randn(8, 96, 27, 27, device="cuda"), torch.randn(256, 96, 5, 5, device="cuda")
    exact = F.conv2d(views.double(), kernels.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        with float32_arithmetic(tf32=precision == "tf32"):
            found = F.conv2d(views, kernels)
        errors[precision] = float((found.double() - exact).norm() / exact.norm())
    # Rounding to a mantissa of 10 bits errs by 2^-12 on average, to one of 23 bits by 2^-25; sums add a little.
    assert errors["fp32"] < 1e-5 < 1e-4 < errors["tf32"] < 1e-2


def test_where_all_parameters_of_a_rate_are_frozen_the_others_learn(batch):
    learner = make_learner(
        "training.last_layer_factor=5", "training.freeze=['conv1','conv2','conv3','conv4','conv5','fc6','fc7']"
    )
    learner.begin_epoch(1)
    changed = {name for name, change in take_step(learner, batch).items() if change.any()}
    assert changed == {"fc8.weight", "fc8.bias"}


def test_a_device_that_training_does_not_run_on_is_refused():
    with pytest.raises(UsageError, match="training runs on cpu and cuda, not on meta"):
        choose_device("meta", "fp32")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        choose_device("gpu", "fp32")
    with pytest.raises(DeviceError, match=r"cuda:63 was asked for; PyTorch finds [0-9]+ CUDA devices"):
        choose_device("cuda:63", "fp32")
