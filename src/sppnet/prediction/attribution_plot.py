"""Plot what each bin of a pyramid adds to the logit of a class, as colours over the image, with a legend."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from sppnet.data.crops import Box
from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import Attribution, FloatArray, Level, cell_edges

Size = tuple[int, int]
Classes = Sequence[tuple[str, float]]
FOR, AGAINST, INK, FAINT, TRACK = "#e85d04", "#1d4ed8", "#1c1c1c", "#686868", "#e2e2e2"  # colour-blind safe
# The exponent makes small contributions visible; the opacity is at most 0.85, so the image always shows through.
SHADES = ListedColormap([to_rgba(FOR if v > 0 else AGAINST, 0.85 * abs(v) ** 0.7) for v in np.linspace(-1, 1, 255)])
# parse_math: a "$" in a name is plain text, not the start of a formula
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 12, "text.color": INK, "text.parse_math": False}
# All sizes are in pixels. A panel has the area of a SIDE x SIDE square, or less if one of its sides would otherwise be
# longer than LONGEST. A column is at least NARROWEST wide.
SIDE, LONGEST, NARROWEST, WIDEST, MARGIN, GAP, HEADER, CLASS, BAR = 270, 540, 210, 1384, 18, 20, 44, 33, 260
OUTLINE = [withStroke(linewidth=4, foreground="white")]
UNITS = {
    "max": "bin (the maximum of its cells)",
    "avg": "bin (the mean of its cells)",
    "avgmax": "bin (half the maximum and half the mean of its cells)",
    "cells": "cell",
}


def plot_attribution(
    image: Image.Image,
    name: str,
    box: Box,
    view: Size,
    classes: Classes,
    attribution: Attribution,
    field: ReceptiveField,
) -> Image.Image:
    """Plot an RGB image, its likeliest classes (at most 10), a panel per level of the pyramid, and a legend.

    The network sees the region `box` of the image, resized to `view` (width, height). `classes` holds names and
    probabilities, and `attribution` explains the score of the first class.
    """
    levels, classes, panel, whole = attribution.levels, classes[:10], _panel_size(*view), _panel_size(*image.size)
    column = max(NARROWEST, panel[0], whole[0]) + GAP
    row, extra = HEADER + panel[1] + GAP, max(0, whole[1] - panel[1], CLASS * len(classes) - panel[1])
    rows = ceil((len(levels) + 2) / (WIDEST // column))
    columns = ceil((len(levels) + 2) / rows)
    tops = [MARGIN + HEADER + i * row + (i > 0) * extra for i in range(rows + 1)]
    places = [(MARGIN + i % columns * column, tops[i // columns]) for i in range(len(levels) + 2)]
    width, bottom = columns * column - GAP + 2 * MARGIN, tops[-1] - HEADER
    frame = "" if box == (0, 0, *image.size) else ", frame: the part seen"
    titles = [(name, f"{image.width} x {image.height} pixels{frame}"), ("Prediction", "the likeliest classes")]
    titles += [(level.name, level.summary) for level in levels]
    legend = "\n".join(textwrap.fill(line, (width - 316) // 7) for line in _explain(attribution, classes[0][0]))
    paper = Image.new("RGB", (width, bottom + 18 * max(3, legend.count("\n") + 1) + MARGIN), "white")
    paper.paste(image.resize(whole), places[0])
    part = image.resize(panel, Image.Resampling.BILINEAR, box=box).convert("L").point(lambda v: 140 + 0.45 * v)
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # such characters are shown as boxes
        figure = Figure(figsize=(width / 72, paper.height / 72), dpi=72)  # at 72 dpi, a point is a pixel
        canvas, page = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(paper.height, 0))
        page.set_axis_off()
        for (x, y), (title, subtitle) in zip(places, titles, strict=True):
            page.text(x, y - 40, _one_line(title, column // 10), size=14, va="top")
            page.text(x, y - 20, subtitle, color=FAINT, va="top")
        if frame:
            xs, ys = (places[0][i] + np.array(box[i::2]) * whole[i] / image.size[i] for i in (0, 1))
            page.plot(xs[[0, 1, 1, 0, 0]], ys[[0, 0, 1, 1, 0]], color=INK, linewidth=2, path_effects=OUTLINE)
        _list_classes(page, classes, *places[1], min(column - GAP, BAR))
        limit = max(1e-9, *(level.bins.abs().max().item() for level in levels))
        for (x, y), level in zip(places[2:], levels, strict=True):
            paper.paste(part, (x, y))
            x_edges = x + panel[0] / view[0] * cell_edges(level.grid.cols[-1][1], field, view[0])
            y_edges = y + panel[1] / view[1] * cell_edges(level.grid.rows[-1][1], field, view[1])
            _plot_level(page, level, x_edges, y_edges, limit)
        page.imshow(paper, extent=(0, width, paper.height, 0), aspect="auto", interpolation="nearest")
        bar = np.linspace(-1, 1, BAR)
        page.pcolormesh(MARGIN + np.arange(BAR + 1), (bottom + 20, bottom + 34), bar[None], cmap=SHADES)
        page.text(MARGIN, bottom, f"lowers the score\n\n{-limit:.3g}", va="top", linespacing=1.5)
        page.text(MARGIN + BAR, bottom, f"raises the score\n\n{limit:+.3g}", va="top", ha="right", linespacing=1.5)
        page.text(MARGIN + BAR + GAP, bottom, legend, va="top", linespacing=1.5)
        canvas.draw()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def _panel_size(width: int, height: int) -> Size:
    scale = min(SIDE / sqrt(width * height), LONGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _list_classes(page: Axes, classes: Classes, x: float, y: float, width: float) -> None:
    for top, (label, share) in zip(y + CLASS * np.arange(len(classes)), classes, strict=True):
        page.barh(top + 24, [width, width * share], 7, left=x, color=[TRACK, FOR if top == y else FAINT])
        percent = "< 0.1 %" if share < 0.001 else "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"
        page.text(x, top + 2, _one_line(label, (width - 60) // 8), va="top")
        page.text(x + width, top + 2, percent, va="top", ha="right")


def _plot_level(page: Axes, level: Level, x_edges: FloatArray, y_edges: FloatArray, limit: float) -> None:
    """Shade the bins, put a dot on the cell that adds most in each bin, and print the bins' values if all fit."""
    bins, rows, cols = level.bins.numpy(), y_edges[np.array(level.grid.rows)], x_edges[np.array(level.grid.cols)]
    total, count = np.zeros((2, len(y_edges) - 1, len(x_edges) - 1))
    for (i, j), value in np.ndenumerate(bins):
        cells = slice(*level.grid.rows[i]), slice(*level.grid.cols[j])
        total[cells] += value
        count[cells] += 1
    page.pcolormesh(x_edges, y_edges, total / np.maximum(count, 1), cmap=SHADES, vmin=-limit, vmax=limit)
    if bins.size == total.size:  # each bin is a single cell: draw no lines, dots or values
        return
    page.hlines(np.unique(rows), x_edges[0], x_edges[-1], INK, linewidth=1, alpha=0.45)
    page.vlines(np.unique(cols), y_edges[0], y_edges[-1], INK, linewidth=1, alpha=0.45)
    won = level.winners[level.winners[..., 0] >= 0].numpy()
    dots = np.stack([(x_edges[:-1] + x_edges[1:])[won[:, 1]], (y_edges[:-1] + y_edges[1:])[won[:, 0]]], 1) / 2
    page.plot(*dots.T, "o", markersize=8, markerfacecolor="white", markeredgecolor=INK, markeredgewidth=1)
    for axis in (rows, cols):  # print each value in the part of its bin that overlaps no other bin
        axis[1:, 0], axis[:-1, 1] = np.maximum(axis[1:, 0], axis[:-1, 1]), np.minimum(axis[1:, 0], axis[:-1, 1])
    half = np.array([4 * max(len(f"{value:+z.2f}") for value in bins.flat), 9])  # half the width and height of the text
    if np.diff(cols).min() < 2 * half[0] or np.diff(rows).min() < 2.6 * half[1]:
        return
    for (i, j), value in np.ndenumerate(bins):
        xs, ys = np.array([cols[j], rows[i]]) + np.outer(half, (1, -1))
        spots = [(x, y) for x in (xs.mean(), *xs) for y in (ys.mean(), *ys)]
        # for each spot, the distance to the nearest dot, capped at 1; a value printed at a distance of 1 touches no dot
        clear = [np.abs((dots - spot) / (half + 5)).max(1).min(initial=1) for spot in spots]
        page.text(*spots[int(np.argmax(clear))], f"{value:+z.2f}", ha="center", va="center", path_effects=OUTLINE)


def _explain(attribution: Attribution, label: str) -> list[str]:
    levels, unit = attribution.levels, UNITS[attribution.levels[0].grid.pool]
    lines = [f"Colour: what a {unit} adds to the score (logit) of '{_one_line(label, 40)}'."]
    if unit != "cell":
        lines.append("White dot: the cell of the feature map that adds most in its bin.")
    if any("overlap" in level.name for level in levels):
        lines.append("Overlapping bins share the cells between close lines; the colour there is the bins' mean.")
    lines.append("Grey margin: cells at the border see it, but no cell is centred there.")
    sums = " ".join(f"{level.bins.sum().item():+z.2f} ({' x '.join(map(str, level.bins.shape))})" for level in levels)
    return [*lines, f"Score: {sums} {attribution.rest:+z.2f} (biases) = {attribution.logit:+z.2f}."]


def _one_line(text: str, most: float) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else f"{text[: int(most) - 1]}…"
