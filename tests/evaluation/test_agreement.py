"""The figures of verify against those computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

from alexdeploy.core.errors import ParityError
from alexdeploy.evaluation.agreement import (
    Agreement,
    EngineReport,
    ErrorSums,
    LayerError,
    NetworkReport,
    Verification,
    compare,
    failure,
    first_jump,
)


def test_flips_overlap_and_margins_of_rows_made_by_hand() -> None:
    expected = np.log([[0.50, 0.20, 0.10, 0.08, 0.06, 0.04, 0.02], [0.02, 0.30, 0.28, 0.20, 0.10, 0.06, 0.04]])
    actual = expected.copy()
    # The second row's two best change places, and its class 0 takes the place of class 5 among the best five.
    actual[1, [1, 2]] = expected[1, [2, 1]]
    actual[1, [0, 5]] = expected[1, [5, 0]]
    found = compare(expected, actual, np.exp(expected))
    assert (found.num_rows, found.num_flips, found.flip_rate, found.num_non_finite) == (2, 1, 0.5, 0)
    assert found.top5_overlap == pytest.approx((5 + 4) / 10)
    assert found.median_margin == found.max_margin == pytest.approx(0.30 - 0.28)
    assert found.max_error == pytest.approx(np.log(0.06 / 0.02))
    assert found.mean_error == pytest.approx((2 * np.log(0.30 / 0.28) + 2 * np.log(0.06 / 0.02)) / 14)
    assert found.relative_error == pytest.approx(np.log(0.06 / 0.02) / -np.log(0.02))


def test_the_median_margin_is_that_of_the_flips_alone() -> None:
    expected = np.array([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.8, 0.2]])
    found = compare(expected, np.concatenate([expected[:3, ::-1], expected[3:]]), expected)
    assert found.num_flips == 3
    assert found.top5_overlap is None, "both classes are always among the best five"
    assert found.median_margin == pytest.approx(0.4)
    assert found.max_margin == pytest.approx(0.8)


def test_rows_that_are_not_finite_are_counted_and_in_no_other_figure() -> None:
    expected = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    actual = np.array([[np.nan, 0.0], [1.0, -np.inf], [0.0, 1.5]])
    found = compare(expected, actual, expected)
    assert (found.num_rows, found.num_non_finite, found.num_flips) == (3, 2, 0)
    assert (found.max_error, found.mean_error) == (0.5, 0.25)
    nothing = compare(expected[:1], actual[:1], expected[:1])
    assert (nothing.num_non_finite, nothing.flip_rate, nothing.max_error, nothing.top5_overlap) == (1, None, None, None)


@pytest.mark.parametrize(
    ("errors", "jump"),
    [
        ([1e-4, 2e-4, 9e-4], None),
        ([1e-4, 2e-4, 1.1e-3], "c"),
        ([1.1e-3, 3.2e-3, 9e-3], "a"),
        ([9e-4, 2.6e-3, 7e-3], None),
        ([1e-5, 9e-4, 2e-5, 2.8e-3], "d"),
        ([1e-4, float("inf"), float("nan")], "b"),
        ([1e-4, float("nan"), 1.0], "b"),
        ([], None),
    ],
)
def test_the_error_jumps_above_the_floor_and_above_three_times_all_before(
    errors: list[float], jump: str | None
) -> None:
    layers = [LayerError(name=name, rms_error=error, max_error=0) for name, error in zip("abcd", errors, strict=False)]
    assert first_jump(layers, 1e-3) == jump


def flips(num_flips: int, num_rows: int, margin: float = 0.25) -> Agreement:
    return Agreement(num_rows=num_rows, num_non_finite=0, num_flips=num_flips, max_margin=margin)


def test_more_flips_than_allowed_are_a_failure_that_says_how_many() -> None:
    assert failure(flips(2, 200), 1.0) is None
    assert failure(flips(3, 200), 1.0) == ("3 of 200 answers differ (1.50 %) by a margin of at most 0.25, allowed: 1 %")
    assert failure(flips(1, 3), 0) == "1 of 3 answers differs (33.33 %) by a margin of 0.25, allowed: 0 %"


def test_outputs_that_are_not_finite_are_a_failure_whatever_is_allowed() -> None:
    agreement = Agreement(num_rows=12, num_non_finite=2)
    assert failure(agreement, 100.0) == "2 of 12 outputs are not finite"


@pytest.mark.parametrize("num_views", [1, 10])
def test_one_image_of_any_number_is_allowed_by_its_own_percentage(num_views: int) -> None:
    for num_images in range(1, 1000):
        limit = 100 / num_images
        assert failure(flips(num_views, num_images * num_views), limit) is None, num_images
        assert failure(flips(num_views + 1, num_images * num_views), limit) is not None, num_images


def test_errors_of_a_layer_add_up_over_batches() -> None:
    rng = np.random.default_rng(0)
    expected, actual = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)
    sums = ErrorSums()
    for part in (slice(0, 4), slice(4, 6)):
        # A graph may give the same values in another shape.
        sums.add(expected[part], actual[part].reshape(-1, 20))
    found = sums.error("conv1")
    assert found.name == "conv1"
    assert found.rms_error == pytest.approx(np.sqrt(np.square(actual - expected).sum() / np.square(expected).sum()))
    assert found.max_error == pytest.approx(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_the_errors_of_a_layer_that_is_not_finite_are_infinite(broken: float) -> None:
    sums = ErrorSums()
    sums.add(np.ones((1, 2)), np.array([[1.0, broken]]))
    sums.add(np.ones((1, 2)), np.ones((1, 2)))
    assert sums.error("fc7") == LayerError(name="fc7", rms_error=np.inf, max_error=np.inf)


def verification(limit: float, *engines: EngineReport) -> Verification:
    return Verification(
        model="models/m",
        reference="torch",
        images="pictures",
        num_found=8,
        num_images=8,
        num_views=1,
        max_flips=limit,
        broken=(),
        networks=(),
        engines=engines,
    )


FAILED = EngineReport(
    artifact="model.onnx",
    precision="bf16",
    backend="openvino",
    sha256="0" * 64,
    agreement=flips(2, 8),
    jump=None,
    failure="2 of 8 answers differ",
)


def test_what_failed_is_named_with_where_it_ran_and_where_its_error_jumps() -> None:
    passed = dataclasses.replace(FAILED, failure=None)
    jumping = dataclasses.replace(FAILED, artifact="model.fp16.onnx", precision="fp16", jump="conv3")
    found = verification(50.0, passed, FAILED, jumping)
    assert found.failures == (
        "model.onnx as bf16 on openvino: 2 of 8 answers differ",
        "model.fp16.onnx on openvino: 2 of 8 answers differ; the error jumps at conv3",
    )
    with pytest.raises(ParityError) as caught:
        found.check()
    assert caught.value.message == "\n".join(found.failures)
    verification(50.0, passed).check()


@pytest.mark.parametrize(("num_found", "limit"), [(64, 1.6), (300, 1.6), (100_000, 1.6), (300, 0.0)])
def test_what_mends_int8_is_never_the_export_that_writes_the_same_file(num_found: int, limit: float) -> None:
    differing = dataclasses.replace(
        FAILED, artifact="model.int8.onnx", precision="int8", agreement=flips(2, 64), failure="2 of 64 answers differ"
    )
    graph = NetworkReport(
        artifact=differing.artifact,
        precision="int8",
        sha256=differing.sha256,
        agreement=differing.agreement,
        layers=(),
        jump=None,
        failure=differing.failure,
    )
    found = dataclasses.replace(
        verification(limit, differing), networks=(graph,), num_images=64, num_found=num_found, model="models/flowers"
    )
    with pytest.raises(ParityError) as caught:
        found.check()
    told = caught.value.text.splitlines()[2:]
    interval = binomtest(2, 64).proportion_ci(method="wilson")
    # Of 64 there are no more, and no number of images shows that none changes.
    more = (
        []
        if num_found == 64 or limit < 100 * interval.low
        else [
            f"2 of 64 may be {100 * interval.low:.2g} to {100 * interval.high:.2g} % of all (95 % interval): "
            f"count on more: --num-images {min(num_found, 2000)}"
        ]
    )
    assert told == [
        *more,
        "Make int8 from more images, or others: alexdeploy export models/flowers --int8 --calibrate IMAGES",
        "Or with the worst layers in FP32 (verify --layers): alexdeploy export models/flowers --int8 --keep LAYERS",
        "Or allow more where the margins are small: --max-flips PERCENT",
    ]
    assert 'export_model("models/flowers", ExportOptions(int8=True, calibrate=IMAGES))' in str(caught.value)


@pytest.mark.parametrize(("limit", "is_too_strict"), [(0, False), (1, True), (12.4, True), (12.5, False)])
def test_more_images_are_the_cure_where_one_answer_is_more_than_is_allowed(limit: float, is_too_strict: bool) -> None:
    with pytest.raises(ParityError) as caught:
        verification(limit, FAILED).check()
    assert ("--num-images" in str(caught.value.hint)) is is_too_strict
