"""Explanations of images by a deployed model: the command's work, one image after the other."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument, check_fields
from alexdeploy.core.errors import ImageError, UsageError, warn
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Engine, EngineInfo, check_installed
from alexdeploy.explaining.heatmap import Heatmap
from alexdeploy.explaining.occlusion import mean_colour, occlusion
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import Inputs, Source, read_inputs
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import Placed, place

Methods = Literal["occlusion", "grad-cam", "both"]
_Size = Annotated[int, msgspec.Meta(ge=1, le=IMAGE_SIZE)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainOptions:
    """What is explained and how. Raises UsageError for an invalid value.

    `label` is the class whose evidence is looked for, by name or index; None: the model's answer for each image.
    "occlusion" runs what `predict` says, any backend and precision, once for each place of a square of `size` pixels
    that moves by `stride`; "grad-cam" runs the FP32 weights in PyTorch; "both" does both.
    """

    predict: PredictOptions = field(default_factory=PredictOptions)
    label: str | None = None
    method: Methods = "occlusion"
    size: _Size = 48
    stride: _Size = 16

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """The explanation of one image, or its `error`.

    `label` is the explained class and `probability` its probability, `answer` the model's answer. `image` is uint8
    [256, 256, 3], the square that the network got; the boxes and peaks of `heatmaps` are in its pixels.
    """

    index: int
    source: str
    label: str | None = None
    probability: float | None = None
    answer: str | None = None
    answer_probability: float | None = None
    heatmaps: tuple[Heatmap, ...] = ()
    image: NDArray[np.uint8] | None = None
    error: str | None = None


class Explainer:
    """A model opened for explanations: a context manager."""

    def __init__(
        self, model: ModelFolder | str | os.PathLike[str] | None = None, options: ExplainOptions | None = None
    ) -> None:
        """Find the model and check the options. Raises UsageError, ModelError or DeviceError."""
        options = check_argument("options", options or ExplainOptions(), ExplainOptions)
        self.folder = model if isinstance(model, ModelFolder) else find_model(model)
        self._options = options
        spec = self.folder.spec()
        self.model_name = spec.name
        self._resize = spec.preprocessing.resize
        self._index = None if options.label is None else class_index(options.label, spec.classes)
        self._grad_cam: Callable[[NDArray[np.uint8], int], Heatmap] | None = None
        if options.method != "occlusion":
            check_installed("torch")
            from alexdeploy.explaining.grad_cam import open_grad_cam

            self._grad_cam = open_grad_cam(self.folder, options.predict.num_views, options.predict.num_threads)
        self._fill = mean_colour(spec, self.folder.mean_image(spec))
        self._placed: Placed = place(self.folder, options.predict)
        self._engine: Engine = self._placed.engine
        self.notes = self._placed.notes

    def __enter__(self) -> Explainer:
        self._engine.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.__exit__(None, None, None)

    @property
    def info(self) -> EngineInfo:
        """The engine that gives the answers, and that occlusion runs."""
        return self._engine.info

    def explain(self, sources: Iterable[Source]) -> Generator[Explanation, None, None]:
        """One explanation for each source, in order. Raises DeviceError and ModelError from the engine."""
        for index, source in enumerate(sources):
            try:
                image = decode(source.read(self._resize), self._resize)
            except ImageError as exc:
                yield Explanation(index=index, source=source.name, error=exc.text)
                continue
            yield self._explain(index, source.name, image)

    def _explain(self, number: int, source: str, image: NDArray[np.uint8]) -> Explanation:
        probabilities = self._engine.run(image[None]).probabilities[0].copy()
        answer = int(probabilities.argmax())
        index = answer if self._index is None else self._index
        heatmaps = []
        if self._options.method != "grad-cam":
            size, stride = self._options.size, self._options.stride
            heatmaps.append(occlusion(self._engine, image, index, self._fill, size, stride))
        if self._grad_cam is not None:
            heatmaps.append(self._grad_cam(image, index))
        classes = self.info.classes
        return Explanation(
            index=number,
            source=source,
            label=classes[index],
            probability=float(probabilities[index]),
            answer=classes[answer],
            answer_probability=float(probabilities[answer]),
            heatmaps=tuple(heatmaps),
            image=image,
        )


def explain(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: ExplainOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> Iterator[Explanation]:
    """Explain the answers for `inputs`, as of `predict`: one Explanation for each image, in order, as it is ready.

    An image that cannot be read gives one with its `error`. Raises UsageError, ModelError and DeviceError: before the
    first if the model cannot be opened, later if it fails.
    """
    given = read_inputs((inputs,) if isinstance(inputs, (str, os.PathLike)) else inputs)
    explainer = Explainer(model, options)
    for note in explainer.notes:
        on_warning(note)
    return _explanations(explainer, given)


def class_index(label: str, classes: Sequence[str]) -> int:
    """The index of a class by its name, or by its index in digits. Raises UsageError."""
    if label in classes:
        return classes.index(label)
    if label.isascii() and label.isdecimal() and int(label) < len(classes):
        return int(label)
    near = difflib.get_close_matches(label, classes, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Name one, or its index from 0 to {len(classes) - 1}."
    raise UsageError(f"--class {label}: the model has no such class", hint=hint)


def _explanations(explainer: Explainer, inputs: Inputs) -> Iterator[Explanation]:
    with explainer, closing(explainer.explain(iter(inputs))) as found:
        yield from found
