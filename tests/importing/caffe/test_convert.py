"""Caffe networks, written by tests/caffe_files.py, as architectures and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import caffe_files as files
import numpy as np
import pytest
from caffe_files import Entry

from alexdeploy.core.errors import ModelError
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import Pooling
from alexdeploy.importing.caffe.convert import Converted, convert
from alexdeploy.importing.caffe.parse import read_binaryproto, read_caffemodel
from alexdeploy.network.layers import plan_layers

WEIGHTS = files.weights()


def converted(content: bytes, input_size: int | None = None) -> Converted:
    return convert(read_caffemodel(content, "theirs.caffemodel"), "theirs.caffemodel", input_size)


def refused(content: bytes, input_size: int | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        converted(content, input_size)
    assert caught.value.message.startswith("theirs.caffemodel")
    return caught.value.text


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", ["shape", "legacy", "double", "unpacked"])
def test_weights_come_back_bit_for_bit_in_every_form(old: bool, form: str) -> None:
    found = converted(files.net(files.alexnet(WEIGHTS), old=old, form=form))
    assert set(found.weights) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert found.weights[name].dtype == np.float32
        np.testing.assert_array_equal(found.weights[name], value, err_msg=name)


@pytest.mark.parametrize(("recipe", "pool_first"), [("caffe-alexnet", False), ("caffenet", True)])
@pytest.mark.parametrize("old", [False, True])
def test_the_layers_of_bvlcs_networks_are_those_of_the_recipes(recipe: str, pool_first: bool, old: bool) -> None:
    found = converted(files.net(files.alexnet(WEIGHTS, pool_first=pool_first), old=old))
    expected = load_recipe(recipe).architecture
    for layer, named in zip(
        plan_layers(found.architecture, files.CLASSES), plan_layers(expected, files.CLASSES), strict=True
    ):
        assert (layer.kind, layer.name, layer.kernel, layer.stride, layer.padding, layer.groups, layer.lrn) == (
            named.kind,
            named.name,
            named.kernel,
            named.stride,
            named.padding,
            named.groups,
            named.lrn,
        )
        assert layer.output_shape[1:] == named.output_shape[1:]
    assert found.architecture.lrn is not None
    assert (found.architecture.lrn.k, found.architecture.lrn.per_tower) == (1.0, False)


def test_constants_are_those_of_the_file() -> None:
    entries = files.alexnet(WEIGHTS)
    for name in ("norm1", "norm2"):
        entries = files.changed(entries, name, parameters={"local_size": 3, "alpha": 5e-5, "beta": 0.5, "k": 2.0})
    entries = files.changed(entries, "drop6", parameters={"dropout_ratio": 0.25})
    entries = files.changed(entries, "drop7", parameters={"dropout_ratio": 0.25})
    architecture = converted(files.net(entries)).architecture
    assert architecture.lrn is not None
    assert (architecture.lrn.size, architecture.lrn.alpha, architecture.lrn.beta, architecture.lrn.k) == (
        3,
        5e-5,
        0.5,
        2.0,
    )
    assert architecture.dropout == 0.25


def test_an_ungrouped_network_has_one_tower() -> None:
    values = files.weights()
    entries = files.alexnet(values)
    for name in ("conv2", "conv4", "conv5"):
        weight = np.concatenate([values[f"{name}.weight"]] * 2, axis=1)
        entries = files.changed(entries, name, parameters={"group": 1}, blobs=(weight, values[f"{name}.bias"]))
    architecture = converted(files.net(entries)).architecture
    assert architecture.towers == 1
    assert not any(conv.crossing for conv in architecture.convs)


def test_a_layer_without_bias_gets_zeros() -> None:
    entries = files.changed(
        files.alexnet(WEIGHTS), "conv3", parameters={"bias_term": 0}, blobs=(WEIGHTS["conv3.weight"],)
    )
    np.testing.assert_array_equal(converted(files.net(entries)).weights["conv3.bias"], np.zeros(16, np.float32))


def test_layers_that_split_only_hand_on() -> None:
    """As Caffe inserts them itself where a tensor is read twice, by the loss and by the accuracy."""
    entries = files.alexnet(WEIGHTS)
    split = Entry(name="split", type="Split", bottom=("pool1",), top=("pool1_0", "pool1_1"))
    place = [entry.name for entry in entries].index("conv2")
    entries = files.changed(entries, "conv2", bottom=("pool1_1",))
    assert converted(files.net([*entries[:place], split, *entries[place:]])).num_classes == files.CLASSES


def test_a_softmax_in_the_middle_is_not_passed_over() -> None:
    entries = files.alexnet(WEIGHTS)
    place = [entry.name for entry in entries].index("fc7")
    for top, message in (("fc6", "what soft (Softmax) has not overwritten"), ("soft", "reads soft; expected drop6")):
        soft = Entry(name="soft", type="Softmax", bottom=("fc6",), top=(top,))
        changed = files.changed(entries, "fc7", bottom=(top,))
        assert message in refused(files.net([*changed[:place], soft, *changed[place:]]))


@pytest.mark.parametrize("top", ["fc8", "prob"])
def test_a_softmax_at_the_end_is_left_to_the_deployment(top: str) -> None:
    soft = Entry(name="prob", type="Softmax", bottom=("fc8",), top=(top,))
    found = converted(files.net([*files.alexnet(WEIGHTS)[:-1], soft]))
    assert found.chain[-1].name == "fc8"


@pytest.mark.parametrize("labels_first", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_labels_may_come_from_a_data_layer_of_their_own(labels_first: bool, old: bool) -> None:
    data, *rest = files.alexnet(WEIGHTS)
    labels = Entry(name="labels", type="HDF5Data", top=("label",))
    head = [labels, data] if labels_first else [data, labels]
    found = converted(files.net([*head, *rest], old=old))
    assert found.chain[0].name == "conv1"


def test_a_second_data_layer_inside_the_chain_is_not_read_by_it() -> None:
    entries = files.alexnet(WEIGHTS)
    place = [entry.name for entry in entries].index("conv3")
    other = Entry(name="other", type="HDF5Data", top=("other",))
    entries = files.changed(entries, "conv3", bottom=("other",))
    assert "conv3 (Convolution) reads other; expected pool2" in refused(
        files.net([*entries[:place], other, *entries[place:]])
    )


def test_height_and_width_may_be_given_one_by_one() -> None:
    entries = files.changed(
        files.alexnet(WEIGHTS),
        "conv2",
        parameters={"pad": [], "pad_h": 2, "pad_w": 2, "kernel_size": [], "kernel_h": 5, "kernel_w": 5},
    )
    assert converted(files.net(entries)).architecture.convs[1].padding == 2


@pytest.mark.parametrize(("type_", "activation"), [("Sigmoid", "sigmoid"), ("TanH", "tanh")])
def test_other_activations_are_kept(type_: str, activation: str) -> None:
    entries = files.alexnet(WEIGHTS)
    for index in range(1, 8):
        entries = files.changed(entries, f"relu{index}", type=type_)
    assert converted(files.net(entries)).architecture.activation == activation


def test_average_pooling_is_kept() -> None:
    entries = files.alexnet(WEIGHTS)
    for name in ("pool1", "pool2", "pool5"):
        entries = files.changed(entries, name, parameters={"pool": 1})
    assert converted(files.net(entries)).architecture.pooling == Pooling(kernel=3, stride=2, kind="average")


def test_a_leaking_relu_is_kept_if_it_is_the_one_there_is() -> None:
    entries = files.alexnet(WEIGHTS)
    for index in range(1, 8):
        entries = files.changed(entries, f"relu{index}", parameters={"negative_slope": 0.01})
    assert converted(files.net(entries)).architecture.activation == "leaky_relu"
    assert "relu1 has negative_slope 0.2" in refused(
        files.net(files.changed(entries, "relu1", parameters={"negative_slope": 0.2}))
    )


@pytest.mark.parametrize(
    "source",
    [
        Entry(name="data", type="Data", top=("data",), parameters={"crop_size": 227}),
        Entry(name="data", type="OldData", top=("data",), parameters={"crop_size": 227}),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_the_size_of_the_input_is_in_the_data_layer(source: Entry, old: bool) -> None:
    content = files.net(files.alexnet(WEIGHTS, data=source), old=old)
    assert converted(content, 224).architecture.input == 227


@pytest.mark.parametrize(
    "head",
    [
        files.text(3, "data") + b"".join(files.integer(4, size) for size in (10, 3, 227, 227)),
        files.text(3, "data") + files.chunk(8, files.chunk(1, b"".join(files.varint(s) for s in (1, 3, 227, 227)))),
    ],
)
def test_the_size_of_the_input_is_at_the_top_of_a_network_for_deployment(head: bytes) -> None:
    entries = files.alexnet(WEIGHTS)[1:-1]
    assert converted(files.net(entries, head=head)).architecture.input == 227
    assert "does not contain the size of its input" in refused(files.net(entries))
    assert converted(files.net(entries), 227).architecture.input == 227


def test_the_input_may_have_another_name_and_others_beside_it() -> None:
    entries = files.changed(files.alexnet(WEIGHTS)[1:-1], "conv1", bottom=("images",))
    sizes = b"".join(files.integer(4, size) for size in (1, 3, 227, 227, 1, 1, 1, 1))
    head = files.text(3, "images") + files.text(3, "label") + sizes
    assert converted(files.net(entries, head=head)).architecture.input == 227
    other = files.changed(entries, "conv1", bottom=("label",))
    assert "conv1 (Convolution) reads label; expected the image" in refused(files.net(other, head=head))


def test_an_input_layer_tells_the_size_and_nothing_of_the_pixels() -> None:
    data = Entry(name="in", type="Input", top=("images",), parameters={"shape": (10, 3, 227, 227)})
    entries = files.changed(files.alexnet(WEIGHTS, data=data), "conv1", bottom=("images",))
    assert converted(files.net(entries)).architecture.input == 227
    found = read_caffemodel(files.net(entries), "x").transform
    assert (found.crop, found.scale, found.mean_values, found.mean_file) == (227, None, (), None)


@pytest.mark.parametrize("form", ["numbers", "shape", "layer"])
def test_an_input_of_more_columns_than_rows_is_refused(form: str) -> None:
    shape = (1, 3, 227, 256)
    data = Entry(name="data", type="Input", top=("data",), parameters={"shape": shape})
    entries, head = files.alexnet(WEIGHTS, data=data), b""
    if form != "layer":
        numbers = b"".join(files.integer(4, size) for size in shape)
        entries, head = entries[1:], numbers if form == "numbers" else files.chunk(8, files.shape(*shape))
    assert "takes images of 227x256; expected as many rows as columns" in refused(files.net(entries, head=head))


def test_image_data_of_old_files_tells_scale_mean_file_and_size() -> None:
    given = {"scale": 0.25, "mean_file": "mean.proto", "crop_size": 227}
    data = Entry(name="data", type="ImageData", top=("data", "label"), parameters=given)
    content = files.net(files.alexnet(WEIGHTS, data=data), old=True)
    found = read_caffemodel(content, "x").transform
    assert (found.scale, found.crop, found.mean_file) == (0.25, 227, "mean.proto")
    assert converted(content).architecture.input == 227


@pytest.mark.parametrize(("type_", "scale"), [("Data", 1.0), ("HDF5Data", None)])
def test_a_data_layer_that_prepares_images_and_names_no_scale_has_that_of_1(type_: str, scale: float | None) -> None:
    data = Entry(name="data", type=type_, top=("data",), parameters={})
    assert read_caffemodel(files.net(files.alexnet(WEIGHTS, data=data)), "x").transform.scale == scale


def test_a_size_that_rounds_otherwise_has_a_cure_where_the_file_does_not_tell_it() -> None:
    assert "--recipe NAME" in refused(files.net(files.alexnet(WEIGHTS)[1:]), 224)
    told = files.changed(files.alexnet(WEIGHTS), "data", parameters={"crop_size": 224})
    assert "--recipe" not in refused(files.net(told))


def test_the_data_layer_tells_scale_mean_and_mean_file() -> None:
    given = {"scale": 0.0078125, "crop_size": 227, "mean_value": [104.0, 117.0, 122.679], "mean_file": "mean.proto"}
    source = Entry(name="data", type="Data", top=("data",), parameters=given)
    found = read_caffemodel(files.net(files.alexnet(WEIGHTS, data=source)), "x").transform
    assert (found.scale, found.crop, found.mean_file) == (0.0078125, 227, "mean.proto")
    assert found.mean_values == (104.0, 117.0, 122.679)


def _moved(entries: list[Entry], name: str, after: str) -> list[Entry]:
    moved = next(entry for entry in entries if entry.name == name)
    rest = [entry for entry in entries if entry.name != name]
    place = [entry.name for entry in rest].index(after) + 1
    return [*rest[:place], moved, *rest[place:]]


def _with(entries: list[Entry], name: str, type_: str, **parameters: object) -> list[Entry]:
    return [
        dataclasses.replace(entry, type=type_, parameters=parameters or None) if entry.name == name else entry
        for entry in entries
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: files.changed(e, "norm2", parameters={"norm_region": 1}),
            "norm2 is an LRN with norm_region: WITHIN_CHANNEL",
        ),
        (lambda e: files.changed(e, "norm2", parameters={"alpha": 1.0}), "norm2 is LRNAcross(size=5, alpha=1.0"),
        (lambda e: files.changed(e, "norm1", parameters={"local_size": 4}), "norm2 is LRNAcross"),
        (lambda e: files.changed(e, "pool1", parameters={"pool": 2}), "pool1 pools by STOCHASTIC; only MAX and AVE"),
        (lambda e: files.changed(e, "pool1", parameters={"pool": 1}), "pool2 is Pooling(kernel=3"),
        (lambda e: files.changed(e, "pool1", parameters={"pad": 1}), "pool1 is a pooling with padding"),
        (lambda e: files.changed(e, "pool5", parameters={"kernel_size": 2}), "pool5 is Pooling(kernel=2"),
        (lambda e: files.changed(e, "relu3", type="Eltwise"), "relu3 is of type Eltwise, which no AlexNet has"),
        (lambda e: files.changed(e, "conv3", parameters={"dilation": 2}), "conv3 is a dilated convolution"),
        (
            lambda e: files.changed(e, "conv3", parameters={"kernel_h": 3, "kernel_w": 5, "kernel_size": []}),
            "conv3 has kernel_size [3, 5]; expected one size",
        ),
        (lambda e: files.changed(e, "conv3", parameters={"kernel_size": 0}), "conv3 has kernel_size 0"),
        (lambda e: files.changed(e, "conv3", parameters={"pad": [], "pad_h": 1}), "conv3 has pad [1, 0]; expected one"),
        (lambda e: files.changed(e, "conv3", parameters={"pad": [], "pad_w": 1}), "conv3 has pad [0, 1]; expected one"),
        (lambda e: files.changed(e, "conv1", parameters={"stride": [], "stride_h": 4}), "conv1 has stride [4, 0]"),
        (lambda e: files.changed(e, "conv4", parameters={"group": 4}), "conv2 has group 2; expected 1 or 4"),
        (lambda e: files.changed(e, "conv3", parameters={"num_output": -5}), "conv3 has num_output -5"),
        (lambda e: files.changed(e, "fc7", parameters={"transpose": 1}), "fc7 is an InnerProduct with axis or"),
        (
            lambda e: files.changed(e, "conv3", blobs=(WEIGHTS["conv4.weight"], WEIGHTS["conv3.bias"])),
            "conv3 has a weight of [16, 8, 3, 3]; expected [16, 16, 3, 3]",
        ),
        (
            lambda e: files.changed(e, "fc7", blobs=(WEIGHTS["fc7.weight"], WEIGHTS["fc8.bias"])),
            "7]; expected [12]",
        ),
        (lambda e: files.changed(e, "conv3", blobs=(WEIGHTS["conv3.weight"],)), "conv3 has 1 blobs; expected its"),
        (lambda e: files.changed(e, "fc8", blobs=()), "fc8 has 0 blobs"),
        (
            lambda e: files.changed(e, "conv5", blobs=(WEIGHTS["conv5.weight"] * np.nan, WEIGHTS["conv5.bias"])),
            "conv5.weight contains NaN or infinity",
        ),
        (
            lambda e: files.changed(e, "data", parameters={"crop_size": 224}),
            "pool1 makes 54 pixels into 27, as Caffe rounds up; here they become 26",
        ),
        (lambda e: files.changed(e, "data", parameters={"crop_size": 300}), "cannot be expressed as an AlexNet"),
        (lambda e: files.changed(e, "conv3", bottom=("pool1",)), "conv3 (Convolution) reads pool1; expected pool2"),
        (lambda e: [entry for entry in e if entry.name != "relu3"], "conv3 is followed by nothing; expected an"),
        (lambda e: [entry for entry in e if entry.name != "relu6"], "fc6 is followed by drop6 Dropout"),
        (
            lambda e: files.changed(_moved(e, "relu1", "pool1"), "relu1", bottom=("pool1",), top=("pool1",)),
            "conv1 is followed by norm1 LRN, pool1 Pooling, relu1 ReLU; expected an activation, then",
        ),
        (
            lambda e: _with(e, "conv4", "InnerProduct", num_output=16),
            "conv5 is a Convolution after conv4, InnerProduct",
        ),
        (lambda e: _with(e, "pool1", "Pooling"), "pool1 has no parameters"),
        (lambda e: [e[0], *files.changed(e[2:], "relu1", bottom=("data",))], "begins with relu1 (ReLU)"),
        (lambda e: [e[0]], "has no layers; expected convolutions and fully connected"),
        (
            lambda e: files.changed(
                files.changed(e, "norm1", parameters={"local_size": 4}), "norm2", parameters={"local_size": 4}
            ),
            "norm1: ",
        ),
        (lambda e: files.changed(e, "relu3", type="TanH"), "relu1 is relu and relu3 is tanh; expected one"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_is_no_alexnet_is_refused_in_the_words_of_the_file(
    change: Callable[[list[Entry]], list[Entry]], message: str, old: bool
) -> None:
    assert message in refused(files.net(change(files.alexnet(WEIGHTS)), old=old))


def test_pooling_first_in_one_layer_and_last_in_another_is_refused() -> None:
    mixed = files.alexnet(WEIGHTS, pool_first=True)
    straight = files.alexnet(WEIGHTS)
    place = [entry.name for entry in mixed].index("conv2")
    assert "pools before LRN in one layer and after it in another" in refused(
        files.net([*straight[:place], files.changed(mixed, "conv2", bottom=("pool1",))[place], *mixed[place + 1 :]])
    )


def test_rounding_down_is_taken_from_a_file_that_says_so() -> None:
    entries = files.changed(files.alexnet(WEIGHTS), "data", parameters={"crop_size": 231})
    for name in ("pool1", "pool2", "pool5"):
        entries = files.changed(entries, name, parameters={"round_mode": 1})
    # 231 pixels: 56 after conv1, 27 after pool1 (28 rounded up), as with 227.
    assert converted(files.net(entries)).architecture.input == 231


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("old", [False, True])
def test_a_truncated_file_is_refused_at_any_length(share: float, old: bool) -> None:
    content = files.net(files.alexnet(WEIGHTS), old=old)
    assert "truncated" in refused(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "contains no layer definitions"),
        (files.text(1, "AlexNet"), "contains no layer definitions"),
        (b'name: "AlexNet"\nlayer {\n', "is not a caffemodel, or it is damaged"),
        (files.chunk(2, files.chunk(1, b"")), "format from before 2014"),
        (
            files.chunk(100, files.text(1, "a") + files.text(2, "ReLU") + files.chunk(7, b"\x2a\xff\xff\xff\xff\x0f")),
            "a field of 4,294,967,295 bytes but",
        ),
        (
            files.chunk(
                100, files.text(1, "a") + files.chunk(7, b"".join(files.integer(n, 1 << 40) for n in range(1, 5)))
            ),
            "a has a blob of shape [1099511627776, 1099511627776, 1099511627776, 1099511627776] with 0 values",
        ),
        (
            files.chunk(100, files.text(1, "a") + files.chunk(7, files.integer(1, -1) + files.integer(2, -1))),
            "a has a blob of shape [-1, -1, 0, 0]",
        ),
    ],
)
def test_what_is_no_caffemodel_is_refused(content: bytes, message: str) -> None:
    assert message in refused(content)


@pytest.mark.parametrize("old", [False, True])
def test_no_change_of_a_byte_outside_the_weights_does_more_than_have_it_refused(old: bool) -> None:
    def filled(pattern: str) -> dict[str, np.ndarray]:
        value = np.frombuffer(bytes.fromhex(pattern), np.float32)[0]
        return {name: np.full_like(array, value) for name, array in WEIGHTS.items()}

    # Two files that differ in every byte of their weights, so that what is the same in both is no weight.
    values = (WEIGHTS, filled("1112133e"), filled("2122233f"))
    content, *others = (files.net(files.alexnet(each), old=old) for each in values)
    original = converted(content)
    structure = [place for place in range(len(content)) if all(content[place] == other[place] for other in others)]
    rng, num_refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[structure[rng.integers(len(structure))]] = rng.integers(256)
        try:
            found = converted(bytes(damaged), 227)
        except ModelError:
            num_refused += 1
            continue
        for name, value in original.weights.items():
            np.testing.assert_array_equal(found.weights[name], value)
        # Neither changes what a layer computes: Caffe crops to some other sizes with the same outcome.
        free = {"input": original.architecture.input, "dropout": original.architecture.dropout}
        assert dataclasses.replace(found.architecture, **free) == original.architecture
    assert 50 < num_refused < 300


@pytest.mark.parametrize("form", ["shape", "legacy", "double"])
def test_a_mean_image_is_read_from_a_binaryproto(form: str) -> None:
    mean = np.random.default_rng(0).uniform(90, 130, (1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(read_binaryproto(files.blob(mean, form), "mean.binaryproto"), mean)


def test_a_damaged_binaryproto_is_refused() -> None:
    content = files.blob(np.zeros((1, 3, 8, 8)))[:-9]
    with pytest.raises(ModelError, match=r"mean.binaryproto is not a binaryproto, or it is damaged"):
        read_binaryproto(content, "mean.binaryproto")
