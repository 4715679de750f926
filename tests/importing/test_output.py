"""Which output holds the class scores, and what they are: probabilities, percentages, logits, or one of two classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from their_graphs import CLASSES, FEATURES, Import, classifier, head, ints, node_types, refused, tail, with_softmax

from alexdeploy.core.errors import ModelError, UsageError


def node(op: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def matrix(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(sum(map(ord, name))).normal(0, 1, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def scalar(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def several(nodes: Iterable[NodeProto], *outputs: str, constants: Iterable[TensorProto] = ()) -> ModelProto:
    """`outputs` are as the graph lists them; after a name and ":" comes what it is, by default float [N, C]."""
    kinds: dict[str, tuple[int, list[str]]] = {
        "": (TensorProto.FLOAT, ["N", "C"]),
        "1d": (TensorProto.FLOAT, ["N"]),
        "int": (TensorProto.INT64, ["N", "C"]),
        "label": (TensorProto.INT64, ["N"]),
    }
    model = classifier(nodes, constants=constants)
    del model.graph.output[:]
    for output in outputs:
        name, _, kind = output.partition(":")
        model.graph.output.append(helper.make_tensor_value_info(name, *kinds[kind]))
    return model


def flat_features(name: str = "flat") -> list[NodeProto]:
    return [*head(), node("Flatten", "features", name)]


GEMM = helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["scores"], transB=1)


def test_features_before_scores_are_not_taken(imported: Import) -> None:
    told = ["class scores are taken from output scores [1, 5]; other outputs: flat [1, 6] (choose with --output-name)"]
    folder = imported(several([*flat_features(), GEMM], "flat", "scores"), warnings=told)
    assert folder.spec().provenance["imported_output"] == "scores"


def test_features_that_a_layer_with_weights_gives_are_not_taken_before_what_is_computed_from_them(
    imported: Import,
) -> None:
    nodes = [*flat_features("pooled"), node("Gemm", "pooled hidden.w", "hidden"), node("Relu", "hidden", "flat"), GEMM]
    imported(several(nodes, "hidden", "scores", constants=[matrix("hidden.w", FEATURES, FEATURES)]))


def test_an_attention_map_is_not_taken_for_probabilities(imported: Import) -> None:
    nodes = [
        *flat_features("pooled"),
        node("Gemm", "pooled hidden.w", "energies"),
        node("Softmax", "energies", "attention", axis=1),
        node("Mul", "pooled attention", "flat"),
        GEMM,
    ]
    imported(several(nodes, "attention", "scores", constants=[matrix("hidden.w", FEATURES, FEATURES)]))


def test_of_scores_before_and_after_a_softmax_the_probabilities_are_taken(imported: Import) -> None:
    nodes = [*flat_features(), GEMM, node("Softmax", "scores", "p", axis=1), node("LogSoftmax", "scores", "l", axis=1)]
    for outputs in (("scores", "l", "p"), ("p", "scores")):
        folder = imported(several(nodes, *outputs), "p", gives_probabilities=True, overwrite=True)
        assert folder.spec().provenance["imported_output"] == "p"


TOPK = [*flat_features(), GEMM, node("TopK", "scores k", "values indices", axis=1)]


@pytest.mark.parametrize("outputs", [("values", "indices:int", "scores"), ("scores", "values", "indices:int")])
def test_values_of_a_top_k_are_not_taken_for_classes(imported: Import, outputs: tuple[str, ...]) -> None:
    imported(several(TOPK, *outputs, constants=[ints("k", CLASSES)]))


def test_a_top_k_alone_is_refused(tmp_path: Path) -> None:
    model = several(TOPK, "values", "indices:int", constants=[ints("k", CLASSES)])
    for options in ({}, {"output_name": "values"}):
        message = refused(model, tmp_path, ModelError, **options)
        assert "values [1, 5] (values of a TopK, which are not in the order of the classes)" in message
        assert "expected class scores, float32 [N, C]" in message


@pytest.mark.parametrize("activation", ["Softmax", "Identity"])
def test_the_values_of_a_top_k_after_an_activation_are_refused(tmp_path: Path, activation: str) -> None:
    nodes = [*TOPK, node(activation, "values", "best")]
    assert "best [1, 5] (values of a TopK" in refused(
        several(nodes, "best", constants=[ints("k", CLASSES)]), tmp_path, ModelError
    )


def test_features_from_which_an_answer_is_computed_are_not_taken_for_scores(tmp_path: Path) -> None:
    nodes = [*flat_features(), GEMM, node("ArgMax", "scores", "label", axis=1, keepdims=0)]
    message = refused(several(nodes, "flat", "label:label"), tmp_path, ModelError)
    assert "flat [1, 6] (features that another output is computed from), label [1] (int64) for a batch" in message


def test_an_embedding_of_length_one_is_refused(tmp_path: Path) -> None:
    nodes = [*flat_features(), node("LpNormalization", "flat", "embedding", axis=1, p=2)]
    message = refused(several(nodes, "embedding"), tmp_path, ModelError)
    assert "embedding [1, 6] (L2-normalized, an embedding) for a batch of 1" in message


def test_an_embedding_beside_scores_is_passed_over(imported: Import) -> None:
    nodes = [*flat_features(), GEMM, node("Gemm", "flat hidden.w", "long"), node("LpNormalization", "long", "e", p=2)]
    imported(several(nodes, "e", "scores", constants=[matrix("hidden.w", FEATURES, 8)]))


def zip_map(*outputs: str) -> ModelProto:
    """As skl2onnx ends a classifier: the labels, and a map from class to probability."""
    nodes = [
        *flat_features(),
        GEMM,
        node("Softmax", "scores", "prob", axis=1),
        node("ArgMax", "prob", "label", axis=1, keepdims=0),
        node("ZipMap", "prob", "probabilities", classlabels_int64s=list(range(CLASSES)), domain="ai.onnx.ml"),
    ]
    model = several(nodes, *(output for output in outputs if output != "probabilities"))
    if "probabilities" in outputs:
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, value))
        model.graph.output.insert(0, helper.make_value_info("probabilities", kind))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def test_a_zip_map_is_passed_over_where_there_are_probabilities_as_well(imported: Import) -> None:
    told = [
        "class scores are taken from output prob [1, 5]; other outputs: probabilities (not a tensor: sequence), "
        "label [1] (int64) (choose with --output-name)"
    ]
    imported(zip_map("probabilities", "label:label", "prob"), "prob", gives_probabilities=True, warnings=told)


def test_labels_in_words_are_passed_over(imported: Import) -> None:
    model = several([*flat_features(), GEMM, node("ArgMax", "scores", "index", axis=1, keepdims=0)], "scores")
    words = node("LabelEncoder", "index", "word", keys_int64s=[0], values_strings=["cat"], domain="ai.onnx.ml")
    model.graph.node.append(words)
    model.graph.output.insert(0, helper.make_tensor_value_info("word", TensorProto.STRING, ["N"]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    told = [
        "class scores are taken from output scores [1, 5]; other outputs: word [1] (strings) "
        "(choose with --output-name)"
    ]
    imported(model, warnings=told)


@pytest.mark.parametrize("options", [{}, {"output_name": "probabilities"}])
def test_a_zip_map_alone_is_refused_with_its_cure(tmp_path: Path, options: dict[str, object]) -> None:
    message = refused(zip_map("label:label", "probabilities"), tmp_path, ModelError, **options)
    assert "probabilities (not a tensor: sequence)" in message
    assert "skl2onnx.to_onnx(..., options={'zipmap': False})" in message


def two_heads(first: str = "first", second: str = "second") -> ModelProto:
    """Two layers side by side, of 5 and of 7 classes."""
    nodes = [*flat_features(), node("Gemm", "flat fc.w fc.b", first, transB=1), node("Gemm", "flat other.w", second)]
    return several(nodes, first, second, constants=[matrix("other.w", FEATURES, 7)])


def test_outputs_that_nothing_tells_apart_are_refused_with_the_option(tmp_path: Path) -> None:
    message = refused(two_heads(), tmp_path, ModelError)
    assert "has 2 outputs that could be the class scores: first [1, 5], second [1, 7]" in message
    assert "Choose one: --output-name first" in message


@pytest.mark.parametrize(("labels", "expected"), [("abcde", "first"), ("abcdefg", "second")])
def test_the_number_of_labels_tells_outputs_apart(imported: Import, labels: str, expected: str) -> None:
    imported(two_heads(), expected, classes=tuple(labels))


def test_of_several_outputs_with_as_many_classes_as_labels_the_name_decides(imported: Import) -> None:
    heads = [("embedding", "third.w"), ("Logits", "fc.w fc.b"), ("probs", "other.w")]
    layers = [node("Gemm", f"flat {w}", name, **({"transB": 1} if w == "fc.w fc.b" else {})) for name, w in heads]
    constants = [matrix("third.w", FEATURES, 5), matrix("other.w", FEATURES, 7)]
    model = several([*flat_features(), *layers], *(name for name, _ in heads), constants=constants)
    imported(model, "Logits", classes=tuple("abcde"))


def test_labels_may_even_choose_what_other_outputs_are_computed_from(imported: Import) -> None:
    nodes = [*flat_features(), GEMM]
    imported(several(nodes, "flat", "scores"), "flat", classes=tuple("abcdef"))


def test_the_name_is_the_last_thing_to_tell_outputs_apart(imported: Import) -> None:
    imported(two_heads("embedding", "Logits"), "Logits")


def test_the_name_that_is_given_is_taken_without_a_word(imported: Import) -> None:
    imported(two_heads(), "second", output_name="second", warnings=[])


def test_an_output_that_does_not_depend_on_the_image_is_no_candidate(imported: Import) -> None:
    nodes = [*flat_features(), GEMM, node("Identity", "fc.b", "bias"), node("Unsqueeze", "bias axis", "prior")]
    folder = imported(several(nodes, "prior", "scores", constants=[ints("axis", 0)]), warnings=[])
    assert folder.spec().provenance["imported_output"] == "scores"


@pytest.mark.parametrize("total", [100, 255, 0.5])
def test_probabilities_times_a_constant_are_probabilities(imported: Import, total: float) -> None:
    told = [
        f"output out [1, 5] sums to {total:g} for each image: interpreted as "
        + ("percentages" if total == 100 else "probabilities times a constant")
    ]
    folder = imported(
        with_softmax(node("Mul", "p total", "out"), last="out", constants=[scalar("total", total)]),
        "out",
        meaning=lambda scores: scores / total,
        warnings=told,
    )
    assert not {"Softmax", "Log"} & set(node_types(folder))


def test_percentages_that_no_softmax_ends_in_are_probabilities(imported: Import) -> None:
    nodes = [
        node("Exp", "logits", "powers"),
        node("ReduceSum", "powers axis", "sum", keepdims=1),
        node("Div", "powers sum", "shares"),
        node("Mul", "shares total", "out"),
    ]
    model = several([*head(), *tail("logits"), *nodes], "out", constants=[ints("axis", 1), scalar("total", 100)])
    folder = imported(model, "out", meaning=lambda scores: scores / 100)
    assert "Log" in node_types(folder)


def test_scores_above_zero_whose_sums_differ_are_logits(imported: Import) -> None:
    nodes = [*head(), *tail("fc"), node("Relu", "fc", "scores")]
    imported(several(nodes, "scores"), warnings=[])


def binary(*after: NodeProto, last: str, constants: Iterable[TensorProto] = ()) -> ModelProto:
    nodes = [*flat_features(), node("Gemm", "flat one.w", "z"), *after]
    return several(nodes, last, constants=[matrix("one.w", FEATURES, 1), *constants])


def of_probability(p: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - p, p], axis=1)


def of_logit(z: np.ndarray) -> np.ndarray:
    return of_probability(1 / (1 + np.exp(-z)))


NAMES = ("negative", "positive")


@pytest.mark.parametrize("after", [(), (node("Identity", "p", "out"),), (node("Flatten", "p", "out"),)])
def test_one_sigmoid_is_the_probability_of_the_second_class(imported: Import, after: tuple[NodeProto, ...]) -> None:
    last = "out" if after else "p"
    model = binary(node("Sigmoid", "z", "p"), *after, last=last)
    told = [f"binary: output {last} [1, 1] is interpreted as the probability of 'positive'"]
    folder = imported(model, last, meaning=of_probability, classes=NAMES, warnings=told)
    assert folder.spec().classes == NAMES
    assert not {"Sigmoid", "Log"} & set(node_types(folder)), "its logits are inside"


def test_a_sigmoid_that_is_clipped_is_a_probability_as_well(imported: Import) -> None:
    model = binary(
        node("Sigmoid", "z", "raw"),
        node("Clip", "raw low high", "p"),
        last="p",
        constants=[scalar("low", 0.01), scalar("high", 0.99)],
    )
    imported(model, "p", meaning=of_probability, classes=NAMES)


def test_one_logit_is_that_of_the_second_class(imported: Import) -> None:
    told = ["binary: output z [1, 1] is interpreted as the logit, as there is no sigmoid, of 'positive'"]
    imported(binary(last="z"), "z", meaning=of_logit, classes=NAMES, warnings=told)


def test_one_logit_without_an_axis_for_classes_is_taken_too(imported: Import) -> None:
    model = binary(node("Squeeze", "z axis", "out"), last="out:1d", constants=[ints("axis", 1)])
    imported(model, "out", meaning=of_logit, classes=NAMES)


@pytest.mark.parametrize(("after", "kind"), [((), "logit"), ((node("Sigmoid", "z", "p"),), "sigmoid")])
def test_one_score_without_labels_is_refused_with_the_option(
    tmp_path: Path, after: tuple[NodeProto, ...], kind: str
) -> None:
    last = "p" if after else "z"
    message = refused(binary(*after, last=last), tmp_path, UsageError)
    assert f"is binary: its output {last} [1, 1] is one {kind}" in message
    assert "--labels negative,positive" in message


def test_one_score_needs_two_labels(tmp_path: Path) -> None:
    model = binary(node("Sigmoid", "z", "p"), last="p")
    assert "has 2 classes; found 3 labels" in refused(model, tmp_path, ModelError, classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ([node("Softmax", "z", "out", axis=1)], "a softmax over one value, which is the same for all images"),
        ([node("Relu", "z", "out")], "one value, neither a sigmoid nor the logit of a layer"),
        (
            [node("Sigmoid", "z", "p"), node("Mul", "p hundred", "out")],
            "one value after a Sigmoid, but not from 0 to 1",
        ),
    ],
)
def test_one_value_that_is_no_score_is_refused(tmp_path: Path, after: list[NodeProto], why: str) -> None:
    model = binary(*after, last="out", constants=[scalar("hundred", 100)])
    assert f"out [1, 1] ({why})" in refused(model, tmp_path, ModelError, classes=NAMES)


def test_two_labels_choose_one_score_among_others(imported: Import) -> None:
    nodes = [*flat_features(), GEMM, node("Gemm", "flat one.w", "z"), node("Sigmoid", "z", "p")]
    model = several(nodes, "scores", "p", constants=[matrix("one.w", FEATURES, 1)])
    imported(model, "p", meaning=of_probability, classes=NAMES)


SOFTMAX = [node("Softmax", "z", "p", axis=1)]
TWO_SOFTMAXES = [*SOFTMAX, node("Gemm", "flat second.w", "y"), node("Softmax", "y", "q", axis=1)]
SIGMOID = [node("Sigmoid", "z", "p")]
TWO_SIGMOIDS = [*SIGMOID, node("Gemm", "flat second.w", "y"), node("Sigmoid", "y", "q")]


def last_part(*after: NodeProto) -> ModelProto:
    """The layer "z" of 5 classes, and what `after` computes from it as "out"."""
    constants = [
        matrix("second.w", FEATURES, CLASSES),
        matrix("bias", CLASSES),
        *(matrix(f"norm.{name}", CLASSES) for name in ("scale", "shift", "mean")),
        numpy_helper.from_array(np.linspace(0.5, 2, CLASSES, dtype=np.float32), "norm.variance"),
        *(scalar(f"c{value:g}", value) for value in (0, 0.02, 0.5, 1, 2, 10, 100)),
        *(ints(f"i{value}", value) for value in range(CLASSES + 1)),
        ints("turned", 4, 3, 2, 1, 0),
        ints("some", 1, 3, 4),
        numpy_helper.from_array(np.array([0, 1], np.float32), "off_on"),
        numpy_helper.from_array(np.array(CLASSES, np.int64), "depth"),
    ]
    nodes = [*flat_features(), node("Gemm", "flat fc.w fc.b", "z", transB=1), *after]
    return several(nodes, "out", constants=constants)


NO_SUM = "its values have no constant sum: they are neither probabilities nor logits"
ROUNDED = "its values are rounded by"
LABELS = "a score for each label by itself, not one class out of"
NEGATED = "negates: the worst class would get the highest score"
NO_ORDER = "values of a TopK, which are not in the order of the classes"
BEST_ONLY = "which keeps the best class and no scores"
ARG_MAX = [node("ArgMax", "z", "best", axis=1, keepdims=0)]
ARG_MIN = [node("ArgMin", "z", "best", axis=1, keepdims=0)]

REFUSED: dict[str, tuple[list[NodeProto], str]] = {
    "softmax, slice": ([*SOFTMAX, node("Slice", "p i1 i5 i1", "out")], NO_SUM),
    "softmax, gather": ([*SOFTMAX, node("Gather", "p some", "out", axis=1)], NO_SUM),
    "softmax, max": ([*SOFTMAX, node("Max", "p c0.02", "out")], NO_SUM),
    "softmax, clip": ([*SOFTMAX, node("Clip", "p c0.02 c1", "out")], NO_SUM),
    "softmax, threshold": ([*SOFTMAX, node("Sub", "p c0.02", "q"), node("Relu", "q", "out")], NO_SUM),
    "larger of two softmaxes": ([*TWO_SOFTMAXES, node("Max", "p q", "out")], NO_SUM),
    "product of two softmaxes": ([*TWO_SOFTMAXES, node("Mul", "p q", "out")], NO_SUM),
    "softmax, square": ([*SOFTMAX, node("Pow", "p c2", "out")], NO_SUM),
    "whole percent": ([*SOFTMAX, node("Mul", "p c100", "q"), node("Floor", "q", "out")], ROUNDED),
    "rounded percent": ([*SOFTMAX, node("Mul", "p c100", "q"), node("Round", "q", "out")], ROUNDED),
    "softmax, top-k": ([*SOFTMAX, node("TopK", "p i5", "out k", axis=1)], NO_ORDER),
    "softmax, top-k, slice": (
        [*SOFTMAX, node("TopK", "p i5", "q k", axis=1), node("Slice", "q i0 i3 i1", "out")],
        NO_ORDER,
    ),
    "top-k, softmax": ([node("TopK", "z i5", "q k", axis=1), node("Softmax", "q", "out", axis=1)], NO_ORDER),
    "top-k, product": ([node("TopK", "z i5", "q k", axis=1), node("Mul", "q c2", "out")], NO_ORDER),
    "sigmoid, slice": ([*SIGMOID, node("Slice", "p i0 i4 i1", "out")], LABELS),
    "sigmoid, transpose": ([*SIGMOID, node("Transpose", "p", "out", perm=[0, 1])], LABELS),
    "sigmoid, product": ([*SIGMOID, node("Mul", "p c2", "out")], LABELS),
    "sigmoids of two heads": ([*TWO_SIGMOIDS, node("Concat", "p q", "out", axis=1)], LABELS),
    "hard sigmoid": ([node("HardSigmoid", "z", "out")], LABELS),
    "sigmoids that sum to 1": (
        [*SIGMOID, node("ReduceSum", "p i1", "sum", keepdims=1), node("Div", "p sum", "out")],
        LABELS,
    ),
    "negated logits": ([node("Neg", "z", "out")], NEGATED),
    "negated twice": ([node("Neg", "z", "y"), node("Neg", "y", "out")], NEGATED),
    "negative log-likelihood": ([node("LogSoftmax", "z", "y", axis=1), node("Neg", "y", "out")], NEGATED),
    "negated before the softmax": ([node("Neg", "z", "y"), node("Softmax", "y", "out", axis=1)], NEGATED),
    "1 - softmax": ([*SOFTMAX, node("Sub", "c1 p", "out")], NEGATED),
    "0 - logits": ([node("Sub", "c0 z", "out")], NEGATED),
    "largest - logits": (
        [node("ReduceMax", "z", "top", axes=[1], keepdims=1), node("Sub", "top z", "out")],
        NEGATED,
    ),
    "one-hot of the best": ([*ARG_MAX, node("OneHot", "best depth off_on", "out", axis=1)], BEST_ONLY),
    "one-hot of the worst": ([*ARG_MIN, node("OneHot", "best depth off_on", "out", axis=1)], BEST_ONLY),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_follows_the_last_layer_may_make_an_output_no_class_scores(tmp_path: Path, case: str) -> None:
    after, why = REFUSED[case]
    for options in ({}, {"output_name": "out"}):
        assert why in refused(last_part(*after), tmp_path, ModelError, **options)
    assert ModelError.exit_code == 4


def without_first_class(share: float) -> ModelProto:
    """Softmax over 5 classes, of which the last 4 are "out"; the first has about that `share` for every image."""
    model = last_part(
        node("Slice", "z i1 i5 i1", "y"),
        node("ReduceLogSumExp", "y", "sum", axes=[1], keepdims=1),
        node("Gather", "z i0", "first", axis=1),
        node("Mul", "first c0.02", "small"),
        node("Add", "sum small", "base"),
        node("Add", "base shift", "background"),
        node("Concat", "background y", "all", axis=1),
        node("Softmax", "all", "p", axis=1),
        node("Slice", "p i1 i5 i1", "out"),
    )
    model.graph.initializer.append(scalar("shift", float(np.log(share / (1 - share)))))
    return model


@pytest.mark.parametrize("share", [5e-4, 5e-3])
def test_probabilities_without_a_class_that_counts_are_refused(tmp_path: Path, share: float) -> None:
    assert NO_SUM in refused(without_first_class(share), tmp_path, ModelError)


def test_probabilities_without_a_class_that_does_not_count_are_probabilities(imported: Import) -> None:
    imported(without_first_class(2e-5), "out", gives_probabilities=True, warnings=[])


def test_the_probabilities_before_are_named_if_they_are_an_output(tmp_path: Path) -> None:
    model = last_part(*SOFTMAX, node("Clip", "p c0.02 c1", "out"))
    model.graph.output.insert(0, helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", "C"]))
    message = refused(model, tmp_path, ModelError, output_name="out")
    assert "out [1, 5] is computed from Softmax p, but " + NO_SUM in message
    assert "Use the output before it: --output-name p" in message


def test_logits_before_a_sigmoid_are_not_recommended(tmp_path: Path) -> None:
    model = last_part(node("Sigmoid", "z", "out"))
    model.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", "C"]))
    message = refused(model, tmp_path, ModelError)
    assert "Models of several labels for one image are not supported." in message
    assert "--output-name" not in message


PROBABILITIES: dict[str, list[NodeProto]] = {
    "softmax": [node("Softmax", "z", "out", axis=1)],
    "temperature": [node("Div", "z c2", "y"), node("Softmax", "y", "out", axis=1)],
    "mean of softmaxes": [*TWO_SOFTMAXES, node("Add", "p q", "sum"), node("Mul", "sum c0.5", "out")],
    "all classes in another order": [*SOFTMAX, node("Gather", "p turned", "out", axis=1)],
    "softmax after a sigmoid": [*SIGMOID, node("Mul", "p c10", "q"), node("Softmax", "q", "out", axis=1)],
    "softmax written out": [
        node("ReduceMax", "z", "top", axes=[1], keepdims=1),
        node("Sub", "z top", "y"),
        node("Exp", "y", "powers"),
        node("ReduceSum", "powers i1", "sum", keepdims=1),
        node("Div", "powers sum", "out"),
    ],
}

LOGITS: dict[str, list[NodeProto]] = {
    "added bias": [node("Add", "z bias", "out")],
    "subtracted bias": [node("Sub", "z bias", "out")],
    "factor": [node("Mul", "z c2", "out")],
    "batch normalization": [
        node("BatchNormalization", "z norm.scale norm.shift norm.mean norm.variance", "out", epsilon=1e-5)
    ],
    "log softmax": [node("LogSoftmax", "z", "out", axis=1)],
    "logarithm of a softmax": [*SOFTMAX, node("Log", "p", "out")],
    "difference to the largest": [node("ReduceMax", "z", "top", axes=[1], keepdims=1), node("Sub", "z top", "out")],
}


@pytest.mark.parametrize("case", PROBABILITIES)
def test_probabilities_are_taken_as_they_are(imported: Import, case: str) -> None:
    imported(last_part(*PROBABILITIES[case]), "out", gives_probabilities=True, warnings=[])


@pytest.mark.parametrize("case", LOGITS)
def test_logits_are_taken_as_they_are(imported: Import, case: str) -> None:
    imported(last_part(*LOGITS[case]), "out", warnings=[])


def test_a_mean_over_the_map_of_the_last_convolution_is_logits(imported: Import) -> None:
    nodes = [*head()[:2], node("Conv", "relu maps.w", "maps"), node("GlobalAveragePool", "maps", "pooled")]
    nodes += [node("Mul", "pooled c10", "scaled"), node("Flatten", "scaled", "out")]
    imported(several(nodes, "out", constants=[matrix("maps.w", CLASSES, FEATURES, 1, 1), scalar("c10", 10)]), "out")


def test_a_sigmoid_and_a_subtraction_before_the_last_layer_do_not_matter(imported: Import) -> None:
    nodes = [*flat_features("pooled"), node("Sigmoid", "pooled", "gate"), node("Sub", "one gate", "open")]
    nodes += [node("Mul", "pooled open", "wide"), node("Neg", "wide", "flat"), GEMM]
    imported(several(nodes, "scores", constants=[scalar("one", 1)]), warnings=[])


@pytest.mark.parametrize("is_stacked", [False, True])
def test_both_probabilities_of_one_sigmoid_are_binary_as_well(imported: Import, is_stacked: bool) -> None:
    after = [node("Sigmoid", "z", "p"), node("Sub", "one p", "rest")]
    if is_stacked:
        after += [node("Unsqueeze", "p two", "p1"), node("Unsqueeze", "rest two", "r1")]
        after += [node("Concat", "r1 p1", "both", axis=1), node("Flatten", "both", "out")]
    else:
        after.append(node("Concat", "rest p", "out", axis=1))
    model = binary(*after, last="out", constants=[scalar("one", 1), ints("two", 2)])
    imported(model, "out", gives_probabilities=True, classes=NAMES, warnings=[])


def test_one_minus_a_sigmoid_is_the_probability_of_the_second_name(imported: Import) -> None:
    model = binary(node("Sigmoid", "z", "p"), node("Sub", "one p", "out"), last="out", constants=[scalar("one", 1)])
    imported(model, "out", meaning=of_probability, classes=NAMES)
