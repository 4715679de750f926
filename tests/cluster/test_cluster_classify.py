"""classify on a cluster of this machine: rows in parts, equal to those of predict, whatever ends meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endless_listing import endless_listing
from helpers import write_pictures
from ray_actors import actor_processes

pytest.importorskip("ray", reason="needs the extra ray: pip install 'alexdeploy[ray]'")

import pyarrow as pa
import pyarrow.parquet as pq

from alexdeploy.cluster.chunks import split
from alexdeploy.cluster.classify import ClusterOptions, classify
from alexdeploy.cluster.parts import Output, Part
from alexdeploy.cluster.plan import Node, plan_slots
from alexdeploy.core.errors import DeviceError, OutputError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.sources import Source
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.placement.options import PredictOptions

PREDICT = PredictOptions(num_threads=2, devices="cpu")
"""Two actors on the cluster of four CPUs."""

OPTIONS = ClusterOptions(predict=PREDICT, rows_per_part=12)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 files in five parts of 12; two of them are no images."""
    folder = write_pictures(tmp_path_factory.mktemp("cluster") / "pictures", 58)
    (folder / "003-cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "030-empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def expected(tiny_model: ModelFolder, pictures: Path) -> list[Row]:
    with Predictor(tiny_model, PREDICT) as predictor:
        return list(predictor.predict([pictures]))


def read(output: Path) -> list[dict[str, Any]]:
    """All rows, and that each part of the manifest has the rows that it says."""
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [pq.read_table(output / f"part-{part['number']:06d}.parquet") for part in manifest["parts"]]
    assert [table.num_rows for table in tables] == [part["num_rows"] for part in manifest["parts"]]
    assert manifest["is_complete"]
    return pa.concat_tables(tables).to_pylist()


def as_parquet(rows: list[Row]) -> list[dict[str, Any]]:
    from alexdeploy.inference.writers import rows_table

    return rows_table(rows).to_pylist()


def test_rows_are_those_of_predict(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, expected: list[Row], tmp_path: Path
) -> None:
    parts: list[Part] = []
    summary = classify([pictures], tiny_model, tmp_path / "rows", OPTIONS, on_part=parts.append)
    assert read(tmp_path / "rows") == as_parquet(expected)
    assert (summary.num_rows, summary.num_errors, summary.num_kept) == (60, 2, 0)
    assert sorted(part.number for part in parts) == [0, 1, 2, 3, 4]
    assert len(summary.actors) == 2
    assert sum(actor.num_images for actor in summary.actors) == 60
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {
        "manifest.json",
        *(f"part-{number:06d}.parquet" for number in range(5)),
    }


def test_json_lines(cluster: Any, tiny_model: ModelFolder, pictures: Path, expected: list[Row], tmp_path: Path) -> None:
    options = ClusterOptions(predict=PREDICT, rows_per_part=40, kind="jsonl")
    classify([pictures], tiny_model, tmp_path, options)
    lines = b"".join((tmp_path / f"part-{number:06d}.jsonl").read_bytes() for number in range(2)).splitlines()
    assert [Row.from_json(line) for line in lines] == expected


def test_chunks_of_actors_that_are_killed_are_done_again(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, expected: list[Row], tmp_path: Path
) -> None:
    notes: list[str] = []
    killed: set[int] = set()
    before = actor_processes()

    def kill(part: Part) -> None:
        if not killed:
            killed.update(actor_processes() - before)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    options = ClusterOptions(predict=PREDICT, rows_per_part=3)
    summary = classify([pictures], tiny_model, tmp_path / "rows", options, on_part=kill, on_note=notes.append)
    assert read(tmp_path / "rows") == as_parquet(expected)
    assert sum(actor.num_restarts for actor in summary.actors) == len(killed) > 0
    assert any("ended, and is replaced" in note for note in notes)


class _StopError(Exception):
    pass


def _stopped_after(number: int) -> Callable[[Part], None]:
    seen: list[Part] = []

    def stop(part: Part) -> None:
        seen.append(part)
        if len(seen) == number:
            raise _StopError

    return stop


def test_resume_goes_on_with_the_parts_that_are_missing(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, expected: list[Row], tmp_path: Path
) -> None:
    output = tmp_path / "rows"
    with pytest.raises(_StopError):
        classify([pictures], tiny_model, output, OPTIONS, on_part=_stopped_after(3))
    manifest = json.loads((output / "manifest.json").read_text())
    done = [part["number"] for part in manifest["parts"]]
    assert len(done) == 3
    assert not manifest["is_complete"]
    # A part whose file is gone is done again.
    (output / f"part-{done[0]:06d}.parquet").unlink()
    with pytest.raises(UsageError, match="has rows of an earlier run"):
        classify([pictures], tiny_model, output, OPTIONS)
    resumed = ClusterOptions(predict=PREDICT, rows_per_part=12, resume=True)
    parts: list[Part] = []
    summary = classify([pictures], tiny_model, output, resumed, on_part=parts.append)
    assert sorted(part.number for part in parts) == sorted({0, 1, 2, 3, 4} - set(done[1:]))
    assert (summary.num_rows, summary.num_errors, summary.num_kept) == (60, 2, 24)
    assert read(output) == as_parquet(expected)

    again = classify([pictures], tiny_model, output, resumed)
    assert (again.num_kept, again.num_errors, again.actors) == (60, 2, ())
    names = sorted(str(path) for path in pictures.iterdir())
    with pytest.raises(UsageError, match=r"the inputs are not those.* they end before part 3"):
        classify(names[:36], tiny_model, output, resumed)
    with pytest.raises(UsageError, match=r"the inputs are not those.* part 0 there has others"):
        classify(names[1:], tiny_model, output, resumed)
    other = ClusterOptions(predict=PredictOptions(num_threads=2, top_k=1), rows_per_part=12, resume=True)
    with pytest.raises(UsageError, match="was written with top_k 5; this run has 1"):
        classify([pictures], tiny_model, output, other)
    replaced = ClusterOptions(predict=PREDICT, rows_per_part=40, overwrite=True)
    assert classify([pictures], tiny_model, output, replaced).num_kept == 0
    assert read(output) == as_parquet(expected)
    assert len(list(output.glob("part-*"))) == 2


def test_answers_of_another_processor_or_library_are_warned_of(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows"
    with pytest.raises(_StopError):
        classify([pictures], tiny_model, output, OPTIONS, on_part=_stopped_after(2))
    manifest = json.loads((output / "manifest.json").read_text())
    # As if the first part were from a node that has since got another processor and NumPy.
    here = manifest["parts"][1]
    before = {**here["versions"], "numpy": "1.0"}
    manifest["parts"][0] |= {"processor": "Pentium", "versions": before}
    (output / "manifest.json").write_text(json.dumps(manifest))
    warnings: list[tuple[int, str]] = []
    parts: list[Part] = []
    classify(
        [pictures],
        tiny_model,
        output,
        ClusterOptions(predict=PREDICT, rows_per_part=12, resume=True),
        on_part=parts.append,
        on_warning=lambda text: warnings.append((len(parts), text)),
    )
    assert [number for number, _ in warnings] == [0, 3]
    for count, text in zip((12, 48), (text for _, text in warnings), strict=True):
        assert f"processor Pentium (12), {here['processor']} ({count})" in text
        assert f"numpy 1.0 (12), {here['versions']['numpy']} ({count})" in text
        assert "openvino" not in text


def test_errors_of_actors_are_those_of_predict(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file"):
        classify([pictures], tiny_model, tmp_path / "file" / "rows", OPTIONS)
    options = ClusterOptions(predict=PredictOptions(num_threads=2, backend="tensorrt", devices="cpu"))
    with pytest.raises(DeviceError, match="tensorrt does not run on the CPU"):
        classify([pictures], tiny_model, tmp_path / "rows", options)


def test_what_does_not_fit_is_said_before_it_starts(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no node of the cluster has 8 CPUs for an actor: .* 4"):
        classify([pictures], tiny_model, tmp_path / "a", ClusterOptions(predict=PredictOptions(num_threads=8)))
    with pytest.raises(UsageError, match="on a cluster, Ray gives the devices"):
        classify([pictures], tiny_model, tmp_path / "b", ClusterOptions(predict=PredictOptions(devices="cpu,cpu")))
    archive = shutil.make_archive(str(tmp_path / "pictures"), "zip", pictures)
    with pytest.raises(UsageError, match="is in an archive or a packed set"):
        classify([archive], tiny_model, tmp_path / "c", OPTIONS)


def test_parts_in_a_bucket(bucket: type, tmp_path: Path) -> None:
    output = Output("fault://bucket/rows/", "parquet")
    part = Part(
        number=0,
        inputs="0",
        num_rows=1,
        num_errors=0,
        backend="b",
        artifact="a",
        processor="p",
        versions={},
        node="n",
        seconds=1.0,
    )
    assert output.begin({"top_k": 5}, resume=True, overwrite=False) == []
    with pytest.raises(_StopError), output.write("part-000000.parquet"):
        raise _StopError
    assert not output.has("part-000000.parquet")
    with output.write("part-000000.parquet") as file:
        file.write(b"rows")
    assert output.has("part-000000.parquet")
    output.save({"top_k": 5}, [part], is_complete=True)
    assert output.begin({"top_k": 5}, resume=True, overwrite=False) == [part]
    with pytest.raises(UsageError, match="has rows of an earlier run"):
        output.begin({"top_k": 5}, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="objects are not removed"):
        output.begin({"top_k": 5}, resume=False, overwrite=True)
    with pytest.raises(UsageError, match="expected a folder, or a prefix"):
        Output("https://host/rows/", "parquet")


GPUS = Node(id="a", name="gpus", resources={"CPU": 16.0, "GPU": 2.0})
CPUS = Node(id="b", name="cpus", resources={"CPU": 10.0})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PredictOptions(), [("gpus", 8, 1)] * 2),
        (PredictOptions(num_threads=16), [("gpus", 16, 1)]),
        (PredictOptions(devices="cpu"), [("gpus", 16, 0), ("cpus", 10, 0)]),
        (PredictOptions(devices="cpu", num_threads=8), [("gpus", 8, 0)] * 2 + [("cpus", 8, 0)]),
        (PredictOptions(backend="openvino", num_threads=10), [("gpus", 10, 0), ("cpus", 10, 0)]),
    ],
    ids=["GPUs", "many threads", "CPUs", "eight CPUs", "a backend of CPUs"],
)
def test_slots(options: PredictOptions, expected: list[tuple[str, int, int]]) -> None:
    slots = plan_slots([GPUS, CPUS], options)
    assert [(slot.node.name, slot.num_cpus, slot.num_gpus) for slot in slots] == expected


def test_parts_grow_with_the_run() -> None:
    names = (Source(name=str(number), path=f"s3://b/{number}.jpg") for number in range(200_000))
    chunks = list(split(names, 1024))
    first = 0
    for number, chunk in enumerate(chunks):
        assert (chunk.number, chunk.first_index, chunk.sources[0].name) == (number, first, str(first))
        first += len(chunk.sources)
    assert first == 200_000
    sizes = [len(chunk.sources) for chunk in chunks[:-1]]
    assert sizes[:64] == [64] * 64
    assert sizes == sorted(sizes)
    assert sizes[-1] == 1024


def test_the_first_rows_do_not_wait_for_the_end_of_the_listing(
    cluster: Any, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = endless_listing(monkeypatch)
    # The actors know no such scheme, so each row is an error.
    with pytest.raises(_StopError):
        classify(["fault://nowhere/d/"], tiny_model, tmp_path / "rows", OPTIONS, on_part=_stopped_after(20))
    # Two chunks of 12 names for each of two actors, and one that waits.
    assert listing.num_pages == 1
