"""The programs of docs/serving.md, run as they stand there, in a folder with a tiny model and three files."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from colour import PICTURES
from serve_process import serving

from alexdeploy import Predictor
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.row import Row

SERVING = Path(__file__).parents[2] / "docs" / "serving.md"
FILES = {"a.jpg": PICTURES["red"], "b.jpg": PICTURES["blue"], "c.jpg": PICTURES["green"][:300]}


def blocks_under(heading: str) -> list[str]:
    """The Python blocks of one section of the page."""
    section = re.split(rf"^#+ {heading}$", SERVING.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    found = re.findall(r"^```python\n(.*?)^```$", re.split(r"^#+ ", section, flags=re.MULTILINE)[0], re.DOTALL | re.M)
    assert found
    return found


def run(blocks: list[str], names: dict[str, Any]) -> None:
    """Run blocks as a notebook does: in one namespace and one event loop, with `await` outside of functions."""
    loop = asyncio.new_event_loop()
    try:
        for block in blocks:
            code = compile(block, str(SERVING), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if inspect.iscoroutine(result):
                loop.run_until_complete(result)
    finally:
        loop.close()


@pytest.fixture
def folder(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tiny_model.path.parents[1]
    shutil.move(tiny_model.path, root / "models" / "flowers")
    (root / "photographs").mkdir()
    for name, data in FILES.items():
        (root / "photographs" / name).write_bytes(data)
    shutil.copytree(root / "photographs", root / "new")
    shutil.copy(root / "photographs" / "a.jpg", root / "photo.jpg")
    monkeypatch.chdir(root)
    return root


def predicted(num_views: int) -> list[Row]:
    with Predictor("models/flowers", num_views=num_views) as predictor:  # type: ignore[arg-type]
        return list(predictor.predict([f"photographs/{name}" for name in FILES]))


def answers(rows: list[Any]) -> list[Any]:
    return [(row["top"], row["views_agreeing"], row["error"]) for row in rows]


def test_fastapi(folder: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    names: dict[str, Any] = {}
    run(blocks_under("FastAPI"), names)
    with testclient.TestClient(names["app"]) as client:
        response = client.post("/classify", files=[("files", (name, data)) for name, data in FILES.items()])
    assert response.status_code == 200
    assert answers(response.json()) == answers([row.to_dict() for row in predicted(num_views=10)])


def test_notebook(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    cells = blocks_under("Notebook")
    run(cells, names)
    first = predicted(num_views=10)[0]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{first.label} {round(first.probability, 2)} {first.views_agreeing} of 10 views"
    assert len(shown) == 5
    # The unturned picture is the one of the file.
    assert shown[1] == str([(choice.label, round(choice.probability, 3)) for choice in first.top])


def test_dataframe(folder: Path) -> None:
    pytest.importorskip("pandas")
    names: dict[str, Any] = {}
    run(blocks_under("DataFrame"), names)
    expected = predicted(num_views=1)
    found = names["photographs"]
    assert [str(path.name) for path in found["path"]] == list(FILES)
    assert [label if isinstance(label, str) else None for label in found["label"]] == [row.label for row in expected]
    assert [isinstance(error, str) for error in found["error"]] == [False, False, True]


def test_inside_another_application(folder: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    names: dict[str, Any] = {}
    run(blocks_under("Inside another application"), names)
    with testclient.TestClient(names["app"]) as client:
        answer = client.post("/classifier/predict", content=FILES["a.jpg"])
        assert client.get("/classifier/").headers["content-type"].startswith("text/html")
    assert answers(answer.json()["rows"]) == answers([predicted(num_views=1)[0].to_dict()])


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")
def test_the_clients_of_the_quickstart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tritonclient.http")
    row = predicted(num_views=1)[0]
    with serving(ModelFolder(Path("models/flowers")), "--backend", "openvino") as program:
        addresses = {"127.0.0.1:8000": program.url.removeprefix("http://"), "127.0.0.1:8001": program.grpc}
        for block in blocks_under("Quickstart"):
            run([re.sub(r"127\.0\.0\.1:800\d", lambda found: addresses[found[0]], block)], {})
    http, grpc, as_json = capsys.readouterr().out.splitlines()
    assert http == f"{row.label} {round(row.probability, 2)}"
    assert re.fullmatch(r"\[\[b'[\d.]+:\d:class-\d'( b'[\d.]+:\d:class-\d'){2}\]\]", grpc)
    assert as_json == f"['{row.label}']"
