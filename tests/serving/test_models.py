"""The repository of a server: loading, switching between exports under load, refusing, unloading."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from helpers import replace_graph, smooth_images
from numpy.typing import NDArray
from onnx import numpy_helper
from patience import PATIENCE

from alexdeploy.core.errors import DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.events import Notice
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.inference.batcher import BatcherOptions
from alexdeploy.placement.memory import host_bytes
from alexdeploy.placement.options import PredictOptions
from alexdeploy.serving import retries
from alexdeploy.serving.errors import BusyError, InvalidRequestError, NotFoundError
from alexdeploy.serving.events import ModelFailed, ModelLoaded, ModelRefused
from alexdeploy.serving.models import Repository, ServingOptions, _reason
from alexdeploy.serving.retries import Retry

PREDICT = PredictOptions(backend="onnxruntime", batch_size=4, num_threads=1)
OPTIONS = ServingOptions(predict=PREDICT, batcher=BatcherOptions(max_queue=64))
PICTURES = smooth_images(4)


@pytest.fixture
def other(exported: Callable[..., ModelFolder]) -> ModelFolder:
    """An export with other weights, classes as those of `tiny_model`."""
    return exported("caffenet")


async def answer(repository: Repository, name: str, image: NDArray[np.uint8]) -> tuple[str, NDArray[np.float32]]:
    """The artifact that answered, and its probabilities."""
    with repository.use(name) as model:
        [outcome] = await asyncio.wrap_future(model.batcher.submit([image]).future)
        assert outcome.probabilities is not None, outcome.error
        return model.info.artifact, outcome.probabilities


def engine_answers(folder: ModelFolder) -> tuple[str, NDArray[np.float32]]:
    """The same of an engine opened without any server, each picture alone."""
    with open_engine(folder, "onnxruntime", EngineOptions(batch_size=1, num_threads=1)) as engine:
        return engine.info.artifact, np.stack([engine.run(picture[None]).probabilities[0] for picture in PICTURES])


def publish(source: ModelFolder, target: ModelFolder) -> None:
    """Put another export into a folder that is served, file by file, as an export does."""
    for path in (source.spec_path, source.mean_path, source.weights_path, source.sum_path(), source.onnx_path()):
        part = target.path / f".{path.name}.part"
        shutil.copyfile(path, part)
        os.replace(part, target.path / path.name)


async def until(condition: Callable[[], object]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), PATIENCE)


def kill_workers() -> None:
    for child in psutil.Process().children():
        # One that has just ended has no command line.
        with suppress(psutil.Error):
            if "alexdeploy.placement.worker" in " ".join(child.cmdline()):
                child.kill()


async def serving(repository: Repository, use: Callable[[], Awaitable[None]]) -> None:
    """Start, `use`, and close in any case."""
    await repository.start()
    try:
        await use()
    finally:
        await repository.close()


def test_a_served_model_answers_as_its_engine_does(tiny_model: ModelFolder) -> None:
    artifact, expected = engine_answers(tiny_model)
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        assert repository.is_ready
        assert [(each.name, each.version, each.state, each.reason) for each in repository.index()] == [
            ("tiny", "1", "READY", "")
        ]
        for picture, probabilities in zip(PICTURES, expected, strict=True):
            found, row = await answer(repository, "tiny", picture)
            assert found == artifact
            np.testing.assert_allclose(row, probabilities, atol=1e-7)
        # The warm-up is not among them.
        assert repository.get("tiny").statistics.batch_sizes == {1: 4}

    assert not repository.is_ready
    with pytest.raises(BusyError, match=r"^model '.*' is not ready: it is being loaded$"):
        repository.get("tiny")
    asyncio.run(serving(repository, use))
    assert not repository.is_ready


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [("other", "", "'other' is not found"), ("tiny", "2", "'tiny' version 2 is not found"), ("tiny", "one", "one")],
)
def test_an_unknown_model_or_version_is_not_found(
    tiny_model: ModelFolder, name: str, version: str, message: str
) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        assert repository.get("tiny", "1") is repository.get("tiny")
        with pytest.raises(NotFoundError, match=message):
            repository.get(name, version)

    asyncio.run(serving(repository, use))


def test_ten_switches_under_load_fail_no_request(tiny_model: ModelFolder, other: ModelFolder, tmp_path: Path) -> None:
    first = ModelFolder(Path(shutil.copytree(tiny_model.path, tmp_path / "first")))
    expected = dict(engine_answers(folder) for folder in (first, other))
    assert len(expected) == 2
    events: list[object] = []
    repository = Repository([tiny_model], OPTIONS, events.append)
    counts = dict.fromkeys(expected, 0)

    async def ask(start: int, is_over: asyncio.Event) -> None:
        for number in itertools.count(start):
            if is_over.is_set():
                return
            artifact, row = await answer(repository, "tiny", PICTURES[number % 4])
            # A batch of others may add up in another order; the two exports differ by far more.
            np.testing.assert_allclose(row, expected[artifact][number % 4], atol=1e-6)
            counts[artifact] += 1

    async def use() -> None:
        is_over = asyncio.Event()
        watching = asyncio.ensure_future(repository.watch(0.05))
        asking = [asyncio.ensure_future(ask(number, is_over)) for number in range(8)]
        for number in range(10):
            source = (other, first)[number % 2]
            publish(source, tiny_model)
            await until(lambda: num_loaded(events) > number + 1)  # noqa: B023
            assert (await answer(repository, "tiny", PICTURES[0]))[0] == engine_artifact(source)
        is_over.set()
        await asyncio.gather(*asking)
        watching.cancel()

    asyncio.run(serving(repository, use))
    assert all(counts.values())
    assert not [event for event in events if isinstance(event, ModelRefused)]
    replaced = [event.replaced for event in events if isinstance(event, ModelLoaded)]
    assert replaced[0] is None
    assert all(replaced[1:])


def num_loaded(events: list[object]) -> int:
    return sum(isinstance(event, ModelLoaded) for event in events)


def engine_artifact(folder: ModelFolder) -> str:
    return folder.sum_path().read_text().split()[0]


def test_a_damaged_export_is_refused_and_the_next_good_one_taken(tiny_model: ModelFolder, other: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        before, _ = await answer(repository, "tiny", PICTURES[0])
        watching = asyncio.ensure_future(repository.watch(0.02))
        content = tiny_model.onnx_path().read_bytes()
        tiny_model.onnx_path().write_bytes(content[: len(content) // 2])
        await until(lambda: repository.num_loads()["tiny"][1])
        [state] = repository.index()
        assert state.state == "READY"
        assert "model.onnx" in state.reason
        assert str(tiny_model.path.parent) not in state.reason
        assert (await answer(repository, "tiny", PICTURES[0]))[0] == before
        with pytest.raises(InvalidRequestError, match=r"failed to load 'tiny': tiny/model\.onnx"):
            await repository.load("tiny")
        publish(other, tiny_model)
        await until(lambda: repository.num_loads()["tiny"][0] == 2)
        assert (await answer(repository, "tiny", PICTURES[0]))[0] == engine_artifact(other)
        assert [state.reason for state in repository.index()] == [""]
        watching.cancel()

    asyncio.run(serving(repository, use))


def test_an_export_whose_answers_are_not_finite_is_refused(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        model = onnx.load(tiny_model.onnx_path())
        bias = next(each for each in model.graph.initializer if each.name == "fc8.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(bias), np.nan), bias.name))
        replace_graph(tiny_model, "fp32", model)
        with pytest.raises(InvalidRequestError, match="the probabilities of the warm-up sum to nan"):
            await repository.load("tiny")
        await answer(repository, "tiny", PICTURES[0])

    asyncio.run(serving(repository, use))


def test_a_model_that_cannot_be_opened_ends_the_start(tiny_model: ModelFolder) -> None:
    tiny_model.onnx_path().write_bytes(b"")
    repository = Repository([tiny_model], OPTIONS)

    async def start() -> None:
        try:
            await repository.start()
        finally:
            await repository.close(finish=False)

    with pytest.raises(ModelError, match=r"model\.onnx"):
        asyncio.run(start())


def test_a_model_that_does_not_fit_is_refused_and_the_others_go_on(tiny_model: ModelFolder, other: ModelFolder) -> None:
    needed, also = host_bytes(tiny_model, PREDICT), host_bytes(other, PREDICT)
    limit = needed + also // 2
    options = ServingOptions(predict=PREDICT, max_memory_bytes=limit)
    repository = Repository([tiny_model, other], options)

    async def use() -> None:
        assert repository.is_ready
        await answer(repository, "tiny", PICTURES[0])
        state = repository.index()[1]
        assert state.state == "UNAVAILABLE"
        assert f"needs about {also / 1e6:,.0f} MB" in state.reason
        assert f"{(limit - needed) / 1e6:,.0f} MB are left of the limit of {limit / 1e6:,.0f} MB" in state.reason
        with pytest.raises(NotFoundError):
            repository.get("caffenet")
        await repository.unload("tiny")
        await repository.load("caffenet")
        await answer(repository, "caffenet", PICTURES[0])

    asyncio.run(serving(repository, use))
    alone = Repository([tiny_model], ServingOptions(predict=PREDICT, max_memory_bytes=needed - 1))
    with pytest.raises(DeviceMemoryError, match="tiny needs about"):
        asyncio.run(alone.start())


def test_an_unloaded_model_is_not_found_until_it_is_loaded_again(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        watching = asyncio.ensure_future(repository.watch(0.01))
        await repository.unload("tiny")
        os.utime(tiny_model.spec_path)
        with pytest.raises(NotFoundError):
            repository.get("tiny")
        await asyncio.sleep(0.1)
        # Watching leaves alone what was unloaded.
        assert [(each.state, each.reason) for each in repository.index()] == [("UNAVAILABLE", "unloaded")]
        assert repository.index(ready=True) == []
        assert not repository.is_ready
        await repository.load("tiny")
        await answer(repository, "tiny", PICTURES[0])
        watching.cancel()

    asyncio.run(serving(repository, use))


def test_what_was_unloaded_meanwhile_is_not_reloaded(tiny_model: ModelFolder, other: ModelFolder) -> None:
    second = other.path.name
    repository = Repository([tiny_model, other], OPTIONS)

    async def use() -> None:
        # While the first is reloaded, the second is asked to go; its own turn comes after that.
        loading = asyncio.ensure_future(repository.load("tiny"))
        await asyncio.sleep(0)
        unloading = asyncio.ensure_future(repository.unload(second))
        await asyncio.sleep(0)
        reloading = asyncio.ensure_future(repository.reload())
        await asyncio.gather(loading, unloading, reloading)
        assert [each.name for each in repository.index(ready=True)] == ["tiny"]

    asyncio.run(serving(repository, use))


def test_a_model_is_unloaded_when_the_one_who_asked_has_gone(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        with repository.use("tiny"):
            unloading = asyncio.ensure_future(repository.unload("tiny"))
            await until(lambda: repository.index()[0].state == "UNLOADING")
            unloading.cancel()
        await until(lambda: repository.index()[0].state == "UNAVAILABLE")

    asyncio.run(serving(repository, use))


def test_a_model_whose_workers_are_lost_for_good_is_opened_again(tiny_model: ModelFolder) -> None:
    events: list[object] = []
    predict = replace(PREDICT, devices="cpu", replicas=2, batch_size=1)
    repository = Repository([tiny_model], replace(OPTIONS, predict=predict), on_event=events.append)

    async def use() -> None:
        artifact, row = await answer(repository, "tiny", PICTURES[0])
        lost = repository.get("tiny")

        await until(lambda: kill_workers() or lost.failure is not None)
        # Nobody had to ask for that.
        assert not repository.is_ready
        with pytest.raises(BusyError, match="not ready"):
            repository.get("tiny")
        await until(lambda: repository.is_ready)
        assert repository.get("tiny") is not lost
        found = await answer(repository, "tiny", PICTURES[0])
        assert found[0] == artifact
        np.testing.assert_array_equal(found[1], row)
        [failed] = [event for event in events if isinstance(event, ModelFailed)]
        assert failed.reason.startswith("all replicas failed: cpu: ")
        assert [(each.state, each.reason) for each in repository.index()] == [("READY", "")]

    asyncio.run(serving(repository, use))


def test_a_lost_model_that_does_not_open_is_tried_again_until_it_does(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FIRST_SECONDS", 0.1)
    predict = replace(PREDICT, devices="cpu", replicas=2, batch_size=1)
    repository = Repository([tiny_model], replace(OPTIONS, predict=predict))
    graph = tiny_model.onnx_path()
    content = graph.read_bytes()

    async def use() -> None:
        lost = repository.get("tiny")
        graph.write_bytes(b"no graph")

        await until(lambda: kill_workers() or lost.failure is not None)
        await until(lambda: repository.num_loads()["tiny"][1] == 1)
        assert repository.index()[0].state == "UNAVAILABLE"
        # It is expected back, and so it is not one that nobody knows.
        with pytest.raises(BusyError):
            repository.get("tiny")
        graph.write_bytes(content)
        await until(lambda: repository.is_ready)
        await answer(repository, "tiny", PICTURES[0])

    asyncio.run(serving(repository, use))


def test_attempts_are_at_growing_intervals_until_one_lasts() -> None:
    retry = Retry()
    assert not retry.is_due(1e9)
    now, waited = 100.0, []
    for _ in range(8):
        retry.failed(now)
        assert retry.at is not None
        waited.append(retry.at - now)
        now = retry.at
        assert retry.is_due(now)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]
    retry.succeeded(now)
    assert retry.at is None
    retry.failed(now + 10)
    assert retry.at == now + 70
    retry.succeeded(now + 70)
    retry.failed(now + 140)
    assert retry.at == now + 141


def test_only_folders_under_models_can_be_loaded_by_name(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.path.parent.parent)
    shutil.copytree(tiny_model.path, "models/second")
    shutil.copytree(tiny_model.path, "outside")
    shutil.copytree(tiny_model.path, "models/.hidden")
    repository = Repository([tiny_model], OPTIONS)
    refused = ("outside", "../outside", "..", ".", "", "models/second", "./second", "second/", "/etc", "third")

    async def use() -> None:
        for name in (*refused, "..\\outside", "second\0", str(Path("models/second").resolve()), ".hidden"):
            with pytest.raises(NotFoundError, match="no such model"):
                await repository.load(name)
            with pytest.raises(NotFoundError, match="no such model"):
                await repository.unload(name)
        assert [each.name for each in repository.index()] == ["tiny"]
        await repository.load("second")
        assert [each.name for each in repository.index(ready=True)] == ["tiny", "second"]

    asyncio.run(serving(repository, use))


def test_two_folders_of_one_name_are_an_error(tiny_model: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(tiny_model.path, tmp_path / "elsewhere" / "tiny")
    with pytest.raises(UsageError, match="two models are called tiny"):
        Repository([tiny_model, str(tmp_path / "elsewhere" / "tiny")], OPTIONS)


def test_a_load_goes_on_when_the_one_who_asked_has_gone(tiny_model: ModelFolder, other: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        publish(other, tiny_model)
        loading = asyncio.ensure_future(repository.load("tiny"))
        await asyncio.sleep(0)
        loading.cancel()
        await until(lambda: repository.num_loads()["tiny"][0] == 2)
        assert repository.get("tiny").info.artifact == engine_artifact(other)

    asyncio.run(serving(repository, use))


def test_a_request_is_answered_by_the_export_that_it_began_with(tiny_model: ModelFolder, other: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def use() -> None:
        with repository.use("tiny") as model:
            publish(other, tiny_model)
            await repository.load("tiny")
            assert repository.get("tiny") is not model
            # What it has is still open, however long it takes.
            [outcome] = await asyncio.wrap_future(model.batcher.submit([PICTURES[0]]).future)
            assert outcome.probabilities is not None
        await until(lambda: not model.batcher.is_open)

    asyncio.run(serving(repository, use))


def test_closing_answers_what_was_accepted(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def run() -> list[tuple[str, NDArray[np.float32]]]:
        await repository.start()
        asking = [asyncio.ensure_future(answer(repository, "tiny", PICTURES[number % 4])) for number in range(48)]
        await asyncio.sleep(0)
        await repository.close()
        assert all(each.done() for each in asking)
        with pytest.raises(BusyError, match="shutting down"):
            await repository.load("tiny")
        return await asyncio.gather(*asking)

    assert len(asyncio.run(run())) == 48


def test_closing_without_finishing_cancels_what_waits(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def run() -> None:
        await repository.start()
        model = repository.get("tiny")
        model.acquire()
        # Somebody who never releases what it has holds up the first, and not the second.
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(repository.close(), 0.05)
        await asyncio.wait_for(repository.close(finish=False), PATIENCE)
        with pytest.raises(UsageError, match="closed"):
            model.batcher.submit([PICTURES[0]])

    asyncio.run(run())


def test_what_is_being_opened_while_the_server_ends_is_closed_again(tiny_model: ModelFolder) -> None:
    repository = Repository([tiny_model], OPTIONS)

    async def run() -> None:
        starting = asyncio.ensure_future(repository.start())
        await asyncio.sleep(0)
        starting.cancel()
        await repository.close(finish=False)
        assert repository.models == []

    # No thread is left, says a fixture of all tests.
    asyncio.run(run())


def test_newer_weights_are_told_and_engine_files_do_not_matter_to_other_backends(tiny_model: ModelFolder) -> None:
    tiny_model.candidate.path.mkdir(parents=True)
    tiny_model.candidate.write_spec(tiny_model.spec().replace_provenance(weights_sha256="0" * 64, best_epoch=7))
    tiny_model.engines.mkdir()
    (tiny_model.engines / "old.engine").write_bytes(b"no engine")
    events: list[object] = []
    repository = Repository([tiny_model], OPTIONS, on_event=events.append)

    async def use() -> None:
        await answer(repository, "tiny", PICTURES[0])

    asyncio.run(serving(repository, use))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any("has newer weights (000000000000, epoch 7)" in message for message in notices)


def test_clients_hear_nothing_of_a_defect(tiny_model: ModelFolder) -> None:
    assert _reason(ValueError("at line 7 of /home/somebody/x.py"), tiny_model) == "internal error"
