"""README.md of a model that is handed on: the card that the Hugging Face Hub shows, with its metadata on top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alexdeploy.cards.facts import Facts
from alexdeploy.cards.made_of import made_of, network_and_preprocessing
from alexdeploy.cards.markdown import code, fenced, front_matter, plain, table
from alexdeploy.cards.measured import Difference, Measured, data_name
from alexdeploy.cards.options import CardOptions
from alexdeploy.core.metrics import has_top5
from alexdeploy.core.spec import ModelSpec
from alexdeploy.evaluation.scoring import ErrorRate
from alexdeploy.importing.whole_folder import BILL_NAME

_MOST_CLASSES = 40
_KINDS = {"trained": "trained", "fine-tuned": "fine-tuned", "imported": "imported", "ensemble": "an ensemble"}


def readme(facts: Facts, options: CardOptions, about: str | None) -> str:
    """The whole card. `about` is the author's own Markdown."""
    title = plain(options.title or facts.name)
    parts = [front_matter(metadata(facts, options)), f"# {title}\n", _summary(facts, options)]
    if about is not None:
        parts.append(f"{about.strip()}\n")
    parts += [
        f"## Running it\n\n{''.join(_running(facts))}",
        f"## Errors\n\n{_errors(facts)}",
        f"## Classes\n\n{_classes(facts.spec)}",
        f"## Network and preprocessing\n\n{network_and_preprocessing(facts)}",
        f"## What it was made from\n\n{made_of(facts)}",
        "## Use and limits\n\n" + "".join(f"- {line}\n" for line in _limits(facts, options, about)),
        f"## Files\n\n{_files(facts)}",
    ]
    return "\n".join(parts)


def kind_of(spec: ModelSpec) -> str:
    """How the model came about: "trained", "fine-tuned", "imported", "ensemble"; "not recorded" if that is unknown."""
    if spec.members:
        return "ensemble"
    if "imported_from" in spec.provenance:
        return "imported"
    if "parent" in spec.provenance:
        return "fine-tuned"
    return "trained" if "best_epoch" in spec.provenance else "not recorded"


def metadata(facts: Facts, options: CardOptions) -> dict[str, Any]:
    """The Hub's metadata: https://huggingface.co/docs/hub/model-cards."""
    formats = ["onnx"] * bool(facts.graphs) + ["safetensors"] * any(
        each.name.endswith(".safetensors") for each in facts.files
    )
    values: dict[str, Any] = {
        "license": None if options.license is None else options.license.lower(),
        "language": options.language,
        "library_name": "alexdeploy",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "alexdeploy", *formats, *_family(facts.spec)],
        "datasets": None if options.dataset is None else [options.dataset],
        "metrics": ["accuracy"] if facts.measured else None,
        "model-index": None if facts.measured is None else [_index(facts, facts.measured, options)],
    }
    return {key: value for key, value in values.items() if value is not None}


def _family(spec: ModelSpec) -> list[str]:
    return ["alexnet"] if all(each.architecture is not None for each in spec.networks) else []


def _index(facts: Facts, measured: Measured, options: CardOptions) -> dict[str, Any]:
    # The data set of training, not of an evaluation on other photographs, has the identifier.
    of_hub = options.dataset if measured.by_training else None
    name = f"{measured.data}, validation images of its training" if measured.by_training else measured.data
    rates = [(1, "top1")] + [(5, "top5")] * has_top5(facts.spec.num_classes)
    found = []
    for score in measured.scores:
        for k, key in rates:
            rate: ErrorRate = getattr(score, key)
            accuracy = (rate.num_images - rate.num_errors) / rate.num_images
            kind = "accuracy" if k == 1 else "top-5-accuracy"
            found.append({"type": kind, "value": accuracy, "name": f"top-{k} accuracy, {score.configuration}"})
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": of_hub or measured.data, "name": name},
        "metrics": found,
    }
    return {"name": options.title or facts.name, "results": [result]}


def _summary(facts: Facts, options: CardOptions) -> str:
    spec, kind = facts.spec, kind_of(facts.spec)
    network = "A network" if not _family(spec) else "An AlexNet"
    what = f"{network} that tells {spec.num_classes:,} classes of photographs apart"
    if kind == "ensemble":
        what += f": the mean of {len(spec.members)} networks"
    elif kind in _KINDS:
        what += f", {_KINDS[kind]}"
        what += f" with the recipe {code(spec.recipe)}" if spec.recipe and kind != "imported" else ""
        what += f" from {code(spec.provenance['imported_from'])}" if kind == "imported" else ""
    by = "" if options.author is None else f" By {plain(options.author)}."
    licence = "not stated" if options.license is None else code(options.license)
    return f"{what}.{by} Licence: {licence}.\n"


def _running(facts: Facts) -> Iterator[str]:
    yield "In this folder, with alexdeploy:\n\n"
    if networks := [each.precision for each in facts.graphs if each.num_views is None]:
        option = "" if "fp32" in networks else f" --precision {networks[0]}"
        lines = ["pip install 'alexdeploy[cpu]'", f"alexdeploy predict photo.jpg --model .{option}"]
    else:
        lines = ["pip install 'alexdeploy[cpu,train]'", "alexdeploy import .", "alexdeploy export"]
    yield fenced("\n".join(lines), "sh")
    yield "\n`alexdeploy import DIR` checks such a folder and copies it to `models/`.\n"
    num_views = next((each for each in (10, 5, 1) if facts.graph_of(each)), None)
    if num_views is None:
        yield (
            "\nIt has no deployment graph, which any ONNX runtime runs on pixels: `alexdeploy export . --deployment` "
            "writes it.\n"
        )
        return
    graph = facts.graph_of(num_views)
    assert graph is not None
    resize = (
        "ImageOps.fit(image, (256, 256), Image.Resampling.BILINEAR)"
        if facts.spec.preprocessing.resize == "crop"
        else "image.resize((256, 256), Image.Resampling.BILINEAR)"
    )
    yield f"\nWith ONNX Runtime and Pillow alone; {code(graph.name)} has the preprocessing and averages "
    yield f"{num_views} views:\n\n" if num_views > 1 else "one view:\n\n"
    yield fenced(
        f"""import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

classes = json.load(open("spec.json", encoding="utf-8"))["classes"]
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = np.asarray({resize})[None]
session = onnxruntime.InferenceSession("{graph.name}", providers=["CPUExecutionProvider"])
probabilities, view_classes = session.run(None, {{"images": pixels}})
print(classes[probabilities[0].argmax()], probabilities[0].max())""",
        "python",
    )
    yield (
        "\nLarge JPEG files, transparent images and those of more than 8 bits are decoded otherwise by alexdeploy, "
        "with somewhat other probabilities.\n"
    )


def _errors(facts: Facts) -> str:
    found = facts.measured
    if found is None:
        return (
            "Not recorded: neither did a training of this model by alexdeploy record a validation error, nor was it "
            "evaluated for this card.\n"
        )
    with_top5 = has_top5(facts.spec.num_classes)
    with_difference = any(each.versus for each in found.scores)
    header = ["backend", "precision", "views:", "top-1 error %:"]
    header += ["top-5 error %:"] * with_top5 + ["points against:", "other answers:"] * with_difference
    rows = []
    for each in found.scores:
        way = each.configuration
        cells = [code(way.backend), code(way.precision), str(way.num_views), _rate(each.top1)]
        cells += [_rate(each.top5)] * with_top5
        cells += _versus(each.versus) if with_difference else []
        rows.append(cells)
    return f"{_statement(found)}\n\n{table(header, rows)}\n{_intervals(with_difference)}\n{_conditions(found)}"


def _statement(found: Measured) -> str:
    if found.by_training:
        return (
            f"Recorded by the training of this model, in PyTorch, on the {found.num_images:,} validation images of "
            f"{code(found.data)}. These images also chose the epoch whose weights are here, so that other photographs "
            "of the same kind may show a greater error. The exported graphs were not evaluated for this card."
        )
    broken = f", of which {found.num_broken:,} could not be read and count as wrong" if found.num_broken else ""
    return f"Measured by `alexdeploy evaluate` on {found.num_images:,} labelled images of {code(found.data)}{broken}."


def _intervals(with_difference: bool) -> str:
    newcombe = (
        " Points are those of the top-1 error against the row named, with Newcombe's interval for pairs; other answers "
        "are the images whose answer is another class than in that row."
        if with_difference
        else ""
    )
    return f"In brackets: 95 % intervals of Wilson, for images drawn as these were.{newcombe}\n"


def _conditions(found: Measured) -> str:
    lines = [f"- {plain(note)}\n" for note in found.notes]
    if found.versions:
        versions = ", ".join(code(f"{name} {version}") for name, version in found.versions.items())
        machine = found.machine.get("platform")
        lines.append(f"- With {versions}{'' if machine is None else f' on {code(machine)}'}.\n")
    return "".join(lines)


def _rate(rate: ErrorRate) -> str:
    return f"{rate.percent:.2f} [{rate.low_percent:.2f}, {rate.high_percent:.2f}]"


def _versus(found: Difference | None) -> list[str]:
    if found is None:
        return ["", ""]
    interval = f"[{found.low_points:+.2f}, {found.high_points:+.2f}]"
    return [f"{code(found.base)}: {found.difference_points:+.2f} {interval}", f"{found.num_flips:,}"]


def _classes(spec: ModelSpec) -> str:
    shown = ", ".join(code(name) for name in spec.classes[:_MOST_CLASSES])
    rest = spec.num_classes - _MOST_CLASSES
    return (
        f"{shown}{f' and {rest:,} more' if rest > 0 else ''}: `classes` in `spec.json`, in the order of the output.\n"
    )


def _limits(facts: Facts, options: CardOptions, about: str | None) -> Iterator[str]:
    spec, found = facts.spec, facts.measured
    stated = " See what its author says above." if about is not None else " Intended use is not stated by its author."
    yield f"It classifies photographs that show one of its {spec.num_classes:,} classes.{stated}"
    yield (
        "Every image gets probabilities that add up to 1, also one that shows none of the classes: there is no class "
        "for anything else."
    )
    yield "Every image is reduced to 256 x 256 pixels; details smaller than a pixel of that are not seen."
    if found is None:
        yield "No error is recorded: measure it on photographs like yours before you rely on it."
    else:
        yield (
            f"The errors above are of the images of {code(found.data)} alone; for photographs of other origin nothing "
            "was measured."
        )
    trained = spec.provenance.get("num_train")
    if isinstance(trained, int):
        name = options.dataset or data_name(spec) or "not recorded"
        yield f"It was trained on {trained:,} images ({code(name)})."
    if options.dataset is None and any(data_name(each) is None for each in spec.networks):
        yield "Which images it was trained on is not recorded here."


def _files(facts: Facts) -> str:
    rows = [[code(each.name), f"{each.num_bytes:,}", code(each.sha256)] for each in facts.files]
    has_sums = any(each.name.endswith(".sha256") for each in facts.files)
    sums = "`sha256sum -c *.sha256` compares the graphs. " if has_sums else ""
    return (
        f"{table(('file', 'bytes:', 'SHA-256'), rows)}\n"
        f"{sums}`alexdeploy import DIR` compares all files with each other and with `{BILL_NAME}`, a bill of materials "
        "in CycloneDX 1.6.\n"
    )
