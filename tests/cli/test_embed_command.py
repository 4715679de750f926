"""`alexdeploy embed` and `alexdeploy similar`: their files, rows, messages and exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import write_pictures
from program import Run
from rich.progress import Progress

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.decode import decode
from alexdeploy.inference import embed_file

if TYPE_CHECKING:
    from bucket import Bucket

pytest.importorskip("faiss", reason="faiss-cpu, of the extra similar")

COUNT, BROKEN = 8, 3
STORED = "fault://b/runs/features.parquet"


@pytest.fixture
def workplace(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models/tiny, and COUNT pictures/ of which BROKEN is no image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    write_pictures(Path("pictures"), COUNT)
    Path(f"pictures/{BROKEN:03}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return tmp_path


@pytest.fixture
def embed(program: Run, workplace: Path) -> Run:
    return lambda *words: program("embed", "pictures", "--backend", "onnxruntime", "--batch-size", "2", *words)


def _features(*names: str) -> np.ndarray:
    """What the engine computes, without the rows, the journal and the files."""
    options = EngineOptions(layer="fc7", batch_size=1)
    with open_engine(ModelFolder(Path("models/tiny")), "onnxruntime", options) as engine:
        images = [decode(Path("pictures", name).read_bytes()) for name in names]
        return np.concatenate([engine.run(image[None]).probabilities for image in images])


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    written = embed_file.Journal.write

    def interrupted(journal: embed_file.Journal, record: bytes) -> None:
        if f'"index":{index}'.encode() in record:
            raise KeyboardInterrupt
        written(journal, record)

    monkeypatch.setattr(embed_file.Journal, "write", interrupted)


def test_every_image_has_a_row_and_the_document_says_what_was_written(embed: Run) -> None:
    result = embed("-o", "features.npy", "--json")
    assert result.exit_code == 3
    facts = json.loads(result.stdout)
    assert (facts["output"], facts["layer"], facts["shape"]) == ("features.npy", "fc7", [32])
    assert (facts["rows"], facts["errors"], facts["kept"]) == (COUNT, 1, 0)
    assert (facts["model"], facts["backend"], facts["precision"], facts["num_views"]) == (
        "tiny",
        "onnxruntime",
        "fp32",
        1,
    )
    values = np.load("features.npy")
    rows = [json.loads(line) for line in Path("features.npy.jsonl").read_text().splitlines()]
    assert [Path(row["source"]).name for row in rows] == [f"{index:03}.png" for index in range(COUNT)]
    assert [index for index, row in enumerate(rows) if row["error"]] == [BROKEN]
    assert np.isnan(values[BROKEN]).all()
    # The same computation in batches of another size: sums of float32 may come in another order.
    np.testing.assert_allclose(values[[0, 7]], _features("000.png", "007.png"), rtol=1e-4, atol=1e-3)


def test_a_file_is_replaced_only_when_that_is_asked_for(embed: Run, tiny_model: ModelFolder) -> None:
    Path(f"pictures/{BROKEN:03}.png").unlink()
    Path("pictures/notes.txt").touch()
    tiny_model.candidate.path.mkdir(parents=True)
    tiny_model.candidate.write_spec(tiny_model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    first = embed()
    assert first.exit_code == 0
    assert "has newer weights (000000000000, epoch 7)" in first.stderr
    assert "skipped 1 file that is not an image (.txt 1)" in first.stderr
    assert f"{COUNT - 1} images, 0 errors, " in first.stderr
    assert f"wrote features.parquet: {COUNT - 1} rows of fc7 [32]" in first.stderr
    content = Path("features.parquet").read_bytes()
    refused = embed()
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    compared = embed("--resume")
    assert compared.exit_code == 0
    assert "features.parquet is complete, nothing to resume" in compared.stderr
    assert Path("features.parquet").read_bytes() == content
    assert embed("--overwrite", "--layer", "conv5").exit_code == 0
    assert Path("features.parquet").read_bytes() != content


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_bytes(
    embed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embed("-o", "whole.parquet").exit_code == 3
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 5)
        stopped = embed("-o", "features.parquet")
    assert stopped.exit_code == 130
    assert "Stopped; the rows so far are in " in stopped.stderr
    assert "features.parquet.partial. To go on, add --resume." in stopped.stderr
    assert not Path("features.parquet").exists()
    assert embed("-o", "features.parquet").exit_code == 2
    resumed = embed("-o", "features.parquet", "--resume")
    assert resumed.exit_code == 3
    assert f"{COUNT} images, 5 of them from before, 1 error, " in resumed.stderr
    assert Path("features.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_features_in_a_bucket_are_those_of_a_file(
    embed: Run, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = embed("-o", "fault://b/runs/features.npy")
    assert refused.exit_code == 2
    assert ".npy is two files" in refused.stderr
    assert embed("-o", "whole.parquet").exit_code == 3
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 5)
        assert embed("-o", STORED).exit_code == 130
    assert not bucket.objects
    assert embed("-o", STORED, "--resume").exit_code == 3
    assert bucket.objects == {"b/runs/features.parquet": Path("whole.parquet").read_bytes()}
    again = embed("-o", STORED, "--resume")
    assert again.exit_code == 3
    assert f"{STORED} is complete, nothing to resume" in again.stderr


def test_a_terminal_shows_how_far_it_is(embed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    update = Progress.update

    def record(bar: Progress, task: Any, **changes: Any) -> None:
        shown.append(changes)
        update(bar, task, **changes)

    with monkeypatch.context() as patch:
        _interrupt_at(patch, 5)
        assert embed().exit_code == 130
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(Progress, "update", record)
    assert embed("--resume").exit_code == 3
    counts = [each["completed"] for each in shown if "completed" in each]
    assert counts == [6, 7, 8]
    # The five rows of the run before are not part of its speed.
    assert [each["kept"] for each in shown if "kept" in each] == [5]


@pytest.fixture
def similar(program: Run, embed: Run) -> Run:
    """The command, beside features.parquet."""
    assert embed().exit_code == 3
    return lambda *words: program("similar", *words)


def _nearest(query: int) -> list[int]:
    """By NumPy in float64, from the engine's features."""
    names = [f"{index:03}.png" for index in range(COUNT) if index != BROKEN]
    values = _features(*names).astype(np.float64)
    distances = np.linalg.norm(values - values[names.index(f"{query:03}.png")], axis=1)
    return [int(names[index][:3]) for index in np.argsort(distances)[1:]]


def _document(text: str) -> list[tuple[str, int]]:
    (match,) = json.loads(text)
    return [(each["source"], each["rank"]) for each in match["neighbours"]]


def _json_lines(text: str) -> list[tuple[str, int]]:
    return [(row["source"], row["rank"]) for row in map(json.loads, text.splitlines())]


def _csv(text: str) -> list[tuple[str, int]]:
    return [(row["source"], int(row["rank"])) for row in csv.DictReader(io.StringIO(text))]


def _table(text: str) -> list[tuple[str, int]]:
    query, *lines = text.splitlines()
    assert query == "pictures/000.png"
    return [(source, int(rank)) for rank, _, source in map(str.split, lines)]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (("--json",), _document),
        ((), _json_lines),
        (("--format", "csv"), _csv),
        (("--format", "table"), _table),
    ],
)
def test_every_format_has_the_nearest_first(
    similar: Run, words: tuple[str, ...], read: Callable[[str], list[tuple[str, int]]]
) -> None:
    result = similar("pictures/000.png", "-k", "3", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = [f"pictures/{index:03}.png" for index in _nearest(0)[:3]]
    assert read(result.stdout) == list(zip(expected, (1, 2, 3), strict=True))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "table"])
def test_a_query_that_cannot_be_read_is_a_row_with_its_error(similar: Run, kind: str) -> None:
    shutil.copytree("pictures", "others")
    result = similar("others/002.png", f"others/{BROKEN:03}.png", "-k", "1", "--format", kind)
    assert result.exit_code == 3
    lines = [line for line in result.stdout.splitlines() if f"others/{BROKEN:03}.png" in line]
    assert len(lines) == 1
    assert "unsupported file type" in lines[0]
    assert "pictures/002.png" in result.stdout


def test_a_page_shows_the_queries(similar: Run) -> None:
    result = similar("pictures/000.png", "--sheet", "similar.html")
    assert result.exit_code == 0
    assert "wrote similar.html" in result.stderr
    page = Path("similar.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 1 + 6
    refused = similar("pictures/000.png", "--sheet", "similar.html")
    assert refused.exit_code == 2
    assert Path("similar.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "--format", "csv"), "Give one of them"),
        (("--in", "pictures"), "--in pictures is a folder"),
        (("--in", "none.parquet"), "alexdeploy embed IMAGES -o none.parquet"),
        (("--sheet", "pictures"), "--sheet pictures is a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(program: Run, workplace: Path, words: tuple[str, ...], message: str) -> None:
    Path("features.parquet").touch()
    result = program("similar", "pictures/000.png", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
