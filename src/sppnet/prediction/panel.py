"""One level of a pyramid, laid over a picture: bins shaded and numbered by what they add, their best cells dotted."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import Grid, Level
from sppnet.pyramid import Edges

FOR, AGAINST = (232, 93, 4), (29, 78, 216)  # orange and blue differ for colour-blind eyes too
INK, FAINT, PAPER = (28, 28, 28), (104, 104, 104), (255, 255, 255)
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def draw_level(picture: Image.Image, level: Level, field: ReceptiveField, scale: float, limit: float) -> Image.Image:
    """A panel of one level.

    Args:
        picture: what the network saw, RGB, as large as the panel.
        level: what the bins say.
        field: where the cells of the map look.
        scale: pixels of the panel for one of the network's input.
        limit: what a bin adds at most, in any panel: it has the full colour.
    """
    pale = 255 - (255 - np.asarray(picture.convert("L"), dtype=np.float32)[..., None]) * 0.45
    height, width = pale.shape[:2]
    rows = _pixels(spans(level.grid.rows, field, round(height / scale)), scale, height)
    cols = _pixels(spans(level.grid.cols, field, round(width / scale)), scale, width)
    total, count = np.zeros((height, width, 1), np.float32), np.zeros((height, width, 1), np.float32)
    edges = np.zeros((height, width), bool)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(cols):
            total[top:bottom, left:right] += float(level.bins[i, j])
            count[top:bottom, left:right] += 1
            edges[top:bottom, [left, right - 1]] = edges[[top, bottom - 1], left:right] = True
    shaded = blend(pale, total / np.maximum(count, 1), limit)  # where bins overlap: their mean
    if level.grid.pool != "cells":
        shaded[edges] = np.rint(shaded[edges] * 0.55 + np.array(INK) * 0.45)
    panel = Image.fromarray(shaded)
    pen = ImageDraw.Draw(panel)
    taken = _dots(pen, level, field, scale, (height, width)) if pools(level.grid) else []
    _number(pen, level, rows, cols, taken)
    return panel


def spans(edges: Edges, field: ReceptiveField, length: int) -> list[tuple[float, float]]:
    """Bins of cells as pixels of an input of `length` along the same axis: from edge to edge, 0 is the input's edge.

    A cell covers half a stride on either side of its receptive field's centre. (It sees more: its whole field.)
    """
    half = field.stride / 2

    def edge(cell: int, side: float) -> float:
        return min(max(float(field.centre(cell)) + 0.5 + side, 0.0), float(length))  # pixel i has its centre at i + 0.5

    return [(edge(start, -half), edge(end - 1, half)) for start, end in edges]


def pools(grid: Grid) -> bool:
    """Whether a bin has several cells, so that one of them may stand out."""
    return any(end - start > 1 for start, end in (*grid.rows, *grid.cols))


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, in pixels."""
    return ImageFont.load_default(size)


def blend(grey: npt.NDArray[np.floating], values: npt.NDArray[np.floating], limit: float) -> npt.NDArray[np.uint8]:
    """Lay the colour of `values` (h, w, 1), which go from -`limit` to `limit`, over a grey picture (h, w, 1)."""
    strength = np.minimum(np.abs(values) / limit, 1) ** 0.7 * 0.85  # the root makes small contributions visible
    colour = np.where(values > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    mixed: npt.NDArray[np.uint8] = np.rint(grey * (1 - strength) + colour * strength).clip(0, 255).astype(np.uint8)
    return mixed


def _pixels(edges: Sequence[tuple[float, float]], scale: float, length: int) -> Edges:
    """Whole pixels of a panel, at least one for each bin."""
    starts = [min(round(start * scale), length - 1) for start, _ in edges]
    return [(at, max(at + 1, min(round(end * scale), length))) for at, (_, end) in zip(starts, edges, strict=True)]


def _dots(
    pen: ImageDraw.ImageDraw, level: Level, field: ReceptiveField, scale: float, size: tuple[int, int]
) -> list[Rectangle]:
    """Mark the cell that adds most in each bin; returns where the marks are."""
    radius = min(5, max(3, round(field.stride * scale * 0.22)))
    made: list[Rectangle] = []
    for row, col in level.winners.flatten(0, 1).tolist():
        if row >= 0:
            y = min(round((float(field.centre(row)) + 0.5) * scale), size[0] - 1)
            x = min(round((float(field.centre(col)) + 0.5) * scale), size[1] - 1)
            made.append((x - radius, y - radius, x + radius, y + radius))
            pen.ellipse(made[-1], fill=PAPER, outline=INK)
    return made


def _number(
    pen: ImageDraw.ImageDraw,
    level: Level,
    rows: Edges,
    cols: Edges,
    taken: list[Rectangle],
) -> None:
    """Write what each bin adds into it, beside the dots, if all numbers of the level have room enough."""
    texts = [f"{round(value, 2) + 0.0:+.2f}" for value in level.bins.flatten().tolist()]
    wide, tall = max(pen.textlength(text, font(12)) for text in texts) + 4, 14
    if min(b - a for a, b in cols) < 1.9 * wide or min(b - a for a, b in rows) < 3 * tall:
        return
    boxes = [(left, top, right, bottom) for top, bottom in rows for left, right in cols]
    for text, (left, top, right, bottom) in zip(texts, boxes, strict=True):
        middle = ((left + right) / 2, (top + bottom) / 2)
        places = [middle, *((middle[0], y) for y in (top + 0.8 * tall, bottom - 0.8 * tall))]
        free = (p for p in places if not any(_meet(p, wide, tall, box) for box in taken))
        pen.text(next(free, middle), text, INK, font(12), anchor="mm", stroke_width=2, stroke_fill=PAPER)


def _meet(centre: tuple[float, float], wide: float, tall: float, box: Rectangle) -> bool:
    x, y = centre
    return (
        abs(2 * x - box[0] - box[2]) < wide + box[2] - box[0] and abs(2 * y - box[1] - box[3]) < tall + box[3] - box[1]
    )
