"""Speed of `embed` against `predict`, in turns, and whether `similar` finds copies of photographs.

    python -m benchmarks.embedding PHOTOGRAPHS --model flowers [--views 1] [--rounds 3] [--num-images 1000]
    python -m benchmarks.embedding PHOTOGRAPHS --model flowers --copies 50

The copies, five of each of a number of photographs, are written to a temporary folder: three sizes, another quality,
and the middle without a twentieth at each side. The judge is an exact search in NumPy, float64.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from alexdeploy import Embedder, Predictor, SimilarOptions, similar
from alexdeploy.images.sources import iter_sources
from alexdeploy.inference.embed_file import embed_to_file
from alexdeploy.inference.feature_files import read_blocks, read_rows
from alexdeploy.inference.predict_file import predict_to_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs")
    parser.add_argument("--model")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.copies:
            find_copies(given.photographs, given.model, given.copies, Path(folder))
        else:
            compare_speed(given, Path(folder))


def compare_speed(given: argparse.Namespace, folder: Path) -> None:
    """Print images/s of both, files included, and the median of the ratios of neighbouring runs."""
    names = [source.name for source in iter_sources([given.photographs])]
    names = names[:: max(1, len(names) // given.num_images)][: given.num_images]
    speeds: dict[str, list[float]] = {"predict": [], "embed": []}
    with (
        Predictor(given.model, num_views=given.views) as predictor,
        Embedder(given.model, num_views=given.views) as embedder,
    ):
        for number in range(given.rounds + 1):
            # The first round warms caches and does not count; the order changes from round to round.
            for kind in ("predict", "embed") if number % 2 else ("embed", "predict"):
                began = time.perf_counter()
                sources = iter_sources(names)
                if kind == "predict":
                    predict_to_file(predictor, sources, folder / "rows.parquet", "parquet")
                else:
                    embed_to_file(embedder, sources, folder / "features.parquet")
                if number:
                    speeds[kind].append(len(names) / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(speeds["embed"], speeds["predict"], strict=True)]
    shown = ", ".join(f"{kind} {statistics.median(each):.1f} images/s" for kind, each in speeds.items())
    print(f"{len(names)} photographs, {given.views} views: {shown}; embed / predict {statistics.median(ratios):.3f}")
    print("  rounds: " + ", ".join(f"{ratio:.3f}" for ratio in ratios))


def find_copies(photographs: str, model: str | None, count: int, folder: Path) -> None:
    """Print how many of five copies of `count` photographs are among the six nearest, and the agreement with NumPy."""
    originals = [source.name for source in iter_sources([photographs])]
    chosen = originals[:: max(1, len(originals) // count)][:count]
    copies = folder / "copies"
    copies.mkdir()
    for number, name in enumerate(chosen):
        image = Image.open(name).convert("RGB")
        for size in (0.5, 0.8, 1.3):
            shape = (max(1, round(image.width * size)), max(1, round(image.height * size)))
            image.resize(shape, Image.Resampling.LANCZOS).save(copies / f"{number}-{size}.jpg", quality=92)
        image.save(copies / f"{number}-quality.jpg", quality=40)
        side, top = image.width // 20, image.height // 20
        image.crop((side, top, image.width - side, image.height - top)).save(copies / f"{number}-cropped.png")
    output = folder / "features.parquet"
    with Embedder(model) as embedder:
        embed_to_file(embedder, iter_sources([photographs, str(copies)]), output)
    values = np.concatenate(list(read_blocks(output))).astype(np.float64)
    rows = {row.source: row.index for row in read_rows(output)}
    for index in (False, True):
        began = time.perf_counter()
        matches = similar(chosen, output, None, SimilarOptions(k=6, index=index))
        seconds = time.perf_counter() - began
        agreed = planted = 0
        for number, match in enumerate(matches):
            distances = np.square(values - values[rows[match.query]]).sum(axis=1)
            distances[rows[match.query]] = np.inf
            judged = set(np.argsort(distances, kind="stable")[:6].tolist())
            agreed += len(judged & {each.index for each in match.neighbours})
            planted += sum(Path(each.source).name.startswith(f"{number}-") for each in match.neighbours)
        print(
            f"{'index' if index else 'exact'}: {len(chosen)} queries among {len(values)}: recall@6 against NumPy "
            f"{agreed / (6 * len(chosen)):.4f}, copies found {planted / (5 * len(chosen)):.4f}, {seconds:.2f} s"
        )


if __name__ == "__main__":
    main()
