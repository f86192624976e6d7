"""Draws a confusion matrix as an SVG figure."""

from __future__ import annotations

import io
import warnings

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sppnet.report.figures import STYLE

MAX_COUNTS, MAX_NAMES = 20, 60  # classes up to which cells have their counts, and the axes the names of the classes
LONGEST = 24  # characters of a name


def draw_confusion(classes: list[str], rows: list[list[int]]) -> str:
    """Draw a confusion matrix, shaded by the share of each true class (row), as the text of an SVG file."""
    counts = np.array(rows)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, max(3.2, 0.34 * len(classes)))
    # The names are text, because the viewer's fonts have more characters than Matplotlib's, which warns of those.
    with mpl.rc_context(STYLE | {"text.parse_math": False, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=(side + 1.4, side + 1.0), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        if len(classes) <= MAX_NAMES:
            names = ["".join(c if c.isprintable() else "�" for c in name) for name in classes]
            names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
            axis.set_xticks(range(len(names)), names, rotation=90)
            axis.set_yticks(range(len(names)), names)
        if len(classes) <= MAX_COUNTS:
            for (i, j), count in np.ndenumerate(counts):
                if count:
                    axis.text(
                        j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black"
                    )
        figure.colorbar(image, label="share of the true class", shrink=0.8)
        out = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        figure.savefig(out, format="svg", metadata=metadata, facecolor="white", bbox_inches="tight")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
