from __future__ import annotations

import numpy as np
import pytest

from alexdeploy.core.metrics import top_k, top_k_error


def test_equal_scores_go_to_the_lower_index() -> None:
    assert top_k(np.array([[0.2, 0.5, 0.5, 0.1]]), 3).tolist() == [[1, 2, 0]]


def test_more_choices_than_classes_gives_all_of_them() -> None:
    assert top_k(np.array([[0.2, 0.5]]), 5).tolist() == [[1, 0]]


def test_errors_by_hand() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 2, 1])
    assert top_k_error(scores, labels, 1) == 0.75
    assert top_k_error(scores, labels, 2) == 0.25
    assert top_k_error(scores, labels, 3) == 0.0


def test_no_examples_have_no_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        top_k_error(np.zeros((0, 3)), np.zeros(0, int), 1)
