"""The application inside of somebody else's."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from colour import PICTURES
from fastapi import FastAPI
from patience import PATIENCE
from running import SERVING

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.app import create_app


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan runs."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.mark.parametrize("prefix", ["", "/classifier"])
def test_it_serves_alone_and_mounted(model: ModelFolder, prefix: str) -> None:
    async def ask() -> None:
        app = classifier = create_app([model], SERVING)
        if prefix:
            app = FastAPI(lifespan=classifier.router.lifespan_context)
            app.mount(prefix, classifier)
        async with client_of(app) as http:
            assert (await http.get(f"{prefix}/v2/health/ready")).json()["ready"] is True
            assert (await http.get(f"{prefix}/v2/models/{model.path.name}")).json()["name"] == model.path.name
            row = (await http.post(f"{prefix}/predict", content=PICTURES["red"])).json()["rows"][0]
            assert row["label"].startswith("class-")
            assert (await http.get(f"{prefix}/")).headers["content-type"].startswith("text/html")
            for method, path, status in (("GET", "/nosuch", 404), ("GET", "/predict", 405), ("POST", "/predict", 400)):
                found = await http.request(method, f"{prefix}{path}")
                assert (found.status_code, list(found.json())) == (status, ["error"])

    asyncio.run(ask())


@pytest.mark.parametrize("module", ["starlette", "python_multipart", "prometheus_client"])
def test_without_the_extra_the_import_says_what_installs_it(module: str) -> None:
    code = f"""
import sys
sys.modules["{module}"] = None
from alexdeploy import UsageError
try:
    from alexdeploy.serving.app import create_app
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    needs = f"serving needs the package {module.replace('_', '-')}, which is not installed"
    assert done.stdout.splitlines() == [needs, "Install it: pip install 'alexdeploy[serve]'"]


def test_who_mounts_it_without_its_lifespan_is_told(model: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        app = FastAPI()
        app.mount("/classifier", create_app([model], SERVING))
        async with client_of(app) as http:
            found = await http.get("/classifier/v2")
        assert (found.status_code, found.json()) == (503, {"error": "the models are not open"})

    asyncio.run(ask())
    assert "lifespan=classifier.router.lifespan_context" in caplog.text


def test_a_defect_is_answered_without_its_traceback(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret of the server")

    async def ask() -> None:
        monkeypatch.setattr("alexdeploy.serving.app.model_config", fail)
        async with client_of(create_app([model], SERVING)) as http:
            found = await http.get(f"/v2/models/{model.path.name}/config")
            assert (found.status_code, found.json()) == (500, {"error": "internal error"})
            assert (await http.get("/v2")).status_code == 200

    caplog.set_level(logging.ERROR)
    asyncio.run(ask())
    assert "ZeroDivisionError" in caplog.text
