"""How many answers of a model change if another decoder reads the same files: nvImageCodec beside the one decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.evaluation.agreement import BrokenImage, DecoderReport, compare, failure
from alexdeploy.images.decode import decode
from alexdeploy.images.nvimgcodec import NvImageCodec
from alexdeploy.images.pick import Picked
from alexdeploy.placement.devices import survey_gpus

MAX_DECODER_FLIPS = 0.2
"""Percent of the answers that may change with the decoder; at least one image is always allowed."""


def second_decoder(devices: str | None) -> NvImageCodec:
    """nvImageCodec on the first GPU; without one, or with "cpu" for `devices`, on the CPU. Raises as it does."""
    return NvImageCodec("cuda:0" if devices != "cpu" and survey_gpus().devices else "cpu")


class ReadImages(NamedTuple):
    """The images by the one decoder, with their names; those by another, None for what it leaves; what is broken."""

    names: list[str]
    photographs: list[NDArray[np.uint8]]
    others: list[NDArray[np.uint8] | None]
    broken: tuple[BrokenImage, ...]


def read_images(picked: Picked, spec: ModelSpec, decoder: NvImageCodec | None) -> ReadImages:
    """Read and decode all of them, also by `decoder`, if it is given. Raises ImageError if none can be read."""
    names, photographs, others, broken = [], [], [], []
    resize = spec.preprocessing.resize
    for source in picked.sources:
        try:
            data = source.read(resize)
            photographs.append(decode(data, resize))
            others.append(decoder.decode(data, resize) if decoder is not None else None)
            names.append(source.name)
        except ImageError as exc:
            broken.append(BrokenImage(source=source.name, error=exc.message))
    if not photographs:
        first = f": {broken[0].source}: {broken[0].error}" if broken else ""
        raise ImageError(f"none of {len(broken)} images can be read{first}", hint="Name photographs that can be read.")
    return ReadImages(names, photographs, others, tuple(broken))


def compare_decoders(
    decoder: str,
    photographs: Sequence[NDArray[np.uint8]],
    others: Sequence[NDArray[np.uint8] | None],
    answers: NDArray[np.floating],
    answer: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.floating]],
) -> DecoderReport:
    """`photographs` are the one decoder's, with `answers` [N, C]; `others` those of `decoder`, None for what it left.

    `answer` gives the probabilities of the same network. Raises UsageError if the decoder took none of the images.
    """
    taken = [number for number, image in enumerate(others) if image is not None]
    if not taken:
        raise UsageError(
            f"{decoder} takes none of the {len(photographs)} images",
            hint="--decoders compares JPEGs: name a folder of photographs.",
        )
    means, largest = [], 0
    changed: dict[int, NDArray[np.uint8]] = {}
    for number in taken:
        image = others[number]
        assert image is not None
        difference = np.abs(np.subtract(image, photographs[number], dtype=np.int16))
        means.append(float(difference.mean()))
        largest = max(largest, int(difference.max()))
        if difference.any():
            changed[number] = image
    actual = answers.copy()
    if changed:
        actual[list(changed)] = answer(list(changed.values()))
    agreement = compare(answers[taken], actual[taken], answers[taken])
    return DecoderReport(
        decoder=decoder,
        num_images=len(taken),
        num_left=len(photographs) - len(taken),
        num_identical=len(taken) - len(changed),
        mean_difference=sum(means) / len(taken),
        max_difference=largest,
        agreement=agreement,
        failure=failure(agreement, max(MAX_DECODER_FLIPS, 100 / len(taken))),
    )
