"""How fast training gets its pixels: from image files, decoded again each epoch, and from packed sets of the same.

    python benchmarks/loader.py DATA [--images 1024] [--batch-size 128] [--threads N] [--repeats 5]

DATA has a folder of photographs for each class. Loaders only: no training step. All give the same shuffled batches in
the same run, turn by turn, with as many threads; medians are printed. Files and sets are in the page cache.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL

from alexdeploy.core.processors import available_processors
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.images.packed import open_packed
from alexdeploy.training.data import open_data
from alexdeploy.training.pixels import Pixels
from alexdeploy.training.prepare import PrepareOptions, prepare


def images_per_second(pixels: Pixels, batches: list[np.ndarray]) -> float:
    began = time.perf_counter()
    num_images = sum(len(images) for images in pixels.batches(batches))
    return num_images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=available_processors())
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    data = read_image_folder(given.data)
    threads = given.threads
    with tempfile.TemporaryDirectory() as folder:
        loaders = {"files": open_data(data, "crop", num_threads=threads, cache_bytes=0).train}
        for name, quality in (("packed, raw", None), ("packed, --jpeg 95", 95)):
            began = time.perf_counter()
            path = Path(folder, name)
            options = PrepareOptions(jpeg_quality=quality, num_threads=threads)
            prepared = prepare(from_labelled(data), path, options, lambda done, total: None)
            seconds = time.perf_counter() - began
            print(f"{name}: made in {seconds:.1f} s, {prepared.num_bytes / 1e6:,.0f} MB")
            loaders[name] = open_data(open_packed(path), "crop", num_threads=threads).train
        order = np.random.default_rng(0).permutation(len(data.train))[: given.images]
        batches = np.array_split(order, max(1, round(len(order) / given.batch_size)))
        for pixels in loaders.values():
            images_per_second(pixels, batches)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(given.repeats):
            for name, pixels in loaders.items():
                rates[name].append(images_per_second(pixels, batches))
    print(
        f"\n{len(order):,} of {len(data.train):,} images, batches of {given.batch_size}, {threads} threads, median of "
        f"{given.repeats}; Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {np.__version__}"
    )
    base = statistics.median(rates["files"])
    for name, found in rates.items():
        rate = statistics.median(found)
        spread = f"({min(found):,.0f} to {max(found):,.0f})"
        print(f"{name:18} {rate:9,.0f} images/s  {spread:18}  {rate / base:6.1f} times the files")


if __name__ == "__main__":
    main()
