"""The v2 protocol's JSON and its binary extension, against bytes written by hand and by Triton's own client."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from alexdeploy.serving.errors import InvalidRequestError, TooLargeError
from alexdeploy.serving.rest import read_infer, write_infer
from alexdeploy.serving.tensors import InferRequest, InferResponse, RequestedOutput, Tensor

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
FILES = (b"\xff\xd8first", b"")


def read(body: bytes | dict[str, Any], header_length: str | None = None) -> InferRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_infer(memoryview(data), header_length, model="m", version="", max_images=8)


def with_input(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": ["x"]} | changes
    return {"inputs": [{name: value for name, value in tensor.items() if value is not None}]}


def in_binary(data: bytes, **changes: Any) -> tuple[bytes, str]:
    head = json.dumps(with_input(data=None, parameters={"binary_data_size": len(data)}, **changes)).encode()
    return head + data, str(len(head))


def bytes_elements(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize("nested", [True, False])
def test_pixels_in_json_may_be_flat_or_nested(nested: bool) -> None:
    data = PIXELS.tolist() if nested else PIXELS.ravel().tolist()
    tensor = read(with_input(shape=list(PIXELS.shape), datatype="UINT8", data=data)).inputs[0]
    assert isinstance(tensor.data, np.ndarray)
    np.testing.assert_array_equal(tensor.data, PIXELS, strict=True)


def test_pixels_in_binary_are_used_where_they_are() -> None:
    body, length = in_binary(PIXELS.tobytes(), shape=list(PIXELS.shape), datatype="UINT8")
    tensor = read(body, length).inputs[0]
    assert isinstance(tensor.data, np.ndarray)
    np.testing.assert_array_equal(tensor.data, PIXELS, strict=True)
    assert np.shares_memory(tensor.data, np.frombuffer(body, np.uint8))


def test_files_in_binary_have_their_length_before_them() -> None:
    tensor = read(*in_binary(bytes_elements(*FILES), shape=[2])).inputs[0]
    assert (tensor.datatype, tensor.shape, tuple(tensor.data)) == ("BYTES", (2,), FILES)


def test_files_in_json_are_text_or_base64() -> None:
    assert read(with_input(data=["P3 é"])).inputs[0].data == ["P3 é".encode()]
    assert read(with_input(shape=[1, 1], data=[["P3"]])).inputs[0].data == [b"P3"]
    encoded = [base64.b64encode(each).decode() for each in FILES]
    found = read(with_input(shape=[2], data=encoded, parameters={"content_type": "base64"})).inputs[0]
    assert tuple(found.data) == FILES


def test_a_body_without_json_is_one_image() -> None:
    found = read(PIXELS[0].tobytes(), "0")
    assert isinstance(found.inputs[0].data, np.ndarray)
    np.testing.assert_array_equal(found.inputs[0].data, PIXELS[:1], strict=True)
    assert (found.inputs[0].name, found.binary_outputs) == ("images", True)
    assert read(bytes_elements(FILES[0]), "0").inputs[0].data == [FILES[0]]


@pytest.mark.parametrize("is_binary_in", [True, False])
@pytest.mark.parametrize("is_binary_out", [True, False])
def test_the_requests_of_tritons_client_are_read(is_binary_in: bool, is_binary_out: bool) -> None:
    tensor = triton.InferInput("images", PIXELS.shape, "UINT8")
    tensor.set_data_from_numpy(PIXELS, binary_data=is_binary_in)
    asked = [
        triton.InferRequestedOutput("probabilities", binary_data=is_binary_out, class_count=3),
        triton.InferRequestedOutput("label", binary_data=is_binary_out),
    ]
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor], outputs=asked, request_id="7", timeout=1500
    )
    found = read(body, None if length is None else str(length))
    assert isinstance(found.inputs[0].data, np.ndarray)
    np.testing.assert_array_equal(found.inputs[0].data, PIXELS)
    assert (found.id, found.timeout_us) == ("7", 1500)
    assert list(found.outputs) == [
        RequestedOutput(name="probabilities", classification=3, binary=is_binary_out),
        RequestedOutput(name="label", binary=is_binary_out),
    ]


def test_binary_data_of_an_output_overrides_that_of_the_request() -> None:
    body = with_input() | {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    assert [output.binary for output in read(body).outputs] == [True, False]
    assert read(with_input() | {"parameters": {"binary_data_output": True}}).binary_outputs


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritons_client_reads_the_responses_to_the_bit(is_binary: bool) -> None:
    probabilities = np.random.default_rng(1).random((2, 5), np.float32) ** 20
    views = np.arange(20, dtype=np.int32).reshape(2, 10)
    labels = ["düne".encode(), b""]
    response = InferResponse(
        model="m",
        version="1",
        id="7",
        outputs=[
            Tensor(name="probabilities", datatype="FP32", shape=(2, 5), data=probabilities),
            Tensor(name="label", datatype="BYTES", shape=(2,), data=labels),
            Tensor(name="view_classes", datatype="INT32", shape=(2, 10), data=views),
        ],
        parameters={"artifact": "c0ffee"},
    )
    body, length = write_infer(response, InferRequest(model="m", binary_outputs=is_binary))
    assert (length is not None) == is_binary
    found = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    np.testing.assert_array_equal(found.as_numpy("probabilities"), probabilities, strict=True)
    np.testing.assert_array_equal(found.as_numpy("view_classes"), views, strict=True)
    texts = [each if isinstance(each, bytes) else each.encode() for each in found.as_numpy("label")]
    assert texts == labels
    assert found.get_response()["id"] == "7"
    assert found.get_response()["parameters"] == {"artifact": "c0ffee"}


def test_outputs_in_json_and_in_binary_may_be_in_one_response() -> None:
    data = np.array([[1, 2]], np.int32)
    response = InferResponse(
        model="m",
        version="1",
        id="",
        outputs=[Tensor(name=name, datatype="INT32", shape=(1, 2), data=data) for name in ("a", "b")],
    )
    request = InferRequest(model="m", outputs=[RequestedOutput(name="a"), RequestedOutput(name="b", binary=True)])
    body, length = write_infer(response, request)
    assert body[length:] == data.tobytes()
    outputs = json.loads(body[:length])["outputs"]
    assert outputs[0]["data"] == [1, 2]
    assert outputs[1] == {
        "name": "b", "datatype": "INT32", "shape": [1, 2], "parameters": {"binary_data_size": 8}
    }  # fmt: skip


def test_parameters_of_tritons_schedulers_and_of_clients_are_let_through() -> None:
    tensor = triton.InferInput("images", PIXELS.shape, "UINT8")
    tensor.set_data_from_numpy(PIXELS)
    body, length = triton.InferenceServerClient.generate_request_body(
        [tensor],
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=1500,
        parameters={"user": "a", "max_tokens": 3, "traceparent": "00-1"},
    )
    assert read(body, str(length)).timeout_us == 1500
    assert read(with_input() | {"parameters": {"content_type": "np", "headers": "h"}}).inputs
    assert read(with_input(parameters={"content_type": "base64"}, data=[""])).inputs


NOT_ONE_BYTE = "whole numbers from 0 to 255"


@pytest.mark.parametrize(
    ("body", "header_length", "message"),
    [
        (b"", None, "parse"),
        (b"{", None, "parse"),
        (b"[]", None, "parse"),
        (b"\xff", None, "parse"),
        (b'{"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["\xff"]}]}', None, "parse"),
        (b"[" * 100_000, None, "parse"),
        (b'{"inputs":' + b"[" * 100_000, None, "parse"),
        (b'{"inputs": [], "id": 7}', None, "parse"),
        (with_input(shape=[1], data="x"), None, "parse"),
        (with_input(shape=[1.5]), None, "parse"),
        (with_input(shape=[-1], data=[]), None, "shape"),
        (with_input(shape=[2**40, 2**40], datatype="UINT8", data=[1]), None, "its shape"),
        (with_input(shape=[2**63 - 1] * 500_000, data=[]), None, "has 500000 dimensions"),
        (with_input(shape=[9], data=[""] * 9), None, "batch-size must be >= 1 and <= 8 .* got 9"),
        (with_input(shape=[1, 2**40], data=[]), None, "batch-size"),
        ({"inputs": with_input()["inputs"] * 2}, None, "expected 1 inputs but got 2"),
        (with_input() | {"outputs": [{"name": "x"}] * 17}, None, "17 outputs"),
        (with_input(shape=[2]), None, "has 1 elements"),
        (with_input(datatype="FP32", data=[1.0]), None, "FP32"),
        (with_input(datatype="UINT8", data=[256]), None, NOT_ONE_BYTE),
        (with_input(datatype="UINT8", data=[-1]), None, NOT_ONE_BYTE),
        (with_input(datatype="UINT8", data=[2**80]), None, NOT_ONE_BYTE),
        (with_input(datatype="UINT8", data=["1"]), None, NOT_ONE_BYTE),
        (with_input(datatype="UINT8", data=[1.5]), None, "parse"),
        (with_input(datatype="UINT8", data=[True]), None, "parse"),
        (with_input(datatype="UINT8", data=["]["]), None, NOT_ONE_BYTE),
        (with_input(datatype="UINT8", data=[["]["]]), None, "parse"),
        (b'{"inputs":[{"name":"images","shape":[1],"datatype":"UINT8","data":[NaN]}]}', None, "parse"),
        (with_input(data=[1]), None, "not strings"),
        (with_input(data=[["x"], 1], shape=[2]), None, "parse"),
        (with_input(data=["?"], parameters={"content_type": "base64"}), None, "images"),
        (with_input(data=None), None, "must set one"),
        (with_input(parameters={"binary_data_size": 0}), None, "only one"),
        (with_input(data=None, parameters={"binary_data_size": 1}), None, "binary_data_size"),
        (with_input(data=None, parameters={"binary_data_size": -1}), None, "binary_data_size"),
        (with_input(data=None, parameters={"binary_data_size": True}), None, "binary_data_size"),
        (with_input(data=None, parameters={"shared_memory_region": "r"}), None, "shared memory"),
        (with_input() | {"outputs": [{"name": "x", "parameters": {"shared_memory_region": "r"}}]}, None, "shared"),
        (with_input() | {"outputs": [{"name": "x", "parameters": {"classification": -1}}]}, None, "classification"),
        (with_input() | {"outputs": [{"name": "x", "parameters": {"binary_data": 1}}]}, None, "binary_data"),
        (with_input() | {"parameters": {"timeout": -1}}, None, "timeout"),
        (with_input() | {"parameters": {"timeout": 2**70}}, None, "timeout"),
        (
            with_input() | {"parameters": {"time_out": 1}},
            None,
            "'time_out' of the request is unknown.*'timeout' of the req",
        ),
        (with_input() | {"parameters": {"top_k": 3}}, None, "did you mean 'classification' of an output"),
        (with_input() | {"parameters": {"classification": 3}}, None, "did you mean 'classification' of an output"),
        (with_input(parameters={"contentType": "base64"}), None, "did you mean 'content_type' of an input"),
        (
            with_input() | {"outputs": [{"name": "x", "parameters": {"clasification": 3}}]},
            None,
            "'clasification' of the out",
        ),
        (with_input() | {"parameters": {f"a{number}": 1 for number in range(65)}}, None, "65 parameters"),
        (b"{}", "3", "the body has 2"),
        (b"{}", "-1", "not a length"),
        (b"{}", "²", "not a length"),
        (b"{}", "9" * 5000, "not a length"),
        (b"", "0", "got 0 bytes"),
        (b"\x05\x00\x00\x00abc", "0", "got 7 bytes"),
        (*in_binary(bytes_elements(b"abc")[:-1]), "longer than the data"),
        (*in_binary(bytes(20_000_000)), "more than 1 elements"),
        (*in_binary(b"\xff\xff\xff\xff"), "longer than the data"),
        (*in_binary(b"\x00\x00\x00"), "longer than the data"),
        (in_binary(bytes_elements(b"abc"))[0] + b"more", in_binary(bytes_elements(b"abc"))[1], "4 bytes"),
        (*in_binary(b"abc", datatype="UINT8", shape=[256, 256, 3]), "has 3 elements"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    body: bytes | dict[str, Any], header_length: str | None, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read(body, header_length)


def test_more_numbers_than_images_can_have_are_not_read() -> None:
    for separator in (",", ", "):
        with pytest.raises(TooLargeError, match="more values than 8 images have"):
            read(f'{{"inputs": [{{"data": [{separator.join("1" * 2_000_000)}'.encode())
    # As many as eight images have are read.
    data = np.tile(PIXELS, (4, 1, 1, 1))
    found = read(with_input(shape=list(data.shape), datatype="UINT8", data=data.tolist())).inputs[0].data
    np.testing.assert_array_equal(found, data)


def test_json_has_a_limit_that_binary_data_after_it_does_not_count_for() -> None:
    with pytest.raises(TooLargeError, match="send tensors in binary"):
        read(b'{"inputs": ["' + b" " * (16 << 20) + b'"]}')
    assert len(read(*in_binary(bytes_elements(b" " * (17 << 20)))).inputs[0].data[0]) == 17 << 20
