"""The names under which a server answers, and who may change its models."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from colour import PICTURES
from patience import PATIENCE
from running import SERVING, Running, running

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.access import Hosts
from alexdeploy.serving.app import AppOptions
from alexdeploy.serving.errors import ForbiddenError
from alexdeploy.serving.models import Repository


@pytest.fixture(scope="module")
def closed(model: ModelFolder) -> Iterator[Running]:
    """What `serve` is without options: on loopback, without tokens, and nobody changes its models."""
    with running(Repository([model], SERVING), AppOptions(allowed_hosts=())) as server:
        yield server


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "localhost",
        "LOCALHOST:8000",
        "localhost.:80",
        "a.localhost",
        "[::1]:8000",
        "[::1]",
        "10.1.2.3:80",
        "",
    ],
)
def test_no_page_can_have_these_lead_here(host: str) -> None:
    Hosts(()).check(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost", "x"],
)
def test_other_names_are_refused_unless_they_are_given(host: str) -> None:
    for hosts in (Hosts(()), Hosts(["photos.example"])):
        with pytest.raises(ForbiddenError, match="not among the allowed hosts"):
            hosts.check(host)
    for hosts in (Hosts(None), Hosts(["*"]), Hosts([host.partition(":")[0].upper()])):
        hosts.check(host)


def test_a_page_whose_name_leads_to_this_machine_gets_nothing(closed: Running) -> None:
    foreign = {"host": "evil.example:8000", "sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=closed.url, timeout=PATIENCE) as client:
        for method, path in (
            ("GET", "/v2"),
            ("GET", "/"),
            ("GET", "/metrics"),
            ("POST", "/predict"),
            ("GET", "/nosuch"),
        ):
            answer = client.request(method, path, headers=foreign)
            assert answer.status_code == 403
            assert answer.json() == {"error": "'evil.example' is not among the allowed hosts of this server"}
        assert client.post("/predict", content=PICTURES["red"]).status_code == 200


def test_models_stay_as_they_are_unless_the_mode_says_otherwise(closed: Running, model: ModelFolder) -> None:
    with httpx.Client(base_url=closed.url, timeout=PATIENCE) as client:
        for action in ("load", "unload"):
            answer = client.post(f"/v2/repository/models/{model.path.name}/{action}")
            assert answer.status_code == 403
            assert "the model control mode is none" in answer.json()["error"]
        (state,) = client.post("/v2/repository/index").json()
        assert state["state"] == "READY"
