"""Loss and errors of a network on the validation images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexdeploy.core.metrics import top_k
from alexdeploy.images.crops import view_boxes
from alexdeploy.training.augment import Normalization, centre_views, fixed_views, to_device
from alexdeploy.training.learner import Learner
from alexdeploy.training.parallel import ALONE, ProcessGroup
from alexdeploy.training.pixels import Pixels
from alexdeploy.training.towers import TowerLearner


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationErrors:
    """Means over the validation images, and of each class its images and those whose best answer is wrong, int64 [C].

    `loss` is the cross-entropy if logits were scored.
    """

    loss: float
    top1: float
    top5: float
    num_images: NDArray[np.int64]
    num_errors: NDArray[np.int64]


class Validation:
    """Evaluates a learner. In a `group`, all processes call the same methods, and all get the same errors."""

    def __init__(
        self,
        images: Pixels,
        indices: NDArray[np.int64],
        learner: Learner | TowerLearner,
        normalization: Normalization,
        *,
        crop: int,
        batch_size: int,
        num_classes: int,
        group: ProcessGroup,
    ) -> None:
        """`indices` are those of the images to evaluate on; `crop` is the size of a view."""
        self._images = images
        self._indices = indices
        self._learner = learner
        self._normalization = normalization
        self._crop = crop
        self._batch_size = batch_size
        self._num_classes = num_classes
        self._group = group
        self._split = learner.split

    def centre_view(self) -> ValidationErrors:
        """Errors of one view, the centre. Raises KeyboardInterrupt if any process was interrupted."""
        return self._score(
            lambda images: self._learner.evaluate(centre_views(images, self._normalization, self._crop)),
        )

    def ten_views(self) -> ValidationErrors:
        """Errors of the softmax averaged over ten views as in the paper; the loss has no meaning. Raises as above."""
        boxes = view_boxes(10, self._crop)

        def mean_softmax(images: Tensor) -> Tensor:
            views = [fixed_views(images, self._normalization, self._crop, box) for box in boxes]
            return torch.stack([self._learner.evaluate(view).softmax(dim=1) for view in views]).mean(dim=0)

        return self._score(mean_softmax)

    def _score(self, score: Callable[[Tensor], Tensor]) -> ValidationErrors:
        """Errors of `score` of uint8 [N, 256, 256, 3]. Each process evaluates its share, in smaller batches."""
        mine = self._indices[self._split.rows(len(self._indices))]
        size = math.ceil(self._batch_size / self._split.size)
        batches = np.array_split(mine, math.ceil(len(mine) / size)) if len(mine) else []
        # Towers evaluate together, so they stop together. Other processes have separate shares of different sizes.
        partners = ALONE if self._split is self._group else self._group
        scores = []
        for pixels in self._images.batches(batches):
            if self._is_interrupted(partners):
                break
            scores.append(score(to_device(pixels, self._learner.device)))
        if self._is_interrupted(self._group):
            raise KeyboardInterrupt
        sums = np.zeros(3 + 2 * self._num_classes)
        if len(mine):
            sums = _sums(torch.cat(scores).cpu(), self._images.labels[mine], self._num_classes)
        (loss, right1, right5), per_class = np.split(self._split.sum(sums), [3])
        num = len(self._indices)
        num_images, num_errors = per_class.astype(np.int64).reshape(2, -1)
        return ValidationErrors(
            loss=float(loss / num),
            top1=1.0 - float(right1 / num),
            top5=1.0 - float(right5 / num),
            num_images=num_images,
            num_errors=num_errors,
        )

    def _is_interrupted(self, group: ProcessGroup) -> bool:
        """Whether any process of the group was interrupted; all of them must call this."""
        return bool(group.sum(np.array([len(self._group.interrupts.arrived)])).any())


def _sums(scores: Tensor, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Summed over scores [N, classes]: cross-entropy, top-1 and top-5 hits, then images and errors of each class."""
    losses = F.cross_entropy(scores, torch.from_numpy(labels), reduction="none")
    right = top_k(scores.numpy(), 5) == labels[:, None]
    wrong = labels[~right[:, 0]]
    per_class = [np.bincount(which, minlength=num_classes) for which in (labels, wrong)]
    return np.concatenate([[float(losses.double().sum()), right[:, 0].sum(), right.sum()], *per_class])
