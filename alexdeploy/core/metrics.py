"""Top-k choices and errors, computed the same way wherever they are printed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_k(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Class indices of the `k` largest of `scores` [N, C], best first; equal scores go to the lower index."""
    k = min(k, scores.shape[1])
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def top_k_error(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> float:
    """Fraction of rows of `scores` [N, C] whose label [N] is not among the `k` largest."""
    if len(labels) == 0:
        raise ValueError("an error over no examples is not defined")
    hits = (top_k(scores, k) == labels[:, None]).any(axis=1)
    return 1.0 - float(hits.mean())
