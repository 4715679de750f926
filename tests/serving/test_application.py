"""The application as its clients see it, on a real socket."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import gzip
import io
import json
import logging
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from colour import PICTURES
from helpers import smooth_images
from patience import PATIENCE, wait_for
from PIL import Image
from running import SERVING, Running, running
from tritonclient.utils import InferenceServerException

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, Predictions, open_engine
from alexdeploy.inference.predictor import Predictor
from alexdeploy.serving.access_log import AccessLog
from alexdeploy.serving.app import AppOptions
from alexdeploy.serving.errors import RequestError
from alexdeploy.serving.models import Repository
from alexdeploy.serving.tokens import Tokens

IMAGES = smooth_images(3)
TOKENS = ("the-first-of-two-tokens", "the-second-of-two-tokens")


def as_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


FORM = "multipart/form-data"
FILES = [as_png(image) for image in IMAGES]


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model: ModelFolder) -> Any:
    """The engine's own answers to IMAGES."""
    with open_engine(model, "onnxruntime", EngineOptions(batch_size=4, num_views=10, num_threads=1)) as engine:
        return engine.run(IMAGES)


def infer_path(model: ModelFolder, version: str = "") -> str:
    return f"/v2/models/{model.path.name}{version}/infer"


def pixels(image: np.ndarray = IMAGES[0], **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": [1, *image.shape], "datatype": "UINT8", "data": image.ravel().tolist()}
    return {"inputs": [tensor | changes]}


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritons_client_gets_the_answers_of_the_engine(
    server: Running, model: ModelFolder, expected: Any, binary_in: bool, binary_out: bool, compression: str | None
) -> None:
    tensor = triton.InferInput("images", IMAGES.shape, "UINT8").set_data_from_numpy(IMAGES, binary_data=binary_in)
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("view_classes", "probabilities", "label")
    ]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE) as client:
        found = client.infer(
            model.path.name, [tensor], outputs=outputs, request_id="7", request_compression_algorithm=compression
        )
    # ONNX Runtime sums in an order that depends on the number of images.
    np.testing.assert_allclose(found.as_numpy("probabilities"), expected.probabilities, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.as_numpy("view_classes"), expected.view_classes)
    labels = [f"class-{index}" for index in expected.probabilities.argmax(axis=1)]
    assert [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("label")] == labels
    assert found.get_response()["id"] == "7"
    assert [output["name"] for output in found.get_response()["outputs"]] == ["view_classes", "probabilities", "label"]


def test_files_get_the_answers_of_their_pixels(server: Running, model: ModelFolder, expected: Any) -> None:
    data = np.array(FILES, np.object_)
    tensor = triton.InferInput("images", data.shape, "BYTES").set_data_from_numpy(data)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE) as client:
        found = client.infer(model.path.name, [tensor])
    np.testing.assert_allclose(found.as_numpy("probabilities"), expected.probabilities, rtol=1e-4, atol=1e-7)


def test_the_classification_extension_names_the_best(client: httpx.Client, model: ModelFolder, expected: Any) -> None:
    body = pixels() | {"outputs": [{"name": "probabilities", "parameters": {"classification": 2}}]}
    output = client.post(infer_path(model), json=body).json()["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    row = expected.probabilities[0]
    for text, index in zip(output["data"], np.argsort(-row)[:2], strict=True):
        value, found, label = text.split(":")
        assert (int(found), label) == (index, f"class-{index}")
        assert float(value) == pytest.approx(row[index], abs=1e-5)


def test_the_server_describes_itself_and_its_model(client: httpx.Client, model: ModelFolder) -> None:
    name = model.path.name
    for path in ("/v2", "/v2/"):
        found = client.get(path).json()
        assert found["name"] == "alexdeploy"
        assert "binary_tensor_data" in found["extensions"]
    for version in ("", "/versions/1"):
        found = client.get(f"/v2/models/{name}{version}").json()
        assert (found["name"], found["versions"], found["platform"]) == (name, ["1"], "onnxruntime_onnx")
        (tensor,) = found["inputs"]
        assert "BYTES [-1]" in tensor.pop("parameters")["note"]
        assert tensor == {"name": "images", "datatype": "UINT8", "shape": [-1, 256, 256, 3]}
        assert [(output["name"], output["shape"]) for output in found["outputs"]] == [
            ("probabilities", [-1, 5]),
            ("view_classes", [-1, 10]),
            ("label", [-1]),
        ]
        assert client.get(f"/v2/models/{name}{version}/ready").json() == {"name": name, "ready": True}
        assert client.get(f"/v2/models/{name}{version}/config").json()["max_batch_size"] == 4
        assert client.get(f"/v2/models/{name}{version}/stats").json()["model_stats"][0]["name"] == name
    assert client.get("/v2/models/stats").json()["model_stats"][0]["version"] == "1"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json()["ready"] is True
    index = client.post("/v2/repository/index", content=b"").json()
    assert index == [{"name": name, "version": "1", "state": "READY", "reason": ""}]
    assert client.post("/v2/repository/index", json={"ready": True}).json() == index


def test_the_configuration_is_one_of_tritons(client: httpx.Client, model: ModelFolder) -> None:
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import model_config_pb2

    found = client.get(f"/v2/models/{model.path.name}/config").json()
    config = ParseDict(found, model_config_pb2.ModelConfig())
    assert config.max_batch_size == 4
    assert list(config.input[0].dims) == [256, 256, 3]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 16
    assert "BYTES [-1]" in config.parameters["note"].string_value


def test_statistics_count_requests_images_and_nanoseconds(client: httpx.Client, model: ModelFolder) -> None:
    def stats() -> Any:
        return client.get(f"/v2/models/{model.path.name}/stats").json()["model_stats"][0]

    before = stats()
    assert client.post(infer_path(model), json=pixels()).status_code == 200
    assert client.post(infer_path(model), json=pixels(name="pictures")).status_code == 400
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 1
    kinds = {
        kind: after["inference_stats"][kind]["count"] - before["inference_stats"][kind]["count"]
        for kind in ("success", "fail", "queue", "compute_infer")
    }
    assert kinds == {"success": 1, "fail": 1, "queue": 1, "compute_infer": 1}
    spent = {
        kind: after["inference_stats"][kind]["ns"] - before["inference_stats"][kind]["ns"]
        for kind in ("success", "compute_infer")
    }
    assert 0 < spent["compute_infer"] <= spent["success"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pixels(name="pictures"), "unexpected inference input 'pictures'"),
        (pixels(IMAGES[0][:255]), "Expected [-1, 256, 256, 3], got [1, 255, 256, 3]"),
        ({"inputs": []}, "expected 1 inputs but got 0"),
        ({"inputs": pixels()["inputs"] * 2}, "expected 1 inputs but got 2"),
        (pixels(shape=[0, 256, 256, 3], data=[]), "batch-size must be"),
        (pixels(shape=[5], datatype="BYTES", data=["x"] * 5), "batch-size must be >= 1 and <= 4"),
        (pixels(shape=[1, 2], datatype="BYTES", data=["x"] * 2), "Expected [-1], got [1, 2]"),
        (pixels(shape=[], datatype="BYTES", data=["x"]), "unexpected shape"),
        (pixels(shape=[1], datatype="BYTES", data=["no image"]), "images[0]: unsupported file type"),
        (pixels(shape=[1], datatype="BYTES", data=["/9j/4AAQ"]), "content_type 'base64', binary data, or the file to"),
        (pixels() | {"outputs": [{"name": "logits"}]}, "unexpected inference output 'logits'"),
        (pixels() | {"outputs": [{"name": "label"}] * 2}, "requested more than once"),
        (pixels() | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, "not available"),
        ([], "failed to parse"),
    ],
)
def test_a_wrong_request_is_answered_with_400_and_the_reason(
    client: httpx.Client, model: ModelFolder, body: Any, message: str
) -> None:
    found = client.post(infer_path(model), json=body)
    assert (found.status_code, list(found.json())) == (400, ["error"])
    assert message in found.json()["error"]


def test_refused_requests_leave_nothing_for_the_garbage_collector(client: httpx.Client, model: ModelFolder) -> None:
    # What an exception of theirs holds in a cycle, such as a body of 64 MiB, would stay until the next collection.
    def left() -> list[object]:
        kinds = (RequestError, AlexDeployError, asyncio.CancelledError)
        return [each for each in gc.get_objects() if issubclass(type(each), kinds)]

    gc.collect()
    gc.disable()
    try:
        before = len(left())
        for body, status in (
            (pixels(name="pictures"), 400),
            (pixels(shape=[1], datatype="BYTES", data=["no image"]), 400),
            (pixels() | {"parameters": {"timeout": 1}}, 503),
            (pixels(), 200),
        ):
            assert client.post(infer_path(model), json=body).status_code == status
        wait_for(lambda: len(left()) <= before)
    finally:
        gc.enable()


def test_a_broken_image_names_its_number(server: Running, model: ModelFolder) -> None:
    data = np.array([FILES[0], FILES[1][:100]], np.object_)
    tensor = triton.InferInput("images", data.shape, "BYTES").set_data_from_numpy(data)
    with (
        triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE) as client,
        pytest.raises(InferenceServerException, match=r"images\[1\]: damaged PNG") as refused,
    ):
        client.infer(model.path.name, [tensor])
    assert refused.value.status() == "400"


def test_unknown_paths_models_and_methods(client: httpx.Client, model: ModelFolder) -> None:
    name = model.path.name
    for path in ("/nosuch", "/v2/models/nosuch", "/v2/models/nosuch/ready", f"/v2/models/{name}/versions/2/config"):
        found = client.get(path)
        assert (found.status_code, list(found.json())) == (404, ["error"]), path
    for path in ("/v2/models/nosuch/infer", infer_path(model, "/versions/2"), "/v2/repository/models/../load"):
        assert client.post(path, json=pixels()).status_code == 404, path
    assert client.post("/v2/repository/models/nosuch/load").status_code == 404
    assert client.post("/v2/repository/models/%2e%2e%2fother/load").status_code == 404
    for method, path in (("GET", infer_path(model)), ("POST", "/v2"), ("DELETE", "/metrics"), ("GET", "/predict")):
        found = client.request(method, path)
        assert (found.status_code, list(found.json())) == (405, ["error"])
        assert found.headers["allow"]


def test_predict_takes_an_image_or_a_form(client: httpx.Client, model: ModelFolder) -> None:
    with Predictor(model, SERVING.predict, top_k=2) as predictor:
        expected = [row.to_dict() for row in predictor.classify(FILES)]
    rows = client.post("/predict?top_k=2", content=FILES[0]).json()["rows"]
    assert [row["source"] for row in rows] == ["body"]
    rows += client.post(
        "/predict", params={"top_k": 2}, files=[("a", ("düne.png", FILES[1])), ("b", ("b.png", FILES[2]))]
    ).json()["rows"]
    assert [row["source"] for row in rows[1:]] == ["düne.png", "b.png"]
    assert [row["index"] for row in rows[1:]] == [0, 1]
    for row, same in zip(rows, expected, strict=True):
        differing = ("index", "source", "top", "probability")
        assert {k: v for k, v in row.items() if k not in differing} == {
            k: v for k, v in same.items() if k not in differing
        }
        assert [choice["index"] for choice in row["top"]] == [choice["index"] for choice in same["top"]]
        assert row["probability"] == pytest.approx(same["probability"], rel=1e-4)


def test_a_file_that_is_no_image_has_a_row_with_its_error(client: httpx.Client) -> None:
    found = client.post("/predict", files=[("a", ("a.txt", b"text")), ("b", ("b.jpg", PICTURES["red"]))])
    assert found.status_code == 200
    broken, good = found.json()["rows"]
    assert broken["label"] is None
    assert "unsupported file type" in broken["error"]
    assert good["label"] is not None
    alone = client.post("/predict", content=b"text")
    assert (alone.status_code, len(alone.json()["rows"])) == (200, 1)


def test_predict_draws_the_views_for_the_page(client: httpx.Client) -> None:
    row = client.post("/predict?views=true", content=FILES[0]).json()["rows"][0]
    assert len(row["views"]["boxes"]) == 10
    assert "views" not in client.post("/predict", content=FILES[0]).json()["rows"][0]


@pytest.mark.parametrize(
    ("path", "content", "content_type", "message"),
    [
        ("/predict", b"", "image/jpeg", "the body is empty"),
        ("/predict?top_k=0", b"x", "image/jpeg", "top_k is '0', expected a number of classes from 1 on"),
        ("/predict?top_k=x", b"x", "image/jpeg", "top_k is 'x'"),
        ("/predict?views=10", b"x", "image/jpeg", "views is '10', expected true or false"),
        ("/predict?topk=3", b"x", "image/jpeg", "unknown parameter 'topk'; expected model, top_k, views"),
        ("/predict?model=alexnet&" + "x" * 1000, b"x", "image/jpeg", "unknown parameter 'xxx"),
        ("/predict", b"x", FORM, "without a boundary"),
        ("/predict", b"x", f"{FORM}; boundary=" + "b" * 1000, "the form cannot be read"),
        ("/predict", b"x", f"{FORM}; boundary=b", "the form cannot be read"),
        ("/predict", b"--b\r\n\r\nx", f"{FORM}; boundary=b", "the form is not complete"),
        ("/predict", b"--b--\r\n", f"{FORM}; boundary=b", "the form has no file: curl -F file=@photo.jpg URL"),
        (
            "/predict",
            b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--b--',
            f"{FORM}; boundary=b",
            "the field 'top_k' of the form is no file: curl -F file=@photo.jpg URL; parameters are in the URL",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_to_predict_is_refused(
    client: httpx.Client, path: str, content: bytes, content_type: str, message: str
) -> None:
    found = client.post(path, content=content, headers={"content-type": content_type})
    assert (found.status_code, list(found.json())) == (400, ["error"])
    assert message in found.json()["error"]
    assert len(found.json()["error"]) < 300


@pytest.mark.parametrize("name", ["red", "blue"])
def test_who_sends_a_file_with_the_wrong_option_of_curl_is_told(client: httpx.Client, name: str) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    # `curl --data-binary @file`, and `curl -d @file`, which sends no line ends and no zeros.
    whole = PICTURES[name]
    (row,) = client.post("/predict", content=whole, headers=form).json()["rows"]
    assert row["error"] is None
    (row,) = client.post("/predict", content=whole[:100], headers=form).json()["rows"]
    assert "curl" not in row["error"]
    for sent in (whole.translate(None, b"\r\n\0"), b"photo.jpg"):
        (row,) = client.post("/predict", content=sent, headers=form).json()["rows"]
        assert row["error"].endswith("; curl sends a file as it is with --data-binary @FILE, and not with -d")


def test_predict_takes_as_many_files_as_may_wait(client: httpx.Client) -> None:
    def send(num_files: int) -> tuple[int, object]:
        found = client.post("/predict", files=[("f", (f"{n}.jpg", b"x")) for n in range(num_files)])
        return found.status_code, found.json().get("error")

    assert send(16) == (200, None)
    assert send(17) == (400, "the form has more than 16 files, the most that may wait")


def test_every_answer_has_an_id_which_the_client_may_choose(client: httpx.Client) -> None:
    assert client.get("/v2", headers={"x-request-id": "abc-7"}).headers["x-request-id"] == "abc-7"
    ids = {
        client.get("/nosuch", headers={"x-request-id": given}).headers["x-request-id"]
        for given in ("", "a b", "x" * 200)
    }
    assert len(ids) == 3
    assert all(len(each) == 32 for each in ids)


@pytest.mark.parametrize("path", ["/predict", "/v2/repository/models/alexnet/unload"])
def test_what_a_page_of_another_site_has_a_browser_send_is_refused(client: httpx.Client, path: str) -> None:
    for site in ("cross-site", "same-site"):
        answer = client.post(path, content=FILES[0], headers={"sec-fetch-site": site})
        assert (answer.status_code, list(answer.json())) == (403, ["error"])
    assert client.get("/v2/models/alexnet/ready").status_code == 200
    for site in ("same-origin", "none"):
        answer = client.post("/predict", content=FILES[0], headers={"sec-fetch-site": site})
        assert answer.status_code == 200


def test_without_that_header_the_origin_of_a_page_must_be_the_server(client: httpx.Client) -> None:
    unload = "/v2/repository/models/alexnet/unload"
    for origin in ("http://evil.example:9001", "null", "http://"):
        assert client.post(unload, headers={"origin": origin}).status_code == 403
    own = client.base_url.netloc.decode()
    for headers in (
        {"origin": f"http://{own}"},
        {"origin": "https://photos.example", "x-forwarded-host": "photos.example"},
        {"origin": "https://photos.example", "sec-fetch-site": "same-origin"},
    ):
        assert client.post("/predict", content=FILES[0], headers=headers).status_code == 200


def test_rows_name_the_model_as_it_is_served(model: ModelFolder, tmp_path: Path) -> None:
    copied = tmp_path / "second"
    shutil.copytree(model.path, copied)
    with running(Repository([model, ModelFolder(copied)], SERVING), AppOptions()) as server:
        (row,) = httpx.post(f"{server.url}/predict?model=second", content=FILES[0], timeout=PATIENCE).json()["rows"]
        unnamed = httpx.post(f"{server.url}/predict", content=FILES[0], timeout=PATIENCE)
    assert row["model"] == "second"
    assert unnamed.status_code == 400
    assert unnamed.json() == {
        "error": f"several models are served: /predict?model=NAME with one of {model.path.name}, second"
    }


def test_the_page_and_the_metrics_are_there(client: httpx.Client, model: ModelFolder) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    client.post(infer_path(model), json=pixels())
    text = client.get("/metrics").text
    assert f'alexdeploy_requests_total{{model="{model.path.name}",protocol="http",status="200"}}' in text


@pytest.fixture
def small(model: ModelFolder) -> Iterator[Running]:
    """A server that takes bodies of one MiB, from two clients."""
    log = AccessLog("json", with_probes=False)
    options = AppOptions(max_body_bytes=1 << 20, tokens=Tokens(TOKENS), access_log=log)
    with running(Repository([model], dataclasses.replace(SERVING, timeout_ms=90_000.0)), options) as server:
        yield server


def test_limits_tokens_and_the_log(small: Running, model: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alexdeploy.access")
    own = {"authorization": f"Bearer {TOKENS[1]}"}
    with httpx.Client(base_url=small.url, timeout=PATIENCE) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert client.get(path).status_code == 200
        for path in ("/v2", "/metrics", "/v2/models/stats"):
            refused = client.get(path, headers={"authorization": "Bearer wrong-token-wrong"})
            assert (refused.status_code, list(refused.json())) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers=own).status_code == 200
        config = client.get(f"/v2/models/{model.path.name}/config", headers=own).json()
        policy = config["dynamic_batching"]["default_queue_policy"]
        assert (policy["timeout_action"], policy["default_timeout_microseconds"]) == ("REJECT", 90_000_000)
        assert client.post(infer_path(model), json=pixels()).status_code == 401
        assert client.post("/predict", content=FILES[0]).status_code == 401
        # A line is written after its answer.
        wait_for(lambda: len(caplog.records) == 9)
        assert not any("health" in each.getMessage() for each in caplog.records)
        caplog.clear()
        assert client.post(infer_path(model), json=pixels(), headers={**own, "x-request-id": "mine"}).status_code == 200

        def too_large() -> Iterator[bytes]:
            for _ in range(40):
                yield b" " * (1 << 15)

        for content, headers in (
            (b" " * (1 << 20) + b" ", {}),
            (too_large(), {}),
            (gzip.compress(b" " * (50 << 20)), {"content-encoding": "gzip"}),
            (zlib.compress(b" " * (50 << 20)), {"content-encoding": "deflate"}),
        ):
            found = client.post(infer_path(model), content=content, headers={**own, **headers})
            assert (found.status_code, list(found.json())) == (413, ["error"])
    wait_for(lambda: len(caplog.records) >= 5)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["status"] for line in lines] == [200, 413, 413, 413, 413]
    first = lines[0]
    assert (first["id"], first["client"], first["model"], first["rows"]) == ("mine", "token 2", model.path.name, 1)
    assert first["path"] == infer_path(model)
    assert first["compute_ms"] > 0
    # Each is rounded to a thousandth.
    spent = sum(first[f"{stage}_ms"] for stage in ("wait", "decode", "compute"))
    assert spent <= first["total_ms"] + 0.002
    assert all(name in first for name in ("artifact", "wait_ms", "decode_ms", "time", "method"))
    assert not any(token in json.dumps(lines) for token in TOKENS)
    assert lines[1]["error"] == "too_large"


def test_a_model_is_unloaded_and_loaded(model: ModelFolder) -> None:
    name = model.path.name
    with running(Repository([model], SERVING)) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        refused = client.post(f"/v2/repository/models/{name}/load", json={"parameters": {"config": "{}"}})
        assert refused.status_code == 400
        assert client.post(f"/v2/repository/models/{name}/unload").status_code == 200
        assert client.post(infer_path(model), json=pixels()).status_code == 404
        assert client.get("/v2/health/ready").status_code == 503
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert client.post(f"/v2/repository/models/{name}/load", json={}).status_code == 200
        assert client.post(infer_path(model), json=pixels()).status_code == 200


def test_a_full_queue_and_a_deadline_are_503(server: Running, model: ModelFolder, client: httpx.Client) -> None:
    batcher = server.repository.models[0].batcher
    gate, run = threading.Event(), batcher._engine.run

    def wait(*args: Any, **kwargs: Any) -> Any:
        gate.wait(PATIENCE)
        return run(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher._engine, "run", wait)
        # One batch is in the engine, and the queue has room for one image more.
        jobs = [batcher.submit([IMAGES[0]] * 4, client="127.0.0.1")]
        wait_for(lambda: batcher.num_running == 4)
        jobs.append(batcher.submit([IMAGES[0]] * 15, client="127.0.0.1"))
        files = {"datatype": "BYTES", "shape": [2], "data": ["x", "x"]}
        full = client.post(infer_path(model), json=pixels(**files))
        assert (full.status_code, full.json()) == (503, {"error": "Exceeds maximum queue size"})
        assert full.headers["retry-after"] == "1"
        late = client.post(infer_path(model), json=pixels() | {"parameters": {"timeout": 1000}})
        assert (late.status_code, late.json()) == (503, {"error": "Request timeout expired"})
        gate.set()
        for job in jobs:
            job.future.result(PATIENCE)


def test_answers_that_are_not_finite_are_a_fault_of_the_model_and_count_as_failures(
    server: Running, model: ModelFolder, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = server.repository.models[0].batcher
    run = batcher._engine.run

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        return Predictions(np.full_like(found.probabilities, np.nan), found.view_classes)

    def failures() -> int:
        return int(
            client.get(f"/v2/models/{model.path.name}/stats").json()["model_stats"][0]["inference_stats"]["fail"][
                "count"
            ]
        )

    before = failures()
    monkeypatch.setattr(batcher._engine, "run", broken)
    for path, body in ((infer_path(model), {"json": pixels()}), ("/predict", {"content": FILES[0]})):
        found = client.post(path, **body)
        assert found.status_code == 500, path
        assert model.path.name in found.json()["error"]
        assert "models" not in found.json()["error"].replace(f"model '{model.path.name}'", "")
    assert failures() == before + 2
