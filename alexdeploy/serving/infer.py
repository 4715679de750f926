"""Inference and descriptions of models, shared by REST and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.metrics import top_k
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.core.version import __version__
from alexdeploy.inference.batcher import DeadlineError, Job, JobTimes, QueueFullError
from alexdeploy.inference.pipeline import NO_ANSWER, Outcome
from alexdeploy.inference.writers import short_artifact
from alexdeploy.serving.errors import BusyError, InvalidRequestError, RequestError
from alexdeploy.serving.tensors import InferRequest, InferResponse, RequestedOutput, Tensor

if TYPE_CHECKING:
    from alexdeploy.images.from_memory import Input
    from alexdeploy.serving.models import Repository, ServedModel

INPUT = "images"
PIXELS = (IMAGE_SIZE, IMAGE_SIZE, 3)
OUTPUTS = ("probabilities", "view_classes", "label")
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""What this server has of Triton's extensions. Of schedule_policy it has `timeout`; there are no priorities."""

_PLATFORMS = {
    "tensorrt": "tensorrt_plan",
    "tensorrt-rtx": "tensorrt_rtx_plan",
    "onnxruntime": "onnxruntime_onnx",
    "openvino": "openvino_onnx",
    "torch": "pytorch_safetensors",
}
_TEXT_NOTE = (
    "; BYTES in JSON are text: send base64 with the input's parameter content_type 'base64', binary data, "
    "or the file to /predict"
)
_BYTES_NOTE = "images also takes BYTES [-1], each element an image file"
_log = logging.getLogger("alexdeploy.serving")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one model made of the images of a request, in their order."""

    model: ServedModel
    outcomes: Sequence[Outcome]
    times: JobTimes


async def infer(repository: Repository, request: InferRequest, *, client: str) -> InferResponse:
    """Answer a request of the protocol. Raises RequestError; cancelling it takes the images out of the queue."""
    began = time.perf_counter_ns()
    with repository.use(request.model, request.version) as model:
        try:
            images, outputs = _images(model, request.inputs), _outputs(request)
            answer = await classify(model, images, client=client, timeout_us=request.timeout_us)
            probabilities = _probabilities(answer, is_text=request.inputs[0].is_text)
        except BaseException:
            model.statistics.record_failure(time.perf_counter_ns() - began)
            raise
    computed = time.perf_counter_ns()
    tensors = [_output(answer, probabilities, output) for output in outputs]
    ended = time.perf_counter_ns()
    model.statistics.record_success(len(images), answer.times, output_ns=ended - computed, total_ns=ended - began)
    info = model.info
    return InferResponse(
        model=model.name,
        version=model.version,
        id=request.id,
        outputs=tensors,
        parameters={"artifact": short_artifact(info.artifact), "backend": info.backend, "precision": info.precision},
        times=answer.times,
    )


async def classify(model: ServedModel, images: Sequence[Input], *, client: str, timeout_us: int = 0) -> Answer:
    """Run images through the model's batcher; images that cannot be decoded have an error in their outcome.

    `timeout_us` 0: the server's own limit, if any, which is also the most that a request can ask for. Raises BusyError
    if the queue is full, the time is over or the model is being closed, RequestError if the engine fails.
    """
    try:
        job = model.batcher.submit(images, client=client, deadline=_deadline(model, timeout_us))
    except AlexDeployError as error:
        raise _refusal(model, error) from None
    await _done(job)
    if job.future.cancelled():
        raise BusyError("the model is being closed")
    # Not result(), which raises the error here: with this frame, which has the job, it would be a cycle.
    failure = job.future.exception()
    if isinstance(failure, AlexDeployError):
        raise _refusal(model, failure)
    if failure is not None:
        raise failure
    return Answer(model=model, outcomes=job.future.result(), times=job.times)


def _refusal(model: ServedModel, error: AlexDeployError) -> RequestError:
    if isinstance(error, QueueFullError):
        return BusyError("Exceeds maximum queue size")
    if isinstance(error, DeadlineError):
        return BusyError("Request timeout expired")
    return log_fault(model, error)


def log_fault(model: ServedModel, error: AlexDeployError) -> RequestError:
    """Log a fault of the engine or the model; returns the error for the client, which tells nothing of this machine."""
    _log.error("%s: %s", model.name, error.text, exc_info=error)
    return RequestError(f"the engine of model '{model.name}' failed")


def _deadline(model: ServedModel, timeout_us: int) -> float | None:
    limits = [timeout_us / 1e6] if timeout_us > 0 else []
    if model.timeout_ms is not None:
        limits.append(model.timeout_ms / 1e3)
    return time.monotonic() + min(limits) if limits else None


async def _done(job: Job) -> None:
    """Wait for a job. Cancelling the wait cancels the job."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_: object) -> None:
        # The loop is closed if the process ends before the job.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish)

    job.future.add_done_callback(wake)
    try:
        await done
    except asyncio.CancelledError:
        job.future.cancel()
        raise


def _images(model: ServedModel, inputs: Sequence[Tensor]) -> list[Input]:
    """The images of a request. Raises InvalidRequestError unless its one input has the name and a possible shape."""
    [tensor] = inputs
    if tensor.name != INPUT:
        raise InvalidRequestError(f"unexpected inference input '{tensor.name}' for model '{model.name}'")
    # Both protocols refuse any other type when they read a request.
    expected = {"UINT8": (*PIXELS,), "BYTES": ()}[tensor.datatype]
    rest = tensor.shape[1:]
    if not tensor.shape or not (rest == expected or (tensor.datatype == "BYTES" and rest == (1,))):
        raise InvalidRequestError(
            f"unexpected shape for input '{INPUT}' for model '{model.name}'. "
            f"Expected {[-1, *expected]}, got {list(tensor.shape)}"
        )
    if not 1 <= tensor.shape[0] <= model.info.batch_size:
        raise InvalidRequestError(
            f"inference request batch-size must be >= 1 and <= {model.info.batch_size} for '{model.name}', "
            f"got {tensor.shape[0]}"
        )
    return list(tensor.data)


def _outputs(request: InferRequest) -> Sequence[RequestedOutput]:
    if not request.outputs:
        return [RequestedOutput(name=name, binary=request.binary_outputs) for name in OUTPUTS]
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequestError(f"unexpected inference output '{output.name}' for model '{request.model}'")
        if names.count(output.name) > 1:
            raise InvalidRequestError(f"output '{output.name}' is requested more than once")
        if output.classification and output.name != "probabilities":
            raise InvalidRequestError(f"class result not available for output '{output.name}'")
    return request.outputs


def _probabilities(answer: Answer, *, is_text: bool) -> NDArray[np.float32]:
    """All probabilities, [N, C]; `is_text`: the images came as strings of JSON.

    Raises InvalidRequestError for an image without an answer, RequestError if that is the model's fault.
    """
    rows = []
    for number, outcome in enumerate(answer.outcomes):
        if outcome.probabilities is None:
            error = outcome.error or ""
            kind = RequestError if error.startswith(NO_ANSWER) else InvalidRequestError
            raise kind(f"{INPUT}[{number}]: {error}{_TEXT_NOTE if is_text else ''}")
        rows.append(outcome.probabilities)
    found = np.stack(rows)
    if not np.isfinite(found).all():
        _log.error("%s gives probabilities that are not finite", answer.model.name)
        raise RequestError(f"model '{answer.model.name}' gives probabilities that are not finite")
    return found


def _output(answer: Answer, probabilities: NDArray[np.float32], output: RequestedOutput) -> Tensor:
    classes = answer.model.classes
    if output.name == "view_classes":
        views = np.stack([cast("NDArray[np.int32]", outcome.view_classes) for outcome in answer.outcomes])
        return Tensor(name=output.name, datatype="INT32", shape=views.shape, data=views)
    if output.name == "label":
        labels = [classes[index].encode() for index in probabilities.argmax(axis=1)]
        return Tensor(name=output.name, datatype="BYTES", shape=(len(labels),), data=labels)
    if not output.classification:
        return Tensor(name=output.name, datatype="FP32", shape=probabilities.shape, data=probabilities)
    best = top_k(probabilities, output.classification)
    # Triton writes six decimals.
    texts = [
        f"{row[index]:f}:{index}:{classes[index]}".encode()
        for row, indices in zip(probabilities, best, strict=True)
        for index in indices
    ]
    return Tensor(name=output.name, datatype="BYTES", shape=best.shape, data=texts)


def server_metadata() -> dict[str, Any]:
    return {"name": "alexdeploy", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """The model's metadata. That the input also takes BYTES is a parameter, for which gRPC's message has no field."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": _platform(model),
        "inputs": [
            {"name": INPUT, "datatype": "UINT8", "shape": [-1, *PIXELS], "parameters": {"note": _BYTES_NOTE}},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(model.classes)]},
            {"name": "view_classes", "datatype": "INT32", "shape": [-1, model.info.num_views]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """The model's configuration in the JSON form of Triton's message ModelConfig."""
    info, options = model.info, model.batcher_options
    is_cpu = "cuda" not in info.device.lower()
    policy: dict[str, Any] = {"timeout_action": "REJECT", "allow_timeout_override": True}
    if model.timeout_ms is not None:
        policy["default_timeout_microseconds"] = round(model.timeout_ms * 1000)
    if options.max_queue is not None:
        policy["max_queue_size"] = options.max_queue
    return {
        "name": model.name,
        "platform": _platform(model),
        "backend": info.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": info.batch_size,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": list(PIXELS)}],
        "output": [
            {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [len(model.classes)]},
            {"name": "view_classes", "data_type": "TYPE_INT32", "dims": [info.num_views]},
            {"name": "label", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}},
        ],
        "instance_group": [
            {"name": model.name, "kind": "KIND_CPU" if is_cpu else "KIND_GPU", "count": info.num_streams}
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(options.max_delay_ms * 1000),
            "default_queue_policy": policy,
        },
        "parameters": {
            name: {"string_value": value}
            for name, value in (
                ("artifact", short_artifact(info.artifact)),
                ("precision", info.precision),
                ("note", _BYTES_NOTE),
            )
        },
    }


def _platform(model: ServedModel) -> str:
    return "+".join(_PLATFORMS.get(name, name) for name in model.info.backend.split("+"))
