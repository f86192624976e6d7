"""Draws a table as an SVG figure on a white background, readable in print and on any screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sppnet.report.table import Column, Row, Table
from sppnet.statistics import MIN_PAIRS, Spread, spread

BLUE, GREY = "#0072B2", "#555555"  # Okabe and Ito's blue, which every reader can tell from black, even in print
STYLE: Any = {"svg.hashsalt": "sppnet", "font.size": 9, "svg.fonttype": "path", "axes.spines.top": False}
MAX_PANELS = 6
CHARACTER_INCHES = 0.075  # approximate width of a character in a label


def draw_svg(table: Table) -> str | None:
    """Draw the figure that `report.figure` names; None if the table has no results."""
    if not any(row.results for row in table.rows) or not table.columns:
        return None
    kinds: dict[str, Callable[[Table], Figure]] = {"rows": _draw_rows, "bins": _draw_bins, "sizes": _draw_sizes}
    with mpl.rc_context(STYLE | {"axes.spines.right": False}):
        figure = kinds[table.report.figure](table)
        out = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        # "tight" enlarges the page to hold every label
        figure.savefig(out, format="svg", metadata=metadata, facecolor="white", bbox_inches="tight")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _draw_rows(table: Table) -> Figure:
    """Draw a panel per metric, with a dot per seed and, below the dots, the mean and its interval."""
    columns, names = table.columns[:MAX_PANELS], [row.label for row in table.rows]
    figure = Figure(figsize=(_label_inches(names) + 2.6 * len(columns), 1.1 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for y, row in enumerate(table.rows):
            values = _values(column, row)
            axis.plot(values, [y - 0.16] * len(values), "o", color=BLUE, alpha=0.45, markersize=3.5, mew=0)
            _draw_mean(axis, values, y + 0.12)
        axis.set_xlabel(f"{column.label}{column.unit}")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.45, -0.55)
    return figure


def _draw_bins(table: Table) -> Figure:
    """Plot the means of the first two metrics against the number of bins, with intervals and a label per row."""
    columns = table.columns[:2]
    figure = Figure(figsize=(0.8 + 4.2 * len(columns), 3.6), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for row in table.rows:
            values = _values(column, row)
            bins = next((result.provenance["bins"] for result in row.results.values()), None)
            if not values or bins is None:
                continue
            row_spread = spread(values)
            assert row_spread is not None
            half = _drawn_half(row_spread)
            axis.errorbar(bins, row_spread.mean, yerr=half, fmt="o", color=BLUE, ecolor=GREY, capsize=3, markersize=5)
            axis.annotate(
                row.label, (bins, row_spread.mean), (5, 4), textcoords="offset points", fontsize=7, color="black"
            )
        axis.set_xscale("log")
        ticks = sorted({int(result.provenance["bins"]) for row in table.rows for result in row.results.values()})
        axis.set_xticks(_thin_out(ticks), [str(tick) for tick in _thin_out(ticks)])
        axis.minorticks_off()
        axis.set_xlabel("bins of the pyramid")
        axis.set_ylabel(f"{column.label}{column.unit}")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.margins(x=0.12)
    return figure


def _draw_sizes(table: Table) -> Figure:
    """Draw a heat map of training setting against test size, with the mean of the first metric in every cell."""
    metric = table.columns[0].name
    columns = [column for column in table.columns if column.name == metric]
    means = np.full((len(table.rows), len(columns)), np.nan)
    for i, row in enumerate(table.rows):
        for j, column in enumerate(columns):
            values = _values(column, row)
            means[i, j] = np.mean(values) if values else np.nan
    names = [row.label for row in table.rows]
    width, height = _label_inches(names) + 0.8 + 0.75 * means.shape[1], 1.2 + 0.42 * means.shape[0]
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    heat_map = axis.imshow(means, cmap="cividis", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (i, j), value in np.ndenumerate(means):
        colour = "black" if np.isnan(value) or value > middle else "white"
        text = "-" if np.isnan(value) else f"{value:{'.1f' if table.columns[0].percent else '.3g'}}"
        axis.text(j, i, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(means.shape[1]), [column.label.partition(" at ")[2] or column.label for column in columns])
    axis.set_yticks(range(means.shape[0]), names)
    axis.set_xlabel("tested at")
    axis.set_ylabel("trained at")
    figure.colorbar(heat_map, ax=axis, label=f"{metric}{table.columns[0].unit}")
    return figure


def _draw_mean(axis: Axes, values: Sequence[float], y: float) -> None:
    row_spread = spread(values)
    if row_spread is not None:
        half = _drawn_half(row_spread)
        axis.errorbar(row_spread.mean, y, xerr=half, fmt="s", color="black", ecolor=GREY, capsize=3, markersize=4)


def _drawn_half(row_spread: Spread) -> float | None:
    """Return half the width of the confidence interval; None for fewer than `MIN_PAIRS` values.

    The 95 % confidence interval for the mean of only two values is 13 times as wide as the difference between them, and
    would stretch the axis.
    """
    return row_spread.half if row_spread.n >= MIN_PAIRS else None


def _label_inches(names: Sequence[str]) -> float:
    """Return the width in inches that row labels need."""
    return 0.6 + CHARACTER_INCHES * max(map(len, names))


def _values(column: Column, row: Row) -> list[float]:
    """Return the row's values of a metric, one per seed, in percent if the column is."""
    factor = 100 if column.percent else 1
    return [factor * value for value in row.values(column.metric).values()]


def _thin_out(ticks: Sequence[int]) -> list[int]:
    """Drop each of the sorted `ticks` whose label would overlap the label before it on a logarithmic axis."""
    spaced: list[int] = []
    for tick in ticks:
        if not spaced or tick / spaced[-1] > 1.25:
            spaced.append(tick)
    return spaced
