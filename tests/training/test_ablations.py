"""Each thing that the paper leaves out to see what it is worth: by --set alone, trained, exported, and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from patience import slow_but_for

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.export.export import export_model
from alexdeploy.images.folder import LabelledImages
from alexdeploy.network.layers import plan_layers
from alexdeploy.training.events import Step
from alexdeploy.training.trainer import RunOptions, train

NARROW = ("architecture.width=0.0625", "architecture.hidden=[256, 256]", "training.epochs=1", "training.batch_size=8")
# Kernels of conv1 to conv5 as the paper's net on one GPU has them: half of them, but for conv5 (footnote 3).
_HALVED = (
    "architecture.convs=["
    "{ channels = 48, kernel = 11, stride = 4, lrn = true, pool = true },"
    "{ channels = 128, kernel = 5, padding = 2, lrn = true, pool = true },"
    "{ channels = 192, kernel = 3, padding = 1 },"
    "{ channels = 192, kernel = 3, padding = 1 },"
    "{ channels = 256, kernel = 3, padding = 1, pool = true }]"
)
# What the graph of the whole network computes with; the Reshapes are flatten, and towers into the batch and back.
_WHOLE = Counter(Conv=5, Relu=7, LRN=2, MaxPool=3, Gemm=3, Reshape=5)


@dataclass(frozen=True)
class Ablation:
    """What it changes, how many parameters it has with 1000 classes, and the operators of its graph."""

    overrides: tuple[str, ...]
    parameters: int
    operators: Counter[str]


# conv1 34,944; conv2 307,456; conv3 885,120; conv4 663,936; conv5 442,624;
# fc6 37,752,832; fc7 16,781,312; fc8 4,097,000.
PAPERS = 60_965_224
ABLATIONS = {
    "nothing": Ablation((), PAPERS, _WHOLE),
    "no LRN": Ablation(("architecture.lrn=none",), PAPERS, _WHOLE - Counter(LRN=2, Reshape=4)),
    "tanh": Ablation(("architecture.activation=tanh",), PAPERS, _WHOLE - Counter(Relu=7) + Counter(Tanh=7)),
    # 55 -> 27 -> 13 -> 6 with windows of 2 as well: fc6 sees as much.
    "pooling without overlap": Ablation(
        ("architecture.pooling.kernel=2", "architecture.pooling.stride=2"), PAPERS, _WHOLE
    ),
    "average pooling": Ablation(
        ("architecture.pooling.kind=average",), PAPERS, _WHOLE - Counter(MaxPool=3) + Counter(AveragePool=3)
    ),
    # conv2, conv4 and conv5 see twice the maps: 256 x 48 x 25, 384 x 192 x 9 and 256 x 192 x 9 weights more.
    "one tower": Ablation(
        ("architecture.towers=1",), PAPERS + 307_200 + 663_552 + 442_368, _WHOLE - Counter(Reshape=4)
    ),
    # 17,472 + 153,728 + 221,376 + 331,968 + 442,624 in its convolutions.
    "one GPU": Ablation(
        ("architecture.towers=1", _HALVED), 1_167_168 + 37_752_832 + 16_781_312 + 4_097_000, _WHOLE - Counter(Reshape=4)
    ),
    "no colour noise": Ablation(("training.augmentation.color_noise=0",), PAPERS, _WHOLE),
    "one view": Ablation(("training.augmentation.crop=false", "training.augmentation.mirror=false"), PAPERS, _WHOLE),
    "no dropout": Ablation(("architecture.dropout=0",), PAPERS, _WHOLE),
    # conv3 then sees 48 maps of each tower and not 128: 384 x 96 x 9. Where a layer goes, its ReLU and LRN go too.
    "no conv2": Ablation(
        ("architecture.remove=['conv2']",),
        PAPERS - 307_456 - 384 * (256 - 96) * 9,
        _WHOLE - Counter(Conv=1, Relu=1, LRN=1, Reshape=2),
    ),
    # conv4 sees 128 maps and not 192.
    "no conv3": Ablation(
        ("architecture.remove=['conv3']",), PAPERS - 885_120 - 384 * (192 - 128) * 9, _WHOLE - Counter(Conv=1, Relu=1)
    ),
    "no conv4": Ablation(("architecture.remove=['conv4']",), PAPERS - 663_936, _WHOLE - Counter(Conv=1, Relu=1)),
    # pool5 stays, of 384 maps and not 256: fc6 sees 4,608 more of 6 x 6 x 384.
    "no conv5": Ablation(
        ("architecture.remove=['conv5']",), PAPERS - 442_624 + 4_608 * 4_096, _WHOLE - Counter(Conv=1, Relu=1)
    ),
}


_QUICK = ("nothing", "one tower", "no conv2")


@pytest.mark.parametrize("name", ABLATIONS)
def test_it_has_the_parameters_that_the_paper_implies(name: str) -> None:
    ablation = ABLATIONS[name]
    plan = plan_layers(load_recipe("alexnet", ablation.overrides).architecture, 1000)
    assert sum(layer.num_parameters for layer in plan) == ablation.parameters


# Most are exported by PyTorch as they are nowhere else, which takes two seconds each.
@pytest.mark.parametrize("name", slow_but_for(_QUICK, ABLATIONS))
def test_it_trains_and_its_graph_has_the_operators_that_are_left(
    name: str, tmp_path: Path, tiny_data: LabelledImages
) -> None:
    ablation = ABLATIONS[name]
    recipe = load_recipe("alexnet", [*ablation.overrides, *NARROW])
    folder = ModelFolder(tmp_path / "model")
    losses: list[float] = []
    train(
        LabelledImages(classes=tiny_data.classes, train=tiny_data.train[::2], val=tiny_data.val[::4]),
        recipe,
        folder,
        RunOptions(device="cpu", threads=1),
        lambda event: losses.append(event.loss) if isinstance(event, Step) else None,
    )
    assert len(losses) == 3
    (exported,) = export_model(folder)
    graph = onnx.load(exported.path).graph
    assert Counter(node.op_type for node in graph.node) == ablation.operators
