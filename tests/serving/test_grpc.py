"""The gRPC service as Triton's own client sees it, on a real socket."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from colour import PICTURES, ColourEngine
from helpers import smooth_images
from patience import HANG, PATIENCE, wait_for
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions
from alexdeploy.inference.batcher import BatcherOptions
from alexdeploy.inference.predictor import Predictor
from alexdeploy.placement import place
from alexdeploy.placement.options import PredictOptions
from alexdeploy.serving import grpc_calls
from alexdeploy.serving.access import ModelControl
from alexdeploy.serving.access_log import AccessLog
from alexdeploy.serving.bodies import BodyBudget
from alexdeploy.serving.errors import RequestError
from alexdeploy.serving.grpc_service import GrpcService
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository, ServingOptions
from alexdeploy.serving.tensors import bytes_array
from alexdeploy.serving.tokens import Tokens

PREDICT = PredictOptions(backend="onnxruntime", batch_size=4, num_views=10, num_threads=1)
SERVING = ServingOptions(predict=PREDICT, batcher=BatcherOptions(max_queue=16, max_delay_ms=0))
IMAGES = smooth_images(3)
MAX_BODY_BYTES = 2 << 20
TOKEN = "a-token-of-the-tests"


def as_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


FILES = [as_png(image) for image in IMAGES]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A gRPC server in a thread; `run` runs a coroutine in its event loop."""

    address: str
    repository: Repository
    metrics: Metrics
    stopping: asyncio.Event
    server: grpc.aio.Server
    loop: asyncio.AbstractEventLoop

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)


@contextmanager
def serve(
    repository: Repository,
    tokens: Tokens | None = None,
    access_log: AccessLog | None = None,
    budget: BodyBudget | None = None,
    model_control: ModelControl = "explicit",
) -> Iterator[Service]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="grpc-server")
    thread.start()
    metrics = Metrics(repository)

    stopping = asyncio.Event()

    async def start() -> tuple[grpc.aio.Server, int]:
        await repository.start()
        service = GrpcService(
            repository,
            metrics,
            budget=budget or BodyBudget(MAX_BODY_BYTES),
            tokens=tokens or Tokens(),
            access_log=access_log,
            model_control=model_control,
            stopping=stopping,
        )
        server = service.create_server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    async def stop(server: grpc.aio.Server) -> None:
        await server.stop(None)
        await repository.close(finish=False)

    with ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(thread.join, PATIENCE)
        stack.callback(loop.call_soon_threadsafe, loop.stop)
        server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE)
        running = Service(
            address=f"127.0.0.1:{port}",
            repository=repository,
            metrics=metrics,
            stopping=stopping,
            server=server,
            loop=loop,
        )
        stack.callback(lambda: running.run(stop(server)))
        yield running


@pytest.fixture(scope="module")
def service(model: ModelFolder) -> Iterator[Service]:
    with serve(Repository([model], SERVING)) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address) as client:
        yield client


@pytest.fixture
def stub(service: Service) -> Iterator[Any]:
    with grpc.insecure_channel(service.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def rows(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What `predict` says of the images."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, content in enumerate(FILES):
        (folder / f"{number}.png").write_bytes(content)
    with Predictor(model, PREDICT) as predictor:
        return list(predictor.predict([folder]))


def request_of(model: str, images: np.ndarray | None = None, files: list[bytes] | None = None, *, raw: bool) -> Any:
    """A message with pixels or files, in raw or typed contents."""
    request = service_pb2.ModelInferRequest(model_name=model, id="7")
    if files is not None:
        tensor = request.inputs.add(name="images", datatype="BYTES", shape=[len(files)])
        if raw:
            request.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in files))
        else:
            tensor.contents.bytes_contents.extend(files)
        return request
    assert images is not None
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    return request


def assert_rows(found: triton.InferResult, rows: list[Any]) -> None:
    """The three outputs are the rows of `predict`, to the bit."""
    probabilities, labels, votes = (found.as_numpy(name) for name in ("probabilities", "label", "view_classes"))
    assert probabilities.dtype == np.float32
    for row, values, label, classes in zip(rows, probabilities, labels, votes, strict=True):
        for choice in row.top:
            assert np.float32(choice.probability) == values[choice.index]
        assert label.decode() == row.label
        assert np.count_nonzero(classes == row.top[0].index) == row.views_agreeing


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_tritons_client_gets_the_rows_of_predict(
    client: triton.InferenceServerClient, model: ModelFolder, rows: list[Any], kind: str, compression: str | None
) -> None:
    if kind == "pixels":
        tensor = triton.InferInput("images", IMAGES.shape, "UINT8").set_data_from_numpy(IMAGES)
    else:
        tensor = triton.InferInput("images", [3], "BYTES").set_data_from_numpy(bytes_array(FILES, (3,)))
    outputs = [triton.InferRequestedOutput(name) for name in ("label", "probabilities", "view_classes")]
    found = client.infer(model.path.name, [tensor], outputs=outputs, request_id="7", compression_algorithm=compression)
    assert_rows(found, rows)
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", model.path.name, "1")
    assert [each.name for each in response.outputs] == ["label", "probabilities", "view_classes"]
    assert {name: each.string_param for name, each in response.parameters.items()} == {
        "artifact": rows[0].artifact,
        "backend": "onnxruntime",
        "precision": "fp32",
    }


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_raw_and_typed_contents_are_the_same(
    stub: Any, model: ModelFolder, rows: list[Any], kind: str, raw: bool
) -> None:
    content: dict[str, Any] = {"images": IMAGES} if kind == "pixels" else {"files": FILES}
    found = stub.ModelInfer(request_of(model.path.name, **content, raw=raw))
    assert_rows(triton.InferResult(found), rows)


def test_classes_are_given_as_triton_gives_them(
    client: triton.InferenceServerClient, model: ModelFolder, rows: list[Any]
) -> None:
    tensor = triton.InferInput("images", IMAGES.shape, "UINT8").set_data_from_numpy(IMAGES)
    found = client.infer(
        model.path.name, [tensor], outputs=[triton.InferRequestedOutput("probabilities", class_count=2)]
    )
    assert found.as_numpy("probabilities").tolist() == [
        [f"{choice.probability:f}:{choice.index}:{choice.label}".encode() for choice in row.top[:2]] for row in rows
    ]


def change_raw(request: Any, raw: list[bytes]) -> None:
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(raw)


FAULTS: dict[str, tuple[Callable[[Any], object], grpc.StatusCode, str]] = {
    "unknown model": (lambda r: setattr(r, "model_name", "other"), grpc.StatusCode.NOT_FOUND, "unknown model: 'other'"),
    "unknown version": (lambda r: setattr(r, "model_version", "2"), grpc.StatusCode.NOT_FOUND, "version 2"),
    "no input": (lambda r: r.ClearField("inputs"), grpc.StatusCode.INVALID_ARGUMENT, "expected 1 inputs but got 0"),
    "more raw contents": (
        lambda r: r.raw_input_contents.append(b""),
        grpc.StatusCode.INVALID_ARGUMENT,
        "2 raw input contents for 1 inputs",
    ),
    "short raw contents": (
        lambda r: change_raw(r, [b"1234"]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "has 4 elements, its shape [1, 256, 256, 3] has 196608",
    ),
    "both contents": (
        lambda r: r.inputs[0].contents.uint_contents.append(1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "contents field must not be specified when using raw_input_contents for 'images'",
    ),
    "shape below zero": (
        lambda r: r.inputs[0].shape.__setitem__(0, -1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "has shape [-1, 256, 256, 3]",
    ),
    "huge shape": (
        lambda r: r.inputs[0].shape.__setitem__(0, 2**62),
        grpc.StatusCode.INVALID_ARGUMENT,
        "has 196608 elements",
    ),
    "datatype": (
        lambda r: setattr(r.inputs[0], "datatype", "FP32"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "has datatype FP32",
    ),
    "input name": (lambda r: setattr(r.inputs[0], "name", "x"), grpc.StatusCode.INVALID_ARGUMENT, "input 'x'"),
    "output name": (lambda r: r.outputs.add(name="x"), grpc.StatusCode.INVALID_ARGUMENT, "output 'x'"),
    "shared memory": (
        lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "is in shared memory, which this server does not have",
    ),
    "shared memory of an output": (
        lambda r: setattr(r.outputs.add(name="label").parameters["shared_memory_region"], "string_param", "r"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "is to go to shared memory",
    ),
    "timeout": (
        lambda r: setattr(r.parameters["timeout"], "string_param", "soon"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameter 'timeout'",
    ),
    "parameter of an output": (
        lambda r: setattr(r.parameters["classification"], "int64_param", 3),
        grpc.StatusCode.INVALID_ARGUMENT,
        "did you mean 'classification' of an output",
    ),
    "misspelt parameter": (
        lambda r: setattr(r.inputs[0].parameters["content-type"], "string_param", "base64"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "did you mean 'content_type' of an input",
    ),
    "classification": (
        lambda r: setattr(r.outputs.add(name="probabilities").parameters["classification"], "int64_param", -1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameter 'classification'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_has_its_status_and_says_what(stub: Any, model: ModelFolder, fault: str) -> None:
    change, code, message = FAULTS[fault]
    request = request_of(model.path.name, IMAGES[:1], raw=True)
    change(request)
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request)
    assert raised.value.code() == code
    assert message in raised.value.details()


@pytest.mark.parametrize("value", [256, 2**32 - 1])
def test_a_pixel_that_is_no_byte_is_refused(stub: Any, model: ModelFolder, value: int) -> None:
    request = request_of(model.path.name, IMAGES[:1], raw=False)
    request.inputs[0].contents.uint_contents[5] = value
    with pytest.raises(grpc.RpcError, match="not from 0 to 255") as raised:
        stub.ModelInfer(request)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_there_may_be_millions_of_is_counted_before_it_is_read(stub: Any, model: ModelFolder) -> None:
    def refused(change: Callable[[Any], object], message: str) -> None:
        request = request_of(model.path.name, IMAGES[:1], raw=False)
        change(request)
        with pytest.raises(grpc.RpcError, match=message) as raised:
            stub.ModelInfer(request)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    refused(lambda request: request.inputs.add(), "expected 1 inputs but got 2")
    refused(lambda request: request.inputs[0].shape.extend([2**62] * 200_000), "has 200004 dimensions")
    refused(lambda request: [request.outputs.add() for _ in range(17)], "17 outputs")
    names = [f"p{number}" for number in range(65)]
    refused(lambda request: [request.parameters[name].SetInParent() for name in names], "65 parameters")


@pytest.mark.parametrize("method", ["ModelInfer", "RepositoryModelLoad", "ServerLive"])
def test_what_is_no_message_is_an_invalid_request(service: Service, method: str, caplog: Any) -> None:
    with grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError, match=f"not a {method}Request") as raised:
            call(b"\xff" * 100, timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


def test_errors_repeat_no_long_names(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request_of("m" * 1_000_000, IMAGES[:1], raw=True))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert len(raised.value.details()) < 2000


def test_too_many_images_and_a_broken_one_are_refused(stub: Any, model: ModelFolder) -> None:
    with pytest.raises(grpc.RpcError, match=r"batch-size must be >= 1 and <= 4 .* got 5"):
        stub.ModelInfer(request_of(model.path.name, files=[PICTURES["red"]] * 5, raw=True))
    with pytest.raises(grpc.RpcError, match=r"images\[1\]") as raised:
        stub.ModelInfer(request_of(model.path.name, files=[PICTURES["red"], b"no picture"], raw=False))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abc", b"\x00\x00"])
def test_broken_elements_are_refused(stub: Any, model: ModelFolder, raw: bytes) -> None:
    request = request_of(model.path.name, files=[b""], raw=True)
    change_raw(request, [raw])
    with pytest.raises(grpc.RpcError, match="element 0") as raised:
        stub.ModelInfer(request)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused_also_after_decompression(
    stub: Any, model: ModelFolder, compression: grpc.Compression
) -> None:
    request = request_of(model.path.name, files=[bytes(8 << 20)], raw=True)
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, compression=compression)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_all_messages_together_have_a_limit_and_give_back_what_they_held(model: ModelFolder) -> None:
    budget = BodyBudget(MAX_BODY_BYTES, 1_000_000)
    asked = request_of(model.path.name, IMAGES[:2], raw=True)
    with (
        serve(Repository([model], SERVING), budget=budget) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with budget.hold() as other:
            other.add(700_000)
            with pytest.raises(grpc.RpcError, match="other requests fill the memory") as raised:
                stub.ModelInfer(asked, timeout=PATIENCE)
            [streamed] = stub.ModelStreamInfer(iter([asked]), timeout=PATIENCE)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "other requests fill the memory" in streamed.error_message
        stub.ModelInfer(asked, timeout=PATIENCE)
    assert budget.held_bytes == 0


def test_refused_calls_leave_nothing_for_the_garbage_collector(stub: Any, model: ModelFolder) -> None:
    # What an exception of theirs holds in a cycle is the message, which would stay until the next collection.
    def left() -> list[object]:
        return [each for each in gc.get_objects() if issubclass(type(each), (RequestError, grpc.aio.AbortError))]

    gc.collect()
    gc.disable()
    try:
        for request in (
            request_of("other", IMAGES[:1], raw=True),
            request_of(model.path.name, files=[b"no picture"], raw=True),
        ):
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(request)
            [streamed] = stub.ModelStreamInfer(iter([request]))
            assert streamed.error_message
        wait_for(lambda: not left())
    finally:
        gc.enable()


def can_stream(stub: Any, asked: Any) -> bool:
    try:
        return bool(next(stub.ModelStreamInfer(iter([asked]))).infer_response.id)
    except grpc.RpcError:
        return False


def test_messages_come_in_a_few_at_a_time(model: ModelFolder) -> None:
    # gRPC holds all of a message before its size is known.
    asked = request_of(model.path.name, IMAGES[:1], raw=True)
    with (
        serve(Repository([model], SERVING), budget=BodyBudget(64 << 20)) as service,
        grpc.insecure_channel(service.address) as channel,
        ExitStack() as stack,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        never: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stack.callback(lambda: [never.put(None) for _ in range(81)])

        def is_full() -> bool:
            try:
                stub.ModelInfer(asked, timeout=0.5)
            except grpc.RpcError as error:
                return error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            return False

        # Calls that send nothing take all places but one, and then that one too.
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        slow = [call.future(iter(never.get, None)) for _ in range(15)]
        assert stub.ModelInfer(asked, timeout=PATIENCE).id == "7"
        slow.append(call.future(iter(never.get, None)))
        wait_for(is_full)
        slow.pop().cancel()
        assert stub.ModelInfer(asked, timeout=PATIENCE).id == "7"
        # Any stream may be in the middle of a message.
        streams = [stub.ModelStreamInfer(itertools.chain([asked], iter(never.get, None))) for _ in range(64)]
        assert [next(stream).infer_response.id for stream in streams] == ["7"] * 64
        with pytest.raises(grpc.RpcError, match="64 streams are open") as raised:
            next(stub.ModelStreamInfer(iter([asked])))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        streams.pop().cancel()
        wait_for(lambda: can_stream(stub, asked))


def test_a_message_that_does_not_come_in_is_given_up(model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "_SECONDS", 0.1)
    with serve(Repository([model], SERVING)) as service, grpc.insecure_channel(service.address) as channel:
        never: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        error = call.future(iter(never.get, None)).exception(PATIENCE)
        never.put(None)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the request did not come in within 0.1 s",
    )


def test_the_descriptions_are_those_of_the_model(client: triton.InferenceServerClient, model: ModelFolder) -> None:
    name = model.path.name
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, "1")
    assert not client.is_model_ready(name, "2")
    assert not client.is_model_ready("other")
    metadata = client.get_server_metadata(as_json=True)
    assert metadata["name"] == "alexdeploy"
    assert "statistics" in metadata["extensions"]
    described = client.get_model_metadata(name)
    assert [(each.name, each.datatype, list(each.shape)) for each in (*described.inputs, *described.outputs)] == [
        ("images", "UINT8", [-1, 256, 256, 3]),
        ("probabilities", "FP32", [-1, 5]),
        ("view_classes", "INT32", [-1, 10]),
        ("label", "BYTES", [-1]),
    ]
    config = client.get_model_config(name).config
    assert (config.name, config.max_batch_size, config.backend) == (name, 4, "onnxruntime")
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 16
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            call("other")


def test_statistics_are_the_sums_of_the_requests(stub: Any, model: ModelFolder) -> None:
    name = model.path.name
    with serve(Repository([model], SERVING)) as service, grpc.insecure_channel(service.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for count in (1, 3, 1):
            stub.ModelInfer(request_of(name, IMAGES[:count], raw=True))
        stub.ModelInfer(request_of(name, files=FILES[:2], raw=True))
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(request_of(name, files=[b"no picture"], raw=True))
        [found] = stub.ModelStatistics(service_pb2.ModelStatisticsRequest()).model_stats
        assert (found.name, found.version) == (name, "1")
        assert found.inference_count == 7
        stats = found.inference_stats
        assert (stats.success.count, stats.fail.count) == (4, 1)
        assert stats.queue.count == stats.compute_input.count == stats.compute_infer.count == 4
        # One client asks at a time, so each batch has the images of one request.
        sizes = {each.batch_size: each.compute_infer.count for each in found.batch_stats}
        assert sum(size * count for size, count in sizes.items()) == 7
        assert found.execution_count == sum(sizes.values())
        assert sum(each.compute_infer.ns for each in found.batch_stats) == stats.compute_infer.ns
        assert stats.success.ns > stats.compute_infer.ns > 0
        assert stats.compute_input.ns > 0
        assert stats.fail.ns > 0
        metrics = service.metrics.exposition().decode()
        labels = f'model="{name}",protocol="grpc"'
        assert f'alexdeploy_requests_total{{{labels},status="OK"}} 4.0' in metrics
        assert f'alexdeploy_requests_total{{{labels},status="INVALID_ARGUMENT"}} 1.0' in metrics


def test_streamed_requests_are_answered_in_order_and_errors_within_the_stream(
    client: triton.InferenceServerClient, model: ModelFolder, rows: list[Any]
) -> None:
    found: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: found.put((result, error)))
    for number in range(12):
        name = "other" if number % 4 == 3 else model.path.name
        image = IMAGES[number % 3][None]
        tensor = triton.InferInput("images", image.shape, "UINT8").set_data_from_numpy(image)
        client.async_stream_infer(name, [tensor], request_id=str(number))
    for number in range(12):
        result, error = found.get(timeout=PATIENCE)
        if number % 4 == 3:
            assert "unknown model: 'other'" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(number)
            np.testing.assert_allclose(
                result.as_numpy("probabilities")[0, rows[number % 3].top[0].index],
                rows[number % 3].top[0].probability,
                atol=1e-6,
            )
    client.stop_stream()


def test_an_error_in_a_stream_has_the_id_of_its_request(stub: Any) -> None:
    [found] = stub.ModelStreamInfer(iter([request_of("other", IMAGES[:1], raw=True)]))
    assert "unknown model: 'other'" in found.error_message
    assert found.infer_response.id == "7"


def test_a_stream_without_requests_does_not_hold_up_the_end_of_the_server(model: ModelFolder) -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with serve(Repository([model], SERVING)) as service, grpc.insecure_channel(service.address) as channel:
        answers = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests.get, None))
        requests.put(request_of(model.path.name, IMAGES[:1], raw=True))
        assert next(answers).infer_response.model_name == model.path.name
        service.loop.call_soon_threadsafe(service.stopping.set)
        service.run(service.server.stop(HANG))
        with pytest.raises(grpc.RpcError, match="the server is shutting down") as raised:
            next(answers)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        requests.put(None)


def test_a_full_queue_is_unavailable_and_a_cancelled_request_leaves_it(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_held, may_run = threading.Event(), threading.Event()

    def hold(images: np.ndarray) -> None:
        if is_held.is_set():
            assert may_run.wait(PATIENCE)

    def open_engine(folder: ModelFolder, backend: str, options: EngineOptions) -> ColourEngine:
        return ColourEngine(options=options, before_run=hold)

    monkeypatch.setattr(place, "open_engine", open_engine)
    name, options = model.path.name, ServingOptions(predict=PREDICT, batcher=BatcherOptions(max_queue=2))
    request = request_of(name, IMAGES[:1], raw=True)
    with serve(Repository([model], options)) as service, grpc.insecure_channel(service.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        batcher = service.repository.get(name).batcher
        is_held.set()
        running = stub.ModelInfer.future(request)
        wait_for(lambda: batcher.num_running == 1)
        waiting = [stub.ModelInfer.future(request) for _ in range(2)]
        wait_for(lambda: batcher.num_waiting == 2)
        with pytest.raises(grpc.RpcError, match="maximum queue size") as raised:
            stub.ModelInfer(request)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        waiting[0].cancel()
        wait_for(lambda: batcher.num_waiting == 1)
        waiting.append(stub.ModelInfer.future(request))
        wait_for(lambda: batcher.num_waiting == 2)
        may_run.set()
        for call in (running, *waiting[1:]):
            assert call.result(PATIENCE).model_name == name
        wait_for(lambda: 'status="CANCELLED"} 1.0' in service.metrics.exposition().decode())


def test_what_is_late_is_not_computed(stub: Any, model: ModelFolder) -> None:
    request = request_of(model.path.name, IMAGES[:1], raw=True)
    request.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.RpcError, match="timeout") as raised:
        stub.ModelInfer(request)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request_of(model.path.name, IMAGES[:1], raw=True), timeout=1e-6)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_token_is_asked_of_all_but_probes(model: ModelFolder) -> None:
    with (
        serve(Repository([model], SERVING), Tokens([TOKEN])) as service,
        triton.InferenceServerClient(service.address) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        name, headers = model.path.name, {"authorization": f"Bearer {TOKEN}"}
        tensor = triton.InferInput("images", IMAGES.shape, "UINT8").set_data_from_numpy(IMAGES)
        for wrong in (None, {"authorization": "Bearer other"}, {"authorization": TOKEN}):
            for call in (
                lambda given: client.infer(name, [tensor], headers=given),
                lambda given: client.unload_model(name, headers=given),
                lambda given: client.get_model_repository_index(headers=given),
            ):
                with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                    call(wrong)
        with grpc.insecure_channel(service.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as raised:
                next(stub.ModelStreamInfer(iter([request_of(name, IMAGES[:1], raw=True)])))
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert client.infer(name, [tensor], headers=headers).as_numpy("label").shape == (3,)


def test_models_are_loaded_and_unloaded(model: ModelFolder) -> None:
    name = model.path.name
    with (
        serve(Repository([model], SERVING)) as service,
        triton.InferenceServerClient(service.address) as client,
    ):
        client.unload_model(name)
        [state] = client.get_model_repository_index().models
        assert (state.name, state.version, state.state, state.reason) == (name, "1", "UNAVAILABLE", "unloaded")
        assert not client.is_server_ready()
        assert not client.is_model_ready(name)
        with pytest.raises(InferenceServerException, match="no such model"):
            client.load_model("../other")
        with pytest.raises(InferenceServerException, match="no parameters here, got config"):
            client.load_model(name, config="{}")
        client.load_model(name)
        assert client.is_model_ready(name)
        assert [each.state for each in client.get_model_repository_index().models] == ["READY"]


def test_models_stay_as_they_are_unless_the_mode_is_explicit(model: ModelFolder) -> None:
    name = model.path.name
    with (
        serve(Repository([model], SERVING), model_control="none") as service,
        triton.InferenceServerClient(service.address) as client,
    ):
        for call in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match=r"PERMISSION_DENIED.*the model control mode is none"):
                call(name)
        assert client.is_model_ready(name)
        assert [each.state for each in client.get_model_repository_index().models] == ["READY"]


@pytest.mark.parametrize(
    "method", ["SystemSharedMemoryStatus", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"]
)
def test_what_this_server_does_not_have_is_unimplemented(stub: Any, method: str) -> None:
    message = getattr(service_pb2, f"{method}Request")()
    with pytest.raises(grpc.RpcError) as raised:
        getattr(stub, method)(message)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_request_has_one_line_in_the_log(model: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alexdeploy.access")
    with (
        serve(Repository([model], SERVING), access_log=AccessLog("json", with_probes=False)) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ServerReady(service_pb2.ServerReadyRequest())
        stub.ModelReady(service_pb2.ModelReadyRequest(name=model.path.name))
        stub.ModelInfer(request_of(model.path.name, IMAGES[:2], raw=True))
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(request_of("other", IMAGES[:2], raw=True))
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "alexdeploy.access"]
    assert [line["status"] for line in lines] == [0, grpc.StatusCode.NOT_FOUND.value[0]]
    answered = {"id": "7", "protocol": "grpc", "client": "127.0.0.1", "rows": 2}
    assert {name: lines[0][name] for name in answered} == answered
    assert lines[0]["compute_ms"] > 0


def check_health(service: Service, request: bytes) -> bytes:
    """Call Check of grpc/health/v1/health.proto with an encoded HealthCheckRequest."""
    with grpc.insecure_channel(service.address) as channel:
        found: bytes = channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=PATIENCE)
        return found


def test_kubernetes_probes_are_answered(model: ModelFolder) -> None:
    name = model.path.name.encode()
    of_model = b"\x0a" + bytes([len(name)]) + name
    serving, not_serving = b"\x08\x01", b"\x08\x02"
    with serve(Repository([model], SERVING), Tokens([TOKEN])) as service:
        assert check_health(service, b"") == check_health(service, of_model) == serving
        for request, code in (
            (b"\x0a\x05other", grpc.StatusCode.NOT_FOUND),
            (b"\x0a\x05ot", grpc.StatusCode.INVALID_ARGUMENT),
            (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                check_health(service, request)
            assert raised.value.code() == code
        service.run(service.repository.unload(model.path.name))
        assert check_health(service, b"") == check_health(service, of_model) == not_serving


def test_a_call_without_a_message_is_an_invalid_request(service: Service) -> None:
    with grpc.insecure_channel(service.address) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="the call has no message") as raised:
            call(iter(()), timeout=PATIENCE)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
