"""`alexdeploy predict --ray`, connected to the tests' cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import write_pictures
from patience import PATIENCE

pytest.importorskip("ray", reason="needs the extra ray: pip install 'alexdeploy[ray]'")

from alexdeploy.cluster.connection import connected
from alexdeploy.core.errors import DeviceError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row


def test_rows_table_and_exit_codes(cluster: Any, tiny_model: ModelFolder, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 20)
    (tmp_path / "pictures" / "003-cut.jpg").write_bytes(b"")
    (tmp_path / "pictures" / "notes.txt").write_bytes(b"")
    address = cluster.get_runtime_context().gcs_address
    words = ("pictures", "--ray", address, "--threads", "2", "--model", str(tiny_model.path), "--format", "jsonl")

    def predict(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alexdeploy", "predict", *words, *more],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    done = predict("-o", "rows")
    assert done.returncode == 3, done.stderr
    assert "CPUs: 21 images (100%)" in done.stderr
    assert "21 images, 1 error" in done.stderr
    assert "skipped 1 file" in done.stderr
    assert done.stdout == ""
    lines = (tmp_path / "rows" / "part-000000.jsonl").read_bytes().splitlines()
    with Predictor(tiny_model, num_threads=2, devices="cpu") as predictor:
        rows = list(predictor.predict([tmp_path / "pictures"]))
    expected = [{**row.to_dict(), "source": os.path.relpath(row.source, tmp_path)} for row in rows]
    assert [Row.from_json(line).to_dict() for line in lines] == expected

    resumed = predict("-o", "rows", "--resume")
    assert resumed.returncode == 3, resumed.stderr
    assert "21 images, 21 of them from before, 1 error" in resumed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--ray writes rows in numbered parts"),
        (("-o", "rows", "--format", "csv"), "--ray writes no csv"),
        (("-o", "rows", "--replicas", "2"), "--ray places the replicas itself"),
        (("-o", "rows"), "image.png"),
    ],
    ids=["no folder", "a format", "replicas", "no input"],
)
def test_usage_errors_come_before_any_connection(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "alexdeploy", "predict", "image.png", "--ray", "127.0.0.1:1", *words)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_an_address_without_a_cluster_is_an_error_of_a_device() -> None:
    with socket.socket() as taken:
        # Bound, and not listening: nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeviceError, match=f"no connection to a Ray cluster at {address}"), connected(address):
            pass
