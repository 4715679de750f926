"""Ten-view throughput from JPEG files to rows: alexdeploy against the script that a user would write.

    python benchmarks/tencrop.py [PHOTOGRAPHS] [--images 64] [--repeats 5]

The full network with random weights; with no folder of photographs given, 500x375 JPEGs are rendered. Both sides get
the same files in the same run, turn by turn, with everything loaded and warm; medians are printed. The peer runs
whichever form of LRN is faster in ONNX Runtime here: its native kernel, or PyTorch's decomposition. It stacks the ten
crops of one image, as such a script does, and then, for comparison, those of as many images as we batch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from peer_onnxruntime import classify
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor, nn

from alexdeploy import ExportOptions, ModelFolder, Predictor, export_model
from alexdeploy.core.artifacts import sha256_file
from alexdeploy.core.processors import available_processors
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import iter_sources
from alexdeploy.network.alexnet import AlexNet
from alexdeploy.network.lrn import LocalResponseNorm

BATCH_SIZE = 8


def make_model(folder: ModelFolder) -> AlexNet:
    """The 2012 network at full size, 1000 classes, random weights, exported."""
    torch.manual_seed(0)
    recipe = load_recipe("alexnet")
    network = AlexNet(recipe.architecture, 1000)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2.0 / parameter[0].numel()) ** 0.5)
    folder.path.mkdir(parents=True)
    save_file({name: value.numpy() for name, value in network.state_dict().items()}, folder.weights_path)
    np.save(folder.mean_path, np.full((3, 256, 256), 117, np.float32))
    preprocessing = Preprocessing(mean_image=sha256_file(folder.mean_path), crop=227)
    classes = tuple(f"class-{index}" for index in range(1000))
    folder.write_spec(
        ModelSpec(name="bench", classes=classes, preprocessing=preprocessing, architecture=recipe.architecture)
    )
    export_model(folder, ExportOptions())
    return network.eval()


class _TowerNorm(nn.Module):
    """PyTorch's own LRN, once for each tower, as an exporter decomposes it."""

    def __init__(self, ours: LocalResponseNorm) -> None:
        super().__init__()
        lrn = ours.lrn
        self.norm = nn.LocalResponseNorm(lrn.size, lrn.alpha, lrn.beta, lrn.k)
        self.towers = ours.towers

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(half) for half in x.chunk(self.towers, dim=1)], dim=1)


def export_decomposed(network: AlexNet, path: Path) -> None:
    for name, module in list(network.named_children()):
        if isinstance(module, LocalResponseNorm):
            setattr(network, name, _TowerNorm(module))
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 227, 227),),
            path,
            dynamo=True,
            opset_version=18,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )


def render_photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        picture = sample.render_image(index % len(sample.CLASSES), np.random.default_rng(index)).convert("RGB")
        picture.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def faster_peer(
    paths: list[str], mean: np.ndarray, models: dict[str, Path]
) -> tuple[str, onnxruntime.InferenceSession]:
    seconds: dict[str, float] = {}
    sessions = {name: onnxruntime.InferenceSession(path) for name, path in models.items()}
    for _ in range(3):
        for name, session in sessions.items():
            seconds[name] = min(seconds.get(name, 1e9), timed(lambda s=session: list(classify(s, mean, paths[:8]))))
    for name, value in seconds.items():
        print(f"  peer with {name:12} LRN: {8 / value:6.2f} images/s")
    best = min(seconds, key=lambda name: seconds[name])
    return best, sessions[best]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary), arguments.photographs, arguments.images, arguments.repeats)


def run(workspace: Path, photographs: str | None, num_images: int, repeats: int) -> None:
    folder = ModelFolder(workspace / "models" / "bench")
    network = make_model(folder)
    export_decomposed(network, workspace / "decomposed.onnx")
    if photographs is None:
        photographs = str(workspace / "photographs")
        render_photographs(Path(photographs), num_images)
    sources = [source for source, _ in zip(iter_sources([photographs]), range(num_images), strict=False)]
    paths = [source.path for source in sources if source.path is not None]
    mean = np.load(folder.mean_path).transpose(1, 2, 0)
    versions = {name: importlib.metadata.version(name) for name in ("openvino", "onnxruntime", "pillow", "numpy")}
    print(f"{platform.machine()}, {available_processors()} processors, Python {platform.python_version()}, {versions}")
    print(f"{len(paths)} JPEGs, full network, ten views, FP32, batches of {BATCH_SIZE} images")
    models = {"native": folder.onnx_path(), "decomposed": workspace / "decomposed.onnx"}
    form, session = faster_peer(paths, mean, models)

    content = [source.read() for source in sources]
    threads = available_processors()
    engine_options = EngineOptions(num_views=10, batch_size=BATCH_SIZE)
    with (
        Predictor(folder.path, num_views=10, batch_size=BATCH_SIZE) as predictor,
        open_engine(folder, predictor.info.backend, engine_options) as engine,  # type: ignore[arg-type]
        ThreadPoolExecutor(threads) as decoders,
        ThreadPoolExecutor(engine.info.num_streams) as streams,
    ):
        decoded = np.stack([decode(data) for data in content])
        batches = [decoded[start : start + BATCH_SIZE] for start in range(0, len(decoded), BATCH_SIZE)]
        work: dict[str, Callable[[], object]] = {
            "ours": lambda: list(predictor.predict(paths)),
            "peer": lambda: list(classify(session, mean, paths)),
            "peer, batched": lambda: list(classify(session, mean, paths, BATCH_SIZE)),
            "decode": lambda: list(decoders.map(decode, content)),
            "engine": lambda: list(streams.map(engine.run, batches)),
        }
        work["ours"]()
        work["engine"]()
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(repeats):
            for name, job in work.items():
                seconds[name].append(timed(job))
        ours = [row.top[0].index for row in predictor.predict(paths)]
        theirs = [label for _, label, _ in classify(session, mean, paths)]
    rates = {name: len(paths) / statistics.median(values) for name, values in seconds.items()}
    bound = 1 / (1 / rates["decode"] + 1 / rates["engine"])
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"  alexdeploy, files to rows  {rates['ours']:7.2f} images/s ({predictor.info.backend})")
    print(f"  peer, an image at a time   {rates['peer']:7.2f} images/s (ONNX Runtime, {form} LRN)")
    print(f"  peer, batches of {BATCH_SIZE}         {rates['peer, batched']:7.2f} images/s")
    print(f"  decoding alone             {rates['decode']:7.1f} images/s")
    print(f"  engine alone               {rates['engine']:7.2f} images/s")
    print(f"  ratio to the peer          {rates['ours'] / rates['peer']:7.2f}")
    print(f"  ratio to the batched peer  {rates['ours'] / rates['peer, batched']:7.2f}")
    print(f"  fraction of the bound      {rates['ours'] / bound:7.2f} of 1 / (decode + engine) = {bound:.2f} images/s")
    print(f"  same answers               {same} of {len(paths)}")


if __name__ == "__main__":
    main()
