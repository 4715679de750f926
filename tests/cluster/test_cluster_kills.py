"""classify where processes are killed with SIGKILL: an image's reader, a node, the driver. Every input has one row."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from colour import PICTURES
from helpers import write_pictures
from patience import PATIENCE
from ray_actors import process_with_port
from web_server import Handler, WebServer

pytest.importorskip("ray", reason="needs the extra ray: pip install 'alexdeploy[ray]'")

import pyarrow as pa
import pyarrow.parquet as pq

from alexdeploy.cluster import crew
from alexdeploy.cluster.classify import ClusterOptions, classify
from alexdeploy.cluster.parts import Part
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.inference.writers import rows_table
from alexdeploy.placement.options import PredictOptions

PREDICT = PredictOptions(num_threads=2, devices="cpu")


def predicted(model: ModelFolder, inputs: list[str]) -> list[Row]:
    with Predictor(model, PREDICT) as predictor:
        return list(predictor.predict(inputs))


def read(output: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    return pa.concat_tables(tables).to_pylist()


def test_an_image_that_kills_its_reader_costs_one_row(
    cluster: Any, web: WebServer, tiny_model: ModelFolder, tmp_path: Path
) -> None:
    names = [f"{number:02}.png" for number in range(8)]
    pictures = list(PICTURES.values())
    web.files = {name: pictures[number % len(pictures)] for number, name in enumerate(names)}
    urls = [f"{web.url}/{name}" for name in names]
    del web.files["05.png"]
    expected = predicted(tiny_model, urls)
    killed: list[int] = []

    def kill_reader(handler: Handler, data: bytes) -> None:
        process = process_with_port(handler.client_address[1])
        if process is not None:
            killed.append(process.pid)
            process.kill()
            process.wait(PATIENCE)
        handler.close_connection = True

    web.steps["05.png"] = [kill_reader] * 100
    summary = classify(urls, tiny_model, tmp_path / "rows", ClusterOptions(predict=PREDICT, rows_per_part=4))
    reason = "3 actors ended when they had only this image; the last one: The actor died unexpectedly"
    rows = read(tmp_path / "rows")
    assert rows[5]["error"].startswith(reason)
    assert rows == rows_table([replace(row, error=rows[row.index]["error"]) for row in expected]).to_pylist()
    assert [row["index"] for row in rows if row["error"] is not None] == [5]
    # The chunk and the image alone three times each, one half in between.
    assert len(killed) == sum(actor.num_restarts for actor in summary.actors) == 7


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 files; one of them is no image."""
    folder = write_pictures(tmp_path / "pictures", 39)
    (folder / "003-cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def added(nodes: Any) -> Iterator[list[Any]]:
    """Nodes that a test adds; they leave with it."""
    there: list[Any] = []
    yield there
    for node in there:
        if node in nodes.worker_nodes:
            nodes.remove_node(node, allow_graceful=False)


def test_a_node_may_go_and_another_come(
    nodes: Any, added: list[Any], tiny_model: ModelFolder, pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(crew, "_NODES_SECONDS", 0.0)
    expected = predicted(tiny_model, [str(pictures)])

    def add() -> Any:
        handler = signal.getsignal(signal.SIGTERM)
        added.append(nodes.add_node(num_cpus=2, object_store_memory=100 * 2**20, node_ip_address="127.0.0.3"))
        signal.signal(signal.SIGTERM, handler)
        return added[-1]

    first = add()
    parts: list[Part] = []
    notes: list[str] = []

    def change(part: Part) -> None:
        parts.append(part)
        if len(parts) == 1:
            kill_node(first)
            # It is not there any more to be removed.
            nodes.worker_nodes.discard(first)
            add()

    options = ClusterOptions(predict=PREDICT, rows_per_part=1)
    summary = classify([pictures], tiny_model, tmp_path / "rows", options, on_part=change, on_note=notes.append)
    assert read(tmp_path / "rows") == rows_table(expected).to_pylist()
    assert len(summary.actors) == 4
    assert any("has joined, with 2 CPUs for an actor" in note for note in notes)


def kill_node(node: Any) -> None:
    """SIGKILL to a raylet and to all of its workers."""
    [raylet] = node.all_processes["raylet"]
    process = psutil.Process(raylet.process.pid)
    for each in (process, *process.children(recursive=True)):
        each.kill()


DRIVER = """
import sys
import ray
from alexdeploy.cluster.classify import ClusterOptions, classify
from alexdeploy.placement.options import PredictOptions
address, pictures, model, output, resume = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
predict = PredictOptions(num_threads=2, devices="cpu")
classify([pictures], model, output, ClusterOptions(predict=predict, rows_per_part=1, resume=resume == "resume"))
"""


def test_a_driver_that_is_killed_is_resumed(
    cluster: Any, tiny_model: ModelFolder, pictures: Path, tmp_path: Path
) -> None:
    expected = predicted(tiny_model, [str(pictures)])
    output = tmp_path / "rows"
    address = cluster.get_runtime_context().gcs_address
    command = (sys.executable, "-c", DRIVER, address, str(pictures), str(tiny_model.path), str(output))
    with subprocess.Popen((*command, "begin")) as driver:
        until = time.monotonic() + PATIENCE
        while not list(output.glob("*.parquet")) and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    # Of an actor that was killed while it wrote.
    (output / ".part-000000.parquet.k1ll3d.tmp").write_bytes(b"PAR1")
    subprocess.run((*command, "resume"), check=True, timeout=PATIENCE)
    assert [path.name for path in output.iterdir() if not path.name.startswith("part-")] == ["manifest.json"]
    assert read(output) == rows_table(expected).to_pylist()
