"""The parts of a card about the network and where it comes from: only what is recorded, and that the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from alexdeploy.cards.facts import Facts
from alexdeploy.cards.markdown import code, table
from alexdeploy.cards.measured import base_name
from alexdeploy.core.spec import Architecture, Member, ModelSpec, Preprocessing

Provenance = Mapping[str, str | int | float | None]

_WORDS = {
    "created": "created",
    "known_file": "is, by its hash",
    "imported_from": "imported from",
    "imported_sha256": "SHA-256 of that file",
    "caffe_error": "largest difference from Caffe's arithmetic, of the largest score",
    "parent": "fine-tuned from",
    "parent_weights_sha256": "SHA-256 of its weights",
    "last_layer": "last layer",
    "recipe_overrides": "changed in the recipe",
    "data": "training data",
    "data_sha256": "SHA-256 of their names, classes and sizes",
    "num_train": "training images",
    "num_val": "validation images",
    "num_skipped": "images that could not be read",
    "num_epochs": "epochs",
    "best_epoch": "epoch of the weights",
    "seed": "seed",
    "precision": "arithmetic of training",
    "weights_sha256": "SHA-256 of the weights",
}
"""Recorded facts in the order of the card, and what they are called there. Errors and versions are elsewhere."""


def network_and_preprocessing(facts: Facts) -> str:
    """Rows of facts for each network."""
    if facts.spec.members:
        return "".join(
            f"### Member {number}: {code(each.name)}\n\n{_rows(_network(each.architecture, each.preprocessing))}\n"
            for number, each in enumerate(facts.spec.members, 1)
        ).rstrip("\n") + (f"\n\n{facts.num_parameters:,} parameters in all.\n" if facts.num_parameters else "\n")
    rows = dict(_network(facts.spec.architecture, facts.spec.preprocessing))
    if facts.num_parameters is not None:
        rows["parameters"] = f"{facts.num_parameters:,}"
    return _rows(rows.items())


def made_of(facts: Facts) -> str:
    """Provenance, the programs that made each file, and how the graphs were checked."""
    spec = facts.spec
    parts = []
    if spec.members:
        for number, each in enumerate(spec.members, 1):
            copied = ((f"its {name} graph", code(sha256)) for name, sha256 in each.graphs.items())
            rows = [_recipe(each), *_provenance(each.provenance), *copied]
            parts.append(f"### Member {number}: {code(each.name)}\n\n{_rows(rows)}")
        parts.append(f"### The ensemble\n\n{_rows(_provenance(spec.provenance))}")
    else:
        parts.append(_rows([_recipe(spec), *_provenance(spec.provenance)]))
    if facts.log:
        parts.append(_log(facts))
    if facts.graphs:
        parts.append(_graphs(facts))
    if facts.checks:
        parts.append(_checks(facts))
    return "\n".join(parts)


def versions(provenance: Provenance) -> dict[str, str]:
    """The versions of programs in the provenance, by the name of the package."""
    found = ((key.removesuffix("_version"), value) for key, value in provenance.items() if key.endswith("_version"))
    return {name: str(value) for name, value in found if value is not None}


def _network(architecture: Architecture | None, steps: Preprocessing) -> Iterator[tuple[str, str]]:
    if architecture is None:
        yield "architecture", "not recorded: it is what the graph has"
    else:
        yield "towers", str(architecture.towers)
        convs = [each.channels for each in architecture.convs]
        width = "" if architecture.width == 1 else f", times {architecture.width:g}"
        yield "maps of the convolutions", f"{', '.join(map(str, convs))}{width}"
        yield "hidden layers", f"{', '.join(map(str, architecture.hidden)) or 'none'}{width}"
        lrn = architecture.lrn
        constants = "none" if lrn is None else f"n {lrn.size}, k {lrn.k:g}, alpha {lrn.alpha:g}, beta {lrn.beta:g}"
        yield "local response normalization", constants
        yield "activation", architecture.activation
    resize = "shorter side to 256, then the centre" if steps.resize == "crop" else "both sides to 256"
    yield "image", f"{resize}; {steps.channels.upper()}"
    mean = ", ".join(f"{value:.6g}" for value in steps.mean)
    yield (
        "pixel",
        (
            f"times {steps.scale:.6g}, less {'the mean image' if steps.mean_image else mean}, divided by "
            f"{', '.join(f'{value:.6g}' for value in steps.std)}"
        ),
    )
    yield "views", f"{steps.crop} x {steps.crop} pixels"


def _recipe(network: Member | ModelSpec) -> tuple[str, str]:
    # What is imported was trained elsewhere.
    is_imported = "imported_from" in network.provenance and network.architecture is None
    return "recipe of the preprocessing" if is_imported else "recipe", _or_not(network.recipe)


def _provenance(facts: Provenance) -> Iterator[tuple[str, str]]:
    for key, words in _WORDS.items():
        value = facts.get(key)
        if value is not None:
            # Of a path only the last part: the rest is of one machine.
            if isinstance(value, int) and key.startswith("num_"):
                yield words, f"{value:,}"
            else:
                yield words, code(base_name(value) if key == "data" and isinstance(value, str) else value)
    if "best_epoch" in facts and facts.get("data") is None:
        yield "training data", "not recorded"
    if not any(key in facts for key in ("best_epoch", "imported_from", "created")):
        yield "how it was made", "not recorded"
    if found := versions(facts):
        yield "made with", ", ".join(code(f"{name} {version}") for name, version in found.items())


def _log(facts: Facts) -> str:
    rows = [
        [
            str(each.epoch),
            f"{each.loss:.4g}",
            f"{each.val_loss:.4g}",
            f"{100 * each.val_top1_error:.2f}",
            f"{each.learning_rate:.3g}",
        ]
        for each in facts.log
    ]
    header = ("epoch:", "loss:", "validation loss:", "validation top-1 error %:", "learning rate:")
    return f"From the log of its training:\n\n{table(header, rows)}"


def _graphs(facts: Facts) -> str:
    rows = []
    for each in facts.graphs:
        notes = []
        if each.float_layers is not None:
            notes.append(f"layers in float: {code(each.float_layers) if each.float_layers else 'none'}")
        if each.weight_bits is not None:
            notes.append(f"weights of {each.weight_bits} bits")
        if each.precision == "int8" and each.num_views is None and facts.spec.architecture is not None:
            notes.append(f"calibrated on {each.calibration or 'images that are not recorded here'}")
        first = "not recorded" if each.producer is None else code(each.producer)
        rows.append([code(each.name), _or_not(each.source), first, "; ".join(notes)])
    return f"The graphs:\n\n{table(('file', 'made from', 'written first by', 'notes'), rows)}"


def _checks(facts: Facts) -> str:
    rows = []
    for each in facts.checks:
        result = "not run" if each.error is None else f"{each.error:.1e}"
        if each.problem is not None:
            result = f"refused: {code(each.problem)}"
        rows.append([code(f"{each.backend} {each.version}"), code(each.precision), f"{each.num_images:,}", result])
    header = ("backend", "precision", "images:", "largest error of a logit, of the largest logit")
    return f"Compared with the plain network before they were written:\n\n{table(header, rows)}"


def _or_not(value: object) -> str:
    return "not recorded" if value is None else code(value)


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return table(("", ""), [[name, value] for name, value in rows])
