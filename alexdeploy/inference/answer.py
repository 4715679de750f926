"""From an engine's outcome to a row: the best classes by name."""

from __future__ import annotations

import numpy as np

from alexdeploy.core.errors import ModelError
from alexdeploy.core.metrics import top_k as best_classes
from alexdeploy.engines.base import EngineInfo
from alexdeploy.inference.pipeline import Outcome
from alexdeploy.inference.row import Choice, Row
from alexdeploy.inference.writers import short_artifact


def make_row(outcome: Outcome, info: EngineInfo, top_k: int, model: str) -> Row:
    """Name the `top_k` best classes of an outcome. Raises ModelError if a probability is not finite."""
    top: tuple[Choice, ...] = ()
    views_agreeing = None
    if outcome.probabilities is not None and outcome.view_classes is not None:
        if not np.isfinite(outcome.probabilities).all():
            raise ModelError(
                f"{info.backend} gives probabilities that are not finite for {outcome.source} "
                f"with the {info.precision} graph {short_artifact(info.artifact)}",
                hint="Try it with --precision fp32; if that is well, export the other graph again.",
            )
        best = best_classes(outcome.probabilities[None], top_k)[0]
        top = tuple(
            # str() of a float32 is the shortest text that identifies it; its digits are the significant ones.
            Choice(
                label=info.classes[index],
                index=int(index),
                probability=float(str(outcome.probabilities[index])),
            )
            for index in best
        )
        views_agreeing = int(np.count_nonzero(outcome.view_classes == best[0]))
    return Row(
        index=outcome.index,
        source=outcome.source,
        top=top,
        views_agreeing=views_agreeing,
        num_views=info.num_views,
        model=model,
        backend=info.backend,
        precision=info.precision,
        artifact=short_artifact(info.artifact),
        error=outcome.error,
    )
