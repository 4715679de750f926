"""Occlusion by the deployed engine (Zeiler and Fergus 2014, section 4.2): a plain square is slid over the image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Preprocessing
from alexdeploy.engines.base import Engine
from alexdeploy.explaining.heatmap import Box, Heatmap, peak_of


def mean_colour(spec: ModelSpec, mean_image: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """The pixels that preprocessing turns into zeros, as nearly as whole numbers can: uint8 [256, 256, 3], RGB.

    Of an ensemble, whose members may subtract different means, their average. `mean_image` is what
    `ModelFolder.mean_image` returns.
    """
    means = iter(() if mean_image is None else mean_image if spec.members else [mean_image])
    steps = [each.preprocessing for each in spec.networks]
    pixels = [_zero(each, None if each.mean_image is None else next(means)) for each in steps]
    return np.asarray(np.clip(np.rint(np.mean(pixels, axis=0)), 0, 255), dtype=np.uint8)


def _zero(steps: Preprocessing, mean_image: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The pixels [256, 256, 3], RGB, that become zeros in one network."""
    mean = np.array(steps.mean, np.float32).reshape(3, 1, 1) if mean_image is None else mean_image
    pixels = np.broadcast_to(mean, (3, IMAGE_SIZE, IMAGE_SIZE)).transpose(1, 2, 0) / steps.scale
    return np.asarray(pixels[:, :, ::-1] if steps.channels == "bgr" else pixels, dtype=np.float32)


def places(size: int, stride: int) -> tuple[Box, ...]:
    """Squares of `size` pixels every `stride` pixels, by rows; the last of a row and of a column end at the border."""
    last = IMAGE_SIZE - size
    starts = sorted({*range(0, last, stride), last})
    return tuple(Box(left, top, left + size, top + size) for top in starts for left in starts)


def occlusion(
    engine: Engine, image: NDArray[np.uint8], index: int, fill: NDArray[np.uint8], size: int, stride: int
) -> Heatmap:
    """Cover `image`, uint8 [256, 256, 3], with squares of `fill`, and see what class `index` loses.

    The engine must be open. Raises DeviceError and ModelError from it.
    """
    squares = places(size, stride)
    info = engine.info

    def run(start: int) -> NDArray[np.float64]:
        part = squares[start : start + info.batch_size]
        images = np.repeat(image[None], len(part), axis=0)
        for covered, (left, top, right, bottom) in zip(images, part, strict=True):
            covered[top:bottom, left:right] = fill[top:bottom, left:right]
        return scores(engine, images, index)

    base = scores(engine, image[None], index)[0, 1]
    with ThreadPoolExecutor(info.num_streams, thread_name_prefix="alexdeploy-explain") as pool:
        try:
            found = np.concatenate(list(pool.map(run, range(0, len(squares), info.batch_size))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    drops = base - found[:, 1]
    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    weight = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    # Heavier towards the centre of a square: fewer squares cover the pixels near a border, and a plain mean would be
    # largest beside a cue there.
    line = 1 - np.abs(np.arange(size) - (size - 1) / 2) / ((size + 1) / 2)
    tent = np.outer(line, line)
    for (left, top, right, bottom), drop in zip(squares, drops, strict=True):
        total[top:bottom, left:right] += tent * drop
        weight[top:bottom, left:right] += tent
    # A stride longer than the squares leaves pixels between them.
    values = np.divide(total, weight, out=total, where=weight > 0).astype(np.float32)
    best = int(drops.argmax())
    return Heatmap(
        method="occlusion",
        values=values,
        peak=peak_of(values),
        box=squares[best],
        covered_probability=float(found[best, 0]),
        largest_drop=float(drops[best]),
    )


def scores(engine: Engine, images: NDArray[np.uint8], index: int) -> NDArray[np.float64]:
    """Probability and log-odds of class `index`, float64 [N, 2].

    The odds are against the sum of the other classes, which is exact where the probability is 1 in float32.
    """
    found = engine.run(images)
    if found.errors:
        raise DeviceError(f"no answer: {next(iter(found.errors.values()))}")
    probabilities = found.probabilities.astype(np.float64)
    chosen = probabilities[:, index]
    others = probabilities.sum(axis=1, where=np.arange(probabilities.shape[1]) != index)
    tiny = np.finfo(np.float32).tiny
    log_odds = np.log(np.maximum(chosen, tiny)) - np.log(np.maximum(others, tiny))
    return np.stack((chosen, log_odds), axis=1)
