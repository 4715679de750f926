"""The photographs that an evaluation shows: the right ones, few of them, read again from wherever they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_images
from PIL import Image

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation import examples as module
from alexdeploy.evaluation.evaluate import EvaluateOptions, choose_bases, evaluate
from alexdeploy.evaluation.examples import Candidates, Examples
from alexdeploy.evaluation.results import ImageResult, Plan
from alexdeploy.evaluation.scoring import Answer, Tally
from alexdeploy.images.decode import decode
from alexdeploy.reports.thumbnails import thumbnail

ON_ORT = EvaluateOptions(num_views=(1, 10), backends=("onnxruntime",), batch_size=4, num_threads=1, thumbnails=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty pictures in five class folders, which say nothing of what is on them."""
    root = tmp_path / "data"
    for index, image in enumerate(smooth_images(20, seed=3)):
        folder = root / f"class-{index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    return root


def choose(num_images: int, num_classes: int) -> tuple[Examples, list[tuple[int, list[Answer]]]]:
    rng = np.random.default_rng(1)
    named = [Configuration(backend="torch", precision="fp32", num_views=views) for views in (1, 5, 10)]
    bases = choose_bases(named)
    candidates, tallies = Candidates(bases), [Tally(num_classes) for _ in named]
    images = []
    for index in range(num_images):
        label = int(rng.integers(num_classes))
        rows = rng.dirichlet(np.ones(num_classes), 3).astype(np.float32)
        answers: list[Answer] = []
        for tally, row in zip(tallies, rows, strict=True):
            answers.append(tally.add(label, row, answers[0] if answers else None))
        candidates.add(index, f"{index}.jpg", label, answers)
        images.append((label, answers))
    scores = [
        tally.score(
            name, artifact="c0", names=list("abcdefgh"), seconds=1.0, base=None if base is None else named[base]
        )
        for tally, name, base in zip(tallies, named, bases, strict=True)
    ]
    return candidates.choose(scores), images


def test_the_examples_are_the_first_of_all_images_sorted() -> None:
    found, images = choose(500, 8)
    wrong = [n for n, (label, answers) in enumerate(images) if answers[0].label != label]
    wrong.sort(key=lambda n: (-images[n][1][0].probability, n))
    assert [each.index for each in found.confident] == wrong[: module.NUM_CONFIDENT]
    assert len(found.by_class) == 8
    for each in found.by_class:
        assert [image.index for image in each.images] == [n for n in wrong if images[n][0] == each.index][:6]
    assert [(each.number, each.base) for each in found.changed] == [(1, 0), (2, 0)]
    for each in found.changed:
        changed = [n for n, (_, answers) in enumerate(images) if answers[each.number].label != answers[0].label]

        def key(n: int, number: int = each.number) -> tuple[bool, float, int]:
            label, answers = images[n]
            return answers[0].label != label, -min(answers[0].probability, answers[number].probability), n

        assert [image.index for image in each.images] == sorted(changed, key=key)[: module.NUM_CHANGED]


def test_examples_of_many_images_are_no_more_than_those_of_few() -> None:
    few, many = (len(choose(number, 8)[0].indices) for number in (500, 2500))
    most = module.NUM_CONFIDENT + 8 * module.NUM_OF_A_CLASS + 2 * module.NUM_CHANGED
    assert 60 < few <= most
    assert 60 < many <= most


def test_thumbnails_are_the_pixels_that_the_network_saw(tiny_model: ModelFolder, data: Path) -> None:
    found = evaluate(tiny_model, data, ON_ORT)
    assert set(found.thumbnails) == found.examples.indices
    resize = tiny_model.spec().preprocessing.resize
    for image in found.examples.confident:
        seen = decode(Path(image.source).read_bytes(), resize)
        assert found.thumbnails[image.index] == thumbnail(seen)


def test_a_photograph_that_has_gone_has_no_thumbnail(tiny_model: ModelFolder, data: Path) -> None:
    expected = evaluate(tiny_model, data, ON_ORT)
    gone = expected.examples.confident[0]

    def remove(event: Plan | ImageResult) -> None:
        # The last image: all have been read.
        if isinstance(event, ImageResult) and event.index == 19:
            Path(gone.source).unlink()

    found = evaluate(tiny_model, data, ON_ORT, on_event=remove)
    assert found.examples == expected.examples
    assert set(found.thumbnails) == found.examples.indices - {gone.index}
