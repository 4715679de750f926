from __future__ import annotations

from pathlib import Path

import pytest

from alexdeploy.core.errors import RecipeError
from alexdeploy.core.recipe import fine_tuning_recipe, list_recipes, load_recipe
from alexdeploy.core.spec import LRN, ModelSpec, Preprocessing


def test_seven_recipes_are_shipped() -> None:
    expected = ("alexnet", "alexnet-chm", "alexnet-quarter", "caffe-alexnet", "caffenet", "one-tower", "torchvision")
    assert list_recipes() == expected


def test_the_wheel_gets_the_package_and_every_recipe_and_nothing_else() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    wheel = project.split("[tool.hatch.build.targets.wheel]")[1].split("[tool.hatch.build.targets.sdist]")[0]
    recipes = [f'"models/{name}.toml" = "alexdeploy/recipes/models/{name}.toml"' for name in list_recipes()]
    assert [line for line in wheel.splitlines() if line.startswith(("packages", '"models'))] == [
        'packages = ["alexdeploy"]',
        *recipes,
    ]


def test_the_trained_networks_lrn_constants_are_stored_as_onnx_means_them() -> None:
    lrn = load_recipe("alexnet").architecture.lrn
    assert lrn is not None
    assert (lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.per_tower) == (5, 1e-4, 0.75, 2.0, True)
    caffe = load_recipe("caffe-alexnet").architecture.lrn
    assert caffe is not None
    assert (caffe.k, caffe.per_tower) == (1.0, False)


def test_an_override_reaches_nested_keys_and_keeps_the_rest() -> None:
    changed = load_recipe(
        "alexnet", ["architecture.pooling.stride=3", "training.init.std=0.02", "architecture.lrn=none"]
    )
    assert changed.architecture.pooling.stride == 3
    assert changed.architecture.pooling.kernel == 3
    assert changed.training.init.std == 0.02
    assert changed.training.init.biased_layers == ("conv2", "conv4", "conv5", "fc6", "fc7")
    assert changed.architecture.lrn is None
    assert changed.overrides[0] == "architecture.pooling.stride=3"


def test_an_override_may_be_a_bare_word() -> None:
    assert load_recipe("alexnet", ["architecture.activation=tanh"]).architecture.activation == "tanh"


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("architecture.tower=1", "'towers'"),
        ("architecure.towers=1", "'architecture'"),
        ("training.init.sdt=1", "'std'"),
        ("architecture.pooling.strid=1", "'stride'"),
        ("architecture.lrn.alfa=1", "'alpha'"),
        ("training.augmentation.mirrors=true", "'mirror'"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(override: str, suggestion: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean {suggestion}"):
        load_recipe("alexnet", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("architecture.towers=3", "towers"),
        ("training.epochs=0", "epochs"),
        ("training.momentum=1.5", "momentum"),
        ("architecture.lrn.size=4", "must be odd"),
        ("architecture.remove=['conv1']", "remove names 'conv1'"),
        ("architecture.input=300", "input is 300"),
        ("training.epochs.x=1", "has no key 'x'"),
        ("training.epochs", "has no '='"),
        ("preprocessing.mean=media", "mean"),
        (
            "training.freeze=['conv6']",
            "names 'conv6'; expected one of conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8",
        ),
        ("training.freeze=['conv1','conv2','conv3','conv4','conv5','fc6','fc7','fc8']", "nothing would be trained"),
        ("training.label_smoothing=1", "label_smoothing"),
        ("training.clip_norm=0", "clip_norm"),
        ("parent_sha256=0", "unknown recipe key 'parent_sha256'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("alexnet", [override])


def test_a_value_that_is_not_allowed_is_refused_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match="Invalid enum value 'mean'") as refused:
        load_recipe("alexnet", ["architecture.pooling.kind=mean"])
    assert refused.value.hint == "Allowed: max, average."


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'caffenet'"):
        load_recipe("cafenet")


def test_a_recipe_of_ones_own_is_read_by_path_and_its_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[architecture]\ntowers = 1\nconvs = [{ channels = 8, kernel = 11, stride = 4, pol = true }]\n")
    with pytest.raises(RecipeError, match=r"architecture\.convs\.pol.*did you mean 'pool'"):
        load_recipe(path)
    path.write_text("[architecture]\ntowers = 1\nconvs = [{ channels = 8, kernel = 11, stride = 4, pool = true }]\n")
    assert load_recipe(path).architecture.convs[0].pool


def test_a_file_that_is_not_toml_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(b"\xff\xfe[architecture")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        load_recipe(path)


def test_what_the_museums_recipe_adds_to_the_papers() -> None:
    """The settings of layers-145.cfg and layer-params-145.cfg, read from the published files."""
    training = load_recipe("alexnet-chm").training
    assert (training.learning_rate * training.bias_rate_factor, training.bias_rate_drops) == (0.02, False)
    assert not training.decay_biases
    assert training.init.layer_std == dict.fromkeys(("conv3", "conv4", "conv5"), 0.03)
    assert (training.drop_epochs, training.epochs) == ((25, 51, 79), 91)
    assert (training.freeze, training.freeze_epoch) == (("conv1",), 73)
    assert training.augmentation.color_noise_epochs == 67
    assert load_recipe("alexnet-chm").architecture == load_recipe("alexnet").architecture


def test_an_option_is_off_with_the_word_none() -> None:
    assert load_recipe("alexnet-chm", ["training.augmentation.color_noise_epochs=none"]) is not None
    assert load_recipe("alexnet", ["training.clip_norm=2", "training.clip_norm=none"]).training.clip_norm is None


def _parent(**changes: object) -> ModelSpec:
    steps = Preprocessing(resize="warp", channels="bgr", mean=(104.0, 117.0, 123.0), **changes)  # type: ignore[arg-type]
    architecture = load_recipe("caffenet").architecture
    return ModelSpec(name="parent", classes=("a", "b"), preprocessing=steps, architecture=architecture)


def test_fine_tuning_keeps_architecture_and_preprocessing_and_learns_slower() -> None:
    recipe = fine_tuning_recipe(_parent(), "f00d", overrides=["training.epochs=3"])
    assert recipe.architecture == load_recipe("caffenet").architecture
    assert (recipe.preprocessing.resize, recipe.preprocessing.channels) == ("warp", "bgr")
    assert recipe.preprocessing.mean == (104.0, 117.0, 123.0)
    assert fine_tuning_recipe(_parent(mean_image="0" * 64), "f00d").preprocessing.mean == "image"
    assert recipe.training.learning_rate < load_recipe("caffenet").training.learning_rate
    assert recipe.training.last_layer_factor > 1
    assert (recipe.training.epochs, recipe.parent_sha256) == (3, "f00d")


def test_fine_tuning_with_a_recipe_takes_its_training_alone() -> None:
    recipe = fine_tuning_recipe(_parent(), "f00d", "alexnet-chm")
    assert recipe.training == load_recipe("alexnet-chm").training
    assert recipe.architecture == load_recipe("caffenet").architecture
    assert recipe.name == "alexnet-chm"


def test_fine_tuning_does_not_feed_a_network_otherwise_than_it_was_trained() -> None:
    with pytest.raises(RecipeError, match="weights of parent were trained with its own preprocessing"):
        fine_tuning_recipe(_parent(), "f00d", overrides=["preprocessing.resize=crop"])


def test_a_part_of_what_was_left_out_brings_it_back_with_its_other_defaults() -> None:
    without = load_recipe("caffenet", ["architecture.lrn=none"])
    assert without.architecture.lrn is None
    again = load_recipe("caffenet", ["architecture.lrn=none", "architecture.lrn.size=3"])
    assert again.architecture.lrn == LRN(size=3)
