from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import TINY, change_weights, make_model, replace_graph, smooth_images
from markup import Page
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file

from alexdeploy import FigureOptions, figures
from alexdeploy.core.errors import ImageError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.diagnosis import activation_maps
from alexdeploy.diagnosis import figures as module
from alexdeploy.diagnosis.diagram import network_svg
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.import_model import ImportOptions, import_model
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers
from alexdeploy.reports.tiles import kernel_pixels, map_pixels, tile
from alexdeploy.training.kernels import write_kernels


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def expected_kernels(folder: ModelFolder) -> np.ndarray:
    return tile(kernel_pixels(load_file(folder.weights_path)["conv1.weight"]), towers=2, scale=4)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.png"
    Image.fromarray(smooth_images(1)[0]).save(path)
    return path


def test_each_pixel_of_the_kernels_is_a_weight(tiny_model: ModelFolder, tmp_path: Path) -> None:
    hand_made = np.zeros((8, 3, 11, 11), np.float32)
    for index in range(8):
        hand_made[index, index % 3, index, 10 - index] = 0.5
        hand_made[index, :, 10, 10] = -0.5
    change_weights(tiny_model, conv1__weight=lambda _: hand_made)
    found = figures(tiny_model, tmp_path / "out")
    assert found.files == ("index.html", "network.svg", "kernels.png")
    drawn = read(tmp_path / "out" / "kernels.png")
    # Two towers of four: tiles of 44 pixels, 2 between tiles and 10 between towers.
    assert drawn.shape == (2 * 44 + 10, 4 * 46 - 2, 3)
    for index in range(8):
        top, left = index // 4 * 54, index % 4 * 46
        one = drawn[top : top + 44, left : left + 44].reshape(11, 4, 11, 4, 3)
        assert (one == one[:, :1, :, :1]).all()
        values = one[:, 0, :, 0]
        colour = [255 if channel == index % 3 else 128 for channel in range(3)]
        assert values[index, 10 - index].tolist() == colour
        assert values[10, 10].tolist() == [0, 0, 0]
        others = np.delete(values.reshape(-1, 3), (index * 11 + 10 - index, 120), axis=0)
        assert (others == 128).all()


def test_kernels_of_a_model_without_weights_are_those_of_its_graph(tiny_model: ModelFolder, tmp_path: Path) -> None:
    expected = expected_kernels(tiny_model)
    tiny_model.weights_path.unlink()
    figures(tiny_model, tmp_path / "out")
    assert (read(tmp_path / "out" / "kernels.png") == expected).all()
    assert "from model.onnx" in (tmp_path / "out" / "index.html").read_text()


def test_a_network_that_reads_bgr_has_its_kernels_in_rgb(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "bgr", "alexnet", (*TINY, "preprocessing.channels=bgr"))
    figures(folder, tmp_path / "out")
    expected = kernel_pixels(load_file(folder.weights_path)["conv1.weight"][:, ::-1])
    assert (read(tmp_path / "out" / "kernels.png") == tile(expected, towers=2, scale=4)).all()


def test_an_imported_graph_of_unknown_architecture_has_kernels_and_maps_and_a_warning(
    tiny_model: ModelFolder, tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = expected_kernels(tiny_model)
    options = ImportOptions(name="theirs", scale=1.0, mean=(120.0, 120.0, 120.0))
    import_model(tiny_model.onnx_path(), options, on_warning=lambda message: None)
    told: list[str] = []
    found = figures("theirs", None, FigureOptions(image=photograph), told.append)
    assert found.path == Path("figures/theirs")
    assert told == ["the architecture of theirs is unknown, so the network is not drawn"]
    assert "network.svg" not in found.files
    assert (read(found.path / "kernels.png") == expected).all()
    assert len([name for name in found.files if name.startswith("maps-")]) == 12


def test_the_animation_has_the_kernels_of_each_epoch(tiny_model: ModelFolder, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    kept = {epoch: rng.normal(size=(8, 3, 11, 11)).astype(np.float32) for epoch in (0, 1, 2)}
    for epoch, kernels in kept.items():
        write_kernels(tiny_model, epoch, kernels)
    figures(tiny_model, tmp_path / "out")
    with Image.open(tmp_path / "out" / "kernels-by-epoch.png") as image:
        assert image.n_frames == 3
        for epoch, kernels in kept.items():
            image.seek(epoch)
            expected = tile(kernel_pixels(kernels), towers=2, scale=4)
            assert (np.asarray(image.convert("RGB"))[: len(expected)] == expected).all()


def test_damaged_kernels_of_an_epoch_leave_out_only_the_animation(tiny_model: ModelFolder, tmp_path: Path) -> None:
    for epoch in (0, 1):
        write_kernels(tiny_model, epoch, np.full((8, 3, 11, 11), np.nan, np.float32))
    told: list[str] = []
    found = figures(tiny_model, tmp_path / "out", on_warning=told.append)
    assert found.files == ("index.html", "network.svg", "kernels.png")
    assert len(told) == 1
    assert re.match(r"no animation of the kernels: .*0000\.npy .*\nRemove 0000\.npy", told[0])


def test_a_long_training_has_a_hundred_frames_with_the_first_and_the_last() -> None:
    assert module._chosen_epochs(tuple(range(100))) == tuple(range(100))
    chosen = module._chosen_epochs(tuple(range(301)))
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (100, 0, 300)
    assert set(np.diff(chosen)) == {3, 4} or set(np.diff(chosen)) == {3}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_maps_are_those_of_the_reference(
    tiny_model: ModelFolder, tmp_path: Path, photograph: Path, precision: str
) -> None:
    found = figures(tiny_model, tmp_path / "out", FigureOptions(image=str(photograph), precision=precision))
    spec = tiny_model.spec()
    assert spec.architecture is not None
    plan = plan_layers(spec.architecture, spec.num_classes)
    images = network_input(smooth_images(1)[0], spec.preprocessing, 1, tiny_model.mean_image(spec))
    shown = 0
    for layer, values in reference.forward(plan, load_file(tiny_model.weights_path), images):
        path = tmp_path / "out" / f"maps-{layer.name}.png"
        assert path.exists() == (layer.kind in ("activation", "lrn", "pool"))
        if values.ndim == 4 and path.exists():
            scale = {55: 1, 27: 2, 13: 3, 6: 7}[values.shape[-1]]
            drawn, expected = read(path).astype(int), tile(map_pixels(values[0]), towers=2, scale=scale).astype(int)
            assert drawn.shape == expected.shape
            # Brightness is the square root of a share that is off by 1e-6 (FP32) or 1e-3 (FP16) at most: near 0, by
            # 255 times the root of that. Both are rounded to whole levels.
            assert np.abs(drawn - expected).max() <= 1 + 255 * (1e-6 if precision == "fp32" else 1e-3) ** 0.5
            shown += 1
    assert shown == 10
    assert "photograph.png" in found.files
    assert (read(tmp_path / "out" / "photograph.png") == smooth_images(1)[0][14:241, 14:241]).all()
    # 512 / 16 = 32 units, 16 of each tower in a row of its own, 6 pixels for each.
    assert read(tmp_path / "out" / "maps-relu6.png").shape == (2 * 6 + 10, 16 * 6)


def test_the_page_is_one_file_and_a_name_of_a_photograph_stays_a_name(
    tiny_model: ModelFolder, tmp_path: Path, photograph: Path
) -> None:
    evil = tmp_path / "\"quoted'\n<script>alert(1)<\\script>.png"
    photograph.rename(evil)
    figures(tiny_model, tmp_path / "out", FigureOptions(image=evil))
    found = Page((tmp_path / "out" / "index.html").read_text())
    assert "script" not in found.tags
    assert "quoted'\\n<script>alert(1)" in found.text
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    assert len(sources) == 14
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def drawn_network(recipe: str, *overrides: str) -> tuple[list[str], str]:
    """The words in the drawing, and the whole of it."""
    svg = network_svg(load_recipe(recipe, overrides).architecture, 1000)
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")], svg


def num_crossings(svg: str) -> int:
    return len(re.findall(r'<path [^>]*stroke="#D55E00"', svg))


def test_the_drawing_of_the_paper_has_its_towers_shapes_and_crossings() -> None:
    words, svg = drawn_network("alexnet")
    assert words.count("48 × 55×55") == 2
    assert words.count("128 × 27×27") == 2
    assert words.count("192 × 13×13") == 4
    assert words.count("2048") == 4
    assert words.count("1000") == 1
    # conv3, fc6 and fc7 read both towers: two lines each.
    assert num_crossings(svg) == 6
    assert "37,752,832 parameters" in words


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected", "crossings"),
    [
        ("one-tower", (), ["96 × 55×55", "4096"], 0),
        ("torchvision", (), ["64 × 55×55", "9216"], 0),
        ("alexnet", ("architecture.pooling.kind=average",), ["mean pool 3×3 / 2"], 6),
        ("alexnet", ("architecture.remove=['conv3']",), ["192 × 13×13"], 4),
        ("alexnet", ("architecture.hidden=[]",), ["128 × 13×13", "1000"], 2),
        ("alexnet", ("architecture.hidden=[99]",), ["99"], 2),
    ],
)
def test_variants_are_drawn_too(recipe: str, overrides: tuple[str, ...], expected: list[str], crossings: int) -> None:
    words, svg = drawn_network(recipe, *overrides)
    assert set(expected) - {"9216"} <= set(words)
    assert num_crossings(svg) == crossings


def test_a_recipe_has_only_the_drawing(tmp_path: Path) -> None:
    found = figures("one-tower", tmp_path / "out")
    assert found.files == ("index.html", "network.svg")
    with pytest.raises(UsageError, match="no BF16 graphs"):
        FigureOptions(precision="bf16")
    with pytest.raises(UsageError, match="one-tower is a recipe"):
        figures("one-tower", tmp_path / "other", FigureOptions(image=tmp_path))
    assert not (tmp_path / "other").exists()


def test_other_figures_are_replaced_only_when_asked(tiny_model: ModelFolder, tmp_path: Path, photograph: Path) -> None:
    out = tmp_path / "out"
    figures(tiny_model, out, FigureOptions(image=photograph))
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="already holds figures"):
        figures(tiny_model, out)
    figures(tiny_model, out, FigureOptions(overwrite=True))
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "kernels.png", "mine.txt", "network.svg"]


def test_nothing_is_written_before_all_is_drawn(
    tiny_model: ModelFolder, tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    draw = partial(figures, tiny_model, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_photograph", stop)
        with pytest.raises(KeyboardInterrupt):
            draw(FigureOptions(image=photograph))
    photograph.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"photograph\.png: unsupported file type"):
        draw(FigureOptions(image=photograph))
    with pytest.raises(ModelError, match=r"has no model\.int8\.onnx"):
        figures(tiny_model, tmp_path / "out", FigureOptions(image=_png(tmp_path), precision="int8"))
    assert not (tmp_path / "out").exists()


def _png(folder: Path) -> Path:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(file, "PNG")
    (folder / "teal.png").write_bytes(file.getvalue())
    return folder / "teal.png"


def test_large_maps_are_shown_as_means_of_squares_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 131, 200))
    # 200 / 4 = 50 columns; of the rows the last three are cut off.
    found, side = activation_maps._small(maps)
    assert (found.shape, side) == ((2, 32, 50), 4)
    assert found[1, 3, 7] == pytest.approx(maps[1, 12:16, 28:32].mean())
    monkeypatch.setattr(activation_maps, "MAX_MAPS", 4)
    outputs = {"conv1": np.zeros((1, 6, 131, 200)), "rows": np.zeros((1, 3, 5))}
    (picture,) = activation_maps._pictures(outputs, 1)
    assert picture.num_averaged == 4
    assert module._describe(picture) == (
        "conv1: 6×131×200, largest value 0; the first 4 maps; each pixel is the mean of 4×4 values."
    )


def test_a_graph_that_does_not_look_at_colours_first_has_no_kernels(tiny_model: ModelFolder, tmp_path: Path) -> None:
    tiny_model.weights_path.unlink()
    model = onnx.load(tiny_model.onnx_path())
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    for tensor in model.graph.initializer:
        if tensor.name == first.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, :1], tensor.name))
    replace_graph(tiny_model, "fp32", model)
    with pytest.raises(ModelError, match="does not begin with a convolution of the three colours"):
        figures(tiny_model, tmp_path / "figures")
