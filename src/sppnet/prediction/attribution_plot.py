"""Draws what the bins of a pyramid say of a picture, as a PNG that explains itself. Needs Pillow and numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sppnet.data.crops import Box
from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import Attribution, Level
from sppnet.prediction.panel import FAINT, FOR, INK, PAPER, blend, draw_level, font, pools

SIDE, LONGEST = 270, 540  # a panel has the area of a square of SIDE pixels, and no side beyond LONGEST
MARGIN, GAP, WIDEST = 18, 20, 1310  # pixels around and between panels; of all panels of a row together
TEXT_WIDTH = 260


class Look(NamedTuple):
    """What the network saw of a picture.

    Attributes:
        box: the part of it, in its own pixels: left, top, right, bottom.
        height: of the network's input.
        width: of the network's input.
    """

    box: Box
    height: int
    width: int


def draw(
    picture: Image.Image,
    title: str,
    look: Look,
    best: Sequence[tuple[str, float]],
    evidence: Attribution,
    field: ReceptiveField,
) -> Image.Image:
    """The picture, its likeliest classes, and a panel for each level of the pyramid.

    Args:
        picture: RGB.
        title: its name.
        look: what the network saw of it.
        best: classes and probabilities, the likeliest first; the evidence is that for the first one.
        evidence: what the bins say.
        field: where the map's cells look.
    """
    scale = panel_scale(look)
    size = (max(1, round(look.width * scale)), max(1, round(look.height * scale)))
    limit = max(1e-9, *(float(level.bins.abs().max()) for level in evidence.levels))
    panels = [_whole(picture, look, size), _answer(best, max(size[1], _answer_height(best)))]
    titles = [
        (_fit(title, max(size[0], 150), 15), f"{picture.width} x {picture.height} pixels"),
        ("The network's answer", f"the likeliest {len(best)} classes" if len(best) > 1 else ""),
    ]
    for level in evidence.levels:
        panels.append(
            draw_level(picture.resize(size, Image.Resampling.BILINEAR, box=look.box), level, field, scale, limit)
        )
        titles.append((_name(level), f"together {_number(float(level.bins.sum()))}"))
    return _page(panels, titles, _legend(evidence, best[0][0], limit))


def panel_scale(look: Look) -> float:
    """Pixels of a panel for one of the network's input."""
    return min(SIDE / sqrt(look.width * look.height), LONGEST / max(look.width, look.height))


def _name(level: Level) -> str:
    rows, cols = level.bins.shape
    return f"{rows} x {cols} {'cells' if level.grid.pool == 'cells' else 'bins' if rows > 1 else 'bin'}"


def _whole(picture: Image.Image, look: Look, size: tuple[int, int]) -> Image.Image:
    """The picture as it is, as large as a panel allows, with a frame around what the network saw of it."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    if look.box != (0.0, 0.0, float(picture.width), float(picture.height)):
        scale = min(SIDE / sqrt(picture.width * picture.height), LONGEST / max(picture.size))
    shown = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    if look.box != (0.0, 0.0, float(picture.width), float(picture.height)):
        left, top, right, bottom = (edge * scale for edge in look.box)
        pen = ImageDraw.Draw(shown)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=INK, width=3)
        pen.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=PAPER)
    return shown


def _answer_height(best: Sequence[tuple[str, float]]) -> int:
    return 34 * min(len(best), 10)


def _answer(best: Sequence[tuple[str, float]], height: int) -> Image.Image:
    """The likeliest classes with a bar each."""
    panel = Image.new("RGB", (TEXT_WIDTH, height), PAPER)
    pen = ImageDraw.Draw(panel)
    for row, (label, probability) in enumerate(best[: max(1, height // 34)]):
        y = 34 * row
        pen.rectangle((0, y + 19, TEXT_WIDTH - 1, y + 25), fill=(232, 232, 232))
        if probability * TEXT_WIDTH >= 1:
            pen.rectangle((0, y + 19, probability * TEXT_WIDTH - 1, y + 25), fill=FOR if row == 0 else FAINT)
        pen.text((0, y), _fit(label, TEXT_WIDTH - 70, 14), INK, font(14))
        pen.text((TEXT_WIDTH - 1, y), _percent(probability), INK, font(14), anchor="ra")
    return panel


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.001 else "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"


def _legend(evidence: Attribution, label: str, limit: float) -> Image.Image:
    """What colours, numbers and dots mean, and how the score comes about."""
    pieces = _explanation(evidence, label)
    wide = max(font(13).getlength(piece) for piece in pieces)
    panel = Image.new("RGB", (round(TEXT_WIDTH + GAP + wide), max(56, 21 * len(pieces))), PAPER)
    pen = ImageDraw.Draw(panel)
    ramp = np.linspace(-limit, limit, TEXT_WIDTH, dtype=np.float32)[None, :, None].repeat(14, 0)
    panel.paste(Image.fromarray(blend(np.full(ramp.shape, 225, np.float32), ramp, limit)), (0, 20))
    pen.text((0, 0), "speaks against it", INK, font(13))
    pen.text((TEXT_WIDTH - 1, 0), "speaks for it", INK, font(13), anchor="ra")
    for x, anchor, value in ((0, "la", -limit), (TEXT_WIDTH // 2, "ma", 0.0), (TEXT_WIDTH - 1, "ra", limit)):
        pen.text((x, 38), f"{value:+.2f}" if value else "0", FAINT, font(13), anchor=anchor)
    for row, piece in enumerate(pieces):
        pen.text((TEXT_WIDTH + GAP, 21 * row), piece, INK, font(13))
    return panel


def _explanation(evidence: Attribution, label: str) -> list[str]:
    levels, grids = evidence.levels, [level.grid for level in evidence.levels]
    kept = {"max": "one number per bin: the strongest", "avg": "one number per bin: the mean", "cells": "the mean"}
    made = [f"Of each channel of its feature map the network keeps {kept[grids[0].pool]}."]
    what = "Colour: what a cell adds" if grids[0].pool == "cells" else "Colour and number: what a bin adds"
    made.append(f"{what} to the score (logit) of '{_fit(label, 240, 13)}'.")
    if any(pools(grid) for grid in grids):
        made.append("White dot: the cell of the feature map that adds the most in its bin.")
    if any(a[1] > b[0] for grid in grids for edges in (grid.rows, grid.cols) for a, b in pairwise(edges)):
        made.append("Between two lines side by side: cells that neighbouring bins share.")
    parts = [(float(level.bins.sum()), _name(level).rpartition(" ")[0]) for level in levels]
    terms = [f"{_number(value)} ({name})" for value, name in [*parts, (evidence.rest, "biases")]]
    return [*made, f"Score: {' '.join(terms)} = {_number(evidence.logit)}."]


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # never -0.00


def _page(panels: Sequence[Image.Image], titles: Sequence[tuple[str, str]], legend: Image.Image) -> Image.Image:
    """Panels in rows of equally many, each below its title, the legend below them all."""
    head, count = 42, len(panels)
    for rows in range(1, count + 1):
        across = -(-count // rows)
        widths = [max(130, *(panel.width for panel in panels[col::across])) for col in range(across)]
        if sum(widths) + GAP * (across - 1) <= WIDEST:
            break
    wide = max(legend.width, sum(widths) + GAP * (across - 1))
    heights = [head + GAP + max(p.height for p in panels[i : i + across]) for i in range(0, count, across)]
    page = Image.new("RGB", (wide + 2 * MARGIN, sum(heights) + legend.height + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    for number, (panel, (title, below)) in enumerate(zip(panels, titles, strict=True)):
        x = MARGIN + sum(widths[: number % across]) + GAP * (number % across)
        y = MARGIN + sum(heights[: number // across])
        pen.text((x, y), title, INK, font(15))
        pen.text((x, y + 20), below, FAINT, font(13))
        page.paste(panel, (x, y + head))
    page.paste(legend, (MARGIN, MARGIN + sum(heights)))
    return page


def _fit(text: str, width: int, size: int) -> str:
    """`text`, its beginning left out if it is wider than `width` pixels."""
    while len(text) > 4 and font(size).getlength(text) > width:
        text = "..." + text[4:]
    return text
