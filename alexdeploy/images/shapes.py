"""Drawing random textured shapes: the pictures of the rendered data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray[Any, Any]
Rng = np.random.Generator

_SUPERSAMPLING = 2
_MAX_TURN = math.radians(25)
_MIN_CONTRAST = 105.0
"""Minimum distance between the colours of shape and background, in levels, with the weights below."""


def render_image(class_index: int, rng: Rng) -> Image.Image:
    """Draw one shape of class CLASSES[class_index] somewhere on a background: RGB, sides of 180 to 640.

    Position, size, rotation, colours and textures are drawn from `rng`, independently of the class. The shape lies
    within the centre square of the image, which the decoder keeps.
    """
    width, height = _draw_size(rng)
    side = min(width, height)
    paint, ground = _draw_colours(rng)
    image = _texture(width, height, ground, rng)
    _scatter(image, side, rng)
    radius = side * rng.uniform(0.28, 0.46)
    slack = side / 2 - radius
    centre = (width / 2 + rng.uniform(-slack, slack), height / 2 + rng.uniform(-slack, slack))
    _stamp(image, class_index, centre, radius, paint, rng)
    _streak(image, side, rng)
    return _light(image, rng)


def _draw_size(rng: Rng) -> tuple[int, int]:
    short = rng.integers(180, 460)
    long = min(int(short * rng.uniform(1.0, 1.6)), 640)
    return (long, int(short)) if rng.random() < 0.65 else (int(short), long)


def _draw_colours(rng: Rng) -> tuple[Array, Array]:
    """Draw two tones each for shape and background, float [2, 3]; the pairs differ, the tones less so."""
    while True:
        paint, ground = rng.uniform(15, 240, (2, 3))
        # Brightness separates objects better than hue, for people and after JPEG's chroma subsampling.
        distance = math.sqrt(float(((paint - ground) ** 2 * (0.9, 1.6, 0.5)).sum()))
        if distance >= _MIN_CONTRAST:
            break
    spread = min(distance * 0.3, 55.0)
    return _two_tones(paint, spread, rng), _two_tones(ground, spread, rng)


def _two_tones(colour: Array, spread: float, rng: Rng) -> Array:
    direction = rng.normal(size=3)
    step = direction / np.linalg.norm(direction) * spread * rng.uniform(0.3, 1.0)
    return np.asarray(np.clip(np.stack((colour - step, colour + step)), 0, 255))


def _texture(width: int, height: int, tones: Array, rng: Rng) -> Image.Image:
    """Mix two tones by a pattern, drawn at a third of the size: textures need no sharper edges."""
    rows, columns = -(-height // 3), -(-width // 3)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    amount = _PATTERNS[rng.integers(len(_PATTERNS))](x, y, rng)
    # Through a table of 256 colours, which is cheaper than mixing three channels.
    levels = np.clip(amount * 255, 0, 255).astype(np.uint8)
    table = np.linspace(tones[0], tones[1], 256).astype(np.uint8)
    return Image.fromarray(table[levels]).resize((width, height), Image.Resampling.BILINEAR)


def _turned(x: Array, y: Array, rng: Rng) -> tuple[Array, Array]:
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _plain(x: Array, y: Array, rng: Rng) -> Array:
    return np.full_like(x, rng.random())


def _gradient(x: Array, y: Array, rng: Rng) -> Array:
    along, _ = _turned(x, y, rng)
    low, high = along.min(), along.max()
    return np.asarray((along - low) / (high - low + 1))


def _stripes(x: Array, y: Array, rng: Rng) -> Array:
    along, _ = _turned(x, y, rng)
    rate = 2 * math.pi / rng.uniform(5, 16)
    return np.asarray(0.5 + np.sin(along * rate))


def _checker(x: Array, y: Array, rng: Rng) -> Array:
    along, across = _turned(x, y, rng)
    rate = math.pi / rng.uniform(4, 12)
    return np.asarray(0.5 + 2 * np.sin(along * rate) * np.sin(across * rate))


def _dots(x: Array, y: Array, rng: Rng) -> Array:
    along, across = _turned(x, y, rng)
    rate = 2 * math.pi / rng.uniform(6, 14)
    return np.asarray(np.cos(along * rate) + np.cos(across * rate) - 0.6)


def _clouds(x: Array, y: Array, rng: Rng) -> Array:
    grid = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.float32)
    cloud = Image.fromarray(grid).resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(cloud)


def _grain(x: Array, y: Array, rng: Rng) -> Array:
    return np.asarray(rng.random(x.shape, dtype=np.float32))


_PATTERNS: tuple[Callable[[Array, Array, Rng], Array], ...] = (
    _plain,
    _gradient,
    _stripes,
    _checker,
    _dots,
    _clouds,
    _grain,
)


def _scatter(image: Image.Image, side: int, rng: Rng) -> None:
    """Scatter specks behind the shape, too small to be mistaken for one."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 14)):
        x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
        corners = rng.uniform(-1, 1, (3 + int(rng.integers(3)), 2)) * side * rng.uniform(0.01, 0.05) + (x, y)
        draw.polygon(_pairs(corners), fill=_any_colour(rng))


def _streak(image: Image.Image, side: int, rng: Rng) -> None:
    """Draw a few thin lines over everything, including the shape."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        ends = rng.uniform(0, 1, (2, 2)) * image.size
        draw.line(_pairs(ends), fill=_any_colour(rng), width=max(1, int(side * rng.uniform(0.003, 0.012))))


def _any_colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _light(image: Image.Image, rng: Rng) -> Image.Image:
    """Darken the image gradually across, by up to a third."""
    corners = np.clip(rng.uniform(0.65, 1.1, (2, 2)), 0, 1) * 255
    shade = Image.fromarray(corners.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, Image.new("RGB", image.size), shade)


def _stamp(
    image: Image.Image,
    class_index: int,
    centre: tuple[float, float],
    radius: float,
    tones: Array,
    rng: Rng,
) -> None:
    box_side = 2 * math.ceil(radius) + 2
    left, top = round(centre[0] - box_side / 2), round(centre[1] - box_side / 2)
    mask = Image.new("L", (box_side * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(mask)
    matrix = _draw_transform(rng) * radius * _SUPERSAMPLING
    middle = box_side * _SUPERSAMPLING / 2
    for outline, fill in _OUTLINES[class_index](rng):
        draw.polygon(_pairs(outline @ matrix.T + middle), fill=fill)
    texture = _texture(box_side, box_side, tones, rng)
    image.paste(texture, (left, top), mask.reduce(_SUPERSAMPLING))


def _draw_transform(rng: Rng) -> Array:
    """Draw a rotation by up to 25 degrees after a stretch by up to a fifth, float [2, 2], moving no point outwards."""
    angle = rng.uniform(-_MAX_TURN, _MAX_TURN)
    cos, sin = math.cos(angle), math.sin(angle)
    stretch = np.diag((1.0, rng.uniform(0.8, 1.0)))
    return np.array(((cos, -sin), (sin, cos))) @ stretch


def _pairs(points: Array) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist()]


# An outline is float [points, 2] in the unit disc; a shape is its outlines in painting order,
# with 255 for shape and 0 for hole.
Outlines = list[tuple[Array, int]]


def _circle(radius: float, x: float = 0.0, num_points: int = 72) -> Array:
    angles = np.arange(num_points) * (2 * math.pi / num_points)
    return np.stack((x + radius * np.cos(angles), radius * np.sin(angles)), axis=1)


def _arrow(rng: Rng) -> Outlines:
    neck, shaft = rng.uniform(-0.1, 0.25), rng.uniform(0.14, 0.26)
    half = [(1.0, 0.0), (neck, 0.68), (neck, shaft), (-0.95, shaft)]
    return [(np.array(half + [(x, -y) for x, y in reversed(half)]), 255)]


def _bolt(rng: Rng) -> Outlines:
    upper = [(0.4, -0.9), (0.1, -0.99), (-0.52, 0.12), (-0.04, 0.12)]
    lower = [(-0.22, 0.97), (0.52, -0.2), (0.06, -0.2)]
    return [(np.array(upper + lower) * (rng.uniform(0.88, 1.1), 0.98), 255)]


def _crescent(rng: Rng) -> Outlines:
    shift = rng.uniform(0.38, 0.55)
    return [(_circle(1.0), 255), (_circle(rng.uniform(0.78, 0.9), shift), 0)]


def _cross(rng: Rng) -> Outlines:
    arm = rng.uniform(0.2, 0.34)
    end = math.sqrt(1 - arm * arm)
    beam = np.array(((-end, -arm), (end, -arm), (end, arm), (-end, arm)))
    return [(beam, 255), (beam[:, ::-1], 255)]


def _disc(rng: Rng) -> Outlines:
    return [(_circle(1.0), 255)]


def _heart(rng: Rng) -> Outlines:
    t = np.arange(96) * (2 * math.pi / 96)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack((x, y - 2.5), axis=1)
    return [(outline / np.linalg.norm(outline, axis=1).max(), 255)]


def _ring(rng: Rng) -> Outlines:
    return [(_circle(1.0), 255), (_circle(rng.uniform(0.45, 0.75)), 0)]


def _square(rng: Rng) -> Outlines:
    half = math.sqrt(0.5)
    return [(np.array(((-half, -half), (half, -half), (half, half), (-half, half))), 255)]


def _star(rng: Rng) -> Outlines:
    points = _circle(1.0, num_points=10)
    points[1::2] *= rng.uniform(0.36, 0.48)
    return [(_upright(points), 255)]


def _triangle(rng: Rng) -> Outlines:
    return [(_upright(_circle(1.0, num_points=3)), 255)]


def _upright(points: Array) -> Array:
    """Turn what points to the right so that it points up."""
    return np.stack((points[:, 1], -points[:, 0]), axis=1)


_SHAPES: dict[str, Callable[[Rng], Outlines]] = {
    "arrow": _arrow,
    "bolt": _bolt,
    "crescent": _crescent,
    "cross": _cross,
    "disc": _disc,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
_OUTLINES = tuple(_SHAPES.values())
CLASSES = tuple(_SHAPES)
