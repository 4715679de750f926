"""Caffe's arithmetic in NumPy, against PyTorch's operators in float64."""

from __future__ import annotations

import dataclasses

import caffe_files as files
import numpy as np
import pytest
import torch
from caffe_files import Entry
from torch.nn import functional

from alexdeploy.importing.caffe import reference
from alexdeploy.importing.caffe.convert import convert
from alexdeploy.importing.caffe.parse import CaffeLayer, LRNAcross, Pooling, read_caffemodel


def torch_forward(values: dict[str, np.ndarray], x: torch.Tensor, *, pool_first: bool) -> torch.Tensor:
    """bvlc_alexnet or caffenet, written out; PyTorch's LRN divides alpha by the size as Caffe's does."""
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in values.items()}
    for index, (stride, padding, groups) in enumerate([(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)], start=1):
        name = f"conv{index}"
        x = functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding, groups=groups).relu()
        steps = [lambda t: functional.local_response_norm(t, 5, 1e-4, 0.75, 1.0)] if index < 3 else []
        steps += [lambda t: functional.max_pool2d(t, 3, 2, ceil_mode=True)] if index in (1, 2, 5) else []
        for step in reversed(steps) if pool_first else steps:
            x = step(x)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]).relu()
    return functional.linear(x, w["fc8.weight"], w["fc8.bias"])


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_whole_network_gives_what_pytorch_gives(pool_first: bool, old: bool) -> None:
    values = files.weights()
    net = read_caffemodel(files.net(files.alexnet(values, pool_first=pool_first), old=old), "theirs")
    x = np.random.default_rng(1).normal(0, 60, (2, 3, 227, 227))
    found = reference.forward(convert(net, "theirs", None).chain, x)
    expected = torch_forward(values, torch.from_numpy(x), pool_first=pool_first).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_pooling_rounds_up_as_pytorch_does_in_ceil_mode(size: int) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, size, size))
    for rounds_up in (True, False):
        layer = CaffeLayer(name="p", type="Pooling", parameters=Pooling(kernel=3, stride=2, rounds_up=rounds_up))
        expected = functional.max_pool2d(torch.from_numpy(x), 3, 2, ceil_mode=rounds_up).numpy()
        np.testing.assert_array_equal(reference.forward([layer], x), expected)
        means = dataclasses.replace(layer, parameters=dataclasses.replace(layer.parameters, is_average=True))
        expected = functional.avg_pool2d(torch.from_numpy(x), 3, 2, ceil_mode=rounds_up).numpy()
        np.testing.assert_allclose(reference.forward([means], x), expected, rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_lrn_is_that_of_pytorch_at_the_borders_too(channels: int) -> None:
    x = np.random.default_rng(0).normal(0, 5, (2, channels, 3, 3))
    layer = CaffeLayer(name="n", type="LRN", parameters=LRNAcross(size=5, alpha=0.3, beta=0.6, k=1.5))
    expected = functional.local_response_norm(torch.from_numpy(x), 5, 0.3, 0.6, 1.5).numpy()
    np.testing.assert_allclose(reference.forward([layer], x), expected, rtol=1e-12)


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
@pytest.mark.parametrize("as_image", [False, True])
def test_the_data_layer_subtracts_the_mean_before_it_scales_and_crops(channels: str, as_image: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    mean = rng.uniform(90, 130, (3, 256, 256) if as_image else 3)
    found = reference.transform(image, 227, channels, mean, 0.5)
    for place, channel in enumerate("bgr" if channels == "bgr" else "rgb"):
        subtracted = mean[place, 14 + 100, 14 + 200] if as_image else mean[place]
        expected = (float(image[0, 114, 214, "rgb".index(channel)]) - subtracted) * 0.5
        assert found[0, place, 100, 200] == pytest.approx(expected, rel=1e-12)


def test_a_leak_a_sigmoid_and_a_tanh_are_what_they_are_called() -> None:
    x = np.array([[-2.0, 3.0]])
    content = files.net(
        [
            Entry(name="data", type="Data", top=("d",)),
            Entry(name="a", type="ReLU", bottom=("d",), top=("a",), parameters={"negative_slope": 0.01}),
            Entry(name="b", type="TanH", bottom=("a",), top=("b",)),
            Entry(name="c", type="Sigmoid", bottom=("b",), top=("c",)),
        ]
    )
    layers = read_caffemodel(content, "x").layers[1:]
    expected = 1 / (1 + np.exp(-np.tanh(np.array([[-0.02, 3.0]]))))
    np.testing.assert_allclose(reference.forward(layers, x), expected, rtol=1e-12)
