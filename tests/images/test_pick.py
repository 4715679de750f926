"""Which photographs a model is checked on."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.images import pick
from alexdeploy.images.decode import decode
from alexdeploy.images.pick import Picked, pick_sources


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained_on(data: str | None) -> ModelSpec:
    spec = ModelSpec(name="m", classes=("a", "b"), preprocessing=Preprocessing())
    return spec.replace_provenance(data=data)


def twelve_pictures(folder: str) -> None:
    Path(folder).mkdir()
    for index in range(12):
        Image.new("RGB", (8, 8)).save(f"{folder}/{index:02}.png")


def numbers(picked: Picked) -> list[int]:
    return [int(Path(source.name).stem) for source in picked.sources]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [8]), (3, [2, 6, 10]), (5, [0, 2, 6, 8, 10]), (12, range(12)), (20, range(12))]
)
def test_what_is_picked_lies_evenly_over_all_that_is_named(count: int, expected: list[int]) -> None:
    twelve_pictures("named")
    picked = pick_sources(["named"], trained_on(None), count)
    assert (picked.origin, picked.num_found) == ("named", 12)
    assert numbers(picked) == list(expected)


def test_several_names_are_one_choice() -> None:
    twelve_pictures("named")
    picked = pick_sources(["named/03.png", "named/07.png", "named/1?.png"], trained_on("named"), 5)
    assert (picked.origin, picked.num_found) == ("named/03.png, named/07.png, named/1?.png", 4)
    assert numbers(picked) == [3, 7, 10, 11]


def test_of_an_endless_folder_the_first_sources_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    twelve_pictures("named")
    monkeypatch.setattr(pick, "MOST_SOURCES", 6)
    picked = pick_sources(["named"], trained_on(None), 3)
    assert (picked.num_found, numbers(picked)) == (6, [1, 3, 5])


def test_named_sources_that_cannot_be_read_stand_where_they_were_named() -> None:
    Path("list.txt").write_text("missing.png\n")
    (source,) = pick_sources(["@list.txt"], trained_on(None), 4).sources
    with pytest.raises(ImageError, match="not found"):
        source.read()


def test_named_sources_that_do_not_exist_are_all_told() -> None:
    twelve_pictures("named")
    with pytest.raises(UsageError, match=r"^missing\.png, none/, @no\.txt, \*\*/x\.png do not exist\n"):
        pick_sources(["missing.png", "named", "none/", "@no.txt", "**/x.png"], trained_on(None), 4)


def test_without_names_the_training_data_is_taken_with_some_to_spare() -> None:
    twelve_pictures("data")
    picked = pick_sources(None, trained_on("data"), 2, num_spare=1)
    assert (picked.origin, picked.num_found, numbers(picked)) == ("data", 12, [2, 6, 10])
    assert pick_sources([], trained_on("data"), 2).origin == "data"


def test_training_data_may_be_anywhere(tmp_path: Path) -> None:
    twelve_pictures("data")
    picked = pick_sources(None, trained_on(str(tmp_path / "data")), 12)
    assert (picked.origin, numbers(picked)) == (str(tmp_path / "data"), list(range(12)))


class _NeverRead(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise AssertionError("standard input was read")


@pytest.mark.parametrize("data", [None, "", "-", "@list.txt", "*.png", "one.png", "missing", "empty", "a\0b"])
def test_a_path_in_a_spec_that_is_no_folder_of_images_gives_rendered_pictures(
    data: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save("one.png")
    Path("list.txt").write_text("one.png\n")
    Path("empty").mkdir()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(_NeverRead()))  # type: ignore[type-var]
    picked = pick_sources(None, trained_on(data), 3, num_spare=5)
    assert (picked.origin, picked.num_found) == ("rendered pictures", 3)
    pixels = [decode(source.read(), "crop") for source in picked.sources]
    assert len({image.tobytes() for image in pixels}) == 3


@pytest.mark.parametrize("name", ["-", "@list.txt", "[ab]", "a.zip"])
def test_a_folder_that_is_called_like_a_list_or_a_pattern_is_a_folder(name: str) -> None:
    twelve_pictures(name)
    assert pick_sources(None, trained_on(name), 12).num_found == 12
