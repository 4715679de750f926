"""The bill of materials of a model in CycloneDX 1.6: its files, its model card, and what it was made from.

cyclonedx-python-lib 11 has no model cards, so the document is written here; its validator checks it in the tests.
"""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from urllib.parse import quote

from alexdeploy.cards.facts import Facts
from alexdeploy.cards.made_of import Provenance, versions
from alexdeploy.cards.measured import Measured, base_name, data_name
from alexdeploy.cards.options import CardOptions
from alexdeploy.core.errors import UsageError
from alexdeploy.core.metrics import has_top5
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.core.version import __version__

_MODEL = "model"
_NAMESPACE = uuid.UUID("d3a0c5a4-6f0e-5d5c-9a57-6b5c8f6a2f11")
"""Of serial numbers; any fixed one will do."""

_PACKAGES = {"torch": "framework", "python": "platform"}
"""What a package is to the model; others are libraries."""


def bill_of_materials(facts: Facts, options: CardOptions) -> bytes:
    """The document. With SOURCE_DATE_EPOCH, the same input gives the same bytes. Raises UsageError if that is wrong."""
    spec = facts.spec
    members = [_member(number, each) for number, each in enumerate(spec.networks, 1)] if spec.members else []
    refs = [each["bom-ref"] for each in members] or [_MODEL]
    # Of each network: what it was trained on.
    sources = [[*_training_data(each, options, _data_ref(ref))] for ref, each in zip(refs, spec.networks, strict=True)]
    depends_on = {_MODEL: refs if members else []}
    for ref, of_network in zip(refs, sources, strict=True):
        depends_on[ref] = [each["bom-ref"] for each in of_network]
    tools = {
        f"{name}=={version}": _package(name, version)
        for each in (spec, *(spec.networks if spec.members else ()))
        for name, version in versions(each.provenance).items()
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": _timestamp(),
            "tools": {"components": [{"type": "application", "name": "alexdeploy", "version": __version__}]},
            "component": _model(facts, options),
        },
        "components": [*members, *chain.from_iterable(sources), *tools.values()],
        "dependencies": [{"ref": ref, "dependsOn": needed} for ref, needed in depends_on.items()],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    ordered = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", **document}
    return json.dumps(ordered, indent=2, ensure_ascii=False).encode() + b"\n"


def _model(facts: Facts, options: CardOptions) -> dict[str, Any]:
    spec = facts.spec
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": facts.name,
        "description": options.title,
        "authors": None if options.author is None else [{"name": options.author}],
        "licenses": None if options.license is None else [{"license": {"name": options.license}}],
        "pedigree": _pedigree(spec.provenance),
        "components": [
            {"type": "file", "bom-ref": f"file-{each.name}", "name": each.name, "hashes": _sha256(each.sha256)}
            for each in facts.files
        ],
        "modelCard": _card(facts),
        "properties": _properties(spec),
    }
    return {key: value for key, value in component.items() if value}


def _card(facts: Facts) -> dict[str, Any]:
    spec = facts.spec
    parameters: dict[str, Any] = {
        "task": "image-classification",
        "inputs": [{"format": f"image, uint8 [{IMAGE_SIZE}, {IMAGE_SIZE}, 3]"}],
        "outputs": [{"format": f"probabilities, float32 [{spec.num_classes}]"}],
    }
    if all(each.architecture is not None for each in spec.networks):
        parameters["architectureFamily"] = "convolutional neural network"
        parameters["modelArchitecture"] = f"AlexNet, recipe {spec.recipe}" if spec.recipe else "AlexNet"
    if "best_epoch" in spec.provenance:
        parameters["approach"] = {"type": "supervised"}
        parameters["datasets"] = [{"ref": _data_ref(_MODEL)}]
    card = {"bom-ref": "model-card", "modelParameters": parameters}
    if facts.measured is not None:
        metrics = list(_metrics(facts.measured, with_top5=has_top5(spec.num_classes)))
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _metrics(measured: Measured, *, with_top5: bool) -> Iterator[dict[str, Any]]:
    origin = "validation images of its training" if measured.by_training else "evaluation"
    for score in measured.scores:
        for name, rate in (("top-1 error", score.top1), ("top-5 error", score.top5)):
            if name == "top-1 error" or with_top5:
                yield {
                    "type": f"{name}, percent",
                    "value": repr(rate.percent),
                    "slice": f"{score.configuration}; {rate.num_images} images of {measured.data} ({origin})",
                    "confidenceInterval": {"lowerBound": repr(rate.low_percent), "upperBound": repr(rate.high_percent)},
                }


def _pedigree(facts: Provenance) -> dict[str, Any] | None:
    """The model or the file that this one was made from."""
    ancestors = []
    if (parent := facts.get("parent")) is not None:
        ancestors.append(_ancestor("machine-learning-model", str(parent), facts.get("parent_weights_sha256")))
    if (imported := facts.get("imported_from")) is not None:
        ancestors.append(_ancestor("file", str(imported), facts.get("imported_sha256")))
    return {"ancestors": ancestors} if ancestors else None


def _ancestor(kind: str, name: str, sha256: object) -> dict[str, Any]:
    return {"type": kind, "name": name, **({"hashes": _sha256(sha256)} if isinstance(sha256, str) else {})}


def _member(number: int, spec: ModelSpec) -> dict[str, Any]:
    component = {
        "type": "machine-learning-model",
        "bom-ref": f"member-{number}",
        "name": spec.name,
        "hashes": _sha256(spec.recorded_weights) if spec.recorded_weights else None,
        "pedigree": _pedigree(spec.provenance),
        "properties": _properties(spec),
    }
    return {key: value for key, value in component.items() if value}


def _data_ref(ref: str) -> str:
    """The reference of the data that a network was trained on."""
    return f"{ref}-data"


def _training_data(spec: ModelSpec, options: CardOptions, ref: str) -> Iterator[dict[str, Any]]:
    if "best_epoch" not in spec.provenance:
        return
    name = options.dataset or data_name(spec) or "not recorded"
    facts = spec.provenance
    keys = ("data_sha256", "num_train", "num_val", "num_skipped")
    yield {
        "type": "data",
        "bom-ref": ref,
        "name": name,
        "data": [{"type": "dataset", "name": name}],
        "properties": _as_properties({key: facts[key] for key in keys if facts.get(key) is not None}),
    }


def _package(name: str, version: str) -> dict[str, Any]:
    component = {
        "type": _PACKAGES.get(name, "library"),
        "bom-ref": f"{name}=={version}",
        "name": name,
        "version": version,
        # It made the model; it is no part of it.
        "scope": "excluded",
    }
    if name != "python":
        component["purl"] = f"pkg:pypi/{name}@{quote(version, safe='')}"
    return component


def _properties(spec: ModelSpec) -> list[dict[str, str]]:
    facts = {"recipe": spec.recipe, **spec.provenance}
    if isinstance(facts.get("data"), str):
        facts["data"] = base_name(str(facts["data"]))
    return _as_properties({key: value for key, value in facts.items() if value is not None})


def _as_properties(facts: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": f"alexdeploy:{key}", "value": str(value)} for key, value in facts.items()]


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _timestamp() -> str:
    """Now, or SOURCE_DATE_EPOCH: https://reproducible-builds.org/specs/source-date-epoch/."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    zone = datetime.timezone.utc
    try:
        moment = datetime.datetime.now(zone) if not given else datetime.datetime.fromtimestamp(int(given), zone)
    except (ValueError, OverflowError, OSError) as exc:
        raise UsageError(f"SOURCE_DATE_EPOCH is {given!r}; expected seconds since 1970") from exc
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
