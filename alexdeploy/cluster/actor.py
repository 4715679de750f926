"""The process that classifies chunks on a node: the pipeline of `predict`, whose rows become a part."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing

from alexdeploy.cluster.chunks import Chunk
from alexdeploy.cluster.classifier import actor_options
from alexdeploy.cluster.parts import Output, Part
from alexdeploy.cluster.shipping import ShippedModel, unpack
from alexdeploy.core.packages import versions_for_report
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.inference.writers import Shape, short_artifact, write_rows
from alexdeploy.placement.devices import cpu_device
from alexdeploy.placement.options import PredictOptions


class Actor:
    """A model on a node. `run` may be called by two threads: one chunk begins while another ends."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def ping(self) -> None:
        """Returns as soon as the process is there."""

    def open(self, model: ShippedModel, options: PredictOptions) -> tuple[str, ...]:
        """Open the model; its notes. Raises as Predictor."""
        self._predictor = Predictor(unpack(model), actor_options(options)).open()
        names = dict.fromkeys(each.name for each in self._predictor.replicas if each.name)
        self._processor = "+".join(names) or cpu_device().name
        return self._predictor.notes

    def try_out(self, chunk: Chunk) -> None:
        """Classify a chunk and drop its rows. Raises DeviceError or ModelError."""
        with closing(self._predictor.predict_sources(chunk.sources, first_index=chunk.first_index)) as rows:
            deque(rows, maxlen=0)

    def run(self, chunk: Chunk) -> Part:
        """Classify a chunk and write its part. Raises DeviceError, ModelError or OutputError."""
        began = time.monotonic()
        num_errors = 0

        def counted(rows: Iterable[Row]) -> Iterator[Row]:
            nonlocal num_errors
            for row in rows:
                num_errors += row.error is not None
                yield row

        info = self._predictor.info
        shape = Shape(classes=info.classes, top_k=self._predictor.top_k, num_views=info.num_views)
        rows = self._predictor.predict_sources(chunk.sources, first_index=chunk.first_index)
        with closing(rows), self._output.write(self._output.part_name(chunk.number)) as file:
            write_rows(counted(rows), file, self._output.kind, shape)
        return Part(
            number=chunk.number,
            inputs=chunk.digest,
            num_rows=len(chunk.sources),
            num_errors=num_errors,
            backend=info.backend,
            artifact=short_artifact(info.artifact),
            processor=self._processor,
            versions=versions_for_report(info.backend.split("+")),
            node=socket.gethostname(),
            seconds=round(time.monotonic() - began, 3),
        )
