"""The network as a drawing, after figure 2 of Krizhevsky et al. 2012: shapes, towers, and where the towers cross."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alexdeploy.core.spec import Architecture
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.reports.page import BLUE, GREEN, GREY, ORANGE

_COLUMN, _MARGIN = 136, 16
_TOWER_HEIGHT, _HEADER, _LINE = 190, 52, 17
_INK = "#1a1a1a"
_FACES = ((BLUE, "#cfe3f1", "#e4f0f8"), (GREEN, "#cdeae0", "#e3f4ee"))
_GREY_FACES = (GREY, "#e0e0e0", "#efefef")
_HALO = 'stroke="#fff" stroke-width="4" paint-order="stroke"'
_NAMES = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """A layer with weights, in one or two towers, and what follows it; the image is a stage without a layer."""

    title: str
    shape: tuple[int, ...]
    num_towers: int
    is_crossing: bool = False
    details: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    num_parameters: int = 0


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a tower's box stands: its left side, the middle of its height, its width, its height and its depth."""

    left: float
    middle: float
    width: float
    height: float
    depth: float


def network_svg(architecture: Architecture, num_classes: int) -> str:
    """The network as an SVG element, with a white background, 136 units wide for each layer with weights.

    Boxes are as high as their maps and as wide as their number, on scales of square roots. Raises RecipeError if the
    shapes do not work out.
    """
    stages = _stages(architecture, plan_layers(architecture, num_classes))
    num_rows = max(stage.num_towers for stage in stages)
    body = num_rows * _TOWER_HEIGHT
    foot = max(len(stage.after) for stage in stages) + 1
    width = len(stages) * _COLUMN + 2 * _MARGIN
    height = _HEADER + body + foot * _LINE + _MARGIN
    boxes = [_boxes(stage, index, num_rows) for index, stage in enumerate(stages)]
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for index in range(1, len(stages)):
        parts += _connections(boxes[index - 1], boxes[index], is_crossing=stages[index].is_crossing)
    for index, (stage, places) in enumerate(zip(stages, boxes, strict=True)):
        parts += _stage(stage, places, index, num_rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, system-ui, sans-serif" font-size="12" text-anchor="middle" role="img" '
        'aria-label="The layers of the network, their shapes, and the connections between the towers">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _stages(architecture: Architecture, plan: Sequence[Layer]) -> list[_Stage]:
    side = architecture.input
    first = next(index for index, layer in enumerate(plan) if layer.weight_shape is not None)
    found: list[tuple[Layer, list[Layer]]] = []
    for layer in plan[first:]:
        if layer.weight_shape is not None:
            found.append((layer, []))
        else:
            found[-1][1].append(layer)
    legend = ("orange: from one", "tower to the other") if architecture.towers == 2 else ()
    stages = [_Stage(title="image", shape=(3, side, side), num_towers=1, after=(*_words(plan[:first]), *legend))]
    for layer, others in found:
        is_last = layer is plan[-1]
        # The last layer is one, as in the figure of the paper; a layer that cannot be halved is drawn whole.
        towers = 1 if is_last or layer.outputs % architecture.towers else architecture.towers
        details: tuple[str, ...] = ("all to all",)
        if layer.kind == "conv":
            step = "" if layer.stride == 1 else f", stride {layer.stride}"
            details = (f"{layer.kernel}×{layer.kernel}{step}",)
        stages.append(
            _Stage(
                title=layer.name,
                shape=layer.output_shape,
                num_towers=towers,
                is_crossing=layer.groups == 1,
                details=details,
                after=("softmax",) if is_last else tuple(_words(others)),
                num_parameters=layer.num_parameters,
            )
        )
    return stages


def _words(layers: Sequence[Layer]) -> Iterator[str]:
    """What follows a layer, one line each."""
    for layer in layers:
        if layer.kind == "activation":
            yield _NAMES.get(layer.activation, layer.activation)
        elif layer.kind == "lrn":
            yield "LRN per tower" if layer.groups > 1 else "LRN"
        elif layer.kind == "pool":
            yield f"{'max' if layer.pooling == 'max' else 'mean'} pool {layer.kernel}×{layer.kernel} / {layer.stride}"
            yield f"→ {layer.output_shape[1]}×{layer.output_shape[2]}"
        elif layer.kind == "dropout":
            yield f"dropout {layer.rate:g}"


def _boxes(stage: _Stage, index: int, num_rows: int) -> list[_Box]:
    if len(stage.shape) == 3:
        maps, side = stage.shape[0] / stage.num_towers, stage.shape[1]
        width, height = 5 + 1.9 * math.sqrt(maps), 10 + 6 * math.sqrt(side)
        depth = 0.3 * height
    else:
        width, height, depth = 10, 20 + 1.9 * math.sqrt(stage.shape[0] / stage.num_towers), 5
    height = min(height, _TOWER_HEIGHT - 60)
    left = _MARGIN + (index + 0.5) * _COLUMN - (width + depth) / 2
    whole = num_rows * _TOWER_HEIGHT / stage.num_towers
    return [_Box(left, _HEADER + (tower + 0.5) * whole - 8, width, height, depth) for tower in range(stage.num_towers)]


def _connections(sources: Sequence[_Box], targets: Sequence[_Box], *, is_crossing: bool) -> Iterator[str]:
    """Lines from the towers of one stage to those of the next; those from one tower to the other have a colour."""
    for row, source in enumerate(sources):
        for to_row, target in enumerate(targets):
            is_other = len(sources) == len(targets) == 2 and row != to_row
            if is_other and not is_crossing:
                continue
            start, end = source.left + source.width + source.depth + 4, target.left - 5
            color = ORANGE if is_other else GREY
            yield (
                f'<path d="M{start:.0f} {source.middle:.0f}L{end:.0f} {target.middle:.0f}" fill="none" '
                f'stroke="{color}" stroke-width="{2 if is_other else 1.5}"/>'
                f'<circle cx="{end:.0f}" cy="{target.middle:.0f}" r="2.5" fill="{color}"/>'
            )


def _stage(stage: _Stage, boxes: Sequence[_Box], index: int, num_rows: int) -> Iterator[str]:
    middle, foot = _MARGIN + (index + 0.5) * _COLUMN, _HEADER + num_rows * _TOWER_HEIGHT
    yield _text(middle, 20, stage.title, f'font-weight="bold" font-size="14" fill="{_INK}"')
    for line, words in enumerate(stage.details):
        yield _text(middle, 38 + line * _LINE, words)
    for tower, box in enumerate(boxes):
        is_of_one = stage.num_parameters and stage.num_towers == num_rows
        yield from _cuboid(box, *(_FACES[tower] if is_of_one else _GREY_FACES))
        share = "×".join(map(str, stage.shape[1:]))
        words = f"{stage.shape[0] // stage.num_towers}{share and ' × '}{share}"
        yield _text(middle, box.middle + box.height / 2 + 16, words, f'fill="{_INK}" {_HALO}')
    for line, words in enumerate(stage.after):
        yield _text(middle, foot + (line + 0.4) * _LINE, words)
    if stage.num_parameters:
        words = f"{stage.num_parameters:,} parameters"
        yield _text(middle, foot + (len(stage.after) + 0.4) * _LINE, words, 'fill="#444" font-size="10.5"')


def _cuboid(box: _Box, dark: str, light: str, lighter: str) -> Iterator[str]:
    """A box in oblique projection: front, top and right side."""
    left, top = box.left, box.middle - box.height / 2
    right, bottom, back = left + box.width, box.middle + box.height / 2, box.depth
    line = f'stroke="{dark}" stroke-width="1.2" stroke-linejoin="round"'
    slant = f"l{back:.1f} -{back / 2:.1f}"
    for path, fill in (
        (f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z", light),
        (f"M{left:.1f} {top:.1f}{slant}h{box.width:.1f}L{right:.1f} {top:.1f}Z", lighter),
        (f"M{right:.1f} {top:.1f}{slant}v{box.height:.1f}L{right:.1f} {bottom:.1f}Z", lighter),
    ):
        yield f'<path d="{path}" fill="{fill}" {line}/>'


def _text(x: float, y: float, words: str, style: str = 'fill="#444"') -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{words}</text>'
