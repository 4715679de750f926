"""The nearest photographs, with NumPy in float64 as the judge."""

from __future__ import annotations

import importlib.util
import io
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import make_model, smooth_images, write_pictures
from PIL import Image

import alexdeploy
from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.sources import read_inputs
from alexdeploy.inference.embed_file import embed_to_file
from alexdeploy.inference.embedder import Embedder
from alexdeploy.inference.feature_files import read_blocks, read_rows, rows_path
from alexdeploy.inference.neighbours import Metric, index_path, nearest, search_index
from alexdeploy.inference.similar import Match, Neighbour
from alexdeploy.inference.similar_sheet import MOST_QUERIES, write_sheet

pytest.importorskip("faiss", reason="faiss-cpu, of the extra similar")


def _judge(values: np.ndarray, queries: np.ndarray, k: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    rows, wanted = values.astype(np.float64), queries.astype(np.float64)
    if metric == "euclidean":
        distances = np.sqrt(np.square(wanted[:, None] - rows[None]).sum(axis=2))
    else:
        lengths = np.linalg.norm(wanted, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None]
        distances = 1 - wanted @ rows.T / lengths
    distances = np.where(np.isnan(distances), np.inf, distances)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """500 rows of 24 features as after ReLU, five of them missing, in an .npy file."""
    values = np.maximum(np.random.default_rng(0).normal(0, 50, (500, 24)), 0).astype(np.float32)
    values[::100] = np.nan
    path = tmp_path_factory.mktemp("features") / "features.npy"
    np.save(path, values)
    return path, values


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("num_queries", [1, 70])
def test_the_search_block_by_block_is_exact(
    features: tuple[Path, np.ndarray], metric: Metric, num_queries: int
) -> None:
    values = features[1]
    queries = values[1 : num_queries + 1] + np.float32(0.5)
    queries = queries[~np.isnan(queries[:, 0])]
    blocks = np.array_split(values, 7)
    distances, rows = nearest(blocks, queries, 6, metric)
    expected, order = _judge(values, queries, 6, metric)
    assert (rows == order).all()
    # float64 sums of 24 squares of values up to 200, in another order.
    assert np.abs(distances - expected).max() <= 1e-9


def test_more_neighbours_than_rows(features: tuple[Path, np.ndarray]) -> None:
    few = features[1][:4]
    distances, rows = nearest([few], few[1:2], 6, "euclidean")
    assert sorted(rows[0, :3]) == [1, 2, 3]
    assert (rows[0, 3:] == -1).all()
    assert np.isinf(distances[0, 3:]).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_an_index_finds_nearly_all_and_is_made_once(
    features: tuple[Path, np.ndarray], metric: Metric, tmp_path: Path
) -> None:
    path = tmp_path / "features.npy"
    shutil.copy(features[0], path)
    queries = features[1][1:60]
    distances, rows = search_index(path, queries, 6, metric)
    expected, order = _judge(features[1], queries, 6, metric)
    recall = np.mean([len(set(found) & set(wanted)) / 6 for found, wanted in zip(rows, order, strict=True)])
    assert recall >= 0.95
    # FP16 has 11 bits; the squares of the features add up to at most 24 * 200^2.
    assert np.abs(distances - expected)[rows == order].max() <= (1.0 if metric == "euclidean" else 2e-3)
    made = index_path(path).stat().st_mtime_ns
    search_index(path, queries, 6, metric)
    assert index_path(path).stat().st_mtime_ns == made
    np.save(path, features[1][::-1])
    assert search_index(path, queries[:1], 1, metric)[1][0, 0] == 498


@pytest.mark.parametrize("left", [0, 500])
def test_a_truncated_index_is_made_again(features: tuple[Path, np.ndarray], tmp_path: Path, left: int) -> None:
    path = tmp_path / "features.npy"
    shutil.copy(features[0], path)
    queries = features[1][1:9]
    expected = search_index(path, queries, 6, "euclidean")
    made = index_path(path).read_bytes()
    index_path(path).write_bytes(made[:left])
    found = search_index(path, queries, 6, "euclidean")
    assert (found[1] == expected[1]).all()
    assert len(index_path(path).read_bytes()) == len(made)


@pytest.fixture
def planted(tiny_model: ModelFolder, tmp_path: Path) -> tuple[ModelFolder, Path, Path]:
    """A model, 12 pictures of which three are one picture again, and their features."""
    folder = write_pictures(tmp_path / "pictures", 12)
    original = Image.fromarray(smooth_images(1)[0])
    original.resize((400, 400), Image.Resampling.BICUBIC).save(folder / "copy-large.png")
    original.save(folder / "copy-jpeg.jpg", quality=85)
    original.crop((4, 4, 252, 252)).save(folder / "copy-cropped.png")
    output = tmp_path / "features.parquet"
    with Embedder(tiny_model, batch_size=4) as embedder:
        embed_to_file(embedder, read_inputs([str(folder)]), output)
    return tiny_model, folder, output


def test_copies_of_a_photograph_are_its_neighbours(planted: tuple[ModelFolder, Path, Path]) -> None:
    model, folder, output = planted
    query = str(folder / "000.png")
    # A row of the file needs no model, and is not its own neighbour.
    (match,) = alexdeploy.similar(query, output, options=alexdeploy.SimilarOptions(k=3))
    assert {Path(each.source).name for each in match.neighbours} == {
        "copy-large.png", "copy-jpeg.jpg", "copy-cropped.png",
    }  # fmt: skip
    assert [each.rank for each in match.neighbours] == [1, 2, 3]
    other = folder.parent / "query.png"
    shutil.copy(query, other)
    for metric in ("euclidean", "cosine"):
        options = alexdeploy.SimilarOptions(k=4, metric=metric)
        (match,) = alexdeploy.similar(other, output, model, options)
        assert match.neighbours[0].source == query
        assert match.neighbours[0].distance == pytest.approx(0, abs=1e-3)
        assert len(match.neighbours) == 4


def test_a_query_with_damaged_features_has_an_error(planted: tuple[ModelFolder, Path, Path]) -> None:
    model, _, features = planted
    damaged = features.with_name("damaged.npy")
    sources = [row.source for row in read_rows(features)]
    values = np.concatenate(list(read_blocks(features)))
    values[0, 1] = np.nan
    np.save(damaged, values)
    rows_path(damaged).write_bytes(b"".join(msgspec.json.encode(row.origin()) + b"\n" for row in read_rows(features)))
    first, second = alexdeploy.similar(sources[:2], damaged, model)
    assert not first.neighbours
    assert first.error is not None
    assert "are not finite" in first.error
    assert second.error is None
    assert second.neighbours


def test_a_folder_of_queries_with_a_broken_one(planted: tuple[ModelFolder, Path, Path], tmp_path: Path) -> None:
    model, folder, output = planted
    queries = write_pictures(tmp_path / "queries", 3)
    (queries / "001.png").write_bytes(b"nothing")
    matches = alexdeploy.similar([queries, folder / "copy-jpeg.jpg"], output, model)
    assert [match.error is None for match in matches] == [True, False, True, True]
    assert [Path(match.neighbours[0].source).name for match in matches[::2]] == ["000.png", "002.png"]


def test_another_model_is_refused(planted: tuple[ModelFolder, Path, Path], tmp_path: Path) -> None:
    model, folder, output = planted
    stranger = folder.parent / "query.png"
    shutil.copy(folder / "000.png", stranger)
    with pytest.raises(UsageError, match=r"was made by the model tiny, .*, and there is no such model here"):
        alexdeploy.similar(stranger, output)
    other = make_model(tmp_path / "other")
    with pytest.raises(UsageError, match=r"was made by the model tiny, .*; this is other"):
        alexdeploy.similar(stranger, output, other)
    with pytest.raises(UsageError, match=r"was made by the model tiny, .*; this is other"):
        alexdeploy.similar(folder / "000.png", output, other)
    model.sum_path().unlink()
    graph = model.onnx_path()
    graph.write_bytes(graph.read_bytes() + b"\x1a\x00")
    with pytest.raises(UsageError, match=r"; it has [0-9a-f]{12} now"):
        alexdeploy.similar(stranger, output, model)


def test_the_sheet_shows_photographs_and_escapes_names(tmp_path: Path) -> None:
    hostile = tmp_path / 'a"b<script>alert(1)</script>'
    hostile.mkdir(parents=True)
    name = str(hostile / "x'\n.png")
    Image.fromarray(smooth_images(1)[0]).save(name)
    archived = io.BytesIO()
    Image.fromarray(smooth_images(2)[1]).save(archived, "PNG")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("in/side.png", archived.getvalue())
    inside = f"{tmp_path / 'some.zip'}!in/side.png"
    found = (
        Neighbour(rank=1, source=inside, distance=1.5, index=3),
        Neighbour(rank=2, source="gone.png", distance=2.0, index=4),
    )
    page = tmp_path / "sheet.html"
    write_sheet(page, [Match(query=name, neighbours=found)], "Similar", "words")
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2
    assert text.count('<div class="none">') == 1
    assert "<script>" not in text
    assert "side.png" in text
    assert "1.5" in text


def test_what_has_no_answer_is_said(planted: tuple[ModelFolder, Path, Path], tmp_path: Path) -> None:
    model, folder, features = planted
    with pytest.raises(UsageError, match="there is no query"):
        alexdeploy.similar([], features, model)
    with pytest.raises(UsageError, match="no model at"):
        alexdeploy.similar(folder / "000.png", features, tmp_path / "gone")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    (match,) = alexdeploy.similar(broken, features, model)
    assert (match.neighbours, match.error is None) == ((), False)
    empty = features.with_name("empty.npy")
    np.save(empty, np.zeros((0, 32), np.float32))
    rows_path(empty).write_bytes(b"")
    with pytest.raises(UsageError, match=r"empty\.npy has no rows"):
        alexdeploy.similar(folder / "000.png", empty, model)


def test_an_index_finds_what_the_exact_search_finds_and_newer_weights_are_told(
    planted: tuple[ModelFolder, Path, Path], tmp_path: Path
) -> None:
    model, folder, features = planted
    model.candidate.path.mkdir(parents=True)
    model.candidate.write_spec(model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    query = tmp_path / "query.png"
    shutil.copy(folder / "000.png", query)
    told: list[str] = []
    (exact,) = alexdeploy.similar(query, features, model, alexdeploy.SimilarOptions(k=3), on_warning=told.append)
    assert "has newer weights (000000000000, epoch 7)" in told[0]
    options = alexdeploy.SimilarOptions(k=3, index=True)
    (found,) = alexdeploy.similar(query, features, model, options, on_warning=told.append)
    assert index_path(features).is_file()
    assert [each.source for each in found.neighbours] == [each.source for each in exact.neighbours]


def test_of_many_queries_the_page_shows_the_first_and_says_so(tmp_path: Path) -> None:
    matches = [Match(query=f"{number}.png", error="gone") for number in range(MOST_QUERIES + 2)]
    write_sheet(tmp_path / "sheet.html", matches, "Similar", "words")
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert f"The first {MOST_QUERIES} of {MOST_QUERIES + 2} queries." in text
    assert text.count("gone") == MOST_QUERIES


def test_without_faiss_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'alexdeploy\[similar\]'"):
        alexdeploy.similar("a.png", tmp_path / "features.parquet")
