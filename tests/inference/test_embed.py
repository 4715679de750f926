"""Features of photographs: rows, files, and going on from a journal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import change_weights, smooth_images, write_pictures
from PIL import Image

import alexdeploy
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.sources import read_inputs
from alexdeploy.inference.embed_file import check_finished, embed_to_file, has_finished
from alexdeploy.inference.embedder import Embedder
from alexdeploy.inference.feature_files import METADATA_KEY, read_blocks, read_rows, rows_path
from alexdeploy.inference.feature_row import FeatureRow
from alexdeploy.inference.journal import journal_path

COUNT, BROKEN = 9, 4


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """COUNT pictures, of which BROKEN is no image."""
    folder = write_pictures(tmp_path / "pictures", COUNT)
    (folder / f"{BROKEN:03}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


@pytest.fixture
def expected(tiny_model: ModelFolder) -> np.ndarray:
    with open_engine(tiny_model, "openvino", EngineOptions(layer="fc7", batch_size=4)) as engine:
        images = smooth_images(COUNT)
        return np.concatenate([engine.run(images[n : n + 4]).probabilities for n in range(0, COUNT, 4)])


@pytest.fixture
def embedder(tiny_model: ModelFolder) -> Iterator[Embedder]:
    with Embedder(tiny_model, batch_size=4, backend="openvino") as opened:
        yield opened


def test_rows_in_order_with_the_error_of_a_broken_image(
    tiny_model: ModelFolder, pictures: Path, expected: np.ndarray
) -> None:
    options = alexdeploy.EmbedOptions(batch_size=4, backend="openvino")
    rows = list(alexdeploy.embed(pictures, tiny_model, options))
    assert [row.index for row in rows] == list(range(COUNT))
    assert [row.error is not None for row in rows] == [index == BROKEN for index in range(COUNT)]
    assert rows[BROKEN].features is None
    assert {(row.layer, row.shape, row.model, row.precision) for row in rows} == {("fc7", (32,), "tiny", "fp32")}
    for row in rows:
        if row.features is not None:
            assert np.abs(row.features - expected[row.index]).max() <= 1e-5 * expected.max()


def test_images_in_memory(embedder: Embedder, expected: np.ndarray) -> None:
    rows = embedder.embed_images([*smooth_images(5), Image.fromarray(smooth_images(6)[5]), b"no image"])
    assert [row.source for row in rows[4:]] == ["images[4]", "images[5]", "images[6]"]
    assert rows[6].error is not None
    found = np.stack([row.features for row in rows[:6] if row.features is not None])
    assert np.abs(found - expected[:6]).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("name", ["features.parquet", "features.npy"])
def test_a_file_has_every_row_and_no_features_of_a_broken_image(
    embedder: Embedder, pictures: Path, expected: np.ndarray, tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    summary = embed_to_file(embedder, read_inputs([str(pictures)]), output)
    assert (summary.num_rows, summary.num_errors, summary.num_kept) == (COUNT, 1, 0)
    assert not journal_path(output).exists()
    rows = list(read_rows(output))
    assert [Path(row.source).name for row in rows] == [f"{index:03}.png" for index in range(COUNT)]
    assert [row.index for row in rows if row.error is not None] == [BROKEN]
    values = np.concatenate(list(read_blocks(output)))
    assert values.shape == expected.shape
    assert np.isnan(values[BROKEN]).all()
    good = np.arange(COUNT) != BROKEN
    assert np.abs(values[good] - expected[good]).max() <= 1e-5 * expected.max()
    assert has_finished(output, resume=True)
    assert check_finished(embedder, read_inputs([str(pictures)]), output).num_errors == 1


def test_other_programs_read_the_files(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    parquet, npy = tmp_path / "f.parquet", tmp_path / "f.npy"
    for output in (parquet, npy):
        embed_to_file(embedder, read_inputs([str(pictures)]), output)
    array = np.load(npy)
    assert array.dtype == np.float32
    table = pd.read_parquet(parquet)
    assert np.isnan(table["features"][BROKEN]).all()
    assert (table["features"][0] == array[0]).all()
    lines = pd.read_json(rows_path(npy), lines=True)
    assert list(lines["source"]) == list(table["source"])
    schema = pq.read_schema(parquet)
    assert str(schema.field("features").type) == "fixed_size_list<element: float>[32]"
    facts = schema.metadata[METADATA_KEY].decode()
    for part in ('"layer":"fc7"', '"shape":[32]', '"num_views":1', f'"artifact":"{embedder.info.artifact}"'):
        assert part in facts


@pytest.mark.parametrize("name", ["features.parquet", "features.npy"])
@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    embedder: Embedder, pictures: Path, tmp_path: Path, name: str, stop_after: int
) -> None:
    whole, output = tmp_path / "whole" / name, tmp_path / "resumed" / name
    embed_to_file(embedder, read_inputs([str(pictures)]), whole)

    def interrupt(row: FeatureRow) -> None:
        if row.index + 1 == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_to_file(embedder, read_inputs([str(pictures)]), output, on_row=interrupt)
    assert not output.exists()
    with pytest.raises(UsageError, match=f"holds the first {stop_after} rows of an interrupted run"):
        has_finished(output, resume=False)
    summary = embed_to_file(embedder, read_inputs([str(pictures)]), output)
    # Whole batches of four images; the broken one, after the first, takes no place in one.
    assert summary.num_kept == {1: 0, 5: 5, 8: 5}[stop_after]
    for path in (whole, *([rows_path(whole)] if name.endswith(".npy") else [])):
        assert (output.parent / path.name).read_bytes() == path.read_bytes()


def test_a_journal_of_another_layer_is_refused(tiny_model: ModelFolder, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"

    def interrupt(row: FeatureRow) -> None:
        raise KeyboardInterrupt

    with Embedder(tiny_model, layer="pool5") as first, pytest.raises(KeyboardInterrupt):
        embed_to_file(first, read_inputs([str(pictures)]), output, on_row=interrupt)
    with Embedder(tiny_model, layer="relu7") as other, pytest.raises(UsageError, match="layer pool5; this run has fc7"):
        embed_to_file(other, read_inputs([str(pictures)]), output)


def test_layers_of_maps_are_flattened_and_their_shape_is_in_the_rows(
    tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "conv5.npy"
    with Embedder(tiny_model, layer="conv5", num_views=10, precision="fp16") as embedder:
        embed_to_file(embedder, read_inputs([str(pictures)]), output)
    row = next(read_rows(output))
    assert row.shape == (16, 13, 13)
    assert np.load(output).shape == (COUNT, 16 * 13 * 13)
    assert (row.num_views, row.precision) == (10, "fp16")


def test_replicas_in_processes_of_their_own_give_the_same(
    tiny_model: ModelFolder, pictures: Path, expected: np.ndarray
) -> None:
    options = alexdeploy.EmbedOptions(devices="cpu,cpu", num_threads=2, batch_size=4, backend="openvino")
    rows = list(alexdeploy.embed(pictures, tiny_model, options))
    assert [row.error is not None for row in rows] == [index == BROKEN for index in range(COUNT)]
    for row in rows:
        if row.features is not None:
            assert np.abs(row.features - expected[row.index]).max() <= 1e-5 * expected.max()


def test_an_array_without_its_rows_is_refused(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    kept = rows_path(output).read_bytes()
    rows_path(output).unlink()
    with pytest.raises(UsageError, match=r"features.npy has no features.npy.jsonl beside it"):
        list(read_rows(output))
    rows_path(output).write_bytes(kept[: kept.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(UsageError, match=f"it has {COUNT} rows, and features.npy.jsonl {COUNT - 1}"):
        list(read_rows(output))


@pytest.mark.parametrize("name", ["features.parquet", "features.npy"])
def test_what_is_no_file_of_features_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"something else")
    for read in (read_rows, read_blocks):
        with pytest.raises(UsageError, match=r"is no finished file of features|has no features.npy.jsonl"):
            list(read(path))
    with pytest.raises(UsageError, match=r"expected .parquet or .npy"):
        next(read_rows(tmp_path / "features.csv"))


@pytest.mark.parametrize("damage", ["empty", "npz", "pickle"])
def test_an_npy_file_that_is_no_array_is_refused(
    embedder: Embedder, pictures: Path, tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "features.npy"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    with output.open("wb") as file:
        if damage == "npz":
            np.savez(file, np.zeros((COUNT, 4), np.float32))
        elif damage == "pickle":
            np.save(file, np.array([{}] * COUNT), allow_pickle=True)
    for read in (read_rows, read_blocks):
        with pytest.raises(UsageError, match=r"features.npy is no finished file of features: \S"):
            list(read(output))


def test_a_changed_byte_in_a_parquet_file_is_noticed(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.parquet"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    column = pq.ParquetFile(output).metadata.row_group(0).column(0)
    content = bytearray(output.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    output.write_bytes(content)
    with pytest.raises(UsageError, match=r"features.parquet is no finished file of features: .*CRC"):
        list(read_blocks(output))


def test_features_that_another_program_wrote_as_lists_are_refused(
    embedder: Embedder, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    pd.read_parquet(output).to_parquet(output)
    with pytest.raises(UsageError, match=r"its features are list<.*>, expected lists of a fixed size"):
        list(read_blocks(output))


def test_features_that_are_not_finite_are_no_answer(tiny_model: ModelFolder, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "broken")
    shutil.copytree(tiny_model.path, folder.path)
    change_weights(folder, fc7__weight=lambda weight: np.full_like(weight, 3e38))
    with (
        Embedder(folder, backend="torch") as embedder,
        pytest.raises(ModelError, match="features that are not finite for images"),
    ):
        embedder.embed_images(smooth_images(1))


def test_a_run_on_other_inputs_is_not_gone_on_with(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    with pytest.raises(UsageError, match=r"the inputs are not those that .*features\.npy was begun with"):
        check_finished(embedder, read_inputs([str(pictures / "001.png")]), output)
    with pytest.raises(UsageError, match=r"the inputs are not those"):
        check_finished(embedder, iter(()), output)


def test_numbers_that_are_not_those_of_the_rows_are_refused(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"
    embed_to_file(embedder, read_inputs([str(pictures)]), output)
    values = np.load(output)
    np.save(output, values.astype(np.float64))
    with pytest.raises(UsageError, match=r"it is float64 \[9, 32\], expected float32 \[N, D\]"):
        list(read_blocks(output))
    np.save(output, values[:, :-1])
    with pytest.raises(UsageError, match=r"its rows are 31 numbers, according to features\.npy\.jsonl \(32,\)"):
        list(read_rows(output))


def test_newer_weights_are_told_and_an_embedder_that_is_not_open_says_how_to_open_it(
    tiny_model: ModelFolder, pictures: Path
) -> None:
    tiny_model.candidate.path.mkdir(parents=True)
    tiny_model.candidate.write_spec(tiny_model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    told: list[str] = []
    rows = alexdeploy.embed(pictures, tiny_model, on_warning=told.append)
    rows.close()
    assert "has newer weights (000000000000, epoch 7)" in told[0]
    with pytest.raises(UsageError, match="the embedder is not open"):
        Embedder(tiny_model).embed_images(pictures / "000.png")
