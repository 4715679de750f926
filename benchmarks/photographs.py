"""Files to classify: the user's photographs or rendered ones, and those as thumbnails and enlarged to 24 megapixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from alexdeploy.core.processors import available_processors
from alexdeploy.images import shapes
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import iter_sources

LARGE_PIXELS = 24_000_000
_NOISE_LEVELS = 3.0
"""Deviation of the noise that enlarged photographs get: without any, no camera's picture was ever so smooth, and its
JPEG file would be too small and too quickly read."""


def find_photographs(inputs: Sequence[str], num_images: int) -> list[str]:
    """The first files behind `inputs`, as absolute paths."""
    found = [str(Path(source.path).absolute()) for source in iter_sources(inputs) if source.path is not None]
    if not found:
        raise SystemExit(f"no photographs in {' '.join(inputs)}")
    return found[:num_images]


def render_photographs(folder: Path, num_images: int) -> list[str]:
    """500x375 JPEGs of the rendered set, where the user names none."""
    folder.mkdir(parents=True)
    paths = [folder / f"{index:05}.jpg" for index in range(num_images)]
    for index, path in enumerate(paths):
        picture = shapes.render_image(index % len(shapes.CLASSES), np.random.default_rng(index)).convert("RGB")
        picture.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return [str(path) for path in paths]


def write_thumbnails(paths: Sequence[str], folder: Path) -> list[str]:
    """Each no more than 160 pixels wide and high."""
    folder.mkdir(parents=True)
    made = []
    for number, path in enumerate(paths):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((160, 160))
        made.append(str(folder / f"{number:05}.jpg"))
        picture.save(made[-1], quality=85)
    return made


def write_large(paths: Sequence[str], folder: Path) -> list[str]:
    """Each enlarged to 24 megapixels."""
    folder.mkdir(parents=True)
    made = [folder / f"{number:05}.jpg" for number in range(len(paths))]
    with ThreadPoolExecutor(available_processors()) as threads:
        list(threads.map(lambda path, target: target.write_bytes(enlarged(path)), paths, made))
    return [str(path) for path in made]


def enlarged(path: str) -> bytes:
    """A JPEG of 24 megapixels with the picture of `path`, enlarged, and a sensor's noise."""
    picture = Image.open(path).convert("RGB")
    scale = (LARGE_PIXELS / (picture.width * picture.height)) ** 0.5
    size = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).astype(np.int16)
    tile = np.random.default_rng(0).normal(0, _NOISE_LEVELS, (512, 512, 3)).round().astype(np.int16)
    for top in range(0, size[1], 512):
        for left in range(0, size[0], 512):
            part = pixels[top : top + 512, left : left + 512]
            part += tile[: part.shape[0], : part.shape[1]]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_squares(paths: Sequence[str], folder: Path) -> list[str]:
    """What our decoder makes of each, without loss: of these, every decoder gives the same pixels."""
    folder.mkdir(parents=True)
    made = []
    for number, path in enumerate(paths):
        made.append(str(folder / f"{number:05}.png"))
        Image.fromarray(decode(Path(path).read_bytes())).save(made[-1])
    return made


def write_batch(paths: Sequence[str], batch_size: int, path: Path) -> Path:
    """uint8 [batch_size, 256, 256, 3] as a .npy file."""
    images = [decode(Path(name).read_bytes()) for name in paths[:batch_size]]
    np.save(path, np.stack([images[index % len(images)] for index in range(batch_size)]))
    return path
