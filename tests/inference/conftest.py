"""Predictors on the small real engine of `colour`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from colour import COLOURS, PICTURES, ColourEngine

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.engines.base import EngineOptions
from alexdeploy.images.sources import Source
from alexdeploy.inference.predictor import Predictor
from alexdeploy.placement import place


def _make_sources(count: int, *, broken: Callable[[int], bool] = lambda index: False) -> Iterator[Source]:
    """Red, green, blue, red, ... in memory, made as they are asked for."""
    for index in range(count):
        data = b"no picture" if broken(index) else PICTURES[COLOURS[index % 3]]
        yield Source(name=f"{index}.jpg", data=data)


@pytest.fixture
def make_sources() -> Callable[..., Iterator[Source]]:
    return _make_sources


@pytest.fixture
def colour_model(tmp_path: Path) -> Path:
    """A model folder with nothing but its spec."""
    path = tmp_path / "models" / "colour"
    ModelFolder(path).write_spec(ModelSpec(name="colour", classes=COLOURS, preprocessing=Preprocessing()))
    return path


@pytest.fixture
def make_predictor(colour_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Predictor]:
    """A predictor on a ColourEngine: Predictor's options, and those of the engine as `engine={...}`."""

    def make(*, engine: dict[str, object] | None = None, **options: object) -> Predictor:
        def open_engine(folder: ModelFolder, backend: str, engine_options: EngineOptions) -> ColourEngine:
            return ColourEngine(options=engine_options, **(engine or {}))

        monkeypatch.setattr(place, "open_engine", open_engine)
        return Predictor(colour_model, backend="onnxruntime", **options)

    return make
