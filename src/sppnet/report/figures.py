"""A table as a figure, in the form that suits its question; on white, so that it reads in print and on any screen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sppnet.report.table import Column, Row, Table
from sppnet.statistics import FEWEST, Spread, spread

BLUE, GREY = "#0072B2", "#555555"  # Okabe and Ito's blue: told apart from black by everybody, and in print
STYLE: Any = {"svg.hashsalt": "sppnet", "font.size": 9, "svg.fonttype": "path", "axes.spines.top": False}
MOST = 6  # panels beside each other
CHARACTER = 0.075  # inches of one in a label, about


def svg(table: Table) -> str | None:
    """The figure that `report.figure` asks for; None if there is nothing to show."""
    if not any(row.results for row in table.rows) or not table.columns:
        return None
    kinds: dict[str, Callable[[Table], Figure]] = {"rows": _rows, "bins": _bins, "sizes": _sizes}
    with mpl.rc_context(STYLE | {"axes.spines.right": False}):
        drawing = kinds[str(table.report["figure"])](table)
        out = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        # tight: as large as all that is drawn, so that no label is cut off
        drawing.savefig(out, format="svg", metadata=metadata, facecolor="white", bbox_inches="tight")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _rows(table: Table) -> Figure:
    """A panel per figure: every seed a dot, the mean and its interval beside them."""
    columns, names = table.columns[:MOST], [row.label for row in table.rows]
    drawing = Figure(figsize=(_room(names) + 2.6 * len(columns), 1.1 + 0.34 * len(names)), layout="constrained")
    axes = drawing.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for place, row in enumerate(table.rows):
            values = _percent(column, row)
            axis.plot(values, [place - 0.16] * len(values), "o", color=BLUE, alpha=0.45, markersize=3.5, mew=0)
            _mean(axis, values, place + 0.12)
        axis.set_xlabel(_unit(column))
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.45, -0.55)
    return drawing


def _bins(table: Table) -> Figure:
    """The first figures over the number of bins, with the interval of the mean; a point is called by its row."""
    columns = table.columns[:2]
    drawing = Figure(figsize=(0.8 + 4.2 * len(columns), 3.6), layout="constrained")
    axes = drawing.subplots(1, len(columns), squeeze=False)[0]
    for axis, column in zip(axes, columns, strict=True):
        for row in table.rows:
            values = _percent(column, row)
            bins = next((one.made["bins"] for one in row.results.values()), None)
            if not values or bins is None:
                continue
            one = spread(values)
            assert one is not None
            axis.errorbar(bins, one.mean, yerr=_half(one), fmt="o", color=BLUE, ecolor=GREY, capsize=3, markersize=5)
            axis.annotate(row.label, (bins, one.mean), (5, 4), textcoords="offset points", fontsize=7, color="black")
        axis.set_xscale("log")
        ticks = sorted({int(one.made["bins"]) for row in table.rows for one in row.results.values()})
        axis.set_xticks(_apart(ticks), [str(tick) for tick in _apart(ticks)])
        axis.minorticks_off()
        axis.set_xlabel("bins of the pyramid")
        axis.set_ylabel(_unit(column))
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.margins(x=0.12)
    return drawing


def _sizes(table: Table) -> Figure:
    """Training setting against test size, the mean of the first figure written into every cell."""
    first = table.columns[0].label.partition(" at ")[0]
    columns = [column for column in table.columns if column.label.partition(" at ")[0] == first]
    means = np.full((len(table.rows), len(columns)), np.nan)
    for i, row in enumerate(table.rows):
        for j, column in enumerate(columns):
            values = _percent(column, row)
            means[i, j] = np.mean(values) if values else np.nan
    names = [row.label for row in table.rows]
    drawing = Figure(
        figsize=(_room(names) + 0.8 + 0.75 * means.shape[1], 1.2 + 0.42 * means.shape[0]), layout="constrained"
    )
    axis = drawing.subplots()
    image = axis.imshow(means, cmap="cividis", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (i, j), value in np.ndenumerate(means):
        colour = "black" if np.isnan(value) or value > middle else "white"
        axis.text(j, i, "-" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(means.shape[1]), [column.label.partition(" at ")[2] or column.label for column in columns])
    axis.set_yticks(range(means.shape[0]), names)
    axis.set_xlabel("tested at")
    axis.set_ylabel("trained at")
    drawing.colorbar(image, ax=axis, label=first if first.endswith("loss") else f"{first} (%)")
    return drawing


def _mean(axis: Axes, values: Sequence[float], place: float) -> None:
    one = spread(values)
    if one is not None:
        axis.errorbar(one.mean, place, xerr=_half(one), fmt="s", color="black", ecolor=GREY, capsize=3, markersize=4)


def _half(one: Spread) -> float | None:
    """Half of the interval, if it is drawn: that of two values is 13 deviations wide, and says less than the two."""
    return one.half if one.n >= FEWEST else None


def _room(names: Sequence[str]) -> float:
    """Inches for the names of the rows."""
    return 0.6 + CHARACTER * max(map(len, names))


def _percent(column: Column, row: Row) -> list[float]:
    factor = 1 if column.metric.endswith("loss") else 100
    return [factor * value for value in row.values(column.metric).values()]


def _unit(column: Column) -> str:
    return column.label if column.metric.endswith("loss") else f"{column.label} (%)"


def _apart(ticks: Sequence[int]) -> list[int]:
    """Those of the sorted `ticks` that a logarithmic axis has room for."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick / kept[-1] > 1.25:
            kept.append(tick)
    return kept
