"""The models of a server by name: loading, switching to a new export, and unloading."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from alexdeploy.core.errors import AlexDeployError, DeviceMemoryError, UsageError
from alexdeploy.core.events import Notice
from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder, find_model
from alexdeploy.placement.pool import file_identities
from alexdeploy.serving.errors import BusyError, InvalidRequestError, NotFoundError, RequestError
from alexdeploy.serving.events import ModelFailed, ModelLoaded, ModelRefused, ModelUnloaded
from alexdeploy.serving.retries import Retry
from alexdeploy.serving.served_model import VERSION, open_model
from alexdeploy.serving.served_model import ServedModel as ServedModel
from alexdeploy.serving.served_model import ServingOptions as ServingOptions
from alexdeploy.serving.statistics import ModelStatistics

State = Literal["UNAVAILABLE", "LOADING", "READY", "UNLOADING"]

_NOT_A_NAME = re.compile(r"^$|^\.|[/\\:\0]")
"""What is not the name of a folder on some system, or is that of a hidden one."""

_LOOK_SECONDS = 1.0
"""How often to look whether an engine has failed."""

_SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelState:
    """An entry of the index. `reason` says why the model is not ready, or why its newest export is not used."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(kw_only=True, slots=True)
class _Entry:
    name: str
    folder: ModelFolder
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    state: State = "UNAVAILABLE"
    reason: str = ""
    model: ServedModel | None = None
    is_wanted: bool = True
    files: Any = None
    """Identities of the files that were loaded or refused last."""
    num_loads: int = 0
    num_refusals: int = 0
    retry: Retry = field(default_factory=Retry)
    """When to open the model again, by the monotonic clock, if its engine has failed."""


class Repository:
    """The models of a server by name, the name of their folder. To be used in the thread of one event loop.

    One model is loaded at a time. A model that was loaded goes on answering until the next export of it is open, has
    answered a warm-up and is switched to; each request is answered by the export that it began with. A model whose
    engine fails for good is opened again, and is not ready until then.
    """

    def __init__(
        self,
        models: Sequence[ModelFolder | str],
        options: ServingOptions | None = None,
        on_event: Callable[[object], None] = lambda event: None,
    ) -> None:
        """Find the models; no model: the newest under models/. Raises UsageError or ModelError."""
        self._options, self._on_event = options or ServingOptions(), on_event
        self._entries: dict[str, _Entry] = {}
        for folder in [find_model(each) for each in models] or [find_model()]:
            name = folder.path.resolve().name
            if name in self._entries:
                raise UsageError(
                    f"two models are called {name}: {self._entries[name].folder.path} and {folder.path}",
                    hint="A model is served under the name of its folder: rename one.",
                )
            self._entries[name] = _Entry(name=name, folder=folder, state="LOADING")
        self._loading = asyncio.Lock()
        self._retiring: dict[ServedModel, asyncio.Task[None]] = {}
        self._is_started = self._is_closing = False
        self._reviver: asyncio.Task[None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def models(self) -> list[ServedModel]:
        """The models that answer requests."""
        return [entry.model for entry in self._entries.values() if entry.model is not None]

    @property
    def is_ready(self) -> bool:
        """Whether `start` is done and at least one model answers."""
        return self._is_started and any(model.failure is None for model in self.models)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model that answers now. Raises NotFoundError, or BusyError while it is opened, or opened again.

        Between this and the end of a request a new export may be switched to: use `use`.
        """
        entry = self._entries.get(name)
        if entry is None or not (entry.model is not None or entry.retry.at is not None or entry.state == "LOADING"):
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        if version not in ("", VERSION):
            raise NotFoundError(f"Request for unknown model: '{name}' version {version} is not found")
        if entry.model is None or entry.model.failure is not None:
            raise BusyError(f"model '{name}' is not ready: it is being loaded")
        return entry.model

    @contextmanager
    def use(self, name: str, version: str = "") -> Iterator[ServedModel]:
        """`get` for a request: what is returned stays open while the block runs."""
        model = self.get(name, version)
        model.acquire()
        try:
            yield model
        finally:
            model.release()

    def index(self, *, ready: bool = False) -> list[ModelState]:
        """All known models, or those that are `ready`."""
        return [
            ModelState(name=each.name, version=VERSION, state=each.state, reason=each.reason)
            for each in self._entries.values()
            if each.model is not None or not ready
        ]

    def statistics(self, name: str = "", version: str = "") -> list[tuple[ServedModel, ModelStatistics]]:
        """Of one model, or of all. Raises as `get`."""
        return [(each, each.statistics) for each in ([self.get(name, version)] if name else self.models)]

    def num_loads(self) -> dict[str, tuple[int, int]]:
        """Name -> how often the model was loaded, and refused."""
        return {each.name: (each.num_loads, each.num_refusals) for each in self._entries.values()}

    async def start(self) -> None:
        """Load all models. Raises the AlexDeployError of the first that cannot be loaded.

        A model that does not fit into memory is only reported, if another does.
        """
        lacking: list[tuple[_Entry, DeviceMemoryError]] = []
        for entry in list(self._entries.values()):
            try:
                await self._load(entry)
            except DeviceMemoryError as exc:
                lacking.append((entry, exc))
        if lacking and not self.models:
            raise lacking[0][1]
        for entry, error in lacking:
            self._on_event(ModelRefused(name=entry.name, error=error, is_served=False))
        self._is_started = True
        self._reviver = asyncio.ensure_future(self._revive())

    async def load(self, name: str) -> None:
        """Load a model, or its newest export. It must have been named at the start, or be in the folder models/.

        Raises NotFoundError, or InvalidRequestError with the reason for which it is refused.
        """
        if name not in self._entries:
            folder = ModelFolder(MODELS_FOLDER / name)
            # The name of one folder: a request never leads out of models/.
            if _NOT_A_NAME.search(name) or not os.path.isfile(folder.spec_path):
                raise NotFoundError(f"failed to load '{name}': no such model")
            self._entries[name] = _Entry(name=name, folder=folder)
        entry = self._entries[name]
        try:
            await self._load(entry)
        except RequestError:
            raise
        except Exception as exc:
            raise InvalidRequestError(f"failed to load '{name}': {entry.reason}") from exc

    async def unload(self, name: str) -> None:
        """Answer what was accepted, and close the model. Raises NotFoundError."""
        if name not in self._entries:
            raise NotFoundError(f"failed to unload '{name}': no such model")
        await _to_its_end(self._unload_one(self._entries[name]))

    async def reload(self) -> None:
        """Load the newest export of every model that was not unloaded; what is refused goes on as it is."""
        for entry in list(self._entries.values()):
            await self._load_again(entry)

    async def watch(self, seconds: float = 1.0) -> None:
        """Load each new export, until cancelled.

        The files must have been the same for `seconds`. An export that is refused is tried again when they change: so
        one that was seen half written, or whose graphs follow its weights, is loaded when it is complete.
        """
        seen: dict[str, object] = {}
        while True:
            await asyncio.sleep(seconds)
            for entry in list(self._entries.values()):
                found = await asyncio.to_thread(self._files, entry)
                if found != entry.files and seen.get(entry.name) == found:
                    await self._load_again(entry)
                seen[entry.name] = found

    async def close(self, *, finish: bool = True) -> None:
        """`retire` all models, and wait until what is being opened is open, and closed again."""
        await self.retire(finish=finish)
        async with self._loading:
            pass

    async def retire(self, *, finish: bool = True) -> None:
        """Open no more models, and close those that answer; with `finish`, answer what was accepted first.

        May be called again without `finish`, also while another call is running or after it was cancelled.
        """
        self._is_closing = True
        if self._reviver is not None:
            self._reviver.cancel()
        if not finish:
            await asyncio.gather(*(model.give_up() for model in (*self.models, *self._retiring)))
        for entry in self._entries.values():
            entry.state, entry.reason = "UNAVAILABLE", _SHUTTING_DOWN
            self._retire(entry)
        if self._retiring:
            await asyncio.wait(list(self._retiring.values()))

    async def _load(self, entry: _Entry) -> None:
        await _to_its_end(self._load_one(entry, is_asked=True))

    async def _load_again(self, entry: _Entry) -> None:
        """Load what nobody asked for just now; events tell what becomes of it."""
        with suppress(Exception):
            await _to_its_end(self._load_one(entry, is_asked=False))

    async def _load_one(self, entry: _Entry, *, is_asked: bool) -> None:
        async with self._loading:
            if self._is_closing:
                raise BusyError(_SHUTTING_DOWN)
            # It may have been unloaded meanwhile.
            if not (is_asked or entry.is_wanted):
                return
            entry.is_wanted = True
            if entry.model is None:
                entry.state, entry.reason = "LOADING", ""
            began = time.monotonic()
            held_bytes = sum(each.num_bytes for each in (*self.models, *self._retiring))
            try:
                model = await asyncio.to_thread(self._open, entry, held_bytes)
            except Exception as exc:
                entry.num_refusals += 1
                entry.reason = _reason(exc, entry.folder)
                if entry.model is None:
                    entry.state = "UNAVAILABLE"
                if entry.retry.at is not None:
                    entry.retry.failed(time.monotonic())
                # At the start the caller has the error, which may end it.
                if self._is_started:
                    self._on_event(ModelRefused(name=entry.name, error=exc, is_served=entry.model is not None))
                raise
            if self._is_closing:
                await asyncio.to_thread(model.close_now)
                raise BusyError(_SHUTTING_DOWN)
            replaced = None if entry.model is None else entry.model.info.artifact
            self._retire(entry)
            entry.model, entry.state, entry.reason = model, "READY", ""
            entry.num_loads += 1
            entry.retry.succeeded(time.monotonic())
        for note in model.predictor.notes:
            self._on_event(Notice(message=note))
        seconds = time.monotonic() - began
        self._on_event(ModelLoaded(name=entry.name, info=model.info, seconds=seconds, replaced=replaced))

    async def _unload_one(self, entry: _Entry) -> None:
        async with self._loading:
            entry.is_wanted, entry.retry = False, Retry()
            entry.state, entry.reason = "UNLOADING", "unloaded"
            closing = self._retire(entry)
        if closing:
            await asyncio.wait(closing)
        if not entry.is_wanted:
            entry.state = "UNAVAILABLE"
        self._on_event(ModelUnloaded(name=entry.name))

    async def _revive(self) -> None:
        """Open models whose engines have failed again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for entry in list(self._entries.values()):
                if entry.model is not None and (failure := entry.model.failure) is not None:
                    self._fail(entry, failure)
                if entry.retry.is_due(time.monotonic()):
                    await self._load_again(entry)

    def _fail(self, entry: _Entry, failure: str) -> None:
        """Close a model that will not answer any more, and have it opened again."""
        entry.retry.failed(time.monotonic())
        self._retire(entry)
        entry.state, entry.reason = "LOADING", failure
        self._on_event(ModelFailed(name=entry.name, reason=failure))

    def _open(self, entry: _Entry, held_bytes: int) -> ServedModel:
        entry.files = self._files(entry)
        return open_model(entry.name, entry.folder, self._options, entry.statistics, held_bytes)

    def _files(self, entry: _Entry) -> object:
        """The identities of what an engine is made from."""
        engines = []
        for path in sorted(entry.folder.engines.glob("*.engine")):
            with suppress(OSError):
                engines.append((path.name, path.stat().st_mtime_ns))
        return file_identities(entry.folder, self._options.predict.precision), engines

    def _retire(self, entry: _Entry) -> list[asyncio.Task[None]]:
        """Begin to close what answers now, if anything does; returns the task, or none."""
        model, entry.model = entry.model, None
        if model is None:
            return []
        task = asyncio.ensure_future(model.close())
        self._retiring[model] = task
        task.add_done_callback(lambda task: self._closed(model, task))
        return [task]

    def _closed(self, model: ServedModel, task: asyncio.Task[None]) -> None:
        del self._retiring[model]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_event(Notice(message=f"{model.name} was not closed well: {error}"))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that goes on when the client who asked for it goes away."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.shield(task)


def _reason(exc: Exception, folder: ModelFolder) -> str:
    """The error for clients, without the path of the models."""
    if not isinstance(exc, AlexDeployError):
        return "internal error"
    text = exc.message
    for parent in {str(folder.path.parent), str(folder.path.resolve().parent)} - {"."}:
        text = re.sub(rf"(?<![\w./-]){re.escape(parent)}/", "", text)
    return text
