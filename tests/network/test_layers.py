from __future__ import annotations

import pytest

from alexdeploy.core.errors import RecipeError
from alexdeploy.core.recipe import list_recipes, load_recipe
from alexdeploy.network.alexnet import AlexNet
from alexdeploy.network.layers import plan_layers


@pytest.mark.parametrize(
    ("recipe", "parameters", "macs"),
    [
        ("alexnet", 60_965_224, 724_406_816),
        ("one-tower", 62_378_344, 1_135_256_096),
        ("caffe-alexnet", 60_965_224, 724_406_816),
        ("caffenet", 60_965_224, 724_406_816),
        ("torchvision", 61_100_840, 714_188_480),
    ],
)
def test_parameters_and_macs_are_the_published_ones(recipe: str, parameters: int, macs: int) -> None:
    plan = plan_layers(load_recipe(recipe).architecture, 1000)
    assert sum(layer.num_parameters for layer in plan) == parameters
    assert sum(layer.macs for layer in plan) == macs


def test_the_neurons_are_those_of_the_paper() -> None:
    plan = plan_layers(load_recipe("alexnet").architecture, 1000)
    found = [layer.num_neurons for layer in plan if layer.num_neurons]
    # Figure 2 of the paper gives 253,440 for the first; 96 maps of 55x55 are 290,400.
    assert found == [290_400, 186_624, 64_896, 64_896, 43_264, 4_096, 4_096, 1_000]
    assert sum(found) == 659_272


@pytest.mark.parametrize("recipe", list_recipes())
def test_the_module_holds_as_many_parameters_as_the_plan(recipe: str) -> None:
    architecture = load_recipe(recipe).architecture
    network = AlexNet(architecture, 10)
    assert sum(p.numel() for p in network.parameters()) == sum(layer.num_parameters for layer in network.plan)


def test_the_layers_come_in_the_papers_order_with_the_papers_shapes() -> None:
    plan = plan_layers(load_recipe("alexnet").architecture, 1000)
    shapes = [(layer.name, layer.output_shape) for layer in plan if layer.kind not in ("activation", "dropout")]
    assert shapes == [
        ("conv1", (96, 55, 55)),
        ("norm1", (96, 55, 55)),
        ("pool1", (96, 27, 27)),
        ("conv2", (256, 27, 27)),
        ("norm2", (256, 27, 27)),
        ("pool2", (256, 13, 13)),
        ("conv3", (384, 13, 13)),
        ("conv4", (384, 13, 13)),
        ("conv5", (256, 13, 13)),
        ("pool5", (256, 6, 6)),
        ("flatten", (9216,)),
        ("fc6", (4096,)),
        ("fc7", (4096,)),
        ("fc8", (1000,)),
    ]
    groups = {layer.name: layer.groups for layer in plan if layer.kind == "conv"}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}


def test_every_number_of_a_layer_is_its_recipes() -> None:
    overrides = (
        "architecture.convs=[{channels=32, kernel=7, stride=2, padding=1, lrn=true, pool=true}, "
        "{channels=48, kernel=3, stride=3, padding=2, crossing=true}, {channels=64, kernel=2, pool=true}]",
        "architecture.hidden=[120, 84]",
        "architecture.pooling={kernel=2, stride=2, kind='average'}",
        "architecture.activation=tanh",
        "architecture.dropout=0.25",
        "architecture.lrn={size=3, per_tower=true}",
        "architecture.input=100",
    )
    architecture = load_recipe("alexnet", overrides).architecture
    found = [
        (each.name, each.kind, each.output_shape, each.inputs, each.kernel, each.stride, each.padding, each.groups)
        for each in plan_layers(architecture, 7)
    ]
    # (100 + 2 - 7) // 2 + 1 = 48; (24 + 4 - 3) // 3 + 1 = 9; (9 - 2) // 1 + 1 = 8.
    assert found == [
        ("conv1", "conv", (32, 48, 48), 3, 7, 2, 1, 1),
        ("relu1", "activation", (32, 48, 48), 0, 1, 1, 0, 1),
        ("norm1", "lrn", (32, 48, 48), 0, 1, 1, 0, 2),
        ("pool1", "pool", (32, 24, 24), 0, 2, 2, 0, 1),
        ("conv2", "conv", (48, 9, 9), 32, 3, 3, 2, 1),
        ("relu2", "activation", (48, 9, 9), 0, 1, 1, 0, 1),
        ("conv3", "conv", (64, 8, 8), 48, 2, 1, 0, 2),
        ("relu3", "activation", (64, 8, 8), 0, 1, 1, 0, 1),
        ("pool3", "pool", (64, 4, 4), 0, 2, 2, 0, 1),
        ("flatten", "flatten", (1024,), 0, 1, 1, 0, 1),
        ("fc4", "fc", (120,), 1024, 1, 1, 0, 1),
        ("relu4", "activation", (120,), 0, 1, 1, 0, 1),
        ("drop4", "dropout", (120,), 0, 1, 1, 0, 1),
        ("fc5", "fc", (84,), 120, 1, 1, 0, 1),
        ("relu5", "activation", (84,), 0, 1, 1, 0, 1),
        ("drop5", "dropout", (84,), 0, 1, 1, 0, 1),
        ("fc6", "fc", (7,), 84, 1, 1, 0, 1),
    ]
    by_name = {each.name: each for each in plan_layers(architecture, 7)}
    assert {by_name[name].pooling for name in ("pool1", "pool3")} == {"average"}
    assert {by_name[f"relu{index}"].activation for index in range(1, 6)} == {"tanh"}
    assert {by_name[name].rate for name in ("drop4", "drop5")} == {0.25}
    assert by_name["norm1"].lrn == architecture.lrn
    assert by_name["conv3"].weight_shape == (64, 24, 2, 2)
    assert by_name["conv3"].macs == 64 * 24 * 2 * 2 * 8 * 8
    assert [by_name["norm1"].weight_shape, by_name["norm1"].num_parameters, by_name["norm1"].macs] == [None, 0, 0]


def test_a_layer_that_is_removed_leaves_its_pooling_and_its_number() -> None:
    plan = plan_layers(load_recipe("alexnet", ["architecture.remove=['conv3', 'conv5']"]).architecture, 1000)
    shapes = [(each.name, each.inputs, each.output_shape) for each in plan if each.kind in ("conv", "pool", "fc")]
    assert shapes[4:8] == [
        ("conv4", 256, (384, 13, 13)),
        ("pool5", 0, (384, 6, 6)),
        ("fc6", 13_824, (4096,)),
        ("fc7", 4096, (4096,)),
    ]


def test_widths_are_multiples_of_eight_and_at_least_eight() -> None:
    def maps(width: str) -> list[int]:
        plan = plan_layers(load_recipe("alexnet", [f"architecture.width={width}"]).architecture, 10)
        return [each.outputs for each in plan if each.kind == "conv"]

    # 0.3 of 96, 256 and 384 are 28.8, 76.8 and 115.2.
    assert maps("0.3") == [32, 80, 112, 112, 80]
    assert maps("0.001") == [8] * 5


def test_maps_that_two_towers_cannot_share_out_are_refused_before_a_convolution() -> None:
    convs = "architecture.convs=[{channels=6, kernel=11, stride=4}, {channels=7, kernel=3}]"
    with pytest.raises(RecipeError, match="conv2: 6 input and 7 output maps do not divide into 2 towers"):
        plan_layers(load_recipe("alexnet", [convs]).architecture, 10)


def test_caffenet_pools_before_it_normalizes() -> None:
    names = [layer.name for layer in plan_layers(load_recipe("caffenet").architecture, 1000)]
    assert names.index("pool1") < names.index("norm1")


def test_the_papers_ablations_change_what_they_should() -> None:
    def names(*overrides: str) -> list[str]:
        return [layer.name for layer in plan_layers(load_recipe("alexnet", overrides).architecture, 1000)]

    assert "norm1" not in names("architecture.lrn=none")
    assert "conv4" not in names("architecture.remove=['conv4']")
    assert not [name for name in names("architecture.dropout=0") if name.startswith("drop")]


def test_a_quarter_of_the_width_keeps_a_multiple_of_four_maps_in_each_tower() -> None:
    plan = plan_layers(load_recipe("alexnet-quarter").architecture, 10)
    maps = [layer.outputs for layer in plan if layer.kind == "conv"]
    assert maps == [24, 64, 96, 96, 64]


def test_a_kernel_that_does_not_fit_is_named() -> None:
    architecture = load_recipe("alexnet", ["architecture.input=31"]).architecture
    with pytest.raises(RecipeError, match=r"pool2.*does not fit"):
        plan_layers(architecture, 10)


@pytest.mark.parametrize("order", ["lrn-pool", "pool-lrn"])
def test_maps_that_two_towers_cannot_share_out_are_refused_where_lrn_is_per_tower(order: str) -> None:
    conv = "{channels=5, kernel=11, stride=4, padding=0, crossing=false, lrn=true, pool=true}"
    small = (f"architecture.convs=[{conv}]", "architecture.hidden=[33]", f"architecture.order='{order}'")
    with pytest.raises(RecipeError, match="norm1: 5 maps do not divide into 2 towers") as caught:
        plan_layers(load_recipe("alexnet", small).architecture, 7)
    assert "conv1" in str(caught.value.hint)
    across = load_recipe("alexnet", [*small, "architecture.lrn.per_tower=false"]).architecture
    assert [layer.groups for layer in plan_layers(across, 7) if layer.kind == "lrn"] == [1]
