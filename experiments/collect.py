"""A study's runs as evidence: a CSV with a row per run, a Markdown table over seeds, and a figure.

`python experiments/collect.py runs/STUDY --by head.name [--keep]`: rows are the values of the keys in `--by`; each is
the mean over seeds with its standard deviation; of every pair of rows the difference, paired by seed, with its 95 %
interval.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t  # type: ignore[import-untyped]

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Group = dict[int, Row]  # by seed


def look_up(cfg: Any, key: str) -> str:
    """The value of a dotted key, as text; lists without blanks."""
    for part in key.split("."):
        cfg = cfg[part]
    return str(cfg).replace(" ", "")


def read(run: Path, by: Sequence[str]) -> Row:
    """One run: what it is, what made it, and its figures."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    last = json.loads((run / "provenance.json").read_text())["starts"][-1]
    return {
        "run": run.name,
        "row": " ".join(look_up(cfg, key) for key in by),
        "seed": cfg["seed"],
        "commit": str(last["code"]["commit"])[:10] + ("+changes" if last["code"]["dirty"] else ""),
        "machine": f"{last['machine']['cores']} cores, {last['machine']['processor']}",
        "time": last["time"],
        **json.loads((run / "summary.json").read_text()),
    }


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"


def paired(one: Group, other: Group, figure: str) -> str:
    """The difference of two rows, paired by seed, with half its 95 % interval (Student's t), in points."""
    both = sorted(one.keys() & other.keys())
    apart = 100 * np.array([one[seed][figure] - other[seed][figure] for seed in both])
    half = t.ppf(0.975, len(both) - 1) * apart.std(ddof=1) / np.sqrt(len(both))
    return f"{apart.mean():+.2f} ± {half:.2f}"


def table(groups: Mapping[str, Group], figures: Sequence[str]) -> list[str]:
    """Markdown: rows over seeds, then pairs of rows."""
    head = "".join(f" {figure.removeprefix('test/')} |" for figure in figures)
    lines = [f"| | seeds |{head} seconds |", f"|---|---|{'---|' * len(figures)}---|"]
    for name, group in groups.items():
        cells = "".join(f" {spread([row[figure] for row in group.values()])} |" for figure in figures)
        lines.append(f"| {name} | {len(group)} |{cells} {np.mean([row['seconds'] for row in group.values()]):.0f} |")
    lines += ["", f"| difference, paired by seed |{head}", f"|---|{'---|' * len(figures)}"]
    for one, other in combinations(groups, 2):
        cells = "".join(f" {paired(groups[one], groups[other], figure)} |" for figure in figures)
        lines.append(f"| {one} - {other} |{cells}")
    return lines


def draw(groups: Mapping[str, Group], figures: Sequence[str], where: Path) -> None:
    """Every seed as a dot, the mean as a bar; a column of the figure for each of `figures`."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(1.2 + 2.2 * len(figures), 2.8), layout="constrained")
    axes = drawing.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axis, figure in zip(axes, figures, strict=True):
        for place, group in enumerate(groups.values()):
            values = [100 * row[figure] for row in group.values()]
            axis.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.5, markersize=4)
            axis.plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color="black")
        axis.set_xticks(range(len(groups)), list(groups), rotation=30, ha="right", fontsize=7)
        axis.set_xlim(-0.6, len(groups) - 0.4)
        axis.set_title(figure.removeprefix("test/"), fontsize=8)
    axes[0].set_ylabel("%")
    drawing.savefig(where, metadata={"Date": None})


def main() -> None:
    """Read the study, print its table and keep what it came from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--by", nargs="+", required=True)
    parser.add_argument("--figures", nargs="+", default=["test/top1"])
    parser.add_argument("--keep", action="store_true", help="write experiments/results/STUDY.{csv,md,svg}")
    arguments = parser.parse_args()
    rows = [read(path.parent, arguments.by) for path in sorted(arguments.study.glob("*/summary.json"))]
    groups: dict[str, Group] = {}
    for row in sorted(rows, key=lambda row: (row["row"], row["seed"])):
        groups.setdefault(row["row"], {})[row["seed"]] = row
    lines = table(groups, arguments.figures)
    print("\n".join(lines))
    if not arguments.keep:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.study.name}.md").write_text("\n".join(lines) + "\n")
    draw(groups, arguments.figures, RESULTS / f"{arguments.study.name}.svg")
    with (RESULTS / f"{arguments.study.name}.csv").open("w", newline="") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
